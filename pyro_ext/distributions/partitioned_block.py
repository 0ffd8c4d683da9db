"""Joint laws of points that are partitioned into clusters."""

from typing import Any

import torch
from torch import Tensor

from pyro_ext.distributions._rows import RowsOfClusters
from pyro_ext.distributions.clusters import ConjugateCluster

__all__ = ["PartitionedBlock"]


class PartitionedBlock(RowsOfClusters):
    """Joint law of points given which of them are in the same cluster.

    Points of a cluster share its parameters, which are integrated out, and clusters are
    independent of each other.

    :param ConjugateCluster cluster: law of one point, without batch shape.
    :param Tensor labels: integers, equal for points of one cluster. **Shape:** ``(*batch, n)``.
    :raises TypeError: where an argument is of another type.
    :raises ValueError: where it has another shape.

    Example::

        >>> from pyro_ext.distributions import PoissonCluster
        >>> cluster = PoissonCluster(torch.tensor([2.0]), 1.0)
        >>> law = PartitionedBlock(cluster, torch.tensor([0, 1, 0]))
        >>> law.event_shape, law.log_prob(torch.tensor([[1.0], [0.0], [2.0]]))
        (torch.Size([3, 1]), tensor(-4.3944))
    """

    def __init__(
        self, cluster: ConjugateCluster, labels: Tensor, *, validate_args: bool | None = None
    ) -> None:
        if not isinstance(cluster, ConjugateCluster):
            raise TypeError(f"cluster must be a conjugate cluster, got {cluster!r:.80}")
        if cluster.batch_shape:
            raise ValueError(f"cluster must have no batch shape, got {tuple(cluster.batch_shape)}")
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
            got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"labels must be a tensor of integers, got {got}")
        if not labels.dim() or not labels.shape[-1]:
            raise ValueError(
                f"labels must have shape (*batch, n) with n > 0, got {tuple(labels.shape)}"
            )
        self.cluster, self.labels = cluster, labels
        self.has_rsample = cluster.has_rsample
        event_shape = labels.shape[-1:] + cluster.event_shape
        super().__init__(labels.shape[:-1], event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Repeat the distribution over a larger batch shape.

        :param torch.Size batch_shape: the new shape.
        :returns: the distribution of that shape.
        """
        new = self._get_checked_instance(PartitionedBlock, _instance)  # type: ignore[no-untyped-call]
        new.cluster, new.has_rsample = self.cluster, self.has_rsample
        new.labels = self.labels.expand(*batch_shape, self.labels.shape[-1])
        super(PartitionedBlock, new).__init__(
            new.labels.shape[:-1], self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

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
        kinds, places = self.labels.unique(return_inverse=True)
        block = self.cluster.block(self.labels.shape[-1])
        draw = block.rsample if self.has_rsample else block.sample
        # As many points of every cluster as there are in all, of which each label picks one.
        points = draw((*shape, len(kinds)))
        chosen = places.expand(*shape, -1)[..., None, :, None]
        return points.gather(-3, chosen.expand(*shape, 1, *self.event_shape)).squeeze(-3)
