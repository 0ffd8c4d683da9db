"""Gaussians at the modes of posteriors, and their divergences in closed form."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.optimization import Minimizer
from pyro_ext.inference.pseudocoresets.posteriors import (
    Coreset,
    DataPosterior,
    WeightedPosterior,
    derivatives,
)


def gaussian_kl(
    mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor
) -> Tensor:
    r"""Divergence of one Gaussian from another, :math:`KL(N(m, S) \,\|\, N(m', S'))`.

    .. math:: \tfrac12 \left( \operatorname{tr} S'^{-1} S + (m' - m)^T S'^{-1} (m' - m) - d
              + \log \frac{\det S'}{\det S} \right)

    It is differentiable in all arguments, any number of times.

    :param Tensor mean: :math:`m`. **Shape:** ``(*batch, d)``.
    :param Tensor covariance: :math:`S`, positive definite. **Shape:** ``(*batch, d, d)``.
    :param Tensor other_mean: :math:`m'`.
    :param Tensor other_covariance: :math:`S'`.
    :returns: **Shape:** ``(*batch,)``; NaN if a covariance is not positive definite.

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

    Arguments and result are as for :func:`gaussian_kl`.

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
    """Return the Cholesky factor, NaN for matrices that are not positive definite."""
    factor, info = torch.linalg.cholesky_ex(covariance)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


def _half_log_determinant(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _as_gaussians(
    mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means and covariances as tensors of fitting shapes."""
    mean = checks.as_tensor("mean", mean, "(*batch, d)")
    vector, matrix = f"(*batch, {mean.shape[-1]})", f"(*batch, {mean.shape[-1]}, {mean.shape[-1]})"
    return (
        mean,
        checks.as_tensor("covariance", covariance, matrix, like=mean),
        checks.as_tensor("other_mean", other_mean, vector, like=mean),
        checks.as_tensor("other_covariance", other_covariance, matrix, like=mean),
    )


_MAX_NEWTON_STEPS = 30
_MAX_HALVINGS = 12
_NEAR = 0.1
"""A squared distance from the mode below which Newton's method converges without a line search."""
_SMALL = 1e-3
"""A squared distance from the mode below which rounding may keep a step from being a good one."""


class Gaussian(NamedTuple):
    """A Gaussian in unconstrained space.

    :param Tensor mean: **Shape:** ``(size,)``.
    :param Tensor covariance: **Shape:** ``(size, size)``.
    """

    mean: Tensor
    covariance: Tensor


def data_gaussian(data: DataPosterior, start: Tensor, minimizer: Minimizer) -> Gaussian:
    """Gaussian at the mode of the posterior of the data. Shapes: start (size,)."""
    found = minimizer.minimize(lambda flat, rows: data.value_and_gradient(flat), start[None])
    mode = found.position[0]
    for _ in range(3):  # what the search leaves, a few steps of Newton's take away
        value, gradient = data.value_and_gradient(mode[None])
        hessian = data.hessian(mode)
        factor, info = torch.linalg.cholesky_ex(hessian)
        if int(info) or not bool(value.isfinite()):
            raise ValueError(
                "model has a posterior that is no Gaussian near its mode: the second derivatives "
                "of its log density are not negative definite there. Use an MCMCSurrogate"
            )
        step = torch.cholesky_solve(gradient[0][:, None], factor)[:, 0]
        after, slope = data.value_and_gradient((mode - step)[None])
        if not bool((slope.abs().max() < gradient.abs().max()) & after.isfinite()):
            break
        mode = mode - step
    return Gaussian(mode, torch.cholesky_inverse(torch.linalg.cholesky(data.hessian(mode))))


def coreset_mode(
    posterior: WeightedPosterior, coreset: Coreset, start: Tensor, minimizer: Minimizer
) -> tuple[Tensor, Tensor | None]:
    """Mode of the posterior of a coreset, near a start; no gradient flows into it."""
    fixed = coreset.detached()
    mode, factor = _newton(posterior, fixed, start.detach())
    if factor is None:
        found = minimizer.minimize(
            lambda flat, rows: posterior.value_and_gradient(flat, fixed), mode[None]
        )
        mode, factor = _newton(posterior, fixed, found.position[0])
    return mode, factor


def coreset_gaussian(
    posterior: WeightedPosterior, coreset: Coreset, mode: Tensor, factor: Tensor | None
) -> Gaussian:
    """Gaussian at the mode of the posterior of a coreset, differentiable in rows and weights."""
    # A Newton step from the mode does not move, but has the mode's derivative in rows and weights.
    # The second derivatives at its end then have their full derivatives.
    if factor is None:
        return Gaussian(torch.full_like(mode, torch.nan), torch.full_like(mode.diag(), torch.nan))
    with torch.enable_grad():
        leaf = mode.detach().requires_grad_()
        value = posterior.value(leaf, coreset)
        (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    mean = mode - torch.cholesky_solve(gradient[:, None], factor)[:, 0]
    _, hessian = derivatives(posterior, mean, coreset)
    own_factor, info = torch.linalg.cholesky_ex(hessian)
    covariance = torch.cholesky_inverse(own_factor)
    return Gaussian(mean, torch.where(info == 0, covariance, torch.nan))


def _newton(
    posterior: WeightedPosterior, coreset: Coreset, start: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Newton's method with halved steps; without a factor it has not arrived."""
    mode = start
    resolution = torch.finfo(start.dtype).eps
    with torch.no_grad():
        value = posterior.value(mode, coreset)
    least = torch.inf
    for _ in range(_MAX_NEWTON_STEPS):
        gradient, hessian = derivatives(posterior, mode, coreset)
        gradient, hessian = gradient.detach(), hessian.detach()
        factor, info = torch.linalg.cholesky_ex(hessian)
        if int(info) or not bool(gradient.isfinite().all()):
            return mode, None
        step = torch.cholesky_solve(gradient[:, None], factor)[:, 0]
        # The square of how far the mode is, in standard deviations.
        decrement = float(gradient @ step)
        if decrement <= resolution or least <= decrement < _SMALL:
            return mode, factor
        least = decrement
        slack = 4.0 * resolution * (1.0 + float(value.abs()))
        length = 1.0
        for _ in range(_MAX_HALVINGS):
            trial = mode - length * step
            values, slopes = posterior.value_and_gradient(trial[None], coreset)
            new = values[0]
            if bool(new <= value - 1e-4 * length * decrement + slack):
                break
            # Where rounding hides what the value changes by, its slope tells.
            rest = torch.linalg.solve_triangular(factor, slopes.mT, upper=False).square().sum()
            if decrement < _NEAR and bool(rest < 0.25 * decrement):
                break
            length *= 0.5
        else:
            return mode, factor if decrement < _SMALL else None
        mode, value = trial, new
    return mode, None
