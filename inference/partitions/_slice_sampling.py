"""Slice sampling of numbers, one coordinate at a time.

[1] R. M. Neal (2003), Slice sampling.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["slice_sample"]

_MOST_STEPS = 50
_MOST_SHRINKS = 100


def slice_sample(
    log_density: Callable[[Tensor], float], place: Tensor, width: float = 1.0
) -> Tensor:
    """Move each coordinate of a vector once, by stepping out and shrinking [1].

    :param log_density: that of the vector, but for a constant; finite at the start.
    :param Tensor place: where to start. **Shape:** ``(size,)``.
    :param float width: of the first interval.
    :returns: the new vector, a draw that leaves the density invariant.
    """
    place = place.clone()
    current = log_density(place)
    for index in range(place.numel()):

        def along(value: float, index: int = index) -> float:
            moved = place.clone()
            moved[index] = value
            return log_density(moved)

        start = float(place[index])
        uniforms: list[float] = torch.rand(3, dtype=torch.float64).tolist()
        level = current + math.log1p(-uniforms[0])
        low = start - width * uniforms[1]
        high = low + width
        # Any split of the most steps between both sides keeps the density invariant.
        left = int(_MOST_STEPS * uniforms[2])
        right = _MOST_STEPS - 1 - left
        while left > 0 and along(low) > level:
            low, left = low - width, left - 1
        while right > 0 and along(high) > level:
            high, right = high + width, right - 1
        for _ in range(_MOST_SHRINKS):
            value = low + (high - low) * float(torch.rand((), dtype=torch.float64))
            density = along(value)
            if density > level:
                place[index], current = value, density
                break
            if value < start:
                low = value
            else:
                high = value
    return place
