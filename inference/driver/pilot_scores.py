"""Distances of pilot draws from the posterior, by the kernel Stein discrepancy."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_ext.diagnostics.stein import kernel_stein_discrepancy

_EXPONENT = -0.5
_BLOCKS = 10


def scores(
    draws: Sequence[tuple[Tensor, Tensor]], num_chains: int = 1
) -> list[tuple[float, float]]:
    """Squared discrepancy of each candidate, infinite where it is not finite, and its noise."""
    pairs = [(points.double(), gradients.double()) for points, gradients in draws]
    finite = [all(bool(torch.isfinite(part).all()) for part in pair) for pair in pairs]
    if not any(finite):
        return [(math.inf, math.nan)] * len(pairs)
    scale = common_scale([pair for pair, is_finite in zip(pairs, finite, strict=True) if is_finite])
    return [
        _with_noise(*pair, scale, num_chains) if is_finite else (math.inf, math.nan)
        for pair, is_finite in zip(pairs, finite, strict=True)
    ]


def _with_noise(
    points: Tensor, gradients: Tensor, scale: Tensor, num_chains: int
) -> tuple[float, float]:
    """Squared discrepancy, and its standard error by leaving out a tenth of the chains."""
    score = float(discrepancy(points, gradients, scale))
    if not math.isfinite(score):
        return math.inf, math.nan
    number = len(points)
    # Draws of a chain are its number apart; those of a single one are left out in blocks.
    chains = torch.arange(number) % num_chains % _BLOCKS
    if num_chains == 1:
        chains = torch.arange(number) * min(_BLOCKS, number) // number
    count = int(chains.max()) + 1
    if number - number // count < 2:
        return score, math.nan
    kept = [chains != chain for chain in range(count)]
    others = torch.stack([discrepancy(points[k], gradients[k], scale) for k in kept])
    return score, float(((count - 1) * others.var(correction=0)).sqrt())


def common_scale(draws: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    r"""Scale of each coordinate, one for all candidates.

    In a normal posterior draws that spread :math:`a` times too much have gradients that do so too,
    and the ratio of both is the posterior's own variance. Far from it, or where chains stand still,
    it is off, and the median over candidates evens that out.

    :returns: **Shape:** ``(size,)``.
    """
    ratios = torch.stack([points.std(0) / gradients.std(0) for points, gradients in draws])
    ratios = torch.where((ratios > 0) & torch.isfinite(ratios), ratios, math.nan)
    return ratios.nanmedian(0).values.nan_to_num(nan=1.0).sqrt()


def discrepancy(points: Tensor, gradients: Tensor, scale: Tensor) -> Tensor:
    """Squared kernel Stein discrepancy from pairs of different draws, unbiased if independent.

    The terms of a draw with itself grow with the spread of the draws. In many dimensions they would
    outweigh all others, and chains that stand still would win.
    """
    number, size = points.shape
    all_pairs = kernel_stein_discrepancy(points, gradients, scale=scale, exponent=_EXPONENT)
    own = -2.0 * _EXPONENT * size * number + (gradients * scale).square().sum()
    return (number**2 * all_pairs.square() - own) / (number * (number - 1))
