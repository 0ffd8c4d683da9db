"""Conjugate clusters: distributions of points whose shared parameters are integrated out.

Points of a cluster are independent given the cluster's parameters, which have a conjugate prior.
With the parameters integrated out, the points are exchangeable, and the density of a block of them
is a closed-form function of sums over the block.
"""

from abc import abstractmethod
from collections.abc import Mapping
from functools import reduce
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._lib import checks
from pyro_ext.distributions.bases import ParametricDistribution, expanded

Summary = tuple[Tensor, ...]
Cluster = TypeVar("Cluster", bound="ConjugateCluster")


class RowsOfClusters(TorchDistribution):
    """Base class of joint distributions of points, each marginally a point of the same cluster."""

    arg_constraints: dict[str, Any] = {}
    cluster: "ConjugateCluster"

    @constraints.dependent_property(event_dim=2)
    def support(self) -> Any:
        """Matrices whose rows are points."""
        return constraints.independent(self.cluster.support, 1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of all points, each with cluster parameters of its own."""
        with torch.no_grad():
            return self._draw(torch.Size(sample_shape) + self.batch_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients with respect to the hyperparameters, if ``has_rsample``."""
        if not self.has_rsample:
            raise NotImplementedError(f"draws of {type(self.cluster).__name__} have no gradients")
        return self._draw(torch.Size(sample_shape) + self.batch_shape)

    @property
    def mean(self) -> Tensor:
        """Mean of each point."""
        return self.cluster.mean.unsqueeze(-2).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of each entry of each point."""
        return self.cluster.variance.unsqueeze(-2).expand(self.batch_shape + self.event_shape)

    @abstractmethod
    def _draw(self, shape: torch.Size) -> Tensor:
        """Draws over a shape, with gradients where there are any."""


class ClusterBlock(RowsOfClusters):
    """Joint distribution of several points of one cluster, whose parameters are integrated out.

    The points are exchangeable, but not independent, because they share the parameters.

    :param ConjugateCluster cluster: the distribution of one point.
    :param int num_points: the number of points.

    Example::

        >>> from pyro_ext.distributions import PoissonCluster
        >>> block = PoissonCluster(torch.tensor([2.0]), 1.0).block(3)
        >>> block.event_shape, block.log_prob(torch.tensor([[1.0], [0.0], [2.0]]))
        (torch.Size([3, 1]), tensor(-4.4466))
    """

    def __init__(
        self, cluster: "ConjugateCluster", num_points: int, *, validate_args: bool | None = None
    ) -> None:
        checks.instance("cluster", cluster, ConjugateCluster, "a conjugate cluster")
        self.cluster = cluster
        self.num_points = checks.integer("num_points", num_points, 1)
        self.has_rsample = cluster.has_rsample
        event_shape = torch.Size((self.num_points, *cluster.event_shape))
        super().__init__(cluster.batch_shape, event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Repeat the distribution over a larger batch shape."""
        cluster = self.cluster.expand(batch_shape)
        return expanded(self, _instance, cluster.batch_shape, cluster=cluster)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, or log probability, of a block of points.

        :param Tensor value: **Shape:** ``(*batch, num_points, d)``.
        :returns: **Shape:** ``(*batch)``.
        """
        if self._validate_args:
            self._validate_sample(value)
        return self.cluster.log_marginal(value)

    def _draw(self, shape: torch.Size) -> Tensor:
        return self.cluster._draw_block(shape, self.num_points)


def _broadcast(
    owner: str, parameters: Mapping[str, Any], event_dims: Mapping[str, int]
) -> tuple[dict[str, Tensor], torch.Size, int]:
    """Hyperparameters in one type and of one batch shape, that shape, and the size of a point.

    A number stands for a vector of equal entries, never for a matrix.
    """
    parameters = {name: checks.as_parameter(name, value) for name, value in parameters.items()}
    given = [value for value in parameters.values() if isinstance(value, Tensor)]
    dtype = reduce(torch.promote_types, (value.dtype for value in given), torch.bool)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    device = given[0].device if given else None
    tensors = {
        name: torch.as_tensor(value, dtype=dtype, device=device)
        for name, value in parameters.items()
    }
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    sizes = {shape[-1:] for name, shape in shapes.items() if event_dims[name]} - {()}
    sizes |= {shape[-2:-1] for name, shape in shapes.items() if event_dims[name] == 2}
    wrong = [shape for name, shape in shapes.items() if event_dims[name] > max(1, len(shape))]
    if len(sizes - {(1,)}) > 1 or not sizes or wrong:
        wanted = ", ".join(
            f"{name} {'(*batch' + ', d' * k + ')'}" for name, k in event_dims.items()
        )
        raise ValueError(f"{owner} takes the shapes {wanted}, got {shapes}")
    (size,) = max(sizes)
    batch_shapes = (
        value.shape[: max(0, value.dim() - event_dims[name])] for name, value in tensors.items()
    )
    try:
        batch_shape = torch.broadcast_shapes(*batch_shapes)
    except RuntimeError:
        raise ValueError(f"hyperparameters of {owner} do not broadcast, got {shapes}") from None
    expanded = {
        name: value.expand(batch_shape + (size,) * event_dims[name])
        for name, value in tensors.items()
    }
    return expanded, batch_shape, size


class ConjugateCluster(ParametricDistribution):
    """Distribution of one point of a cluster, with the parameters of the cluster integrated out.

    This is the abstract base class of the clusters. Each cluster can also handle blocks of points:
    :meth:`log_marginal` and :meth:`block` give their joint distribution, :meth:`posterior` the
    distribution of a further point, and :meth:`statistics` the sufficient statistics for samplers
    that move points between blocks.

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
        validate_args: bool | None,
        event_dims: dict[str, int] | None = None,
    ) -> None:
        event_dims = event_dims or dict.fromkeys(parameters, 1)
        tensors, batch_shape, size = _broadcast(type(self).__name__, parameters, event_dims)
        super().__init__(tensors, event_dims, batch_shape, torch.Size((size,)), validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, or log probability, of one point.

        :param Tensor value: points. **Shape:** ``(*batch, d)``.
        :returns: **Shape:** ``(*batch)``.
        """
        value = checks.as_tensor("value", value, f"(*batch, {self.event_shape[0]})")
        if self._validate_args:
            self._validate_sample(value)
        return self._log_marginal(self._summary_of_point(self._promote(value)))

    def log_marginal(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log density, or log probability, of a block of points; zero for an empty block.

        :param Tensor x: points. **Shape:** ``(*batch, n, d)``.
        :param Tensor mask: booleans, true for points that belong to the block. The values of the
            other points do not matter. **Shape:** ``(*batch, n)``.
        :returns: **Shape:** ``(*batch)``, broadcast with the batch shape of the hyperparameters.
        """
        return self._log_marginal_of_points(*self._block_of(x, mask))

    def statistics(self, x: Tensor) -> Tensor:
        """Sufficient statistics of each point; their sum over a block is that of the block.

        :param Tensor x: points. **Shape:** ``(*batch, n, d)``.
        :returns: the number one, the part of the log density that depends on no parameter, and the
            statistics that the class lists. **Shape:** ``(*batch, n, num_statistics)``.
        """
        points, _ = self._block_of(x, None)
        return self._statistics(points)

    def posterior(self: Cluster, x: Tensor, mask: Tensor | None = None) -> Cluster:
        """Distribution of the next point given a block, with updated hyperparameters.

        :param Tensor x: points. **Shape:** ``(*batch, n, d)``.
        :param Tensor mask: booleans, true for points that belong to the block. **Shape:**
            ``(*batch, n)``.
        :returns: a distribution of the same class.
        """
        updated = self._posterior(self._summary(*self._block_of(x, mask)))
        return type(self)(**updated, validate_args=self._validate_args)

    def block(self, num_points: int) -> ClusterBlock:
        """Joint distribution of several points of the cluster.

        :param int num_points: the number of points.
        :returns: a distribution with event shape ``(num_points, d)``.
        """
        return ClusterBlock(self, num_points)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw points independently, each with cluster parameters of its own."""
        with torch.no_grad():
            draws: Tensor = self._point_distribution.sample(torch.Size(sample_shape))
        return draws

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients with respect to the hyperparameters, if ``has_rsample``."""
        draws: Tensor = self._point_distribution.rsample(torch.Size(sample_shape))
        return draws

    @property
    def mean(self) -> Tensor:
        """Mean of a point, NaN if it does not exist."""
        mean: Tensor = self._point_distribution.mean
        return mean

    @property
    def variance(self) -> Tensor:
        """Variance of each entry of a point, infinite or NaN if it does not exist."""
        variance: Tensor = self._point_distribution.variance
        return variance

    def _compiled_parameters(self) -> tuple[int, NDArray[np.float64]]:
        """Number of the family and hyperparameters, as compiled samplers read them."""
        if self.batch_shape:
            name, shape = type(self).__name__, tuple(self.batch_shape)
            raise ValueError(f"a compiled sampler needs one {name}, got batch_shape {shape}")
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
        x = checks.as_tensor("x", x, f"(*batch, n, {self.event_shape[0]})", allow_empty=True)
        x = self._promote(x)
        if mask is None:
            present = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        else:
            shape = f"(*batch, {x.shape[-2]})"
            mask = checks.as_tensor("mask", mask, shape, kind="booleans", allow_empty=not x.numel())
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

    # Interface of a family. A summary holds all that its evidence and its posterior depend on.

    @property
    def _point_distribution(self) -> Any:
        """The same distribution of one point without its evidence, for draws and moments."""
        raise NotImplementedError

    def _moments(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _summary(self, x: Tensor, present: Tensor) -> Summary:
        raise NotImplementedError

    def _summary_of_point(self, value: Tensor) -> Summary:
        raise NotImplementedError

    def _log_marginal(self, summary: Summary) -> Tensor:
        raise NotImplementedError

    def _posterior(self, summary: Summary) -> dict[str, Any]:
        raise NotImplementedError

    def _draw_block(self, shape: torch.Size, num_points: int) -> Tensor:
        """Draws of points with common parameters, of a shape and two dimensions more."""
        raise NotImplementedError

    def _compiled_parts(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._event_dims]


class PartitionedBlock(RowsOfClusters):
    """Joint distribution of points, given which of them are in the same cluster.

    Points in a cluster share its parameters, which are integrated out. Clusters are independent of
    each other.

    :param ConjugateCluster cluster: the distribution of one point, without a batch shape.
    :param Tensor labels: integers; points in the same cluster have the same label. **Shape:**
        ``(*batch, n)``.

    Example::

        >>> from pyro_ext.distributions import PoissonCluster
        >>> cluster = PoissonCluster(torch.tensor([2.0]), 1.0)
        >>> distribution = PartitionedBlock(cluster, torch.tensor([0, 1, 0]))
        >>> distribution.event_shape, distribution.log_prob(torch.tensor([[1.0], [0.0], [2.0]]))
        (torch.Size([3, 1]), tensor(-4.3944))
    """

    def __init__(
        self, cluster: ConjugateCluster, labels: Tensor, *, validate_args: bool | None = None
    ) -> None:
        checks.instance("cluster", cluster, ConjugateCluster, "a conjugate cluster")
        if cluster.batch_shape:
            raise ValueError(f"cluster must have no batch shape, got {tuple(cluster.batch_shape)}")
        labels = checks.as_tensor("labels", labels, "(*batch, n)", kind="integers")
        self.cluster, self.labels = cluster, labels
        self.has_rsample = cluster.has_rsample
        event_shape = labels.shape[-1:] + cluster.event_shape
        super().__init__(labels.shape[:-1], event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Repeat the distribution over a larger batch shape."""
        labels = self.labels.expand(*batch_shape, self.labels.shape[-1])
        return expanded(self, _instance, labels.shape[:-1], labels=labels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, or log probability, of the points.

        :param Tensor value: **Shape:** ``(*batch, n, d)``.
        :returns: **Shape:** ``(*batch)``.
        """
        if self._validate_args:
            self._validate_sample(value)
        kinds = self.labels.unique()
        mask = self.labels.unsqueeze(-2) == kinds.unsqueeze(-1)
        return self.cluster.log_marginal(value.unsqueeze(-3), mask).sum(-1)

    def _draw(self, shape: torch.Size) -> Tensor:
        kinds, indices = self.labels.unique(return_inverse=True)
        block = self.cluster.block(self.labels.shape[-1])
        draw = block.rsample if self.has_rsample else block.sample
        # As many points of every cluster as there are in all, of which each label picks one.
        points = draw((*shape, len(kinds)))
        chosen = indices.expand(*shape, -1)[..., None, :, None]
        return points.gather(-3, chosen.expand(*shape, 1, *self.event_shape)).squeeze(-3)
