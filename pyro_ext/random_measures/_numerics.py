"""Numbers in float64 and their logarithms, roots of monotone functions, and log-concave draws."""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.distributions.bases import by_rejection
from pyro_ext.special import log_exprel, log_upper_gamma
from pyro_ext.special.operations import holds_everywhere
from pyro_ext.special.quadrature import points_of_fall

_LARGEST_LOG = 700.0
_LEAST_LOG = -690.0
_NUM_STEPS = 48
_STEP = 1e-13
_RESIDUAL = 4e-15
_HALF = 0.5


def as_double(value: Any, argument: str = "value") -> Tensor:
    """Return a number, a list or a tensor in float64."""
    if isinstance(value, Real):
        return torch.as_tensor(value, dtype=torch.float64)
    return checks.as_tensor(argument, value, allow_empty=True, dtype=torch.float64)


def log_if_positive(value: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of a number, zero where it is not positive, and whether it is."""
    is_positive = value > 0
    return torch.where(is_positive, value, 1.0).log(), is_positive


def log_sum(log_value: Tensor, value: Tensor) -> Tensor:
    r""":math:`\log(e^l + x)`, with a gradient also where :math:`x` is zero."""
    log_other, is_positive = log_if_positive(value)
    return torch.where(is_positive, torch.logaddexp(log_value, log_other), log_value)


def survives(weight: Tensor, tilt: Tensor) -> Tensor:
    """Draw whether an exponential tilt keeps a weight, which has probability exp(-tilt w)."""
    return -torch.log1p(-torch.rand_like(weight)) > tilt * weight


def log_upper_gamma_at_log(power: Tensor, log_value: Tensor) -> Tensor:
    r""":math:`\log \Gamma(a, x)` at :math:`\log x`, also where :math:`x` underflows."""
    inside = log_value.clamp(min=_LEAST_LOG, max=_LARGEST_LOG)
    value = log_upper_gamma(power, inside.exp())
    is_below = log_value < _LEAST_LOG
    # What is missing is the integral of a power between the two points.
    depth = torch.where(is_below, inside - log_value, 1.0)
    rest = power * inside + depth.log() + log_exprel(-power * depth)
    return torch.where(is_below, torch.logaddexp(value, rest), value)


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
    A point is final where the step from it, or the residual there, is as small as rounding.

    The solution has gradients in the target and in what the function depends on; where there is
    none, it is the nearest end of the bracket.
    """
    with torch.no_grad():
        x = 0.5 * (low + high)
        previous = torch.full_like(x, torch.inf)
        is_found = torch.zeros_like(x, dtype=torch.bool)
        for _ in range(_NUM_STEPS):
            value = function(x)
            rate, residual = slope(x, value), value - target
            # A slope that underflows keeps its sign.
            is_beyond = torch.where(rate.signbit(), residual < 0, residual > 0)
            low, high = torch.where(is_beyond, low, x), torch.where(is_beyond, x, high)
            newton = x - residual / rate
            is_near = (newton - x).abs() <= _STEP * x.abs().clamp(min=1.0)
            is_last = is_near & rate.isfinite()
            is_good = (newton >= low) & (newton <= high) & (residual.abs() < 0.5 * previous)
            step = torch.where(is_good | is_last, newton, 0.5 * (low + high))
            is_found = is_found | (residual.abs() <= _RESIDUAL * target.abs().clamp(min=1.0))
            x, previous = torch.where(is_found, x, step), residual.abs()
            is_found = is_found | is_last
            if holds_everywhere(is_found):
                break
        rate = slope(x, function(x))
        # Where there is no solution, the point is an end of the bracket and the slope has vanished.
        rate = torch.where(rate == 0, torch.inf, rate)
    residual = function(x) - target
    return x - (residual - residual.detach()) / rate


def sample_log_concave(
    log_density: Callable[..., Tensor],
    slope: Callable[..., Tensor],
    parameters: Sequence[Tensor],
    peak: Tensor,
    low: Tensor,
    high: Tensor,
) -> Tensor:
    """Draw points from a density that is given but for a constant.

    Its hat is constant about the peak and has exponential tails along the tangents where the
    logarithm has fallen by one, so that more than half of all draws are accepted.

    The density may never reach the ends, the draws have no gradient.
    """
    shape = peak.shape
    with torch.no_grad():
        values = [value.detach().expand(shape).reshape(-1) for value in parameters]
        peak, low, high = (value.detach().expand(shape).reshape(-1) for value in (peak, low, high))
        points = points_of_fall(
            lambda x: log_density(x, *(value[..., None] for value in values)),
            peak,
            low,
            high,
            (1.0,),
        )
        hat = torch.stack([peak, low, high, *points.unbind(-1)], -1)
        draws = by_rejection(
            lambda hat, *values: _propose(log_density, slope, values, hat), hat, *values
        )
    return draws.view(shape)


def _propose(
    log_density: Callable[..., Tensor],
    slope: Callable[..., Tensor],
    values: Sequence[Tensor],
    hat: Tensor,
) -> tuple[Tensor, Tensor]:
    """A draw under the hat, and whether it is accepted."""
    peak, low, high, left, right = hat.unbind(-1)
    top = log_density(peak, *values)
    left_knee, left_mass = _tail(top - log_density(left, *values), left, slope(left, *values))
    right_knee, right_mass = _tail(top - log_density(right, *values), right, slope(right, *values))
    middle = (right_knee - left_knee).clamp(min=0.0)
    choice, x, height = torch.rand((3, *peak.shape), dtype=peak.dtype, device=peak.device)
    choice = choice * (left_mass + middle + right_mass)
    step = -torch.log1p(-x)
    is_left, is_right = choice < left_mass, choice >= left_mass + middle
    draw = torch.where(is_left, left_knee - step * left_mass, left_knee + x * middle)
    draw = torch.where(is_right, right_knee + step * right_mass, draw)
    log_hat = top - torch.where(is_left | is_right, step, 0.0)
    is_inside = (draw >= low) & (draw <= high)
    log_height = torch.log1p(-height) + log_hat
    return draw, is_inside & (log_height <= log_density(draw, *values))


def _tail(drop: Tensor, x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return where a tangent reaches the height of the peak, and the mass of the tail beyond."""
    # A density that ends before it has fallen has no tail there.
    has_tail = (drop > _HALF) & (slope != 0)
    safe = torch.where(has_tail, slope, 1.0)
    knee = torch.where(has_tail, x + drop / safe, x)
    return knee, torch.where(has_tail, 1.0 / safe.abs(), 0.0)
