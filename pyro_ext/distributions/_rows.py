"""What joint laws of points share that are the rows of a matrix, points of clusters."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

if TYPE_CHECKING:
    from pyro_ext.distributions.clusters import ConjugateCluster

__all__ = ["RowsOfClusters"]


class RowsOfClusters(TorchDistribution):
    """Joint law of points, each of which has the law of a conjugate cluster by itself."""

    arg_constraints: dict[str, Any] = {}
    cluster: "ConjugateCluster"

    @constraints.dependent_property(event_dim=2)
    def support(self) -> Any:
        """Matrices whose rows are points."""
        return constraints.independent(self.cluster.support, 1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of all points, each with cluster parameters of its own.

        :param torch.Size sample_shape: how many.
        """
        with torch.no_grad():
            return self._draw(torch.Size(sample_shape) + self.batch_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients in the hyperparameters, where ``has_rsample``.

        :param torch.Size sample_shape: how many.
        :raises NotImplementedError: where points are counts.
        """
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
