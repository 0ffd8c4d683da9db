"""Roots of monotone functions by Newton's method inside a bracket."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_ext.special.operations import holds_everywhere, may_hold_everywhere

__all__ = ["holds_everywhere", "may_hold_everywhere", "solve_monotone"]

_NUM_STEPS = 48
_STEP = 1e-13
_RESIDUAL = 4e-15


def solve_monotone(
    function: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor, Tensor], Tensor],
    target: Tensor,
    low: Tensor,
    high: Tensor,
) -> Tensor:
    """Solve an equation with a monotone function, elementwise.

    A step of Newton's method that leaves the bracket, or follows one that did not halve the
    residual, is replaced by halving the bracket, so that neither flat nor steep functions do harm.
    A place is final where the step from it, or the residual there, is as small as rounding.

    :param function: maps places to values.
    :param slope: its derivative, of places and the values there, positive everywhere or negative
        everywhere.
    :param Tensor target: the value that is sought.
    :param Tensor low: a place left of the solution. **Shape:** that of ``target``.
    :param Tensor high: a place right of it. **Shape:** that of ``target``.
    :returns: the solution, with gradients in the target and in what the function depends on; where
        there is none, the nearest end of the bracket.
    """
    with torch.no_grad():
        place = 0.5 * (low + high)
        previous = torch.full_like(place, torch.inf)
        is_found = torch.zeros_like(place, dtype=torch.bool)
        for _ in range(_NUM_STEPS):
            value = function(place)
            rate, residual = slope(place, value), value - target
            # A slope that underflows keeps its sign.
            is_beyond = torch.where(rate.signbit(), residual < 0, residual > 0)
            low, high = torch.where(is_beyond, low, place), torch.where(is_beyond, place, high)
            newton = place - residual / rate
            is_near = (newton - place).abs() <= _STEP * place.abs().clamp(min=1.0)
            is_last = is_near & rate.isfinite()
            is_good = (newton >= low) & (newton <= high) & (residual.abs() < 0.5 * previous)
            step = torch.where(is_good | is_last, newton, 0.5 * (low + high))
            is_found = is_found | (residual.abs() <= _RESIDUAL * target.abs().clamp(min=1.0))
            place, previous = torch.where(is_found, place, step), residual.abs()
            is_found = is_found | is_last
            if holds_everywhere(is_found):
                break
        rate = slope(place, function(place))
        # Where there is no solution, the place is an end of the bracket and the slope has vanished.
        rate = torch.where(rate == 0, torch.inf, rate)
    residual = function(place) - target
    return place - (residual - residual.detach()) / rate
