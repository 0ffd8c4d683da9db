r"""Compiled trees over the points of clusters, apart since Numba is slow to import.

With the potential :math:`h(c) = \kappa(|c|, u) p(X_c)` of a block and the children a and b of a
tree on it, :math:`t = h` for a leaf and :math:`t = h(c) + t(a) t(b)` otherwise, and the
dissimilarity is :math:`d(a, b) = t(a) t(b) / h(a \cup b)`. All are kept as logarithms.

Nodes are indices into the arrays of a forest, the first of which are the leaves of the points. A
tree is known by its root; no node knows its parent, so that trees can share their branches.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_ext._lib.compiled import compiled
from pyro_ext.inference.partitions._cluster_loops import (
    add_point,
    block_constant,
    log_of_sums,
    num_sums,
)

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Model(NamedTuple):
    """Clusters, data, and the factors of the prior."""

    kind: int  # of the clusters
    parameters: Floats  # of the clusters
    points: Floats  # relative to the center of the clusters
    log_block: Floats  # the part of a block's log potential that its size alone decides, by size
    log_number: Floats  # log factors of a partition's probability by the number of its clusters


@compiled
def model_of(
    kind: int, parameters: Floats, points: Floats, log_size: Floats, log_number: Floats
) -> Model:
    """Model from the log factors of a partition's probability by sizes of clusters."""
    log_block = log_size.copy()
    for count in range(1, points.shape[0] + 1):
        log_block[count] += block_constant(kind, parameters, points.shape[1], float(count))
    return Model(kind, parameters, points, log_block, log_number)


class Forest(NamedTuple):
    """Nodes of trees; those from ``top[0]`` on are free."""

    left: Integers
    right: Integers
    num_points: Integers
    sums: Floats
    log_potential: Floats
    log_total: Floats
    log_cost: Floats
    top: Integers
    scratch: Floats


@compiled
def new_forest(model: Model, capacity: int) -> Forest:
    """Forest of the leaves of all points."""
    number, size = model.points.shape
    width = num_sums(model.kind, size)
    forest = Forest(
        np.full(capacity, -1),
        np.full(capacity, -1),
        np.ones(capacity, np.int64),
        np.zeros((capacity, width)),
        np.zeros(capacity),
        np.zeros(capacity),
        np.full(capacity, -np.inf),
        np.array([number]),
        np.zeros(size * size + size + width),
    )
    for i in range(number):
        add_point(model.kind, forest.sums[i], model.points[i], 1.0)
        refresh(model, forest, i)
    return forest


@compiled
def log_potential_of(model: Model, forest: Forest, count: int, sums: Floats) -> float:
    """Log potential of a block of so many points with given sums."""
    size = model.points.shape[1]
    value = log_of_sums(model.kind, model.parameters, size, float(count), sums, forest.scratch)
    return value + model.log_block[count]


@compiled
def log_union(model: Model, forest: Forest, one: int, other: int) -> float:
    """Log potential of the block of all points of two trees."""
    size = model.points.shape[1]
    both = forest.scratch[size * size + size :]
    for i in range(both.size):
        both[i] = forest.sums[one, i] + forest.sums[other, i]
    count = forest.num_points[one] + forest.num_points[other]
    return log_potential_of(model, forest, count, both)


@compiled
def log_dissimilarity(model: Model, forest: Forest, one: int, other: int) -> float:
    """Logarithm of the dissimilarity of two trees."""
    apart = forest.log_total[one] + forest.log_total[other]
    return apart - log_union(model, forest, one, other)


@compiled
def refresh(model: Model, forest: Forest, node: int) -> None:
    """Bring what a node knows into line with its children, or a leaf with the model."""
    left, right = forest.left[node], forest.right[node]
    if left < 0:
        forest.log_potential[node] = log_potential_of(
            model, forest, forest.num_points[node], forest.sums[node]
        )
        forest.log_total[node] = forest.log_potential[node]
    else:
        _settle(forest, node, log_union(model, forest, left, right))


@compiled
def _settle(forest: Forest, node: int, own: float) -> None:
    """As :func:`refresh`, for a node with children whose log potential is known."""
    left, right = forest.left[node], forest.right[node]
    forest.num_points[node] = forest.num_points[left] + forest.num_points[right]
    for i in range(forest.sums.shape[1]):
        forest.sums[node, i] = forest.sums[left, i] + forest.sums[right, i]
    apart = forest.log_total[left] + forest.log_total[right]
    high, low = max(own, apart), min(own, apart)
    forest.log_potential[node] = own
    forest.log_total[node] = high + math.log1p(math.exp(low - high))
    forest.log_cost[node] = apart - own


@compiled
def join(model: Model, forest: Forest, one: int, other: int) -> int:
    """Make a new tree of two."""
    return _joined(forest, one, other, log_union(model, forest, one, other))


@compiled
def _joined(forest: Forest, one: int, other: int, own: float) -> int:
    """As :func:`join`, for a tree whose log potential is known."""
    node = forest.top[0]
    forest.top[0] += 1
    forest.left[node], forest.right[node] = one, other
    _settle(forest, node, own)
    return node


@compiled
def _copy(forest: Forest, node: int) -> int:
    new = forest.top[0]
    forest.top[0] += 1
    forest.left[new], forest.right[new] = forest.left[node], forest.right[node]
    forest.log_cost[new] = forest.log_cost[node]
    return new


@compiled
def insert(model: Model, forest: Forest, tree: int, other: int, keeps_tree: bool) -> int:
    """Put a tree into another where it fits, and return the root."""
    if forest.left[tree] < 0:
        tree, other = other, tree
        if forest.left[tree] < 0:
            return join(model, forest, other, tree)
    path = np.empty(forest.num_points[tree], np.int64)
    # Log potentials of the nodes on the way once the other tree is below them.
    unions = np.empty(forest.num_points[tree])
    length, node, is_left = 0, tree, False
    union = log_union(model, forest, tree, other)
    while forest.left[node] >= 0:
        left, right = forest.left[node], forest.right[node]
        union_left = log_union(model, forest, left, other)
        union_right = log_union(model, forest, right, other)
        cost_left = forest.log_total[left] + forest.log_total[other] - union_left
        cost_right = forest.log_total[right] + forest.log_total[other] - union_right
        own = forest.log_cost[node]
        if own < cost_left and own < cost_right:
            break
        if keeps_tree:
            new = _copy(forest, node)
            if length:
                _hang(forest, path[length - 1], new, is_left)
            node = new
        path[length], unions[length] = node, union
        length += 1
        is_left = cost_left < cost_right
        node, union = (left, union_left) if is_left else (right, union_right)
    root = _joined(forest, node, other, union)
    if length:
        _hang(forest, path[length - 1], root, is_left)
        root = path[0]
    for index in range(length - 1, -1, -1):
        _settle(forest, path[index], unions[index])
    return root


@compiled
def _hang(forest: Forest, parent: int, child: int, is_left: bool) -> None:
    if is_left:
        forest.left[parent] = child
    else:
        forest.right[parent] = child


@compiled
def nodes_below(forest: Forest, tree: int) -> Integers:
    """All nodes of a tree, each before its children."""
    nodes = np.empty(2 * forest.num_points[tree] - 1, np.int64)
    nodes[0] = tree
    length, index = 1, 0
    while index < length:
        node = nodes[index]
        if forest.left[node] >= 0:
            nodes[length], nodes[length + 1] = forest.left[node], forest.right[node]
            length += 2
        index += 1
    return nodes


@compiled
def leaves_below(forest: Forest, tree: int) -> Integers:
    """Points of a tree, in rising order."""
    nodes = nodes_below(forest, tree)
    leaves = np.empty(forest.num_points[tree], np.int64)
    length = 0
    for node in nodes:
        if forest.left[node] < 0:
            leaves[length] = node
            length += 1
    return np.sort(leaves)


@compiled
def log_like(log_cost: float) -> float:
    """Log probability that two clusters are taken to be one, or not, of minus the cost."""
    return -max(log_cost, 0.0) - math.log1p(math.exp(-abs(log_cost)))


@compiled
def parents_of(forest: Forest, nodes: Integers) -> Integers:
    """Indices of the parents among the nodes of a tree, each of which comes before its children."""
    parents = np.full(nodes.size, -1)
    length = 1
    for index in range(nodes.size):
        if forest.left[nodes[index]] >= 0:
            parents[length] = parents[length + 1] = index
            length += 2
    return parents


@compiled
def merge_greedily(model: Model, merges: Integers, heights: Floats) -> float:
    """Merge the two trees of least dissimilarity until one is left."""
    number = model.points.shape[0]
    forest = new_forest(model, 2 * number - 1)
    # The trees that are left, and for each tree where it stands among them, if at all.
    trees, indices = np.arange(number), np.full(2 * number - 1, -1)
    for index in range(number):
        indices[index] = index
    # Of each one the nearest other. Where that has gone, the cost still is a bound from below.
    neighbors, least = np.full(number, -1), np.full(number, np.inf)
    for one in range(number):
        for other in range(one):
            cost = log_dissimilarity(model, forest, one, other)
            if neighbors[one] < 0 or cost < least[one]:
                neighbors[one], least[one] = other, cost
            if neighbors[other] < 0 or cost < least[other]:
                neighbors[other], least[other] = one, cost
    for step in range(number - 1):
        last = number - 1 - step
        first = int(least[: last + 1].argmin())
        while indices[neighbors[first]] < 0:
            _search(model, forest, trees[: last + 1], first, neighbors, least)
            first = int(least[: last + 1].argmin())
        second = indices[neighbors[first]]
        low, high = min(first, second), max(first, second)
        one, other = min(trees[low], trees[high]), max(trees[low], trees[high])
        merges[step, 0], merges[step, 1], heights[step] = one, other, least[first]
        node = join(model, forest, one, other)
        trees[high], neighbors[high], least[high] = trees[last], neighbors[last], least[last]
        indices[trees[high]] = high
        indices[one] = indices[other] = -1
        trees[low], indices[node] = node, low
        neighbors[low], least[low] = -1, np.inf
        for index in range(last):
            if index == low:
                continue
            cost = log_dissimilarity(model, forest, node, trees[index])
            if neighbors[low] < 0 or cost < least[low]:
                neighbors[low], least[low] = trees[index], cost
            is_gone = indices[neighbors[index]] < 0
            if cost < least[index] or (is_gone and cost == least[index]):
                neighbors[index], least[index] = node, cost
    return float(forest.log_total[2 * number - 2])


@compiled
def _search(
    model: Model, forest: Forest, trees: Integers, one: int, neighbors: Integers, least: Floats
) -> None:
    """Find the nearest other of one tree."""
    neighbors[one] = -1
    for index in range(trees.size):
        if index != one:
            cost = log_dissimilarity(model, forest, trees[one], trees[index])
            if neighbors[one] < 0 or cost < least[one]:
                neighbors[one], least[one] = trees[index], cost


@compiled
def grow(
    model: Model, order: Integers, most_returns: int, is_noisy: bool
) -> tuple[Forest, Integers]:
    """Put points into trees one after the other, and cut those that no longer hold together."""
    number = order.size
    forest, parents = new_forest(model, 2 * number), np.full(2 * number, -1)
    free, num_free = np.arange(2 * number - 1, number - 1, -1), number
    queue, head, waiting = order.copy(), 0, number
    roots, num_roots, returns = np.empty(number, np.int64), 0, 0
    while waiting > 0:
        one = queue[head]
        head, waiting = (head + 1) % number, waiting - 1
        index = _nearest(model, forest, roots[:num_roots], one)
        if index < 0:
            roots[num_roots] = one
            num_roots += 1
            continue
        num_free -= 1
        node = free[num_free]
        forest.top[0] = node  # the index that the new node takes
        if is_noisy:
            roots[index] = join(model, forest, roots[index], one)
            continue
        roots[index] = insert(model, forest, roots[index], one, False)
        left, right = forest.left[node], forest.right[node]
        parents[node] = max(parents[left], parents[right])
        parents[left] = parents[right] = node
        if returns >= most_returns:
            continue
        above = parents[node]
        while above >= 0 and forest.log_cost[above] <= 0.0:
            node, above = above, parents[above]
        if above >= 0:
            roots[index], parents[node] = node, -1
        while above >= 0:
            is_left = forest.left[above] == node
            sibling = forest.right[above] if is_left else forest.left[above]
            queue[(head + waiting) % number] = sibling
            waiting, returns = waiting + 1, returns + 1
            free[num_free] = above
            num_free += 1
            node, above = above, parents[above]
            parents[sibling] = parents[node] = -1
    return forest, roots[:num_roots]


@compiled
def _nearest(model: Model, forest: Forest, roots: Integers, one: int) -> int:
    """Index of the tree of least dissimilarity, or -1 where that exceeds one."""
    nearest, least = -1, 0.0
    for index in range(roots.size):
        cost = log_dissimilarity(model, forest, roots[index], one)
        if cost < least or (nearest < 0 and cost == least):
            nearest, least = index, cost
    return nearest
