"""The arithmetic of conjugate clusters: blocks summarized by number, mean and scatter about it.

The scatter about the mean of the block and the distance of that mean from the prior's are terms of
one sign, so that nothing cancels where the points are far from the prior.
"""

import math

import torch
from torch import Tensor

from pyro_ext.special import in_double

_LARGE = 20.0


def log_rising(start: Tensor, number: Tensor) -> Tensor:
    r""":math:`\log \Gamma(a + x) - \log \Gamma(a)`; the error does not grow with :math:`a`."""
    is_large = start >= _LARGE
    small = torch.where(is_large, 1.0, start)
    large = torch.where(is_large, start, _LARGE)
    direct = (small + number).lgamma() - small.lgamma()
    by_stirling = (
        (large + number - 0.5) * torch.log1p(number / large)
        + number * (large.log() - 1.0)
        + _rest_of_stirling(large + number)
        - _rest_of_stirling(large)
    )
    return torch.where(is_large, by_stirling, direct)


def _rest_of_stirling(x: Tensor) -> Tensor:
    """Compute the remainder of Stirling's formula, to 1e-15 from 20 on."""
    square = x.square()
    series = 1.0 / 12.0 - (1.0 / 360.0 - (1.0 / 1260.0 - 1.0 / (1680.0 * square)) / square) / square
    return series / x


@in_double
def full_evidence(
    count: Tensor,
    mean: Tensor,
    factor: Tensor,
    loc: Tensor,
    loc_precision: Tensor,
    dof: Tensor,
    scale: Tensor,
) -> Tensor:
    """Log density of a block under a normal-Wishart prior, from the factor of scale and scatter."""
    size = loc.shape[-1]
    prior_determinant = log_determinant(torch.linalg.cholesky(scale))
    shift = torch.linalg.solve_triangular(factor, (mean - loc).unsqueeze(-1), upper=False)
    weight = loc_precision * count / (loc_precision + count)
    # The determinant of a matrix plus one of rank one, which would hide it where points are far.
    growth = log_determinant(factor) - prior_determinant
    growth = growth + torch.log1p(weight * shift.squeeze(-1).square().sum(-1))
    x = torch.arange(size, dtype=loc.dtype, device=loc.device)
    return (
        log_rising((dof.unsqueeze(-1) - x) / 2.0, count.unsqueeze(-1) / 2.0).sum(-1)
        - 0.5 * count * (size * math.log(math.pi) + prior_determinant)
        - 0.5 * size * torch.log1p(count / loc_precision)
        - 0.5 * (dof + count) * growth
    )


@in_double
def known_variance_evidence(
    count: Tensor, mean: Tensor, scatter: Tensor, loc: Tensor, loc_scale: Tensor, scale: Tensor
) -> Tensor:
    """Log density of a block under a normal prior of the mean of each dimension."""
    count = count.unsqueeze(-1)
    spread = (loc_scale / scale).square()
    inside = scatter / scale.square()
    between = count * ((mean - loc) / scale).square() / (1.0 + count * spread)
    terms = (
        count * (math.log(2.0 * math.pi) + 2.0 * scale.log())
        + torch.log1p(count * spread)
        + inside
        + between
    )
    return -0.5 * terms.sum(-1)


@in_double
def factor_of_points(scale: Tensor, deviation: Tensor) -> Tensor:
    """Factor of a scale matrix plus the scatter of points."""
    # Where points are far apart, their squares would hide the scale; no square is taken here.
    root = torch.linalg.cholesky(scale).mT
    batch = torch.broadcast_shapes(root.shape[:-2], deviation.shape[:-2])
    rows = torch.cat(
        [root.expand(*batch, *root.shape[-2:]), deviation.expand(*batch, *deviation.shape[-2:])], -2
    )
    upper = torch.linalg.qr(rows).R
    # The signs of the rows are those of the library's reflections.
    factor: Tensor = (upper * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-1)).mT
    return factor


@in_double
def factor_of_scatter(scale: Tensor, scatter: Tensor) -> Tensor:
    """Factor of a scale matrix plus a scatter."""
    factor: Tensor = torch.linalg.cholesky(scale + scatter)
    return factor


def log_determinant(factor: Tensor) -> Tensor:
    """Log determinant of a matrix from its Cholesky factor."""
    return 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
