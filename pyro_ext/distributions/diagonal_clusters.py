r"""Clusters of Gaussian points with independent dimensions, with means or more integrated out.

[1] K. P. Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.distributions import _gaussian_evidence as evidence
from pyro_ext.distributions._located_cluster import LocatedCluster
from pyro_ext.distributions.clusters import Summary

__all__ = ["DiagonalGaussianCluster", "KnownVarianceGaussianCluster"]

_POSITIVE_VECTOR = constraints.independent(constraints.positive, 1)


class DiagonalGaussianCluster(LocatedCluster):
    r"""Point of a Gaussian cluster with independent dimensions of unknown means and variances [1].

    The prior of each dimension is normal-gamma,

    .. math:: \lambda \sim \text{Gamma}(a, b) , \quad \mu \sim \text{Normal}(\xi, 1 / (r \lambda)) ,
              \quad x_i \sim \text{Normal}(\mu, 1 / \lambda) ,

    with variances in the second places. The statistics of a point are 1, 0, :math:`x` and
    :math:`x^2`.

    :param loc: :math:`\xi`. **Shape:** ``(*batch, d)``, as of the others; numbers are equal in all
        dimensions, but one argument has to tell how many these are.
    :param loc_precision: :math:`r > 0`, a number of points.
    :param concentration: :math:`a > 0`.
    :param rate: :math:`b > 0`.
    :raises ValueError: where a hyperparameter is out of range or of another shape.

    Example::

        >>> cluster = DiagonalGaussianCluster(torch.zeros(2), 0.5, 2.0, 1.0)
        >>> cluster.log_marginal(torch.tensor([[0.0, 0.0], [0.4, -0.1]]))
        tensor(-4.0485)
    """

    loc_precision: Tensor
    concentration: Tensor
    rate: Tensor
    arg_constraints = {
        "loc": constraints.real_vector,
        "loc_precision": _POSITIVE_VECTOR,
        "concentration": _POSITIVE_VECTOR,
        "rate": _POSITIVE_VECTOR,
    }
    _kind = 1

    def __init__(
        self,
        loc: Any,
        loc_precision: Any,
        concentration: Any,
        rate: Any,
        *,
        validate_args: bool | None = None,
    ) -> None:
        parameters = {
            "loc": loc,
            "loc_precision": loc_precision,
            "concentration": concentration,
            "rate": rate,
        }
        super().__init__(parameters, dict.fromkeys(parameters, 1), validate_args)

    @property
    def _point_law(self) -> Any:
        variance = self.rate / self.concentration * (1.0 + 1.0 / self.loc_precision)
        law = dist.StudentT(
            2.0 * self.concentration, self.loc, variance.sqrt(), validate_args=False
        )
        return law.to_event(1)

    def _log_marginal(self, summary: Summary) -> Tensor:
        count, mean, scatter = summary
        return evidence.diagonal_evidence(
            count, mean, scatter, self.loc, self.loc_precision, self.concentration, self.rate
        )

    def _posterior(self, summary: Summary) -> dict[str, Any]:
        count, mean, scatter = summary
        count = count.unsqueeze(-1)
        precision = self.loc_precision + count
        shift = mean - self.loc
        weight = self.loc_precision * count / precision
        return {
            "loc": self.loc + count / precision * shift,
            "loc_precision": precision,
            "concentration": self.concentration + count / 2.0,
            "rate": self.rate + (scatter + weight * shift.square()) / 2.0,
        }

    def _draw_block(self, shape: torch.Size, num_points: int) -> Tensor:
        size = self.event_shape[0]
        gamma = torch._standard_gamma(self.concentration.expand(*shape, size))
        deviation = (self.rate / gamma).sqrt().unsqueeze(-2)
        center = self._noise(*shape, 1, size) * self.loc_precision.rsqrt().unsqueeze(-2)
        points = center + self._noise(*shape, num_points, size)
        return self.loc.unsqueeze(-2) + deviation * points

    def _compiled_parts(self) -> list[Tensor]:
        return [self.loc, self.loc_precision, self.concentration, self.rate]


class KnownVarianceGaussianCluster(LocatedCluster):
    r"""Point of a Gaussian cluster with independent dimensions, of unknown means alone [1].

    The prior of each dimension is normal, :math:`\mu \sim \text{Normal}(\xi, s_0^2)` and
    :math:`x_i \sim \text{Normal}(\mu, s^2)`, with variances in the second places. The statistics of
    a point are 1, 0, :math:`x` and :math:`x^2`.

    :param loc: :math:`\xi`. **Shape:** ``(*batch, d)``, as of the others; numbers are equal in all
        dimensions, but one argument has to tell how many these are.
    :param loc_scale: :math:`s_0 > 0`, between clusters.
    :param scale: :math:`s > 0`, between points of a cluster.
    :raises ValueError: where a hyperparameter is out of range or of another shape.

    Example::

        >>> cluster = KnownVarianceGaussianCluster(torch.zeros(2), 3.0, 0.5)
        >>> cluster.log_marginal(torch.tensor([[0.0, 0.0], [0.4, -0.1]]))
        tensor(-5.3660)
    """

    loc_scale: Tensor
    scale: Tensor
    arg_constraints = {
        "loc": constraints.real_vector,
        "loc_scale": _POSITIVE_VECTOR,
        "scale": _POSITIVE_VECTOR,
    }
    _kind = 2

    def __init__(
        self, loc: Any, loc_scale: Any, scale: Any, *, validate_args: bool | None = None
    ) -> None:
        parameters = {"loc": loc, "loc_scale": loc_scale, "scale": scale}
        super().__init__(parameters, dict.fromkeys(parameters, 1), validate_args)

    @property
    def _point_law(self) -> Any:
        return dist.Normal(
            self.loc, torch.hypot(self.loc_scale, self.scale), validate_args=False
        ).to_event(1)

    def _log_marginal(self, summary: Summary) -> Tensor:
        count, mean, scatter = summary
        return evidence.known_variance_evidence(
            count, mean, scatter, self.loc, self.loc_scale, self.scale
        )

    def _posterior(self, summary: Summary) -> dict[str, Any]:
        count, mean, _ = summary
        spread = count.unsqueeze(-1) * (self.loc_scale / self.scale).square()
        return {
            "loc": self.loc + spread / (1.0 + spread) * (mean - self.loc),
            "loc_scale": self.loc_scale * (1.0 + spread).rsqrt(),
            "scale": self.scale,
        }

    def _draw_block(self, shape: torch.Size, num_points: int) -> Tensor:
        size = self.event_shape[0]
        center = self.loc + self.loc_scale * self._noise(*shape, size)
        noise = self._noise(*shape, num_points, size)
        return center.unsqueeze(-2) + self.scale.unsqueeze(-2) * noise

    def _compiled_parts(self) -> list[Tensor]:
        # Unlike a square, a logarithm does not hide that a scale is out of range.
        scales = (self.loc_scale, self.scale)
        return [self.loc, *((-2.0 * scale.double().log()).exp() for scale in scales)]
