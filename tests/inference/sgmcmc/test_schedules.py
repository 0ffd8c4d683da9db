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


def test_cyclical():
    schedule = CyclicalSchedule(0.5, num_cycles=4, num_steps=1000)
    assert schedule.step_sizes(np.arange(250)).sum() == pytest.approx(62.75)
    steps = np.arange(1000)
    assert schedule.is_sampling(steps).all()
    schedule = CyclicalSchedule(0.5, num_cycles=4, num_steps=1000, exploration=0.8)
    assert np.array_equal(schedule.is_sampling(steps), steps % 250 >= 200)
    # Cycles are rounded up.
    schedule = CyclicalSchedule(1.0, num_cycles=3, num_steps=10, minimum=0.25)
    assert schedule.cycle_length == schedule.period == 4
    assert schedule.step_sizes(np.array([0, 2, 4])) == pytest.approx([1.0, 0.625, 1.0])


def test_polynomial():
    schedule = PolynomialSchedule(0.2, exponent=0.6, offset=3.0, start=10)
    steps = np.array([0, 9, 10, 27])
    expected = [0.2, 0.2, 0.2 * 3.0**-0.6, 0.2 * 20.0**-0.6]
    assert schedule.step_sizes(steps) == pytest.approx(expected)


def test_numbers_that_do_not_go_together():
    with pytest.raises(ValueError, match="num_steps"):
        CyclicalSchedule(0.1, 5, 4)
    with pytest.raises(ValueError, match="minimum"):
        CyclicalSchedule(0.1, 2, 10, minimum=0.2)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_largest_step_size_and_all_of_them_rescaled(schedule):
    steps = np.arange(200)
    sizes = schedule.step_sizes(steps)
    assert schedule.max_step_size == pytest.approx(sizes.max(), rel=1e-12)
    rescaled = schedule.rescaled(3.0 * schedule.step_size)
    assert type(rescaled) is type(schedule)
    assert rescaled.step_sizes(steps) == pytest.approx(3.0 * sizes)
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

    early = PolynomialSchedule(0.01, exponent=1.0, offset=1 / 16)
    late = PolynomialSchedule(0.01, exponent=1.0, offset=16.0)
    with pytest.raises(ValueError, match=r"friction times the largest step_size .* 8\.0 \* 0\.16"):
        SGHMC(print, step_size=early, friction=8.0)
    SGHMC(print, step_size=early, friction=6.0)
    SGHMC(print, step_size=late, friction=1000.0)
    with pytest.raises(ValueError, match=r"noise_estimate must be at most 12\.5 "):
        SGLD(print, step_size=early, noise_estimate=13.0)
    SGLD(print, step_size=early, noise_estimate=12.0)
    SGLD(print, step_size=late, noise_estimate=3000.0)
