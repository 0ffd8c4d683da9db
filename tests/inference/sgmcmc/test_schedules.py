"""Schedules against the numbers of their papers."""

import numpy as np
import pytest

from pyro_ext.inference import ConstantSchedule, CyclicalSchedule, PolynomialSchedule


def test_cyclical_step_sizes():
    schedule = CyclicalSchedule(0.5, num_cycles=4, num_steps=1000)
    assert schedule.step_sizes(np.array([0, 125, 250])) == pytest.approx([0.5, 0.25, 0.5])
    assert schedule.step_sizes(np.arange(250)).sum() == pytest.approx(62.75)
    assert schedule.is_sampling(np.arange(1000)).all()


def test_cyclical_stages():
    schedule = CyclicalSchedule(0.5, num_cycles=4, num_steps=1000, exploration=0.8)
    sampling = schedule.is_sampling(np.arange(1000))
    for cycle in range(4):
        assert not sampling[250 * cycle : 250 * cycle + 200].any()
        assert sampling[250 * cycle + 200 : 250 * (cycle + 1)].all()


def test_cyclical_rounds_the_cycle_up_and_has_a_minimum():
    schedule = CyclicalSchedule(1.0, num_cycles=3, num_steps=10, minimum=0.25)
    assert schedule.cycle_length == schedule.period == 4
    assert schedule.step_sizes(np.array([0, 2, 4])) == pytest.approx([1.0, 0.625, 1.0])


def test_polynomial():
    schedule = PolynomialSchedule(0.2, exponent=0.6, offset=3.0, start=10)
    steps = np.array([0, 9, 10, 27])
    expected = [0.2, 0.2, 0.2 * 3.0**-0.6, 0.2 * 20.0**-0.6]
    assert schedule.step_sizes(steps) == pytest.approx(expected)


def test_constant():
    assert ConstantSchedule(0.3).step_sizes(np.arange(3)) == pytest.approx([0.3] * 3)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: ConstantSchedule(0.0), "step_size"),
        (lambda: ConstantSchedule(float("nan")), "step_size"),
        (lambda: ConstantSchedule("fast"), "step_size"),
        (lambda: PolynomialSchedule(0.1, exponent=0.5), "exponent"),
        (lambda: PolynomialSchedule(0.1, offset=0.0), "offset"),
        (lambda: PolynomialSchedule(0.1, start=-1), "start"),
        (lambda: CyclicalSchedule(0.1, 0, 10), "num_cycles"),
        (lambda: CyclicalSchedule(0.1, 5, 4), "num_steps"),
        (lambda: CyclicalSchedule(0.1, 2, 10, exploration=1.0), "exploration"),
        (lambda: CyclicalSchedule(0.1, 2, 10, minimum=0.2), "minimum"),
    ],
)
def test_errors_name_the_argument(make, argument):
    with pytest.raises(ValueError, match=argument):
        make()
