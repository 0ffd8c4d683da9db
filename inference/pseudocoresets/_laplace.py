"""Gaussian approximations of posteriors: mode and curvature."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext.inference.optimization import Minimizer
from pyro_ext.inference.pseudocoresets.posteriors import (
    Coreset,
    DataPosterior,
    WeightedPosterior,
    derivatives,
)

__all__ = ["Gaussian", "coreset_gaussian", "coreset_mode", "data_gaussian"]

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
    """Gaussian at the mode of the posterior of the data.

    :param DataPosterior data: the data.
    :param Tensor start: where the search for the mode starts. **Shape:** ``(size,)``.
    :param Minimizer minimizer: searches it.
    :raises ValueError: where the posterior has no such mode.
    """
    found = minimizer.minimize(lambda flat, rows: data.value_and_gradient(flat), start[None])
    mode = found.position[0]
    for _ in range(3):  # what the search leaves, a few steps of Newton's take away
        value, gradient = data.value_and_gradient(mode[None])
        hessian = data.hessian(mode)
        factor, info = torch.linalg.cholesky_ex(hessian)
        if int(info) or not bool(value.isfinite()):
            raise ValueError(
                "model has a posterior that is no Gaussian near its mode: the second derivatives "
                "of its log density are not negative definite there. Take an MCMCSurrogate"
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
    """Mode of the posterior of a coreset, near a start; no gradient flows into it.

    :param WeightedPosterior posterior: the posterior.
    :param Coreset coreset: rows and weights.
    :param Tensor start: **Shape:** ``(size,)``.
    :param Minimizer minimizer: searches where Newton's method does not get on.
    :returns: the mode, **Shape:** ``(size,)``, and the Cholesky factor of the second derivatives of
        the negative log density there, ``None`` where these are not positive definite.
    """
    fixed = Coreset(tuple(row.detach() for row in coreset.rows), coreset.weights.detach())
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
    """Gaussian at the mode of the posterior of a coreset, differentiable in rows and weights.

    One step of Newton's method from the mode leaves it where it is, and has the derivative of the
    mode in rows and weights. The second derivatives at its end have all of theirs.

    :param WeightedPosterior posterior: the posterior.
    :param Coreset coreset: rows and weights.
    :param Tensor mode: of ``coreset_mode``. **Shape:** ``(size,)``.
    :param Tensor factor: of ``coreset_mode``. **Shape:** ``(size, size)``.
    :returns: NaN where the second derivatives are not positive definite.
    """
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
