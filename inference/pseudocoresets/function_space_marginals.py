"""Gaussian laws of the values that a parametric function takes at given inputs."""

from collections.abc import Callable
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.func import jacrev, vmap

from pyro_ext._checks import as_tensor, check_callable, check_number

__all__ = ["Function", "SnapshotMean", "diagonal_marginal", "full_marginal", "linearized_marginal"]

Function = Callable[[Tensor], Tensor]
"""Maps a flat vector of parameters to values at all inputs. **Shape:** ``(num_points, *outputs)``.

It is pure, so that it can be vectorized. Inputs that take gradients are in its closure.
"""

SnapshotMean = Literal["last", "average"]


def diagonal_marginal(
    function: Function, snapshots: Tensor, mean: SnapshotMean = "last", jitter: float = 1e-8
) -> dist.Independent:
    r"""Independent Gaussians at each input and output, from snapshots of the parameters [1].

    With the values :math:`f_k` of :math:`K` snapshots the variance is
    :math:`\tfrac1K \sum_k f_k^2 - ( \tfrac1K \sum_k f_k )^2`, plus a jitter. Mean and variance are
    differentiable in whatever the function depends on.

    :param function: the function.
    :param Tensor snapshots: parameters. **Shape:** ``(num_snapshots, size)``.
    :param str mean: ``"last"``, the value of the last snapshot, or ``"average"``, that of all.
    :param float jitter: is added to variances, so that their roots have a gradient.
    :returns: a law of ``num_points * outputs`` independent normal variables. **Event shape:**
        ``(num_points, *outputs)``.
    :raises ValueError: for another ``mean``, or snapshots that are no matrix.

    [1] B. Kim, H. Lee, J. Lee (2023), Function space Bayesian pseudocoreset for Bayesian neural
    networks.

    Example::

        >>> inputs = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> snapshots = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
        >>> law = diagonal_marginal(lambda flat: inputs @ flat, snapshots)
        >>> law.mean, law.variance.round(decimals=3)
        (tensor([2., 4.]), tensor([1., 1.]))
    """
    check_number("jitter", jitter, least=0)
    loc, deviations = _moments(function, snapshots, mean)
    scale = (deviations.square().sum(0) + jitter).sqrt()
    law: dist.Independent = dist.Normal(loc, scale, validate_args=False).to_event(loc.dim())
    return law


def full_marginal(
    function: Function, snapshots: Tensor, mean: SnapshotMean = "last", jitter: float = 1e-8
) -> dist.Independent:
    r"""A Gaussian over the outputs at each input, from snapshots of the parameters.

    The covariance of the :math:`C` outputs at an input is that of the values of the snapshots,
    plus a jitter times the unit matrix. Fewer snapshots than outputs will do: its Cholesky factor
    is found without the matrix itself. Arguments are as of :func:`diagonal_marginal`.

    :param function: the function.
    :param Tensor snapshots: parameters. **Shape:** ``(num_snapshots, size)``.
    :param str mean: ``"last"`` or ``"average"``.
    :param float jitter: is added to variances.
    :returns: a law of ``num_points`` independent :class:`~pyro.distributions.MultivariateNormal`
        variables. **Event shape:** ``(num_points, C)``, with outputs in one dimension.
    :raises ValueError: for another ``mean``, or snapshots that are no matrix.

    Example::

        >>> snapshots = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
        >>> law = full_marginal(lambda flat: torch.outer(torch.arange(1.0, 4.0), flat), snapshots)
        >>> law.event_shape, law.base_dist.covariance_matrix[1]
        (torch.Size([3, 2]), tensor([[4.0000, 4.0000],
                [4.0000, 4.0000]]))
    """
    check_number("jitter", jitter, least=0)
    loc, deviations = _moments(function, snapshots, mean)
    factor = deviations.reshape(len(snapshots), len(loc), -1).permute(1, 2, 0)
    law: dist.Independent = _normal(loc.reshape(len(loc), -1), factor, jitter).to_event(1)
    return law


def linearized_marginal(
    function: Function, mean: Tensor, covariance: Tensor, jitter: float = 1e-8
) -> dist.MultivariateNormal:
    r"""The law of a function linearized in its parameters, which are Gaussian.

    .. math:: f \sim N \left( f(\mu), J \Sigma J^T \right) , \qquad J = \partial f / \partial \mu ,

    at all inputs jointly, exact where the function is linear. It is differentiable in whatever the
    function depends on, and a jitter times the unit matrix is added to the covariance.

    :param function: the function.
    :param Tensor mean: :math:`\mu`. **Shape:** ``(size,)``.
    :param Tensor covariance: :math:`\Sigma`, or its diagonal, of independent parameters.
        **Shape:** ``(size, size)`` or ``(size,)``.
    :param float jitter: is added to variances.
    :returns: **Event shape:** ``(num_points * outputs,)``, in the order of the flattened values.
    :raises ValueError: for a covariance of another shape.

    Example::

        >>> inputs = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> law = linearized_marginal(lambda flat: inputs @ flat, torch.ones(2), torch.ones(2))
        >>> law.mean, law.covariance_matrix
        (tensor([1., 3.]), tensor([[1., 1.],
                [1., 5.]]))
    """
    check_callable("function", function)
    mean = as_tensor("mean", mean, "(size,)")
    covariance = as_tensor("covariance", covariance)
    check_number("jitter", jitter, least=0)
    size = mean.shape[0]
    if mean.dim() != 1 or covariance.shape not in ((size,), (size, size)):
        raise ValueError(
            f"covariance must have the shape {(size,)} or {(size, size)} for a mean of shape "
            f"{tuple(mean.shape)}, got {tuple(covariance.shape)}"
        )
    loc = function(mean).flatten()
    jacobian = jacrev(function)(mean).reshape(len(loc), size)
    if covariance.dim() == 1:
        factor = jacobian * covariance.sqrt()
    else:
        lower, info = torch.linalg.cholesky_ex(covariance)
        factor = jacobian @ torch.where(info == 0, lower, torch.nan)
    return _normal(loc, factor, jitter)


def _moments(function: Function, snapshots: Tensor, mean: SnapshotMean) -> tuple[Tensor, Tensor]:
    """Mean, and deviations from the average whose squares add up to the variance."""
    check_callable("function", function)
    snapshots = as_tensor("snapshots", snapshots, "(num_snapshots, size)")
    if mean not in ("last", "average"):
        raise ValueError(f"mean must be 'last' or 'average', got {mean!r:.80}")
    if snapshots.dim() != 2 or not len(snapshots):
        raise ValueError(
            f"snapshots must have the shape (num_snapshots, size), got {tuple(snapshots.shape)}"
        )
    values = vmap(function)(snapshots)
    average = values.mean(0)
    deviations = (values - average) / len(values) ** 0.5
    return values[-1] if mean == "last" else average, deviations


def _normal(loc: Tensor, factor: Tensor, jitter: float) -> dist.MultivariateNormal:
    """A Gaussian whose covariance is a product of a factor with its transpose, plus jitter.

    The Cholesky factor is found without squaring numbers, so that the covariance may be singular.

    :param Tensor factor: **Shape:** ``(*batch, n, p)``.
    """
    unit = torch.eye(factor.shape[-2], dtype=factor.dtype, device=factor.device)
    unit = unit.expand(*factor.shape[:-2], -1, -1)
    upper = torch.linalg.qr(torch.cat([factor, jitter**0.5 * unit], -1).mT).R
    signs = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(upper)
    # No checks: what is not finite should be found in the loss.
    return dist.MultivariateNormal(
        loc, scale_tril=(signs.unsqueeze(-1) * upper).mT, validate_args=False
    )
