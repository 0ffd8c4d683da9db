r"""Clusters of Gaussian points, with the mean and the covariance integrated out.

[1] K. P. Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._checks import as_tensor, check_number
from pyro_ext.distributions import _gaussian_evidence as evidence
from pyro_ext.distributions._located_cluster import LocatedCluster
from pyro_ext.distributions.clusters import Summary

__all__ = ["GaussianCluster"]


class GaussianCluster(LocatedCluster):
    r"""Point of a Gaussian cluster of unknown mean and covariance, a multivariate Student's t [1].

    The prior is normal-Wishart,

    .. math:: \Lambda \sim \text{Wishart}(\nu, \Psi^{-1}) , \quad
              \mu \sim \text{Normal}(\xi, (r \Lambda)^{-1}) , \quad
              x_i \sim \text{Normal}(\mu, \Lambda^{-1}) .

    The statistics of a point are 1, 0, :math:`x` and :math:`x x^\top` row by row.

    :param loc: :math:`\xi`. **Shape:** ``(*batch, d)``.
    :param loc_precision: :math:`r > 0`, a number of points. **Shape:** ``(*batch)``.
    :param dof: :math:`\nu > d - 1`. **Shape:** ``(*batch)``.
    :param scale: :math:`\Psi`, positive definite. **Shape:** ``(*batch, d, d)``.
    :raises ValueError: where a hyperparameter is out of range or of another shape.

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
        super().__init__(parameters, event_dims, validate_args)
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
        r"""Make a prior that is centered at data and has their shape, but clusters of another size.

        It fixes the shape and the size of clusters. Where they are not known, :meth:`hyperprior`
        lets the data tell.

        :param Tensor x: points, of which the mean becomes ``loc``, and the covariance ``scale``, up
            to a factor. **Shape:** ``(n, d)``.
        :param float loc_precision: :math:`r > 0`.
        :param float dof: :math:`\nu > d - 1`, where None :math:`d + 6`.
        :param float determinant: that of ``scale``, positive. By default a cluster has a tenth of
            the data's volume: :math:`\Psi / (\nu - d - 1)`, the expected covariance for
            :math:`\nu > d + 1`, is that of the data over :math:`10^{2 / d}`, in any units.
        :returns: the distribution of a point.
        :raises ValueError: where there are too few points or they lie in a subspace.

        Example::

            >>> x = torch.tensor([[0.0, 0.0], [0.4, -0.1], [1.5, 1.2], [1.8, 0.9]])
            >>> cluster = GaussianCluster.from_data(x)
            >>> (cluster.scale / (cluster.dof - 3)).det() / x.T.cov(correction=0).det()
            tensor(0.0100)
        """
        x = as_tensor("x", x, "(n, d)")
        check_number("loc_precision", loc_precision, above=0)
        if dof is not None:
            check_number("dof", dof, above=x.shape[1] - 1)
        if determinant is not None:
            check_number("determinant", determinant, above=0)
        if x.dim() != 2 or x.shape[0] <= x.shape[1]:
            raise ValueError(
                f"x must have the shape (n, d) with more points than dimensions, got "
                f"{tuple(x.shape)}"
            )
        if not x.is_floating_point():
            x = x.to(torch.get_default_dtype())
        if not bool(x.isfinite().all()):
            raise ValueError(f"x must be finite, got {x[~x.isfinite()][0].item():g}")
        size = x.shape[-1]
        eps = torch.finfo(x.dtype).eps
        deviation = x - x.mean(0)
        unit = deviation.square().mean(0).sqrt()
        # The mean of equal numbers is rounded, which makes noise of their deviations.
        is_constant = bool((unit <= 4.0 * eps * x.abs().amax(0)).any())
        correlation = (deviation / unit).mT @ (deviation / unit) / len(x)
        if is_constant or torch.linalg.matrix_rank(correlation, rtol=len(x) * eps) < size:
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
        r"""Make a Pyro model of hyperparameters on the scale of data, for kernels over partitions.

        With the means :math:`m_j` and standard deviations :math:`s_j` of the data in ``d`` axes,

        .. math:: r &\sim \text{LogNormal}(\log 0.1, 1) , \quad
                  \delta \sim \text{LogNormal}(\log 3, 1) , \quad
                  \ell_j \sim \text{LogNormal}(\log 0.3, 1) \\
                  \xi &= m , \quad \nu = d + 1 + \delta , \quad
                  \Psi = (\delta + 1) \, \text{diag}(s_j^2 \ell_j^2) .

        So units do not matter, and the clusters that are found say how large others are, axis by
        axis (:math:`\ell_j`), how much their shapes differ (:math:`\delta`) and how far they are
        apart (:math:`r`). Sites are ``"loc_precision"``, ``"dof_excess"`` and
        ``"relative_size"``. A covariance, unlike a scale, need not be axis-parallel.

        :param Tensor x: points. **Shape:** ``(n, d)``, at least two of them.
        :returns: the model, to be given as ``cluster``.
        :raises ValueError: where points are not finite or an axis is constant.

        Example::

            >>> from pyro_ext.inference import MCMC, TreeGuided
            >>> from pyro_ext.random_measures import DirichletProcess
            >>> x = torch.cat([torch.randn(20, 2) - 4.0, torch.randn(20, 2) + 4.0])
            >>> kernel = TreeGuided(DirichletProcess(1.0), GaussianCluster.hyperprior(x))
            >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=20, progress=False).run(x)
            >>> mcmc.get_samples()["relative_size"].shape
            torch.Size([20, 2])
        """
        x = as_tensor("x", x, "(n, d)", finite=True)
        if len(x) < 2:
            raise ValueError(f"x must have at least two rows, got {len(x)}")
        if not x.is_floating_point():
            x = x.to(torch.get_default_dtype())
        mean, deviation = x.mean(0), x.std(0)
        constant = deviation <= 4.0 * torch.finfo(x.dtype).eps * x.abs().amax(0)
        if bool(constant.any()):
            raise ValueError(
                f"x must vary in all columns, got constant ones: "
                f"{constant.nonzero().flatten().tolist()}"
            )
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
    def _point_law(self) -> Any:
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
        place = torch.arange(size, device=self.loc.device)
        half = ((self.dof.unsqueeze(-1) - place) / 2.0).expand(*shape, size)
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
