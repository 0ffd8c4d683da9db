"""Slice sampling of numbers, one coordinate at a time.

[1] R. M. Neal (2003), Slice sampling.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LARGEST_LOG = 690.0  # of positive numbers that move

_MOST_STEPS = 50
_MOST_SHRINKS = 100

Floats = npt.NDArray[np.float64]
Density = Callable[[Floats], Floats]


def slice_sample(
    log_density: Callable[[Tensor], float], point: Tensor, width: float = 1.0
) -> Tensor:
    """Move each coordinate of a vector once, by stepping out and shrinking [1]."""

    def of_row(points: Floats) -> Floats:
        return np.array([log_density(torch.from_numpy(points[0]))])

    start = point.numpy()[None]
    moved = slice_sample_rows(of_row, start, np.full_like(start, width), range(point.numel()))
    return torch.from_numpy(moved[0])


def slice_sample_log(log_density: Callable[[float], float], value: Tensor) -> Tensor:
    """Move a positive number by its logarithm."""

    def of_row(points: Floats) -> Floats:
        point = float(points[0, 0])
        return np.array([log_density(point) + point if point <= LARGEST_LOG else -math.inf])

    start = value.double().log().reshape(1, 1).numpy()
    moved = slice_sample_rows(of_row, start, np.ones((1, 1)), [0])
    return torch.from_numpy(moved).exp().reshape(())


def slice_sample_rows(
    log_density: Density, points: Floats, widths: Floats, columns: Iterable[int]
) -> Floats:
    """Move some coordinates of independent vectors side by side, each as :func:`slice_sample`."""
    points = points.copy()
    current = log_density(points)
    for column in columns:

        def along(values: Floats, column: int = column) -> Floats:
            moved = points.copy()
            moved[:, column] = values
            return log_density(moved)

        start, width = points[:, column].copy(), widths[:, column]
        uniforms = _uniforms(3, len(points))
        level = current + np.log1p(-uniforms[0])
        low = start - width * uniforms[1]
        # Any split of the most steps between both sides keeps the density invariant.
        left = np.floor(_MOST_STEPS * uniforms[2])
        high = _stepped_out(along, level, low + width, width, _MOST_STEPS - 1 - left)
        low = _stepped_out(along, level, low, -width, left)
        points[:, column], current = _shrunk(along, level, low, high, start, current)
    return points


def _uniforms(*shape: int) -> Floats:
    """Uniform numbers, from PyTorch's generator."""
    drawn: Floats = torch.rand(shape, dtype=torch.float64).numpy()
    return drawn


def _stepped_out(along: Density, level: Floats, end: Floats, step: Floats, most: Floats) -> Floats:
    """Ends of intervals, moved outwards while the density there exceeds the level."""
    taken = np.zeros_like(end)
    goes_on = most > 0
    while goes_on.any():
        goes_on &= along(end) > level
        end = np.where(goes_on, end + step, end)
        taken += goes_on
        goes_on &= taken < most
    return end


def _shrunk(
    along: Density, level: Floats, low: Floats, high: Floats, start: Floats, current: Floats
) -> tuple[Floats, Floats]:
    """Places inside intervals where the density exceeds the level, and the density there."""
    point = start
    is_open = np.ones(len(start), dtype=bool)
    for _ in range(_MOST_SHRINKS):
        value = low + (high - low) * _uniforms(len(start))
        density = along(value)
        found = is_open & (density > level)
        point, current = np.where(found, value, point), np.where(found, density, current)
        is_open &= ~found
        if not is_open.any():
            break
        low = np.where(is_open & (value < start), value, low)
        high = np.where(is_open & (value >= start), value, high)
    return point, current
