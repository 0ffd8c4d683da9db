"""Relaxed Bayesian hierarchical clustering: the small-variance limit, for exponential families."""

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pyro_ext._checks import as_tensor, check_integer, check_number
from pyro_ext.inference.partitions.bregman import BregmanGenerator, generator_named
from pyro_ext.inference.partitions.dendrogram import Dendrogram

__all__ = ["Method", "rbhc"]

Method = Literal["nearest_neighbor_chain", "greedy"]

_LARGEST = 1e100  # squares of more could overflow


def rbhc(
    x: Tensor,
    family: str | BregmanGenerator = "gaussian",
    *,
    cluster_cost: float | None = None,
    num_clusters: int | None = None,
    method: Method = "nearest_neighbor_chain",
    excess: bool | None = None,
) -> Dendrogram:
    r"""Cluster points by relaxed Bayesian hierarchical clustering [1].

    The merge scores of Bayesian hierarchical clustering, with a Dirichlet process of concentration
    :math:`e^{-\beta\lambda}` and variances that go to zero as :math:`1/\beta`, become
    :math:`d(a, b) = \sigma(a, b) + e(a) + e(b) - \lambda`. Here :math:`\sigma(a, b) = |a|
    \phi(m_a) + |b| \phi(m_b) - (|a| + |b|) \phi(m_{a \cup b})` is the cost of merging two clusters
    with means :math:`m` of the sufficient statistics, and :math:`\phi` the convex function of the
    family's Bregman divergence. Clusters with :math:`d < 0` belong together. For Gaussians
    :math:`\sigma` is the criterion of Ward. The excess :math:`e(c)` is zero for points, and the
    positive part of the :math:`d` at which a cluster was merged.

    Heights of the tree are :math:`d + \lambda`, so :math:`\lambda` is where it is cut. With
    :math:`e` left out they don't depend on it, and their sum is the sum of all divergences from the
    mean of all points. The tree's ``objective`` is the least that a partition within it has of the
    sum of divergences from the means of clusters, plus :math:`\lambda` for each cluster.

    Chains of nearest neighbors take quadratic time, and give the tree that greedy merging gives
    where :math:`\sigma` is reducible; that holds for Gaussians, and nearly for the others, where
    greedy trees have inversions. Both take memory that is linear in the number of points.

    :param Tensor x: the points; counts for the families of counts. **Shape:** ``(n,
        num_features)``.
    :param family: ``"gaussian"`` with a known variance, ``"poisson"``, ``"multinomial"`` (the
        frequencies in each row), ``"itakura_saito"`` for exponential and gamma distributions,
        ``"gaussian_covariance"`` with an unknown covariance, or a
        :class:`~pyro_ext.inference.partitions.bregman.BregmanGenerator`.
    :param float cluster_cost: :math:`\lambda`, what a cluster costs, at least zero. Without it and
        without a number of clusters the tree has no stopping level and no objective.
    :param int num_clusters: how many clusters the default cut is to give: the cluster cost is then
        chosen halfway between two heights. Where ties or inversions leave no such cost, the cut
        gives another number; ``cut(num_clusters=...)`` always gives as many as asked.
    :param str method: ``"nearest_neighbor_chain"`` or ``"greedy"``.
    :param bool excess: whether to have :math:`e`. By default greedy merging has it where there is
        a cluster cost; chains can't have it.
    :returns: the tree; a point alone makes a tree without merges.
    :raises ValueError: names the argument, what it got and what it wants; the first row of ``x``
        that the family can't have.

    [1] J. Lee, S. Choi (2015), Bayesian hierarchical clustering with exponential family:
    small-variance asymptotics and reducibility, arXiv 1501.07430.

    Example::

        >>> x = torch.tensor([[0.0, 0.0], [0.4, -0.1], [1.5, 1.2], [1.8, 0.9]])
        >>> tree = rbhc(x, cluster_cost=0.5)
        >>> tree
        Dendrogram(4 leaves, heights 0.0425 to 1.656, 2 clusters at 0.5)
        >>> tree.cut(), round(tree.objective, 4)
        (tensor([0, 0, 1, 1]), 1.0875)
    """
    points = _check_points(x)
    generator = generator_named(family)
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {get_args(Method)}, got {method!r:.80}")
    if cluster_cost is not None and num_clusters is not None:
        raise ValueError(
            "cluster_cost and num_clusters exclude each other, got "
            f"cluster_cost={cluster_cost!r} and num_clusters={num_clusters!r}"
        )
    has_cost = cluster_cost is not None or num_clusters is not None
    if excess is None:
        excess = method == "greedy" and has_cost
    if excess and (method != "greedy" or not has_cost):
        raise ValueError(
            "excess must be False unless method is 'greedy' and there is a cluster_cost or "
            f"num_clusters; got {excess!r} with method={method!r}"
        )
    if cluster_cost is not None:
        cluster_cost = check_number("cluster_cost", cluster_cost, least=0.0)
    if num_clusters is not None and check_integer("num_clusters", num_clusters, 1) > len(points):
        raise ValueError(
            f"num_clusters must be at most {len(points)}, the number of points, got {num_clusters}"
        )
    statistics = generator._loop_statistics(points)
    if num_clusters is not None:
        cluster_cost = _cost_for(_tree(statistics, generator, method), num_clusters)
    tree = _tree(statistics, generator, method, cluster_cost if excess else None)
    if cluster_cost is None:
        return tree
    return Dendrogram(
        tree.merges,
        tree.heights,
        cut_height=cluster_cost,
        objective=_objective(tree, cluster_cost, excess),
    )


def _check_points(x: Any) -> Tensor:
    points = as_tensor("x", x, allow_empty=True).detach().cpu().double()
    if points.dim() != 2 or not all(points.shape):
        raise ValueError(
            f"x must have the shape (n, num_features) with both at least 1, got {points.shape}"
        )
    allowed = (points.abs() <= _LARGEST).all(-1)
    if not allowed.all():
        row = int(allowed.logical_not().nonzero()[0, 0])
        raise ValueError(
            f"x must hold finite numbers of at most {_LARGEST:g} in size, got "
            f"{str(points[row].tolist()):.80} in row {row}"
        )
    return points


def _tree(
    statistics: Tensor,
    generator: BregmanGenerator,
    method: Method,
    cost_of_excess: float | None = None,
) -> Dendrogram:
    """The whole tree, in the order of heights as far as parts have to come before their unions."""
    from pyro_ext.inference.partitions import _relaxed_loops

    number = len(statistics)
    merges, heights = np.empty((number - 1, 2), np.int64), np.empty(number - 1)
    columns = np.array(statistics.numpy().T, order="C")
    clusters = _relaxed_loops.singletons(generator._kind, generator._floor, columns)
    if method == "greedy":
        limit = np.inf if cost_of_excess is None else cost_of_excess
        _relaxed_loops.merge_greedily(clusters, limit, merges, heights)
    else:
        _relaxed_loops.merge_along_chain(clusters, merges, heights)
    order = _relaxed_loops.height_levels(merges, heights).argsort(kind="stable")
    names = np.arange(2 * number - 1)
    names[number + order] = number + np.arange(number - 1)
    return Dendrogram(
        torch.from_numpy(np.sort(names[merges[order]], axis=-1)), torch.from_numpy(heights[order])
    )


def _cost_for(tree: Dendrogram, num_clusters: int) -> float:
    """A cluster cost with which the tree is cut into so many clusters, where there is one."""
    levels = tree.opening_levels.sort(descending=True).values
    if not len(levels):
        return 0.0
    levels = torch.cat([2.0 * levels[:1], levels, levels.new_zeros(1)])
    return float(levels[num_clusters - 1 : num_clusters + 1].mean())


def _objective(tree: Dendrogram, cluster_cost: float, has_excess: bool) -> float:
    """The least sum of divergences and cluster costs of all partitions that the tree holds."""
    excess = [0.0] * tree.num_leaves
    total = tree.num_leaves * cluster_cost
    for (left, right), height in zip(tree.merges.tolist(), tree.heights.tolist(), strict=True):
        handed_on = 0.0 if has_excess else excess[left] + excess[right]
        dissimilarity = height + handed_on - cluster_cost
        total += min(dissimilarity, 0.0)
        excess.append(max(dissimilarity, 0.0))
    return total
