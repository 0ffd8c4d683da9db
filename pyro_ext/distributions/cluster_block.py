"""Joint laws of the points of a cluster."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_ext._checks import check_integer, shown
from pyro_ext.distributions._rows import RowsOfClusters

if TYPE_CHECKING:
    from pyro_ext.distributions.clusters import ConjugateCluster

__all__ = ["ClusterBlock"]


class ClusterBlock(RowsOfClusters):
    """Joint law of several points of a cluster whose parameters are integrated out.

    The points are exchangeable and, since they share the parameters, not independent.

    :param ConjugateCluster cluster: law of one point.
    :param int num_points: how many points a draw has.
    :raises ValueError: where it is not a positive integer.

    Example::

        >>> from pyro_ext.distributions import PoissonCluster
        >>> block = PoissonCluster(torch.tensor([2.0]), 1.0).block(3)
        >>> block.event_shape, block.log_prob(torch.tensor([[1.0], [0.0], [2.0]]))
        (torch.Size([3, 1]), tensor(-4.4466))
    """

    def __init__(
        self,
        cluster: "ConjugateCluster",
        num_points: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if not hasattr(cluster, "log_marginal") or isinstance(cluster, type):
            raise TypeError(f"cluster must be a conjugate cluster, got {shown(cluster)}")
        self.cluster = cluster
        self.num_points = check_integer("num_points", num_points, 1)
        self.has_rsample = cluster.has_rsample
        event_shape = torch.Size((self.num_points, *cluster.event_shape))
        super().__init__(cluster.batch_shape, event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Repeat the distribution over a larger batch shape.

        :param torch.Size batch_shape: the new shape.
        :returns: the distribution of that shape.
        """
        new = self._get_checked_instance(ClusterBlock, _instance)  # type: ignore[no-untyped-call]
        new.cluster = self.cluster.expand(batch_shape)
        new.num_points = self.num_points
        new.has_rsample = self.has_rsample
        super(ClusterBlock, new).__init__(
            new.cluster.batch_shape, self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

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
