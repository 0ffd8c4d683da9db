"""Tree-guided MCMC as it was published, whose moves do not keep the posterior invariant.

The trees are part of the state: blocks of a split keep the trees that the split made, those of a
merge are joined in a chain, and acceptance ratios look at the paths that were taken.

[1] J. Lee, S. Choi (2015), Tree-guided MCMC inference for normalized random measure mixture models.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext._lib.compiled import compiled
from pyro_ext.inference.partitions import ConjugateKernel
from pyro_ext.inference.partitions.conjugate import acceptance_rates, loop_seed
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
    model_of,
    new_forest,
    nodes_below,
    parents_of,
)

_NODES_PER_POINT, _LEAST_NODES = 8, 1024


class PublishedTreeGuided(ConjugateKernel):
    """The kernel as it was published [1].

    It treats a proposal that depends on the trees as if the trees were irrelevant, and its
    stationary distribution is not the posterior but one with fewer and larger clusters: on four
    points with a posterior mean of 2.073 clusters it has 1.854, and a total variation of 0.143. It
    is there for comparison.

    :param prior: as of :class:`~pyro_ext.inference.partitions.TreeGuided`.
    :param cluster: likewise.
    :param str local: which points are moved singly: random ones, ``"uniform"``, or points that the
        trees pick, ``"tree"``.
    :param int num_global_moves: proposals in a step.
    :param float local_fraction: how many points are moved singly, as a fraction of all.
    :param int depth: random descents in a tree by which it picks points.
    :param str init: as of :class:`~pyro_ext.inference.partitions.TreeGuided`.
    """

    keeps_no_state = False  # the trees

    def __init__(
        self,
        prior: PriorSource,
        cluster: ClusterSource,
        *,
        local: Literal["uniform", "tree"] = "uniform",
        num_global_moves: int = 20,
        local_fraction: float = 0.1,
        depth: int = 2,
        init: str = "prior",
    ) -> None:
        checks.choice("local", local, ("uniform", "tree"))
        self.local = local
        self.num_global_moves = checks.integer("num_global_moves", num_global_moves, 0)
        self.local_fraction = checks.number("local_fraction", local_fraction, above=0.0, most=1.0)
        self.depth = checks.integer("depth", depth, 1)
        self._capacity = 0
        self._planted: tuple[Any, Integers, Integers] | None = None
        super().__init__(prior, cluster, init=init)

    def setup(self, warmup_steps: int, x: Tensor) -> None:
        """Take the data, as of the other kernels."""
        super().setup(warmup_steps, x)
        self._capacity = _NODES_PER_POINT * len(x) + _LEAST_NODES
        self._planted = None

    def settings(self) -> dict[str, Any]:
        """Arguments by name."""
        names = ("local", "num_global_moves", "local_fraction", "depth")
        return super().settings() | {name: getattr(self, name) for name in names}

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
        depth = self.depth if self.local == "tree" else 0
        seed = loop_seed()
        while True:
            forest, trees = replanted(model, old, roots, self._capacity)
            has_room, trees, counts = paper_sweep(
                model, forest, trees, self.num_global_moves, depth, some, seed
            )
            if has_room:
                break
            self._capacity *= 2
        trees = trees[np.argsort([leaves_below(forest, tree)[0] for tree in trees])]
        for label, tree in enumerate(trees):
            labels[leaves_below(forest, tree)] = label
        self._planted = forest, trees, labels.copy()
        return acceptance_rates(("split", "merge", "point"), counts)


@compiled
def log_subtree_weights(forest: Forest, nodes: Integers) -> Floats:
    """Log probabilities of nodes to be chosen: their costs, raised by the largest."""
    logs = forest.log_cost[nodes]
    largest = logs.max()
    if largest == -np.inf:
        return np.full(nodes.size, -math.log(nodes.size))
    total = 0.0
    for index in range(nodes.size):
        logs[index] = math.log1p(math.exp(logs[index] - largest))
        total += math.exp(logs[index])
    return logs - math.log(total)


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
    model: Model,
    forest: Forest,
    trees: Integers,
    num_moves: int,
    depth: int,
    points: Integers,
    seed: int,
) -> tuple[bool, Integers, Integers]:
    """Make moves of clusters, and then move points.

    :param trees: roots of the trees of the clusters.
    :param int depth: descents in each tree to a node below which points are moved, or zero.
    :param points: those that are moved where the depth is zero.
    :returns: whether there was room, the trees after it, and the numbers of splits and merges that
        were accepted and tried, and of points that were moved and tried.
    """
    np.random.seed(seed)
    counts = np.zeros(6, np.int64)
    for _ in range(num_moves):
        trees, kind, is_accepted, has_room = move_cluster(model, forest, trees)
        if not has_room:
            return False, trees, counts
        counts[2 * kind] += is_accepted
        counts[2 * kind + 1] += 1
    if depth:
        points = picked_points(forest, trees, depth)
    for point in points:
        if forest.top[0] + 2 * (forest.num_points[trees].max() + 2) > forest.left.size:
            return False, trees, counts
        trees, has_moved = move_point(model, forest, trees, point)
        counts[4] += has_moved
        counts[5] += 1
    return True, trees, counts


@compiled
def picked_points(forest: Forest, trees: Integers, depth: int) -> Integers:
    """Points below a node of each tree, to which some random descents lead."""
    firsts = np.array([leaves_below(forest, tree)[0] for tree in trees])
    points = np.empty(forest.num_points[trees].sum(), np.int64)
    length = 0
    for tree in trees[np.argsort(firsts)]:
        node = tree
        for _ in range(depth):
            below = nodes_below(forest, node)
            node = below[index_from(log_subtree_weights(forest, below))]
        leaves = leaves_below(forest, node)
        for leaf in leaves:
            points[length] = leaf
            length += 1
    return points[:length]


@compiled
def move_cluster(model: Model, forest: Forest, trees: Integers) -> tuple[Integers, int, bool, bool]:
    """Propose to split a cluster, or to merge it with others, as published."""
    start, capacity = forest.top[0], forest.left.size
    chosen = np.random.randint(trees.size)
    partners = draw_partners(model, forest, trees, chosen)
    is_own = np.zeros(trees.size, np.bool_)
    is_own[chosen] = True
    is_own[partners] = True
    rest, tree = trees[~is_own], trees[chosen]
    if partners.size == 0:
        if forest.num_points[tree] == 1:
            return trees, 0, False, True
        blocks, log_path = draw_split(model, forest, tree)
        if blocks.size == 0:
            return trees, 0, False, False
        log_ratio = log_merge(model, forest, blocks, rest) - forest.log_potential[tree]
        for block in blocks:
            log_ratio += forest.log_potential[block]
        log_ratio += model.log_number[rest.size + blocks.size] - model.log_number[rest.size + 1]
        log_ratio -= log_path + log_no_merge(model, forest, tree, rest)
        if math.log(np.random.random()) < log_ratio:
            return np.append(rest, blocks), 0, True, True
        forest.top[0] = start
        return trees, 0, False, True

    if start + partners.size > capacity:
        return trees, 1, False, False
    # Forward: what was found to be like the chosen tree, and what not.
    log_ratio = math.log(trees.size) - forest.log_potential[tree]
    for index in range(trees.size):
        if index != chosen:
            cost = log_dissimilarity(model, forest, tree, trees[index])
            log_ratio -= log_like(cost) if is_own[index] else log_like(-cost)
    whole = tree
    for step in range(partners.size):
        partner = trees[partners[step]]
        log_ratio -= forest.log_potential[partner]
        if step:
            norm = 0.0
            for earlier in range(-1, step):
                block = tree if earlier < 0 else trees[partners[earlier]]
                cost = log_dissimilarity(model, forest, partner, block)
                norm = np.logaddexp(norm, -cost)
            log_ratio -= norm
        whole = join(model, forest, whole, partner)
    first = start  # the node of the chosen tree and its first partner
    nodes = nodes_below(forest, whole)
    inner = nodes[forest.left[nodes] >= 0]
    log_ratio += log_subtree_weights(forest, inner)[inner == first][0]
    log_ratio += log_no_merge(model, forest, whole, rest) + forest.log_potential[whole]
    log_ratio += model.log_number[rest.size + 1] - model.log_number[trees.size]
    if math.log(np.random.random()) < log_ratio:
        return np.append(rest, np.array([whole])), 1, True, True
    forest.top[0] = start
    return trees, 1, False, True


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
    if left < 0:
        remaining = np.append(trees[:chosen], trees[chosen + 1 :])
    else:
        remaining[chosen] = left
    number = remaining.size
    logs = np.empty(number + 1)
    for index in range(number):
        tree = remaining[index]
        apart = forest.log_total[tree] + forest.log_total[point]
        both = apart - log_dissimilarity(model, forest, tree, point)
        logs[index] = both - forest.log_potential[tree]
    logs[number] = forest.log_potential[point]
    logs[number] += model.log_number[number + 1] - model.log_number[number]
    largest = logs.max()
    choice = index_from(logs - largest - math.log(np.exp(logs - largest).sum()))
    if choice == number:
        return np.append(remaining, np.array([point])), left >= 0
    if left >= 0 and choice == chosen:
        return trees, False
    remaining[choice] = insert(model, forest, remaining[choice], point, True)
    return remaining, True


@compiled
def without(model: Model, forest: Forest, tree: int, point: int) -> int:
    """A tree without one of its points, or -1 where nothing is left; the tree stays as it is."""
    nodes = nodes_below(forest, tree)
    parent = parents_of(forest, nodes)
    index = np.nonzero(nodes == point)[0][0]
    if parent[index] < 0:
        return -1
    above = nodes[parent[index]]
    child = forest.right[above] if forest.left[above] == point else forest.left[above]
    replaced, index = above, parent[parent[index]]
    while index >= 0:
        node = nodes[index]
        is_left = forest.left[node] == replaced
        left = child if is_left else forest.left[node]
        right = forest.right[node] if is_left else child
        child = join(model, forest, left, right)
        replaced, index = node, parent[index]
    return child


@compiled
def replanted(
    model: Model, forest: Forest, trees: Integers, capacity: int
) -> tuple[Forest, Integers]:
    """Copies of trees in a forest without anything else, under a model that may have changed."""
    new = new_forest(model, capacity)
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
    """Draw an index with given log probabilities."""
    level, index = np.random.random(), 0
    total = math.exp(logs[0])
    while index < logs.size - 1 and total <= level:
        index += 1
        total += math.exp(logs[index])
    return index


@compiled
def log_merge(model: Model, forest: Forest, blocks: Integers, rest: Integers) -> float:
    """Log probability that blocks are proposed to merge, whichever of them begins."""
    total = -np.inf
    for starter in range(blocks.size):
        log_path = -math.log(blocks.size + rest.size)
        for index in range(rest.size):
            cost = log_dissimilarity(model, forest, blocks[starter], rest[index])
            log_path += log_like(-cost)
        for index in range(blocks.size):
            if index != starter:
                cost = log_dissimilarity(model, forest, blocks[starter], blocks[index])
                log_path += log_like(cost)
        total = np.logaddexp(total, log_path)
    return total


@compiled
def log_no_merge(model: Model, forest: Forest, tree: int, rest: Integers) -> float:
    """Log probability that a tree is picked and nothing is found to be like it."""
    total = -math.log(rest.size + 1)
    for index in range(rest.size):
        total += log_like(-log_dissimilarity(model, forest, tree, rest[index]))
    return total


@compiled
def draw_partners(model: Model, forest: Forest, trees: Integers, chosen: int) -> Integers:
    """Indices of the trees that are taken to be like a chosen one."""
    partners = np.zeros(trees.size, np.bool_)
    for index in range(trees.size):
        if index != chosen:
            cost = log_dissimilarity(model, forest, trees[chosen], trees[index])
            partners[index] = math.log(np.random.random()) < log_like(cost)
    return np.nonzero(partners)[0]


@compiled
def draw_split(model: Model, forest: Forest, tree: int) -> tuple[Integers, float]:
    """Split a tree at random: the children of a node, and what stands beside the way to it.

    The children have a block each. Then each subtree beside the way joins one, or has its own.

    :returns: roots of the blocks, none where there was no room, and log probability of the split.
    """
    nodes = nodes_below(forest, tree)
    inner = np.nonzero(forest.left[nodes] >= 0)[0]
    log_weights = log_subtree_weights(forest, nodes[inner])
    index = index_from(log_weights)
    way = way_up(forest, parents_of(forest, nodes), nodes, inner[index])
    blocks, logs = way.copy(), np.empty(way.size + 1)
    number, log_path = 2, 0.0
    for subtree in way[2:]:
        norm = 0.0  # the logarithm of one, for a new block
        for block in range(number):
            logs[block] = -log_dissimilarity(model, forest, subtree, blocks[block])
            norm = np.logaddexp(norm, logs[block])
        logs[number] = 0.0
        choice = index_from(logs[: number + 1] - norm)
        log_path += logs[choice] - norm
        if choice == number:
            blocks[number] = subtree
            number += 1
        elif forest.top[0] + forest.num_points[blocks[choice]] + 1 > forest.left.size:
            return blocks[:0], log_path
        else:
            blocks[choice] = insert(model, forest, blocks[choice], subtree, True)
    return blocks[:number], log_path + log_weights[index]


@compiled
def way_up(forest: Forest, parents: Integers, nodes: Integers, index: int) -> Integers:
    """Children of a node, and siblings met on the way to the root.

    :param parents: indices of parents among nodes.
    :param nodes: of the tree, each before its children.
    :param int index: that of the node.
    """
    way = np.empty(nodes.size + 1, np.int64)
    way[0], way[1] = forest.left[nodes[index]], forest.right[nodes[index]]
    length = 2
    while parents[index] >= 0:
        above = nodes[parents[index]]
        other = forest.right[above] if forest.left[above] == nodes[index] else forest.left[above]
        way[length] = other
        length += 1
        index = parents[index]
    return way[:length]
