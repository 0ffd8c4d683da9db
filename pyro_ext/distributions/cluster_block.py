"""Joint laws of the points of a cluster."""

from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._checks import check_integer

if TYPE_CHECKING:
    from pyro_ext.distributions.clusters import ConjugateCluster

__all__ = ["ClusterBlock"]


class ClusterBlock(TorchDistribution):
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

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self,
        cluster: "ConjugateCluster",
        num_points: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.cluster = cluster
        self.num_points = check_integer("num_points", num_points, 1)
        self.has_rsample = cluster.has_rsample
        event_shape = torch.Size((self.num_points, *cluster.event_shape))
        super().__init__(cluster.batch_shape, event_shape, validate_args=validate_args)

    @constraints.dependent_property(event_dim=2)
    def support(self) -> Any:
        """Matrices whose rows are points."""
        return constraints.independent(self.cluster.support, 1)

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

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of whole blocks, each with parameters of its own.

        :param torch.Size sample_shape: how many.
        """
        with torch.no_grad():
            return self._draw(sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of whole blocks with gradients in the hyperparameters, where ``has_rsample``.

        :param torch.Size sample_shape: how many.
        :raises NotImplementedError: where points are counts.
        """
        if not self.has_rsample:
            raise NotImplementedError(f"draws of {type(self.cluster).__name__} have no gradients")
        return self._draw(sample_shape)

    @property
    def mean(self) -> Tensor:
        """Mean of each point."""
        return self.cluster.mean.unsqueeze(-2).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of each entry of each point."""
        return self.cluster.variance.unsqueeze(-2).expand(self.batch_shape + self.event_shape)

    def _draw(self, sample_shape: Any) -> Tensor:
        return self.cluster._draw_block(
            torch.Size(sample_shape) + self.batch_shape, self.num_points
        )
