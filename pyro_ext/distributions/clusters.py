r"""Laws of the points of a cluster whose parameters are integrated out.

Points of a cluster are independent given its parameters, which have a conjugate prior. Without them
the points are exchangeable, and the density of a block of them is in closed form, a function of
sums over the block.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_ext._checks import as_tensor
from pyro_ext.distributions._base import ParametricDistribution
from pyro_ext.distributions._hyperparameters import broadcast_hyperparameters
from pyro_ext.distributions.cluster_block import ClusterBlock

__all__ = ["ConjugateCluster", "Summary"]

Summary = tuple[Tensor, ...]
Cluster = TypeVar("Cluster", bound="ConjugateCluster")


class ConjugateCluster(ParametricDistribution):
    """Law of one point of a cluster, with the parameters of the cluster integrated out.

    It is the base of the laws of clusters and not made itself. Each is a distribution of one point,
    and knows those of blocks of points: :meth:`log_marginal` and :meth:`block` for all points at
    once, :meth:`posterior` for what some say about others, and :meth:`statistics` with
    :meth:`log_marginal_of` for samplers that move points from block to block.

    Example::

        >>> from pyro_ext.distributions import BernoulliCluster
        >>> cluster = BernoulliCluster(torch.tensor([1.0, 1.0]), 1.0)
        >>> isinstance(cluster, ConjugateCluster), cluster.event_shape
        (True, torch.Size([2]))
    """

    _kind: int

    def __init__(
        self,
        parameters: Mapping[str, Any],
        event_dims: dict[str, int],
        validate_args: bool | None = None,
    ) -> None:
        tensors, batch_shape, size = broadcast_hyperparameters(
            type(self).__name__, parameters, event_dims
        )
        super().__init__(tensors, event_dims, batch_shape, torch.Size((size,)), validate_args)

    @property
    def num_statistics(self) -> int:
        """Length of the sufficient statistics of a point."""
        return 2 + self._num_moments

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, or log probability, of one point.

        :param Tensor value: points. **Shape:** ``(*batch, d)``.
        :returns: **Shape:** ``(*batch)``.
        """
        value = as_tensor("value", value, f"(*batch, {self.event_shape[0]})")
        if self._validate_args:
            self._validate_sample(value)
        return self._log_marginal(self._summary_of_point(self._promote(value)))

    def log_marginal(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log density, or log probability, of a block of points, zero for an empty one.

        :param Tensor x: points. **Shape:** ``(*batch, n, d)``.
        :param Tensor mask: which of them belong to the block, a tensor of booleans; the others may
            be anything. **Shape:** ``(*batch, n)``.
        :returns: **Shape:** ``(*batch)``, broadcast with the batch shape of the hyperparameters.
        :raises ValueError: where a shape does not fit, or a point is outside the support.
        """
        return self._log_marginal_of_points(*self._block_of(x, mask))

    def statistics(self, x: Tensor) -> Tensor:
        """Sufficient statistics of each point, whose sums over a block are those of the block.

        :param Tensor x: points. **Shape:** ``(*batch, n, d)``.
        :returns: the number one, the part of the log density that no parameter enters, and what the
            class says. **Shape:** ``(*batch, n, num_statistics)``.
        :raises ValueError: where the shape does not fit, or a point is outside the support.
        """
        points, _ = self._block_of(x, None)
        return self._statistics(points)

    def log_marginal_of(self, statistics: Tensor) -> Tensor:
        """Log density, or log probability, of a block of points of which the sums are known.

        Sums of squares of points far from zero have lost digits that :meth:`log_marginal` keeps,
        and may be of no positive definite matrix, which is an error of PyTorch; center the data.

        :param Tensor statistics: sums of :meth:`statistics`. **Shape:**
            ``(*batch, num_statistics)``.
        :returns: **Shape:** ``(*batch)``, broadcast with the batch shape of the hyperparameters.
        :raises ValueError: where the shape does not fit.
        """
        if statistics.dim() == 0 or statistics.shape[-1] != self.num_statistics:
            raise ValueError(
                f"statistics must have shape (*batch, {self.num_statistics}), "
                f"got {tuple(statistics.shape)}"
            )
        return self._log_marginal(self._summary_of(statistics))

    def posterior(self: Cluster, x: Tensor, mask: Tensor | None = None) -> Cluster:
        """Law of one point with the hyperparameters updated by a block of other points.

        :param Tensor x: points. **Shape:** ``(*batch, n, d)``.
        :param Tensor mask: which of them belong to the block. **Shape:** ``(*batch, n)``.
        :returns: a distribution of the same class.
        :raises ValueError: where a shape does not fit, or a point is outside the support.
        """
        updated = self._posterior(self._summary(*self._block_of(x, mask)))
        return type(self)(**updated, validate_args=self._validate_args)

    def predictive(self: Cluster, x: Tensor, mask: Tensor | None = None) -> Cluster:
        """Law of the next point given a block of points, another name of :meth:`posterior`.

        :param Tensor x: points. **Shape:** ``(*batch, n, d)``.
        :param Tensor mask: which of them belong to the block. **Shape:** ``(*batch, n)``.
        :returns: a distribution of the same class.
        :raises ValueError: where a shape does not fit, or a point is outside the support.
        """
        return self.posterior(x, mask)

    def block(self, num_points: int) -> ClusterBlock:
        """Joint law of several points of the cluster.

        :param int num_points: how many.
        :returns: a distribution of event shape ``(num_points, d)``.
        :raises ValueError: where it is not a positive integer.
        """
        return ClusterBlock(self, num_points)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of one point each, independent of each other.

        :param torch.Size sample_shape: how many.
        """
        with torch.no_grad():
            draws: Tensor = self._point_law.sample(torch.Size(sample_shape))
        return draws

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients in the hyperparameters, where ``has_rsample``.

        :param torch.Size sample_shape: how many.
        :raises NotImplementedError: where points are counts.
        """
        draws: Tensor = self._point_law.rsample(torch.Size(sample_shape))
        return draws

    @property
    def mean(self) -> Tensor:
        """Mean of a point, nan where there is none."""
        mean: Tensor = self._point_law.mean
        return mean

    @property
    def variance(self) -> Tensor:
        """Variance of each entry of a point, infinite or nan where there is none."""
        variance: Tensor = self._point_law.variance
        return variance

    def _compiled_parameters(self) -> tuple[int, NDArray[np.float64]]:
        """Number of the family and hyperparameters, as compiled samplers read them."""
        if self.batch_shape:
            raise ValueError(
                f"a compiled sampler needs one {type(self).__name__}, "
                f"got batch_shape {tuple(self.batch_shape)}"
            )
        return self._kind, self._compiled_tensor().detach().cpu().numpy()

    def _compiled_tensor(self) -> Tensor:
        """Hyperparameters as compiled samplers read them, in one vector."""
        return torch.cat([part.double().flatten() for part in self._compiled_parts()])

    def _log_marginal_of_points(self, x: Tensor, present: Tensor) -> Tensor:
        return self._log_marginal(self._summary(x, present))

    def _promote(self, x: Tensor) -> Tensor:
        return x.to(torch.promote_types(x.dtype, self._dtype))

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(self, next(iter(self._event_dims))).dtype
        return dtype

    def _block_of(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Points of a block, with zeros for those that do not belong, and which do."""
        x = as_tensor("x", x, f"(*batch, n, {self.event_shape[0]})", allow_empty=True)
        x = self._promote(x)
        if mask is None:
            present = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        else:
            shape = f"(*batch, {x.shape[-2]})"
            mask = as_tensor("mask", mask, shape, kind="booleans", allow_empty=not x.numel())
            present = mask.expand(torch.broadcast_shapes(mask.shape, x.shape[:-1]))
            x = torch.where(present.unsqueeze(-1), x, 0.0)
        if self._validate_args:
            support: Any = self.support
            within = support.base_constraint
            is_valid = within.check(x) & x.isfinite()
            if not bool(is_valid.all()):
                value = x[~is_valid][0].item()
                raise ValueError(f"x must be finite and in the support {within}, got {value:g}")
        return x, present

    def _statistics(self, x: Tensor) -> Tensor:
        one = x.new_ones((*x.shape[:-1], 1))
        return torch.cat([one, self._log_base(x).unsqueeze(-1), self._moments(x)], -1)

    def _log_base(self, x: Tensor) -> Tensor:
        """The part of the log density of a point that no parameter enters."""
        return x.new_zeros(x.shape[:-1])

    def _summary(self, x: Tensor, present: Tensor) -> Summary:
        return self._summary_of((self._statistics(x) * present.unsqueeze(-1)).sum(-2))

    def _summary_of_point(self, value: Tensor) -> Summary:
        return self._summary_of(self._statistics(value))

    # What a family says of itself. A summary is what its evidence and its posterior depend on.

    @property
    def _num_moments(self) -> int:
        raise NotImplementedError

    @property
    def _point_law(self) -> Any:
        """The same law of one point without its evidence, for draws and moments."""
        raise NotImplementedError

    def _moments(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _summary_of(self, statistics: Tensor) -> Summary:
        raise NotImplementedError

    def _log_marginal(self, summary: Summary) -> Tensor:
        raise NotImplementedError

    def _posterior(self, summary: Summary) -> dict[str, Any]:
        raise NotImplementedError

    def _draw_block(self, shape: torch.Size, num_points: int) -> Tensor:
        """Draws of points with common parameters, of a shape and two dimensions more."""
        raise NotImplementedError

    def _compiled_parts(self) -> list[Tensor]:
        raise NotImplementedError
