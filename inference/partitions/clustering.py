"""Bayesian hierarchical clustering: greedy, incremental, and its small-variance limit."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.distributions import ConjugateCluster
from pyro_ext.inference.partitions._locality import locality_order
from pyro_ext.inference.partitions.bregman import BregmanGenerator, generator_named
from pyro_ext.inference.partitions.dendrogram import ClusterForest, Dendrogram
from pyro_ext.inference.partitions.hyperparameters import Hyperparameters, Process
from pyro_ext.inference.partitions.mixtures import Compiled, ConjugateMixture, Integers
from pyro_ext.random import fresh_seed
from pyro_ext.random_measures import DirichletProcess, NormalizedRandomMeasure, PitmanYor

_RETURNS_PER_POINT = 50
_LARGEST_AUXILIARY = math.exp(690.0)
Method = Literal["nearest_neighbor_chain", "greedy"]
_LARGEST = 1e100  # squares of more could overflow


def bhc(
    x: Tensor,
    cluster: ConjugateCluster,
    concentration: float = 1.0,
    *,
    log_concentration: float | None = None,
) -> Dendrogram:
    r"""Cluster points by Bayesian hierarchical clustering [1].

    Each merge compares two hypotheses under a Dirichlet process mixture with concentration
    :math:`\alpha`. Either the points of two trees form one cluster, with weight
    :math:`h(a \cup b) = \alpha \Gamma(|a \cup b|) \, p(X_{a \cup b})`, or they are apart in any way
    that the two trees allow, with weight :math:`t(a) t(b)`. Here :math:`t(c) = h(c)` for a point,
    and :math:`h(c) + t(a) t(b)` for a union. The dissimilarity is
    :math:`d(a, b) = t(a) t(b) / h(a \cup b)`, and the probability of the merge is
    :math:`1 / (1 + d)`. The pair with the largest probability is merged next.

    Heights of the tree are :math:`\log d`. It is cut at zero, where merge probabilities fall below
    one half. Its ``log_evidence_bound`` is the logarithm of the mixture's evidence with the sum
    over all partitions restricted to those that the tree contains.

    Run time is quadratic, with about :math:`n^2` evidences of clusters in practice, and memory
    holds the sums of :math:`2 n` clusters.

    :param Tensor x: the points. **Shape:** ``(n, d)``, or ``(n,)`` if ``d`` is one.
    :param ConjugateCluster cluster: the model of the points of a cluster.
    :param float concentration: :math:`\alpha`.
    :param float log_concentration: :math:`\log \alpha`, instead of the concentration, if that is
        outside the range of floats, such as the :math:`e^{-\beta \lambda}` whose limit is
        :func:`rbhc`.
    :returns: the tree; a single point makes a tree without merges.
    :raises TypeError: if ``cluster`` is not a model of a cluster.
    :raises ValueError: names the argument, what it got and what it wants; or the first row of ``x``
        that the cluster does not support.

    [1] K. A. Heller, Z. Ghahramani (2005), Bayesian hierarchical clustering.

    Example::

        >>> from pyro_ext.distributions import GaussianCluster
        >>> x = torch.tensor([[0.0, 0.0], [0.4, -0.1], [1.5, 1.2], [1.8, 0.9]])
        >>> tree = bhc(x, GaussianCluster(torch.zeros(2), 0.5, 4.0, 0.5 * torch.eye(2)))
        >>> tree.cut(), tree.merge_probabilities
        (tensor([0, 0, 1, 1]), tensor([0.9286, 0.6427, 0.2291], dtype=torch.float64))
        >>> round(tree.log_evidence_bound, 4)
        -10.4704
    """
    if log_concentration is None:
        log_weight = math.log(checks.number("concentration", concentration, above=0.0))
    elif concentration != 1.0:
        raise ValueError(
            "concentration and log_concentration exclude each other, got "
            f"concentration={concentration!r} and log_concentration={log_concentration!r}"
        )
    else:
        log_weight = checks.number("log_concentration", log_concentration)
    process = DirichletProcess(torch.ones((), dtype=torch.float64))
    mixture = _known_mixture(x, cluster, process)
    from pyro_ext.inference.partitions.trees import merge_greedily, model_of

    number = mixture.num_points
    compiled, _ = mixture.compiled({})
    log_size, log_number = (part.numpy() for part in process._product_form(number, None))
    model = model_of(
        compiled.kind, compiled.parameters, compiled.points, log_size + log_weight, log_number
    )
    merges, heights = np.empty((number - 1, 2), np.int64), np.empty(number - 1)
    log_total = merge_greedily(model, merges, heights)
    log_base = cluster.statistics(mixture.points.double())[..., 1].sum()
    levels = torch.from_numpy(heights)
    return Dendrogram(
        torch.from_numpy(merges),
        levels,
        merge_probabilities=torch.sigmoid(-levels),
        log_evidence_bound=log_total + float(log_base) - _log_rising(log_weight, number),
        cut_height=0.0,
    )


def _known_mixture(x: Tensor, cluster: ConjugateCluster, prior: Process) -> ConjugateMixture:
    """Prior, clusters and data, checked to fit together."""
    checks.instance("cluster", cluster, ConjugateCluster, "a conjugate cluster")
    wanted = "a normalized measure, a PitmanYor or a DirichletProcess"
    checks.instance("prior", prior, (NormalizedRandomMeasure, PitmanYor), wanted)
    mixture = ConjugateMixture(
        Hyperparameters(prior, "prior"),
        Hyperparameters(cluster, "cluster"),
        checks.as_tensor("x", x),
    )
    mixture.process({})
    _check_size(mixture.points)
    return mixture


def _log_rising(log_start: float, number: int) -> float:
    """Logarithm of a rising factorial."""
    steps = np.log(np.arange(1, number))
    return log_start + float(np.logaddexp(log_start, steps).sum())


def ibhc(
    x: Tensor,
    cluster: ConjugateCluster,
    prior: Process | None = None,
    *,
    noisy: bool = False,
    seed: int | None = None,
) -> ClusterForest:
    r"""Cluster points incrementally by Bayesian hierarchical clustering [1].

    The points arrive in random order. Each looks for the tree with the least dissimilarity, defined
    as in :func:`bhc` but with the factors :math:`\kappa(|c|)` of the prior instead of
    :math:`\alpha \Gamma(|c|)`. If the dissimilarity exceeds one, the point starts a tree of its
    own. Otherwise it descends into the tree to where it fits. If a node above it no longer holds
    together, with a dissimilarity above one, the tree is cut there, and its other branches are
    inserted again later, each as a whole. In the final trees all dissimilarities are at most one,
    unless more than 50 n branches were inserted again; beyond that number, no tree is cut.

    If the factors depend on the auxiliary variable of a normalized measure or, for a Pitman-Yor
    process, on the number of clusters, they are those given a single cluster. With more clusters,
    more of them would form.

    This is a fast start for samplers, and takes about :math:`n (K + \log n)` evidences of clusters.

    :param Tensor x: the points. **Shape:** ``(n, d)``, or ``(n,)`` if ``d`` is one.
    :param ConjugateCluster cluster: the model of the points of a cluster.
    :param prior: a normalized measure, a Pitman-Yor process or a Dirichlet process; by default a
        Dirichlet process with concentration one.
    :param bool noisy: whether to join each point to a tree at its root and cut no tree. This is
        faster and usually gives worse partitions: bad starts, for comparing samplers.
    :param int seed: seed of the order and of the auxiliary variable of a normalized measure, which
        is drawn given a single cluster; by default drawn from PyTorch's generator.
    :returns: the forest.
    :raises TypeError: if ``prior`` or ``cluster`` has another type.
    :raises ValueError: names the argument, what it got and what it wants; or the first row of ``x``
        that the cluster does not support.

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
    process = DirichletProcess(torch.ones((), dtype=torch.float64)) if prior is None else prior
    mixture = _known_mixture(x, cluster, process)
    seed = fresh_seed(seed)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        order = torch.randperm(mixture.num_points).numpy()
        auxiliary = _drawn_auxiliary(process, mixture.num_points)
        forest, roots = _grow(mixture.compiled({})[0], process, auxiliary, order, noisy)
        pairs = sorted((_tree_of(forest, root) for root in roots), key=lambda pair: int(pair[1][0]))
        labels = torch.empty(mixture.num_points, dtype=torch.long)
        for label, (_, points) in enumerate(pairs):
            labels[points] = label
        if isinstance(process, NormalizedRandomMeasure):
            log_prior = process.log_joint(labels.bincount(), auxiliary)
        else:
            log_prior = process.log_eppf(labels.bincount())
        log_joint = float(log_prior) + mixture.log_clusters({"assignment": labels})
    trees, members = zip(*pairs, strict=True)
    return ClusterForest(labels, trees, members, log_joint, auxiliary)


def start_of_neighbors(mixture: ConjugateMixture, state: Mapping[str, Tensor]) -> Tensor:
    """Labels for a sampler to start at: the clusters of points that come neighbor by neighbor."""
    from pyro_ext.inference.partitions.trees import leaves_below

    process, _ = mixture.process(state)
    compiled, _ = mixture.compiled(state)
    order = locality_order(mixture.points.double().cpu().numpy())
    forest, roots = _grow(
        compiled, process, _drawn_auxiliary(process, len(order)), order, is_noisy=False
    )
    labels = torch.empty(len(order), dtype=torch.long)
    for label, root in enumerate(roots):
        labels[leaves_below(forest, root)] = label
    return labels


def _drawn_auxiliary(process: Process, number: int) -> float | None:
    """The auxiliary variable given a single cluster, for a process that has one."""
    if not isinstance(process, NormalizedRandomMeasure):
        return None
    return min(float(process.sample_auxiliary([number])), _LARGEST_AUXILIARY)


def _grow(
    compiled: Compiled, process: Process, auxiliary: float | None, order: Integers, is_noisy: bool
) -> tuple[Any, Integers]:
    """Compiled trees, and their roots."""
    from pyro_ext.inference.partitions.trees import grow, model_of

    given = None if auxiliary is None else torch.tensor(auxiliary, dtype=torch.float64)
    log_size, log_number = (part.numpy() for part in process._product_form(len(order), given))
    log_size = log_size + (log_number[2] - log_number[1])
    model = model_of(compiled.kind, compiled.parameters, compiled.points, log_size, log_number)
    return grow(model, order, _RETURNS_PER_POINT * len(order), is_noisy)


def _tree_of(forest: Any, root: int) -> tuple[Dendrogram, Tensor]:
    """A tree of its own, and the points that its leaves are."""
    from pyro_ext.inference.partitions.trees import nodes_below

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

    With a Dirichlet process of concentration :math:`e^{-\beta\lambda}` and variances that go to
    zero as :math:`1/\beta`, the merge scores of Bayesian hierarchical clustering become
    :math:`d(a, b) = \sigma(a, b) + e(a) + e(b) - \lambda`. Here
    :math:`\sigma(a, b) = |a| \phi(m_a) + |b| \phi(m_b) - (|a| + |b|) \phi(m_{a \cup b})` is the
    cost of merging two clusters with means :math:`m` of the sufficient statistics, and :math:`\phi`
    is the convex function of the family's Bregman divergence. Clusters with :math:`d < 0` belong
    together. For Gaussians, :math:`\sigma` is Ward's criterion. The excess :math:`e(c)` is zero for
    points, and otherwise the positive part of the :math:`d` at which the cluster was merged.

    Heights of the tree are :math:`d + \lambda`, so it is cut at :math:`\lambda`. Without :math:`e`,
    they do not depend on :math:`\lambda`, and their sum is the sum of all divergences from the mean
    of all points. The tree's ``objective`` is the smallest value, over partitions within the tree,
    of the sum of divergences from the means of clusters plus :math:`\lambda` for each cluster.

    Nearest-neighbor chains take quadratic time. They give the same tree as greedy merging if
    :math:`\sigma` is reducible. This holds for Gaussians, and nearly for the other families, whose
    greedy trees have inversions. Both methods take memory that is linear in the number of points.

    :param Tensor x: the points; counts for the families of counts. **Shape:** ``(n,
        num_features)``.
    :param family: ``"gaussian"`` with known variance, ``"poisson"``, ``"multinomial"`` (the
        frequencies in each row), ``"itakura_saito"`` for exponential and gamma distributions,
        ``"gaussian_covariance"`` with unknown covariance, or a
        :class:`~pyro_ext.inference.partitions.bregman.BregmanGenerator`.
    :param float cluster_cost: :math:`\lambda`, the cost of a cluster, at least zero. Without it and
        without a number of clusters, the tree has no stopping level and no objective.
    :param int num_clusters: number of clusters that the default cut should give. The cluster cost
        is then chosen halfway between two heights. If ties or inversions leave no such cost, the
        cut gives another number; ``cut(num_clusters=...)`` always gives the requested number.
    :param str method: ``"nearest_neighbor_chain"`` or ``"greedy"``.
    :param bool excess: whether to include :math:`e`. By default, greedy merging includes it if
        there is a cluster cost; chains cannot include it.
    :returns: the tree; a single point makes a tree without merges.
    :raises ValueError: names the argument, what it got and what it wants; or the first row of ``x``
        that the family does not support.

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
    points = checks.as_tensor("x", x, "(n, num_features)", dtype=torch.float64).detach().cpu()
    _check_size(points)
    generator = generator_named(family)
    checks.choice("method", method, get_args(Method))
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
    cluster_cost = checks.optional(checks.number, "cluster_cost", cluster_cost, least=0.0)
    if num_clusters is not None and checks.integer("num_clusters", num_clusters, 1) > len(points):
        raise ValueError(
            f"num_clusters must be at most {len(points)}, the number of points, got {num_clusters}"
        )
    statistics = generator._loop_statistics(points)
    if num_clusters is not None:
        cluster_cost = _cost_for(_tree(statistics, generator, method), num_clusters)
    tree = _tree(statistics, generator, method, cluster_cost if excess else None)
    if cluster_cost is None:
        return tree
    objective = _objective(tree, cluster_cost, excess)
    return Dendrogram(tree.merges, tree.heights, cut_height=cluster_cost, objective=objective)


def _check_size(points: Tensor) -> None:
    """Check that squares of the points do not overflow."""
    allowed = (points.abs() <= _LARGEST).all(-1)
    if not allowed.all():
        row = int(allowed.logical_not().nonzero()[0, 0])
        raise ValueError(
            f"x must hold finite numbers of at most {_LARGEST:g} in size, got "
            f"{points[row].tolist()!s:.80} in row {row}"
        )


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
    clusters = _relaxed_loops.singletons(generator._kind, generator.floor, columns)
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
