"""Point estimates of a partition, and credible balls around them."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.diagnostics.partitions.labels import (
    Labels,
    check_draws,
    check_partition,
    co_clustering,
)
from pyro_ext.diagnostics.partitions.losses import increments, mean_distances, paired_distances
from pyro_ext.random import fresh_seed
from pyro_ext.random_measures import cluster_counts

_MOST_DRAWS_TRIED = 1000
_STARTS_FROM_CANDIDATES = 4
_STARTS_FROM_NOTHING = 16
_LEAST_GAIN = 1e-12

Integers = npt.NDArray[np.int64]


class PartitionEstimate(NamedTuple):
    """A partition that summarizes a posterior.

    :param Tensor labels: labels, numbered in the order of first occurrence. **Shape:** ``(n,)``.
    :param float expected_loss: its loss, averaged over the draws.
    """

    labels: Tensor
    expected_loss: float


def point_estimate(labels: Labels, seed: int | None = None) -> PartitionEstimate:
    """Search for the partition with the smallest mean variation of information from the draws.

    Candidates are the draws (if there are more than 1,000, an evenly spaced subset of 1,000) and
    the cuts of two trees, of average and complete linkage, on one minus :func:`co_clustering` [1].
    The search starts from the best candidate, and from 16 partitions built up point by point in
    random orders [2]. It moves single points to other or new clusters as long as that lowers the
    expected loss. Finally, it dissolves each cluster of the best partition and reassigns its
    points, if that is better. The loss is the average over the draws itself, not the bound that [1]
    minimizes.

    The search may miss the smallest loss, so compare several seeds. The time of a sweep over the
    points is proportional to the numbers of draws, points and clusters.

    :param labels: draws of labels. **Shape:** ``(num_draws, n)`` or
        ``(num_chains, num_draws, n)``.
    :param int seed: seed of the search; ``None`` takes one from PyTorch's generator.
    :returns: the partition and its expected loss.
    :raises TypeError: if labels are not integers.

    [1] S. Wade, Z. Ghahramani (2018), *Bayesian cluster analysis: point estimation and credible
    balls*, Bayesian Analysis 13, 559-626.

    [2] D. B. Dahl, D. J. Johnson, P. Müller (2022), *Search algorithms and loss functions for
    Bayesian clustering*, Journal of Computational and Graphical Statistics 31, 1189-1201.

    Example::

        >>> draws = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [1, 0, 2, 2]])
        >>> point_estimate(draws, seed=0).labels
        tensor([0, 0, 1, 1])
    """
    draws = check_draws("labels", labels).flatten(0, -2)
    tried = torch.cat([_some_draws(draws), _cuts(draws), torch.zeros_like(draws[:1])])
    search = _Search(draws.numpy(), fresh_seed(seed))
    starts = tried.unique(dim=0).numpy()
    best = starts[mean_distances(starts, draws.numpy()).argsort(kind="stable")]
    for start in best[:_STARTS_FROM_CANDIDATES]:
        search.start_from(start)
    for _ in range(_STARTS_FROM_NOTHING):
        search.start_from(np.full(draws.shape[-1], -1))
    search.dissolve_clusters()
    return PartitionEstimate(torch.from_numpy(search.labels), search.expected_loss)


class _Search:
    """The best partition so far, and how to look for a better one."""

    def __init__(self, draws: Integers, seed: int) -> None:
        self._draws, self._generator = draws, np.random.default_rng(seed)
        self._increments = increments(draws.shape[1])
        # Each cluster of each draw has a number of its own.
        offsets = np.concatenate([[0], (draws.max(1) + 1).cumsum()[:-1]])
        self._columns = np.ascontiguousarray((draws + offsets[:, None]).T)
        self.labels: Integers = np.zeros(draws.shape[1], np.int64)
        self.expected_loss = np.inf

    def start_from(self, start: Integers) -> bool:
        """Move points from a start, and keep what is better than before; return whether it is."""
        from pyro_ext.diagnostics.partitions import _loops

        labels, seed = start.copy(), int(self._generator.integers(2**31))
        _loops.descend(labels, self._columns, self._increments, seed)
        labels = cluster_counts.canonical_labels(torch.from_numpy(labels)).numpy()
        expected = float(mean_distances(labels[None], self._draws)[0])
        is_better = expected < self.expected_loss - _LEAST_GAIN
        if is_better:
            self.labels, self.expected_loss = labels, expected
        return is_better

    def dissolve_clusters(self) -> None:
        """Reassign the points of one cluster after another until there is no improvement."""
        is_better = True
        while is_better:
            is_better = False
            # A point that is alone has been tried everywhere.
            for cluster in self._generator.permutation(
                np.flatnonzero(np.bincount(self.labels) > 1)
            ):
                is_member = self.labels == cluster
                start = self.labels - (self.labels > cluster)
                start[is_member] = -1
                is_better |= self.start_from(start)


def _some_draws(draws: Tensor) -> Tensor:
    if len(draws) <= _MOST_DRAWS_TRIED:
        return draws
    return draws[torch.linspace(0, len(draws) - 1, _MOST_DRAWS_TRIED).long()]


def _cuts(draws: Tensor) -> Tensor:
    """Cuts of trees, into no more clusters than a draw has. **Shape:** ``(num_cuts, n)``."""
    from scipy.cluster.hierarchy import cut_tree, linkage
    from scipy.spatial.distance import squareform

    num_points = draws.shape[-1]
    if num_points == 1:
        return draws[:1]
    distances = squareform(1.0 - co_clustering(draws).numpy(), checks=False)
    numbers = np.arange(1, int(draws.max()) + 2)
    cuts = [cut_tree(linkage(distances, method), numbers).T for method in ("average", "complete")]
    return cluster_counts.canonical_labels(torch.from_numpy(np.concatenate(cuts)).long())


_ROUNDING = 1e-9


class CredibleBall(NamedTuple):
    """The smallest ball around a partition that contains a fraction of the posterior.

    :param float radius: the radius of the ball.
    :param float probability: the fraction of the draws in the ball, at least the level.
    """

    radius: float
    probability: float


def credible_ball(labels: Labels, center: Labels, level: float = 0.95) -> CredibleBall:
    """Find the smallest ball around a partition that contains a fraction of the posterior [1].

    The distance is the variation of information.

    :param labels: draws of labels. **Shape:** ``(num_draws, n)`` or
        ``(num_chains, num_draws, n)``.
    :param center: a partition, such as :func:`point_estimate` finds. **Shape:** ``(n,)``.
    :param float level: the fraction, above 0 and at most 1.
    :returns: the radius, and the fraction of the draws inside the ball.
    :raises TypeError: if labels are not integers.

    [1] S. Wade, Z. Ghahramani (2018), *Bayesian cluster analysis: point estimation and credible
    balls*, Bayesian Analysis 13, 559-626.

    Example::

        >>> draws = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 2, 3]])
        >>> ball = credible_ball(draws, draws[0], level=0.9)
        >>> round(ball.radius, 4), ball.probability
        (0.6931, 1.0)
    """
    level = checks.number("level", level, above=0.0, most=1.0)
    draws = check_draws("labels", labels).flatten(0, -2)
    middle = check_partition("center", center, draws.shape[-1])
    centers = middle.expand_as(draws).contiguous()
    distances = torch.from_numpy(paired_distances(centers.numpy(), draws.numpy()))
    # Rounding up 0.07 * 100 would give 8.
    num_inside = max(math.ceil(level * len(draws) - _ROUNDING), 1)
    radius = float(distances.kthvalue(num_inside).values)
    return CredibleBall(radius, float((distances <= radius + _ROUNDING).double().mean()))
