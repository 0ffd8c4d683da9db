"""Clusters of Gaussian points, with means, or means and covariances, integrated out.

Numbers in brackets refer to the papers listed in the docstring of the package.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._lib import checks
from pyro_ext.distributions import _evidence as evidence
from pyro_ext.distributions.clusters import ConjugateCluster, Summary

_POSITIVE_VECTOR = constraints.independent(constraints.positive, 1)


class LocatedCluster(ConjugateCluster):
    """Cluster of Gaussian points, whose blocks are known by their number, mean and scatter."""

    loc: Tensor
    support = constraints.real_vector
    has_rsample = True

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def _scatter(self, deviation: Tensor) -> Tensor:
        """Sum of squares over the points, ``(*batch, n, d)``: of each entry alone."""
        return deviation.square().sum(-2)

    @property
    def _scatter_shape(self) -> tuple[int, ...]:
        return tuple(self.event_shape)

    def _moments(self, x: Tensor) -> Tensor:
        squares = self._scatter(x.unsqueeze(-2))
        return torch.cat([x, squares.flatten(x.dim() - 1)], -1)

    def _summary(self, x: Tensor, present: Tensor) -> Summary:
        count, mean, deviation = self._deviations(x, present)
        return count, mean, self._scatter(deviation)

    def _deviations(self, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Number and mean of the points of a block, and the points about it, zero for others."""
        count = present.sum(-1).to(x.dtype)
        mean = x.sum(-2) / count.clamp(min=1.0).unsqueeze(-1)
        return count, mean, torch.where(present.unsqueeze(-1), x - mean.unsqueeze(-2), 0.0)

    def _summary_of_point(self, value: Tensor) -> Summary:
        return value.new_ones(()), value, value.new_zeros(self._scatter_shape)


class GaussianCluster(LocatedCluster):
    r"""Point from a Gaussian cluster with unknown mean and covariance, a multivariate t [7].

    The prior is normal-Wishart,

    .. math:: \Lambda \sim \text{Wishart}(\nu, \Psi^{-1}) , \quad
              \mu \sim \text{Normal}(\xi, (r \Lambda)^{-1}) , \quad
              x_i \sim \text{Normal}(\mu, \Lambda^{-1}) .

    The statistics of a point are 1, 0, :math:`x` and :math:`x x^\top` row by row.

    :param loc: :math:`\xi`. **Shape:** ``(*batch, d)``.
    :param loc_precision: :math:`r > 0`, the number of points that the prior of the mean counts for.
        **Shape:** ``(*batch)``.
    :param dof: :math:`\nu > d - 1`. **Shape:** ``(*batch)``.
    :param scale: :math:`\Psi`, positive definite. **Shape:** ``(*batch, d, d)``.

    Example::

        >>> cluster = GaussianCluster(torch.zeros(2), 0.5, 4.0, 0.5 * torch.eye(2))
        >>> cluster.log_marginal(torch.tensor([[0.0, 0.0], [0.4, -0.1]]))
        tensor(-1.9709)
    """

    loc_precision: Tensor
    dof: Tensor
    scale: Tensor
    arg_constraints = {
        "loc": constraints.real_vector,
        "loc_precision": constraints.positive,
        "dof": constraints.positive,
        "scale": constraints.positive_definite,
    }
    _kind = 0

    def __init__(
        self,
        loc: Any,
        loc_precision: Any,
        dof: Any,
        scale: Any,
        *,
        validate_args: bool | None = None,
    ) -> None:
        parameters = {"loc": loc, "loc_precision": loc_precision, "dof": dof, "scale": scale}
        event_dims = {"loc": 1, "loc_precision": 0, "dof": 0, "scale": 2}
        super().__init__(parameters, validate_args, event_dims)
        least = self.event_shape[0] - 1
        self._check_parameter("dof", self.dof > least, f"> {least} in {least + 1} dimensions")

    @classmethod
    def from_data(
        cls,
        x: Tensor,
        loc_precision: float = 0.1,
        dof: float | None = None,
        determinant: float | None = None,
    ) -> "GaussianCluster":
        r"""Make a prior with the center and the shape of the data, but smaller clusters.

        It fixes the shape and the size of clusters. If you do not know them, use
        :meth:`hyperprior`, which learns them from the data.

        :param Tensor x: points. Their mean becomes ``loc``, and their covariance becomes ``scale``,
            up to a factor. **Shape:** ``(n, d)``.
        :param float loc_precision: :math:`r > 0`.
        :param float dof: :math:`\nu > d - 1`. Default: :math:`d + 6`.
        :param float determinant: the determinant of ``scale``, positive. By default, a cluster has
            a tenth of the data's volume: :math:`\Psi / (\nu - d - 1)`, which is the expected
            covariance for :math:`\nu > d + 1`, is the covariance of the data divided by
            :math:`10^{2 / d}`, in any units.
        :returns: the distribution of a point.
        :raises ValueError: if there are too few points or they lie in a subspace.

        Example::

            >>> x = torch.tensor([[0.0, 0.0], [0.4, -0.1], [1.5, 1.2], [1.8, 0.9]])
            >>> cluster = GaussianCluster.from_data(x)
            >>> (cluster.scale / (cluster.dof - 3)).det() / x.T.cov(correction=0).det()
            tensor(0.0100)
        """
        x = checks.as_tensor("x", x, "(n, d)", finite=True)
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        size = x.shape[1]
        checks.number("loc_precision", loc_precision, above=0)
        checks.optional(checks.number, "dof", dof, above=size - 1)
        checks.optional(checks.number, "determinant", determinant, above=0)
        if len(x) <= size:
            raise ValueError(
                f"x must have the shape (n, d) with more points than dimensions, got "
                f"{tuple(x.shape)}"
            )
        deviation = x - x.mean(0)
        unit = deviation.square().mean(0).sqrt()
        correlation = (deviation / unit).mT @ (deviation / unit) / len(x)
        tolerance = len(x) * torch.finfo(x.dtype).eps
        is_constant = bool(_is_constant(x, unit).any())
        if is_constant or torch.linalg.matrix_rank(correlation, rtol=tolerance) < size:
            raise ValueError(
                f"x must not lie in a subspace, got {len(x)} points whose covariance is singular"
            )
        covariance = unit.unsqueeze(-1) * correlation * unit
        dof = size + 6.0 if dof is None else dof
        if determinant is None:
            factor = max(dof - size - 1.0, 1.0) * 10.0 ** (-2.0 / size)
            return cls(x.mean(0), loc_precision, dof, factor * covariance)
        log_determinant = evidence.log_determinant(torch.linalg.cholesky(covariance))
        shrunk = ((math.log(determinant) - log_determinant) / size).exp() * covariance
        return cls(x.mean(0), loc_precision, dof, shrunk)

    @classmethod
    def hyperprior(cls, x: Tensor) -> Callable[[], "GaussianCluster"]:
        r"""Make a Pyro model of the hyperparameters, scaled to data, for kernels over partitions.

        With the means :math:`m_j` and standard deviations :math:`s_j` of the data along ``d`` axes,

        .. math:: r &\sim \text{LogNormal}(\log 0.1, 1) , \quad
                  \delta \sim \text{LogNormal}(\log 3, 1) , \quad
                  \ell_j \sim \text{LogNormal}(\log 0.3, 1) \\
                  \xi &= m , \quad \nu = d + 1 + \delta , \quad
                  \Psi = (\delta + 1) \, \text{diag}(s_j^2 \ell_j^2) .

        So units do not matter. The clusters inform how large other clusters are along each axis
        (:math:`\ell_j`), how much their shapes differ (:math:`\delta`) and how far apart they are
        (:math:`r`). The sites are ``"relative_size"``, ``"dof_excess"`` and ``"loc_precision"``.

        :param Tensor x: at least two points. **Shape:** ``(n, d)``.
        :returns: the model, to pass to a kernel as ``cluster``.
        :raises ValueError: if points are not finite or an axis is constant.

        Example::

            >>> from pyro_ext.inference import MCMC, TreeGuided
            >>> from pyro_ext.random_measures import DirichletProcess
            >>> x = torch.cat([torch.randn(20, 2) - 4.0, torch.randn(20, 2) + 4.0])
            >>> kernel = TreeGuided(DirichletProcess(1.0), GaussianCluster.hyperprior(x))
            >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=20, progress=False).run(x)
            >>> mcmc.get_samples()["relative_size"].shape
            torch.Size([20, 2])
        """
        x = checks.as_tensor("x", x, "(n, d)", finite=True)
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        if len(x) < 2:
            raise ValueError(f"x must have at least two rows, got {len(x)}")
        mean, deviation = x.mean(0), x.std(0)
        if constant := _is_constant(x, deviation).nonzero().flatten().tolist():
            raise ValueError(f"x must vary in all columns, got constant ones: {constant}")
        size, one = x.shape[-1], mean.new_ones(())

        def cluster() -> GaussianCluster:
            precision = pyro.sample("loc_precision", dist.LogNormal(math.log(0.1) * one, one))
            excess = pyro.sample("dof_excess", dist.LogNormal(math.log(3.0) * one, one))
            sizes = dist.LogNormal(math.log(0.3) * one, one).expand([size]).to_event(1)
            relative = pyro.sample("relative_size", sizes)
            scale = (excess + 1.0) * (relative * deviation).square().diag_embed()
            return cls(mean, precision, size + 1.0 + excess, scale)

        return cluster

    @property
    def _scatter_shape(self) -> tuple[int, ...]:
        return (*self.event_shape, *self.event_shape)

    @property
    def _point_distribution(self) -> Any:
        dof = self.dof - (self.event_shape[0] - 1)
        widening = ((self.loc_precision + 1.0) / (self.loc_precision * dof)).sqrt()
        factor = torch.linalg.cholesky(self.scale) * widening[..., None, None]
        return dist.MultivariateStudentT(dof, self.loc, factor, validate_args=False)

    def _scatter(self, deviation: Tensor) -> Tensor:
        return deviation.mT @ deviation

    def _log_marginal_of_points(self, x: Tensor, present: Tensor) -> Tensor:
        count, mean, deviation = self._deviations(x, present)
        return self._evidence(count, mean, evidence.factor_of_points(self.scale, deviation))

    def _log_marginal(self, summary: Summary) -> Tensor:
        count, mean, scatter = summary
        return self._evidence(count, mean, evidence.factor_of_scatter(self.scale, scatter))

    def _evidence(self, count: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
        return evidence.full_evidence(
            count, mean, factor, self.loc, self.loc_precision, self.dof, self.scale
        )

    def _posterior(self, summary: Summary) -> dict[str, Any]:
        count, mean, scatter = summary
        precision = self.loc_precision + count
        shift = mean - self.loc
        outer = shift.unsqueeze(-1) * shift.unsqueeze(-2)
        weight = self.loc_precision * count / precision
        scale = self.scale + scatter + weight[..., None, None] * outer
        return {
            "loc": self.loc + (count / precision).unsqueeze(-1) * shift,
            "loc_precision": precision,
            "dof": self.dof + count,
            "scale": (scale + scale.mT) / 2.0,
        }

    def _draw_block(self, shape: torch.Size, num_points: int) -> Tensor:
        size = self.event_shape[0]
        # Bartlett's factor of a standard Wishart matrix.
        x = torch.arange(size, device=self.loc.device)
        half = ((self.dof.unsqueeze(-1) - x) / 2.0).expand(*shape, size)
        diagonal = (2.0 * torch._standard_gamma(half)).sqrt()
        factor = self._noise(*shape, size, size).tril(-1) + diagonal.diag_embed()
        center = self._noise(*shape, size, 1) * self.loc_precision.rsqrt()[..., None, None]
        points = center + self._noise(*shape, size, num_points)
        points = torch.linalg.solve_triangular(factor.mT, points, upper=True)
        points = torch.linalg.cholesky(self.scale) @ points
        draws: Tensor = self.loc.unsqueeze(-2) + points.mT
        return draws

    def _compiled_parts(self) -> list[Tensor]:
        scale, loc = self.scale.double(), self.loc.double()
        determinant = evidence.log_determinant(torch.linalg.cholesky(scale))
        raw = scale + self.loc_precision.double() * torch.outer(loc, loc)
        return [self.loc_precision, self.dof, determinant, loc, raw]


def _is_constant(x: Tensor, deviation: Tensor) -> Tensor:
    """Columns whose deviation is the rounding of their mean."""
    return deviation <= 4.0 * torch.finfo(x.dtype).eps * x.abs().amax(0)


class KnownVarianceGaussianCluster(LocatedCluster):
    r"""Point from a Gaussian cluster with an unknown mean and known, independent noise [7].

    In each dimension :math:`\mu \sim \text{Normal}(\xi, s_0^2)` and
    :math:`x_i \sim \text{Normal}(\mu, s^2)`, with variances as second arguments. The statistics of
    a point are 1, 0, :math:`x` and :math:`x^2`.

    :param loc: :math:`\xi`. **Shape:** ``(*batch, d)``; a number applies to all dimensions, but at
        least one of the three arguments must have the dimension ``d``.
    :param loc_scale: :math:`s_0 > 0`, the standard deviation between clusters. **Shape:** likewise.
    :param scale: :math:`s > 0`, the standard deviation within a cluster. **Shape:** likewise.

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
    _kind = 1

    def __init__(
        self, loc: Any, loc_scale: Any, scale: Any, *, validate_args: bool | None = None
    ) -> None:
        super().__init__({"loc": loc, "loc_scale": loc_scale, "scale": scale}, validate_args)

    @property
    def _point_distribution(self) -> Any:
        scale = torch.hypot(self.loc_scale, self.scale)
        return dist.Normal(self.loc, scale, validate_args=False).to_event(1)

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
