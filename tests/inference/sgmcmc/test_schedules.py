"""Schedules against the numbers of their papers."""

import numpy as np
import pytest

from pyro_ext.inference import (
    SGHMC,
    SGLD,
    ConstantSchedule,
    CyclicalSchedule,
    PolynomialSchedule,
    Schedule,
)

SCHEDULES = [
    ConstantSchedule(0.3),
    PolynomialSchedule(0.2, offset=0.1),
    PolynomialSchedule(0.2, offset=10.0),
    PolynomialSchedule(0.2, offset=0.1, start=5),
    PolynomialSchedule(0.2, offset=10.0, start=5),
    CyclicalSchedule(0.5, num_cycles=4, num_steps=100, exploration=0.5, minimum=0.1),
]


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


def test_errors_name_the_argument(subtests):
    for make, argument in [
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
    ]:
        with subtests.test(make=make, argument=argument), pytest.raises(ValueError, match=argument):
            make()


def test_the_largest_step_size_is_that_of_some_step(subtests):
    for schedule in SCHEDULES:
        with subtests.test(schedule=schedule):
            taken = schedule.step_sizes(np.arange(200)).max()
            assert schedule.max_step_size == pytest.approx(taken, rel=1e-12)


def test_rescaling_multiplies_every_step(subtests):
    for schedule in SCHEDULES:
        with subtests.test(schedule=schedule):
            steps = np.arange(200)
            rescaled = schedule.rescaled(3.0 * schedule.step_size)
            assert type(rescaled) is type(schedule)
            assert rescaled.step_sizes(steps) == pytest.approx(3.0 * schedule.step_sizes(steps))
            assert (rescaled.is_sampling(steps) == schedule.is_sampling(steps)).all()
            with pytest.raises(ValueError, match="step_size must be a finite number > 0, got -1"):
                schedule.rescaled(-1.0)


def test_a_schedule_that_is_no_dataclass_is_not_rescaled():
    class Fixed(Schedule):
        step_size = 0.1

    assert Fixed().max_step_size == 0.1
    with pytest.raises(TypeError, match="Fixed cannot be rescaled"):
        Fixed().rescaled(0.2)


def test_kernels_check_the_largest_step_that_a_schedule_takes():
    """An offset of 1/16 with exponent 1 starts at 16 times the step size, one of 16 at 1/16."""

    def potential_fn(params):
        return params["x"].square().sum()

    early = PolynomialSchedule(0.01, exponent=1.0, offset=1 / 16)
    late = PolynomialSchedule(0.01, exponent=1.0, offset=16.0)
    with pytest.raises(ValueError, match=r"friction times the largest step_size .* 8\.0 \* 0\.16"):
        SGHMC(potential_fn=potential_fn, step_size=early, friction=8.0)
    SGHMC(potential_fn=potential_fn, step_size=early, friction=6.0)
    SGHMC(potential_fn=potential_fn, step_size=late, friction=1000.0)
    with pytest.raises(ValueError, match=r"noise_estimate must be at most 12\.5 "):
        SGLD(potential_fn=potential_fn, step_size=early, noise_estimate=13.0)
    SGLD(potential_fn=potential_fn, step_size=early, noise_estimate=12.0)
    SGLD(potential_fn=potential_fn, step_size=late, noise_estimate=3000.0)
