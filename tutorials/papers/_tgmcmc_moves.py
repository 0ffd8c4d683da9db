"""Tree-guided MCMC as it was published, whose moves do not keep the posterior invariant.

The trees are part of the state: blocks of a split keep the trees that the split made, those of a
merge are joined in a chain, and acceptance ratios look at the paths that were taken.

[1] J. Lee, S. Choi (2015), Tree-guided MCMC inference for normalized random measure mixture models.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext._lib.compiled import compiled
from pyro_ext.inference.partitions import ConjugateKernel
from pyro_ext.inference.partitions.conjugate import acceptance_rates, loop_seed
from pyro_ext.inference.partitions.kernel import FirstPartition
from pyro_ext.inference.partitions.mixtures import ClusterSource, PriorSource, Situation
from pyro_ext.inference.partitions.trees import (
    Floats,
    Forest,
    Integers,
    Model,
    insert,
    join,
    leaves_below,
    log_dissimilarity,
    log_like,
    log_union,
    model_of,
    new_forest,
    nodes_below,
    parents_of,
)


class PublishedTreeGuided(ConjugateKernel):
    """The kernel as it was published [1].

    It treats a proposal that depends on the trees as if the trees were irrelevant, and so prefers
    fewer and larger clusters than the posterior. Here the points that are moved singly are random;
    in the paper trees pick them, which adds a bias of its own. It is there for comparison.

    :param prior: as of :class:`~pyro_ext.inference.partitions.TreeGuided`.
    :param cluster: likewise.
    :param int num_global_moves: proposals in a step.
    :param float local_fraction: how many points are moved singly, as a fraction of all.
    :param init: as of :class:`~pyro_ext.inference.partitions.TreeGuided`.
    """

    keeps_no_state = False  # the trees
    _setting_names = (*ConjugateKernel._setting_names, "num_global_moves", "local_fraction")

    def __init__(
        self,
        prior: PriorSource,
        cluster: ClusterSource,
        *,
        num_global_moves: int = 20,
        local_fraction: float = 0.1,
        init: FirstPartition = "prior",
    ) -> None:
        self.num_global_moves = checks.integer("num_global_moves", num_global_moves, 0)
        self.local_fraction = checks.number("local_fraction", local_fraction, above=0.0, most=1.0)
        super().__init__(prior, cluster, init=init)

    def setup(self, warmup_steps: int, x: Tensor) -> None:
        """Take the data, as of the other kernels."""
        super().setup(warmup_steps, x)
        self._capacity = 8 * len(x) + 1024  # nodes, at first
        self._planted: tuple[Forest, Integers, Integers] | None = None

    def _move(self, labels: Integers, situation: Situation) -> dict[str, float]:
        number = len(labels)
        some = torch.randperm(number)[: max(round(number * self.local_fraction), 1)].numpy()
        compiled, log_size, log_number, *_ = situation
        model = model_of(compiled.kind, compiled.parameters, compiled.points, log_size, log_number)
        if self._planted is None or not np.array_equal(self._planted[2], labels):
            start = new_forest(model, self._capacity)
            old, roots = start, trees_of_labels(model, start, labels)
        else:
            old, roots, _ = self._planted
        seed, trees = loop_seed(), roots[:0]
        while trees.size == 0:
            forest, trees = replanted(model, old, roots, self._capacity)
            trees, counts = paper_sweep(model, forest, trees, self.num_global_moves, some, seed)
            if trees.size == 0:
                self._capacity *= 2
        trees = trees[np.argsort([leaves_below(forest, tree)[0] for tree in trees])]
        for label, tree in enumerate(trees):
            labels[leaves_below(forest, tree)] = label
        self._planted = forest, trees, labels.copy()
        return acceptance_rates(("split", "merge", "point"), counts)


@compiled
def inner_nodes(forest: Forest, tree: int) -> tuple[Integers, Floats]:
    """Inner nodes, and log probabilities of each to be chosen: costs, raised by the largest."""
    nodes = nodes_below(forest, tree)
    inner = nodes[forest.left[nodes] >= 0]
    logs = forest.log_cost[inner]
    logs = np.log1p(np.exp(logs - logs.max()))
    return inner, logs - math.log(np.exp(logs).sum())


@compiled
def trees_of_labels(model: Model, forest: Forest, labels: Integers) -> Integers:
    """Roots of the trees of all clusters, into which points are put one after the other."""
    trees = np.empty(labels.max() + 1, np.int64)
    for k in range(trees.size):
        members = np.nonzero(labels == k)[0]
        trees[k] = members[0]
        for member in members[1:]:
            trees[k] = insert(model, forest, trees[k], member, False)
    return trees


@compiled
def paper_sweep(
    model: Model, forest: Forest, trees: Integers, num_moves: int, points: Integers, seed: int
) -> tuple[Integers, Integers]:
    """Make moves of clusters, whose trees have these roots, and then move points.

    :returns: the trees after it, none without room, and how many splits, merges and points were
        accepted and tried.
    """
    np.random.seed(seed)
    counts = np.zeros(6, np.int64)
    for _ in range(num_moves):
        trees, kind, is_accepted = move_cluster(model, forest, trees)
        if trees.size == 0:
            return trees, counts
        counts[2 * kind] += is_accepted
        counts[2 * kind + 1] += 1
    for point in points:
        if forest.top[0] + 2 * (forest.num_points[trees].max() + 2) > forest.left.size:
            return trees[:0], counts
        trees, has_moved = move_point(model, forest, trees, point)
        counts[4] += has_moved
        counts[5] += 1
    return trees, counts


@compiled
def move_cluster(model: Model, forest: Forest, trees: Integers) -> tuple[Integers, int, bool]:
    """Propose to split a cluster, or to merge it with others, as published.

    :returns: the trees after it, none without room, whether it is a merge, and is accepted.
    """
    start, chosen = forest.top[0], np.random.randint(trees.size)
    tree, others = trees[chosen], np.append(trees[:chosen], trees[chosen + 1 :])
    is_like = np.zeros(others.size, np.bool_)
    for index in range(others.size):
        cost = log_dissimilarity(model, forest, tree, others[index])
        is_like[index] = math.log(np.random.random()) < log_like(cost)
    partners, rest = others[is_like], others[~is_like]
    log_ratio = -log_choice(model, forest, tree, partners, rest) - forest.log_potential[tree]
    if partners.size == 0:
        if forest.num_points[tree] == 1:
            return trees, 0, False
        blocks, log_path = draw_split(model, forest, tree)
        if blocks.size == 0:
            return blocks, 0, False
        log_ratio += log_merge(model, forest, blocks, rest) - log_path
        log_ratio += forest.log_potential[blocks].sum()
    else:
        if start + partners.size > forest.left.size:
            return trees[:0], 1, False
        whole = tree
        for step, partner in enumerate(partners):
            log_ratio -= forest.log_potential[partner]
            if step:
                norm = 0.0  # the logarithm of one, for a new block
                for earlier in np.append(partners[:step], tree):
                    norm = np.logaddexp(norm, -log_dissimilarity(model, forest, partner, earlier))
                log_ratio -= norm
            whole = join(model, forest, whole, partner)
        inner, log_weights = inner_nodes(forest, whole)
        log_ratio += log_weights[inner == start][0]  # where tree and first partner were joined
        log_ratio += log_choice(model, forest, whole, partners[:0], rest)
        log_ratio += forest.log_potential[whole]
        blocks = np.array([whole])
    log_ratio += model.log_number[rest.size + blocks.size] - model.log_number[trees.size]
    is_merge = int(partners.size > 0)
    if math.log(np.random.random()) < log_ratio:
        return np.append(rest, blocks), is_merge, True
    forest.top[0] = start
    return trees, is_merge, False


@compiled
def move_point(model: Model, forest: Forest, trees: Integers, point: int) -> tuple[Integers, bool]:
    """Draw the cluster of a point given all others, and put it into the tree of that.

    :returns: the trees after it, and whether the point is in another one.
    """
    chosen = 0
    while not (leaves_below(forest, trees[chosen]) == point).any():
        chosen += 1
    left = without(model, forest, trees[chosen], point)
    remaining = trees.copy()
    remaining[chosen] = left
    remaining = remaining[remaining >= 0]
    number = remaining.size
    logs = np.empty(number + 1)
    for index, tree in enumerate(remaining):
        logs[index] = log_union(model, forest, tree, point) - forest.log_potential[tree]
    logs[number] = forest.log_potential[point]
    logs[number] += model.log_number[number + 1] - model.log_number[number]
    choice = index_from(logs)
    if choice == number:
        return np.append(remaining, np.array([point])), left >= 0
    if left >= 0 and choice == chosen:
        return trees, False
    remaining[choice] = insert(model, forest, remaining[choice], point, True)
    return remaining, True


@compiled
def beside(forest: Forest, tree: int, node: int) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Nodes beside the way from a node to the root, and whether each is on the right."""
    nodes = nodes_below(forest, tree)
    parents = parents_of(forest, nodes)
    index = np.nonzero(nodes == node)[0][0]
    others, is_right, number = np.empty_like(nodes), np.empty(nodes.size, np.bool_), 0
    while parents[index] >= 0:
        above = nodes[parents[index]]
        is_right[number] = forest.left[above] == nodes[index]
        others[number] = forest.right[above] if is_right[number] else forest.left[above]
        number, index = number + 1, parents[index]
    return others[:number], is_right[:number]


@compiled
def without(model: Model, forest: Forest, tree: int, point: int) -> int:
    """A tree without one of its points, or -1 where nothing is left; the tree stays as it is."""
    others, is_right = beside(forest, tree, point)
    if others.size == 0:
        return -1
    left: int = others[0]
    for step in range(1, others.size):
        other = others[step]
        one, two = (left, other) if is_right[step] else (other, left)
        left = join(model, forest, one, two)
    return left


@compiled
def replanted(model: Model, forest: Forest, trees: Integers, size: int) -> tuple[Forest, Integers]:
    """Copies of trees in a forest without anything else, under a model that may have changed."""
    new = new_forest(model, size)
    roots = np.empty(trees.size, np.int64)
    copies = np.arange(forest.left.size)  # leaves have the same indices in all forests
    for index in range(trees.size):
        for node in nodes_below(forest, trees[index])[::-1]:
            if forest.left[node] >= 0:
                left, right = copies[forest.left[node]], copies[forest.right[node]]
                copies[node] = join(model, new, left, right)
        roots[index] = copies[trees[index]]
    return new, roots


@compiled
def index_from(logs: Floats) -> int:
    """Draw an index with given log probabilities, but for a constant."""
    odds = np.exp(logs - logs.max()).cumsum()
    return int(min(np.searchsorted(odds, np.random.random() * odds[-1], "right"), logs.size - 1))


@compiled
def log_choice(model: Model, forest: Forest, tree: int, like: Integers, rest: Integers) -> float:
    """Log probability that a tree is picked, and found to be like some others and not the rest."""
    total = -math.log(1 + like.size + rest.size)
    for other in rest:
        total += log_like(-log_dissimilarity(model, forest, tree, other))
    for other in like:
        total += log_like(log_dissimilarity(model, forest, tree, other))
    return total


@compiled
def log_merge(model: Model, forest: Forest, blocks: Integers, rest: Integers) -> float:
    """Log probability that blocks are proposed to merge, whichever of them begins."""
    total = -np.inf
    for index in range(blocks.size):
        others = np.append(blocks[:index], blocks[index + 1 :])
        total = np.logaddexp(total, log_choice(model, forest, blocks[index], others, rest))
    return total


@compiled
def draw_split(model: Model, forest: Forest, tree: int) -> tuple[Integers, float]:
    """Split a tree at random: the children of a node are blocks, and what is beside it joins one.

    :returns: roots of the blocks, none without room, and log probability of the split.
    """
    inner, log_weights = inner_nodes(forest, tree)
    index = index_from(log_weights)
    others, _ = beside(forest, tree, inner[index])
    blocks, logs = np.empty(others.size + 2, np.int64), np.zeros(others.size + 2)
    blocks[0], blocks[1] = forest.left[inner[index]], forest.right[inner[index]]
    number, log_path = 2, log_weights[index]
    for subtree in others:
        for block in range(number):
            logs[block] = -log_dissimilarity(model, forest, subtree, blocks[block])
        logs[number] = 0.0  # the logarithm of one, for a new block
        choice = index_from(logs[: number + 1])
        top = logs[: number + 1].max()
        log_path += logs[choice] - top - math.log(np.exp(logs[: number + 1] - top).sum())
        if choice == number:
            blocks[number] = subtree
            number += 1
        elif forest.top[0] + forest.num_points[blocks[choice]] + 1 > forest.left.size:
            return blocks[:0], log_path
        else:
            blocks[choice] = insert(model, forest, blocks[choice], subtree, True)
    return blocks[:number], log_path
