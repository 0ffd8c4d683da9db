"""Draws of logarithmically concave densities by rejection."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_ext.special.quadrature import places_of_fall

__all__ = ["sample_log_concave"]

_HALF = 0.5


def sample_log_concave(
    log_density: Callable[..., Tensor],
    slope: Callable[..., Tensor],
    parameters: Sequence[Tensor],
    peak: Tensor,
    low: Tensor,
    high: Tensor,
) -> Tensor:
    """Draw places from a density that is given but for a constant.

    Its hat is constant about the peak and has exponential tails along the tangents where the
    logarithm has fallen by one, so that more than half of all draws are accepted.

    :param log_density: concave function of places, and of parameters of the same shape.
    :param slope: its derivative in the places.
    :param parameters: tensors of one shape.
    :param Tensor peak: where the density is largest. **Shape:** that of the parameters.
    :param Tensor low: where the density begins, or a place that it never reaches.
    :param Tensor high: where it ends, or a place that it never reaches.
    :returns: the places, without gradient. **Shape:** that of the parameters.
    """
    shape = peak.shape
    with torch.no_grad():
        values = [value.detach().expand(shape).reshape(-1) for value in parameters]
        peak, low, high = (value.detach().expand(shape).reshape(-1) for value in (peak, low, high))
        places = places_of_fall(
            lambda place: log_density(place, *(value[..., None] for value in values)),
            peak,
            low,
            high,
            (1.0,),
        )
        hat = torch.stack([peak, low, high, *places.unbind(-1)], -1)
        result = torch.empty_like(peak)
        waiting = torch.arange(peak.numel(), device=peak.device)
        while waiting.numel():
            draw, is_accepted = _propose(
                log_density, slope, [value[waiting] for value in values], hat[waiting]
            )
            result[waiting[is_accepted]] = draw[is_accepted]
            waiting = waiting[~is_accepted]
    return result.view(shape)


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
    choice, place, height = torch.rand((3, *peak.shape), dtype=peak.dtype, device=peak.device)
    choice = choice * (left_mass + middle + right_mass)
    step = -torch.log1p(-place)
    is_left, is_right = choice < left_mass, choice >= left_mass + middle
    draw = torch.where(is_left, left_knee - step * left_mass, left_knee + place * middle)
    draw = torch.where(is_right, right_knee + step * right_mass, draw)
    log_hat = top - torch.where(is_left | is_right, step, 0.0)
    is_inside = (draw >= low) & (draw <= high)
    log_height = torch.log1p(-height) + log_hat
    return draw, is_inside & (log_height <= log_density(draw, *values))


def _tail(drop: Tensor, place: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Where a tangent meets the height of the peak, and the mass of the tail beyond."""
    # A density that ends before it has fallen has no tail there.
    has_tail = (drop > _HALF) & (slope != 0)
    safe = torch.where(has_tail, slope, 1.0)
    knee = torch.where(has_tail, place + drop / safe, place)
    return knee, torch.where(has_tail, 1.0 / safe.abs(), 0.0)
