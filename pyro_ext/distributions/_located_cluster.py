"""What clusters of Gaussian points share, whichever of mean and covariance is integrated out."""

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.distributions.clusters import ConjugateCluster, Summary

__all__ = ["LocatedCluster"]


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

    @property
    def _num_moments(self) -> int:
        return self.event_shape[0] + math.prod(self._scatter_shape)

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

    def _summary_of(self, statistics: Tensor) -> Summary:
        size = self.event_shape[0]
        count, total = statistics[..., 0], statistics[..., 2 : 2 + size]
        squares = statistics[..., 2 + size :].unflatten(-1, self._scatter_shape)
        root = count.clamp(min=1.0).sqrt().unsqueeze(-1)
        between = self._scatter((total / root).unsqueeze(-2))
        return count, total / root.square(), squares - between

    def _summary_of_point(self, value: Tensor) -> Summary:
        return value.new_ones(()), value, value.new_zeros(self._scatter_shape)
