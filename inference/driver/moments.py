"""Running means and variances of draws, one pass and no draws kept."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_ROWS = 64  # in double precision at a time


class Moments(NamedTuple):
    """Number, mean and sum of squared deviations of draws, in double precision.

    :param Tensor num_draws: **Shape:** ``(num_chains,)``.
    :param Tensor mean: **Shape:** ``(num_chains, *event)``.
    :param Tensor squares: **Shape:** ``(num_chains, *event)``.
    """

    num_draws: Tensor
    mean: Tensor
    squares: Tensor

    @property
    def variance(self) -> Tensor:
        """Unbiased variance, not a number below two draws. **Shape:** ``(num_chains, *event)``."""
        degrees = _like(self.num_draws - 1.0, self.squares)
        return torch.where(degrees > 0, self.squares / degrees, torch.nan)


def moments_of(values: Tensor, valid: Sequence[int]) -> Moments:
    """Moments of the first draws of each chain.

    Shapes: values (num_draws, num_chains, *event).
    """
    count = torch.tensor(valid, dtype=torch.float64, device=values.device)
    rows = torch.arange(len(values), device=values.device)[:, None]
    counts = (rows < count).reshape(*values.shape[:2], *[1] * (values.dim() - 2))

    def total(center: Tensor | float, power: int) -> Tensor:
        """Sum of powers of deviations, some rows at a time: copies of all are several times it."""
        result = values.new_zeros(values.shape[1:], dtype=torch.float64)
        for part, counted in zip(values.split(_ROWS), counts.split(_ROWS), strict=True):
            result += torch.where(counted, (part.double() - center) ** power, 0.0).sum(0)
        return result

    sums = total(0.0, 1)
    mean = sums / _like(count.clamp(min=1.0), sums)
    return Moments(count, mean, total(mean, 2))


def merge(one: Moments, other: Moments) -> Moments:
    """Moments of two sets of draws together, by the formula of [1].

    [1] T. F. Chan, G. H. Golub, R. J. LeVeque (1983),
    Algorithms for computing the sample variance: analysis and recommendations.
    """
    count = one.num_draws + other.num_draws
    fraction = _like(other.num_draws / count.clamp(min=1.0), one.mean)
    gap = other.mean - one.mean
    squares = one.squares + other.squares + gap.square() * fraction * _like(one.num_draws, one.mean)
    return Moments(count, one.mean + gap * fraction, squares)


def pool(moments: Moments) -> Moments:
    """Moments of the draws of all chains together; the dimension of chains keeps the size one."""
    num_draws = moments.num_draws.sum(0, keepdim=True)
    weights = _like(moments.num_draws, moments.mean)
    mean = (weights * moments.mean).sum(0, keepdim=True) / _like(num_draws, moments.mean)
    between = (weights * (moments.mean - mean).square()).sum(0, keepdim=True)
    return Moments(num_draws, mean, moments.squares.sum(0, keepdim=True) + between)


def _like(per_chain: Tensor, values: Tensor) -> Tensor:
    return per_chain.reshape(-1, *[1] * (values.dim() - 1))
