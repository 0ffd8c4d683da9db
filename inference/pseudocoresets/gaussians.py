"""Divergences between Gaussians, in closed form."""

import torch
from torch import Tensor

from pyro_ext._checks import as_tensor

__all__ = ["gaussian_kl", "gaussian_wasserstein"]


def gaussian_kl(
    mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor
) -> Tensor:
    r"""Divergence of one Gaussian from another, :math:`KL(N(m, S) \,\|\, N(m', S'))`.

    .. math:: \tfrac12 \left( \operatorname{tr} S'^{-1} S + (m' - m)^T S'^{-1} (m' - m) - d
              + \log \frac{\det S'}{\det S} \right)

    It can be differentiated in all arguments, any number of times.

    :param Tensor mean: :math:`m`. **Shape:** ``(*batch, d)``.
    :param Tensor covariance: :math:`S`, positive definite. **Shape:** ``(*batch, d, d)``.
    :param Tensor other_mean: :math:`m'`.
    :param Tensor other_covariance: :math:`S'`.
    :returns: **Shape:** ``(*batch,)``; NaN where a covariance is not positive definite.

    Example::

        >>> one, two = torch.eye(1), 4.0 * torch.eye(1)
        >>> gaussian_kl(torch.zeros(1), one, torch.ones(1), two)
        tensor(0.4431)
    """
    mean, covariance, other_mean, other_covariance = _as_gaussians(
        mean, covariance, other_mean, other_covariance
    )
    own, other = _factor(covariance), _factor(other_covariance)
    relative = torch.linalg.solve_triangular(other, own, upper=False)
    difference = (other_mean - mean).unsqueeze(-1)
    scaled = torch.linalg.solve_triangular(other, difference, upper=False)
    squares = scaled.square().sum((-2, -1))
    divergence: Tensor = 0.5 * (relative.square().sum((-2, -1)) - mean.shape[-1] + squares)
    return divergence + _half_log_determinant(other) - _half_log_determinant(own)


def gaussian_wasserstein(
    mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor
) -> Tensor:
    r"""Squared Wasserstein distance of order two between Gaussians.

    .. math:: |m - m'|^2 + \operatorname{tr} S + \operatorname{tr} S'
              - 2 \operatorname{tr} (S^{1/2} S' S^{1/2})^{1/2}

    :param Tensor mean: :math:`m`. **Shape:** ``(*batch, d)``.
    :param Tensor covariance: :math:`S`, positive definite. **Shape:** ``(*batch, d, d)``.
    :param Tensor other_mean: :math:`m'`.
    :param Tensor other_covariance: :math:`S'`.
    :returns: **Shape:** ``(*batch,)``; NaN where a covariance is not positive definite.

    Example::

        >>> one, two = torch.eye(2), 4.0 * torch.eye(2)
        >>> gaussian_wasserstein(torch.zeros(2), one, torch.ones(2), two)
        tensor(4.)
    """
    mean, covariance, other_mean, other_covariance = _as_gaussians(
        mean, covariance, other_mean, other_covariance
    )
    # With the Cholesky factor L of S the matrix L' S' L has the eigenvalues of S^(1/2) S' S^(1/2).
    factor = _factor(covariance)
    product = factor.mT @ other_covariance @ factor
    is_finite = product.isfinite().all(-1).all(-1)
    unit = torch.eye(product.shape[-1], dtype=product.dtype, device=product.device)
    roots = torch.linalg.eigvalsh(torch.where(is_finite[..., None, None], product, unit)).sqrt()
    roots = torch.where(is_finite, roots.sum(-1), torch.nan)
    traces = (covariance + other_covariance).diagonal(dim1=-2, dim2=-1).sum(-1)
    distance: Tensor = (mean - other_mean).square().sum(-1) + traces - 2.0 * roots
    return distance


def _factor(covariance: Tensor) -> Tensor:
    """Cholesky factor, NaN where there is none."""
    factor, info = torch.linalg.cholesky_ex(covariance)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


def _half_log_determinant(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _as_gaussians(
    mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means and covariances as tensors of fitting shapes."""
    mean = as_tensor("mean", mean, "(*batch, d)")
    vector, matrix = f"(*batch, {mean.shape[-1]})", f"(*batch, {mean.shape[-1]}, {mean.shape[-1]})"
    return (
        mean,
        as_tensor("covariance", covariance, matrix),
        as_tensor("other_mean", other_mean, vector),
        as_tensor("other_covariance", other_covariance, matrix),
    )
