r"""Compiled trees over the points of clusters, apart since Numba is slow to import.

With the potential :math:`h(c) = \kappa(|c|, u) p(X_c)` of a block and the children a and b of a
tree on it, :math:`t = h` for a leaf and :math:`t = h(c) + t(a) t(b)` otherwise, and the
dissimilarity is :math:`d(a, b) = t(a) t(b) / h(a \cup b)`. All are kept as logarithms.

Nodes are places in the arrays of a forest, the first of which are the leaves of the points. A tree
is known by its root; no node knows its parent, so that trees can share their branches.
"""

import math
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from pyro_ext.inference.partitions._cluster_loops import add_point, log_marginal, num_sums

__all__ = [
    "Floats",
    "Forest",
    "Integers",
    "Model",
    "build",
    "insert",
    "join",
    "leaves_below",
    "log_dissimilarity",
    "log_subtree_weights",
    "new_forest",
    "nodes_below",
    "refresh",
]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Model(NamedTuple):
    """Clusters, data, and the factors of the prior by sizes and number of clusters."""

    kind: int
    parameters: Floats
    points: Floats
    log_size: Floats
    log_number: Floats


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


@numba.njit(cache=True)
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


@numba.njit(cache=True)
def _log_potential(model: Model, forest: Forest, count: int, sums: Floats) -> float:
    size = model.points.shape[1]
    value = log_marginal(model.kind, model.parameters, size, float(count), sums, forest.scratch)
    return value + model.log_size[count]


@numba.njit(cache=True)
def log_dissimilarity(model: Model, forest: Forest, one: int, other: int) -> float:
    """Logarithm of the dissimilarity of two trees."""
    size = model.points.shape[1]
    both = forest.scratch[size * size + size :]
    for i in range(both.size):
        both[i] = forest.sums[one, i] + forest.sums[other, i]
    count = forest.num_points[one] + forest.num_points[other]
    whole = _log_potential(model, forest, count, both)
    return forest.log_total[one] + forest.log_total[other] - whole


@numba.njit(cache=True)
def refresh(model: Model, forest: Forest, node: int) -> None:
    """Bring what a node knows into line with its children, or a leaf with the model."""
    left, right = forest.left[node], forest.right[node]
    if left < 0:
        forest.log_potential[node] = _log_potential(model, forest, 1, forest.sums[node])
        forest.log_total[node] = forest.log_potential[node]
        return
    forest.num_points[node] = forest.num_points[left] + forest.num_points[right]
    for i in range(forest.sums.shape[1]):
        forest.sums[node, i] = forest.sums[left, i] + forest.sums[right, i]
    own = _log_potential(model, forest, forest.num_points[node], forest.sums[node])
    apart = forest.log_total[left] + forest.log_total[right]
    high, low = max(own, apart), min(own, apart)
    forest.log_potential[node] = own
    forest.log_total[node] = high + math.log1p(math.exp(low - high))
    forest.log_cost[node] = apart - own


@numba.njit(cache=True)
def join(model: Model, forest: Forest, one: int, other: int) -> int:
    """Make a new tree of two."""
    node = forest.top[0]
    forest.top[0] += 1
    forest.left[node], forest.right[node] = one, other
    refresh(model, forest, node)
    return node


@numba.njit(cache=True)
def _copy(forest: Forest, node: int) -> int:
    new = forest.top[0]
    forest.top[0] += 1
    forest.left[new], forest.right[new] = forest.left[node], forest.right[node]
    forest.log_cost[new] = forest.log_cost[node]
    return new


@numba.njit(cache=True)
def insert(model: Model, forest: Forest, tree: int, other: int, keeps_tree: bool) -> int:
    """Put a tree into another where it fits, and return the root.

    :param bool keeps_tree: leave the tree as it is, and make new nodes on the way.
    """
    if forest.left[tree] < 0:
        tree, other = other, tree
        if forest.left[tree] < 0:
            return join(model, forest, other, tree)
    path = np.empty(forest.num_points[tree], np.int64)
    length, node, is_left = 0, tree, False
    while forest.left[node] >= 0:
        left, right = forest.left[node], forest.right[node]
        cost_left = log_dissimilarity(model, forest, left, other)
        cost_right = log_dissimilarity(model, forest, right, other)
        own = forest.log_cost[node]
        if own < cost_left and own < cost_right:
            break
        if keeps_tree:
            new = _copy(forest, node)
            if length:
                _hang(forest, path[length - 1], new, is_left)
            node = new
        path[length] = node
        length += 1
        is_left = cost_left < cost_right
        node = left if is_left else right
    root = join(model, forest, node, other)
    if length:
        _hang(forest, path[length - 1], root, is_left)
        root = path[0]
    for place in range(length - 1, -1, -1):
        refresh(model, forest, path[place])
    return root


@numba.njit(cache=True)
def _hang(forest: Forest, parent: int, child: int, is_left: bool) -> None:
    if is_left:
        forest.left[parent] = child
    else:
        forest.right[parent] = child


@numba.njit(cache=True)
def build(model: Model, forest: Forest, members: Integers) -> int:
    """The tree of a block: its points put in one after the other."""
    tree = members[0]
    for place in range(1, members.size):
        tree = insert(model, forest, tree, members[place], False)
    return tree


@numba.njit(cache=True)
def nodes_below(forest: Forest, tree: int) -> Integers:
    """All nodes of a tree, each before its children."""
    nodes = np.empty(2 * forest.num_points[tree] - 1, np.int64)
    nodes[0] = tree
    length, place = 1, 0
    while place < length:
        node = nodes[place]
        if forest.left[node] >= 0:
            nodes[length], nodes[length + 1] = forest.left[node], forest.right[node]
            length += 2
        place += 1
    return nodes


@numba.njit(cache=True)
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


@numba.njit(cache=True)
def log_subtree_weights(forest: Forest, nodes: Integers) -> Floats:
    """Log probabilities of nodes to be chosen: their costs, raised by the largest.

    :param nodes: the candidates.
    """
    logs = forest.log_cost[nodes]
    largest = logs.max()
    if largest == -np.inf:
        return np.full(nodes.size, -math.log(nodes.size))
    total = 0.0
    for place in range(nodes.size):
        logs[place] = math.log1p(math.exp(logs[place] - largest))
        total += math.exp(logs[place])
    return logs - math.log(total)
