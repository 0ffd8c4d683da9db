"""Incremental Bayesian hierarchical clustering, one point after the other."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_ext._checks import check_number
from pyro_ext.distributions import ConjugateCluster
from pyro_ext.inference.partitions._conjugate_mixture import Compiled, ConjugateMixture
from pyro_ext.inference.partitions._known_mixture import known_mixture
from pyro_ext.inference.partitions._locality import locality_order
from pyro_ext.inference.partitions._mixture import Integers, Law
from pyro_ext.inference.partitions.cluster_forest import ClusterForest
from pyro_ext.inference.partitions.dendrogram import Dendrogram
from pyro_ext.random import fresh_seed
from pyro_ext.random_measures import DirichletProcess, NormalizedRandomMeasure

__all__ = ["ibhc", "start_of_neighbors"]

_RETURNS_PER_POINT = 50
_LARGEST_TILT = math.exp(690.0)


def ibhc(
    x: Tensor,
    cluster: ConjugateCluster,
    prior: Law | None = None,
    *,
    noisy: bool = False,
    tilt: float | None = None,
    seed: int | None = None,
) -> ClusterForest:
    r"""Cluster points one after the other by Bayesian hierarchical clustering [1].

    The points come in a random order. Each looks for the tree of least dissimilarity, as of
    :func:`bhc` but with the factors :math:`\kappa(|c|)` of the prior in the place of :math:`\alpha
    \Gamma(|c|)`. Where that exceeds one it starts a tree of its own. Otherwise it descends into the
    tree to where it fits; if a node above no longer holds together, with a dissimilarity of more
    than one, the tree is cut there, and its other branches come again later, each as a whole. In
    the trees at the end all dissimilarities are at most one, unless more than 50 n branches came
    again, after which no tree is cut.

    Where the factors depend on the auxiliary variable of a normalized measure, or for a Pitman-Yor
    process on the number of clusters, they are those given a single cluster. Those given more make
    more of them.

    It is a fast start for samplers, and takes about :math:`n (K + \log n)` evidences of clusters.

    :param Tensor x: the points. **Shape:** ``(n, d)``, or ``(n,)`` where ``d`` is one.
    :param ConjugateCluster cluster: law of the points of a cluster.
    :param prior: a normalized measure, a Pitman-Yor or a Dirichlet process; by default a Dirichlet
        process of concentration one.
    :param bool noisy: join each point to a tree at its root and cut none, which is faster and gives
        worse partitions as a rule: bad starts, on which samplers are compared.
    :param float tilt: auxiliary variable :math:`u` of a normalized measure; by default a draw given
        a single cluster.
    :param int seed: of the order, and of the auxiliary variable; by default a draw of PyTorch's
        generator.
    :returns: the forest.
    :raises TypeError: for a prior or a cluster that is none.
    :raises ValueError: names the argument, what it got and what it wants; the first row of ``x``
        that the cluster can't have.

    [1] J. Lee, S. Choi (2015), Tree-guided MCMC inference for normalized random measure mixture
    models.

    Example::

        >>> from pyro_ext.distributions import GaussianCluster
        >>> x = torch.tensor([[0.0, 0.0], [5.0, 5.0], [0.2, 0.1], [5.1, 4.8], [0.1, 0.3]])
        >>> cluster = GaussianCluster(torch.zeros(2), 0.1, 4.0, 0.1 * torch.eye(2))
        >>> forest = ibhc(x, cluster, seed=0)
        >>> forest.labels, forest.points[1]
        (tensor([0, 1, 0, 1, 0]), tensor([1, 3]))
    """
    law = DirichletProcess(torch.ones((), dtype=torch.float64)) if prior is None else prior
    mixture = known_mixture(x, cluster, law)
    if tilt is not None:
        tilt = check_number("tilt", tilt, above=0.0)
        if not isinstance(law, NormalizedRandomMeasure):
            raise ValueError(f"tilt must be None for a {type(law).__name__}, got {tilt}")
    word = fresh_seed(seed)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(word)
        order = torch.randperm(mixture.num_points).numpy()
        tilt = _drawn_tilt(law, mixture.num_points) if tilt is None else tilt
        return _grown(mixture, law, tilt, order, noisy)


def start_of_neighbors(mixture: ConjugateMixture, state: Mapping[str, Tensor]) -> Tensor:
    """Labels for a sampler to start at: the clusters of points that come neighbor by neighbor.

    :param mixture: prior, clusters and data.
    :param state: values of the hyperparameters.
    :returns: **Shape:** ``(n,)``.
    """
    from pyro_ext.inference.partitions._tree_loops import leaves_below

    law, _ = mixture.law(state)
    compiled, _ = mixture.compiled(state)
    order = locality_order(mixture.points.double().cpu().numpy())
    forest, roots = _grow(compiled, law, _drawn_tilt(law, len(order)), order, is_noisy=False)
    labels = torch.empty(len(order), dtype=torch.long)
    for label, root in enumerate(roots):
        labels[leaves_below(forest, root)] = label
    return labels


def _drawn_tilt(law: Law, number: int) -> float | None:
    """The auxiliary variable given a single cluster, for a law that has one."""
    if not isinstance(law, NormalizedRandomMeasure):
        return None
    return min(float(law.sample_auxiliary([number])), _LARGEST_TILT)


def _grow(
    compiled: Compiled, law: Law, tilt: float | None, order: Integers, is_noisy: bool
) -> tuple[Any, Integers]:
    """Compiled trees, and their roots."""
    from pyro_ext.inference.partitions._incremental_loops import grow
    from pyro_ext.inference.partitions._tree_loops import model_of

    given = None if tilt is None else torch.tensor(tilt, dtype=torch.float64)
    log_size, log_number = (part.numpy() for part in law._product_form(len(order), given))
    log_size = log_size + (log_number[2] - log_number[1])
    model = model_of(compiled.kind, compiled.parameters, compiled.points, log_size, log_number)
    return grow(model, order, _RETURNS_PER_POINT * len(order), is_noisy)


def _grown(
    mixture: ConjugateMixture, law: Law, tilt: float | None, order: Integers, is_noisy: bool
) -> ClusterForest:
    compiled, _ = mixture.compiled({})
    forest, roots = _grow(compiled, law, tilt, order, is_noisy)
    pairs = sorted((_tree_of(forest, root) for root in roots), key=lambda pair: int(pair[1][0]))
    labels = torch.empty(mixture.num_points, dtype=torch.long)
    for label, (_, points) in enumerate(pairs):
        labels[points] = label
    log_joint = _log_prior(law, tilt, labels) + mixture.log_clusters({"assignment": labels})
    trees, members = zip(*pairs, strict=True)
    return ClusterForest(labels, trees, members, log_joint, tilt)


def _tree_of(forest: Any, root: int) -> tuple[Dendrogram, Tensor]:
    """A tree of its own, and the points that its leaves are."""
    from pyro_ext.inference.partitions._tree_loops import nodes_below

    nodes = nodes_below(forest, root)[::-1]
    is_leaf = forest.left[nodes] < 0
    points, merged = np.sort(nodes[is_leaf]), nodes[~is_leaf]
    names = np.empty(len(forest.left), np.int64)
    names[points] = np.arange(len(points))
    names[merged] = len(points) + np.arange(len(merged))
    merges = np.sort(names[np.stack([forest.left[merged], forest.right[merged]], -1)], -1)
    heights = torch.from_numpy(forest.log_cost[merged])
    tree = Dendrogram(
        torch.from_numpy(merges),
        heights,
        merge_probabilities=torch.sigmoid(-heights),
        cut_height=0.0,
        labels=[str(point) for point in points],
    )
    return tree, torch.from_numpy(points)


def _log_prior(law: Law, tilt: float | None, labels: Tensor) -> float:
    if isinstance(law, NormalizedRandomMeasure):
        return float(law.log_joint(labels.bincount(), tilt))
    return float(law.log_eppf(labels.bincount()))
