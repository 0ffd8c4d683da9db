"""Compiled splits and merges guided by trees that leave the posterior invariant.

The state is the partition alone. All points have one binary tree, made once of the data; the tree
of a block is that tree restricted to its points. A split takes a cluster whose tree says that it is
none, and two anchors on either side of a node where it falls apart. All other points of the cluster
are laid to the side of one of the anchors as the tree has them, moved to the likelier side until
few move, and then drawn once, point by point. A merge takes two clusters that are likely to be one,
and an anchor of each; its way back is the split with the same anchors. The start of the last scan
depends on anchors and points alone, so that its probability is the same in both directions.
"""

import math
from typing import NamedTuple

import numpy as np

from pyro_ext._lib.compiled import compiled
from pyro_ext.inference.partitions._cluster_loops import add_point, num_sums
from pyro_ext.inference.partitions._gibbs_loops import (
    draw_index,
    greedy_scan,
    records_of_labels,
    restricted_scan,
)
from pyro_ext.inference.partitions.mixtures import Compiled
from pyro_ext.inference.partitions.trees import (
    Floats,
    Forest,
    Integers,
    Model,
    join,
    leaves_below,
    log_like,
    log_potential_of,
    log_union,
    model_of,
    new_forest,
    nodes_below,
    parents_of,
)

# Fractions of proposals that the trees do not guide, so that no way back is impossible.
_FLAT_CLUSTERS, _FLAT_NODES, _FLAT_PAIRS, _FLAT_PARTNERS = 0.02, 0.05, 0.25, 0.05


class Clusters(NamedTuple):
    """Statistics of each cluster for the moves; rows beyond the number of clusters are free."""

    counts: Integers  # numbers of points
    sums: Floats  # of the points
    log_potential: Floats  # of the blocks
    split_weight: Floats  # weights with which clusters are taken to be split


@compiled
def block_tree(model: Model, forest: Forest, tallest: Floats, members: Integers) -> int:
    """The tree of all points, restricted to some of them, as new nodes."""
    pending, heights = np.empty(members.size, np.int64), np.empty(members.size)
    length, tree = 0, int(members[0])
    for index in range(1, members.size):
        start, end = members[index - 1], members[index]
        level, span = 0, end - start
        while 2 << level <= span:
            level += 1
        height = max(tallest[level, start], tallest[level, end - (1 << level)])
        while length and heights[length - 1] < height:
            length -= 1
            tree = join(model, forest, pending[length], tree)
        pending[length], heights[length] = tree, height
        length += 1
        tree = int(members[index])
    while length:
        length -= 1
        tree = join(model, forest, pending[length], tree)
    return tree


@compiled
def split_weight(model: Model, forest: Forest, tallest: Floats, members: Integers) -> float:
    """Weight with which a cluster is taken to be split: how likely its tree has it in parts."""
    if members.size == 1:
        return 0.0
    start = forest.top[0]
    tree = block_tree(model, forest, tallest, members)
    forest.top[0] = start
    return _FLAT_CLUSTERS + math.exp(log_like(-forest.log_cost[tree]))


@compiled
def clusters_of(
    model: Model, forest: Forest, tallest: Floats, labels: Integers, capacity: int
) -> Clusters:
    """All clusters of a partition, with room for more."""
    number = labels.max() + 1
    width = num_sums(model.kind, model.points.shape[1])
    clusters = Clusters(
        np.zeros(capacity, np.int64),
        np.zeros((capacity, width)),
        np.zeros(capacity),
        np.zeros(capacity),
    )
    order, ends = np.argsort(labels, kind="mergesort"), np.zeros(number + 1, np.int64)
    for label in labels:
        ends[label + 1] += 1
    ends = np.cumsum(ends)
    for k in range(number):
        _refresh(model, forest, tallest, order[ends[k] : ends[k + 1]], clusters, k)
    return clusters


@compiled
def _refresh(
    model: Model, forest: Forest, tallest: Floats, members: Integers, clusters: Clusters, k: int
) -> None:
    """Bring a row of clusters into line with its points."""
    clusters.sums[k] = 0.0
    for member in members:
        add_point(model.kind, clusters.sums[k], model.points[member], 1.0)
    clusters.counts[k] = members.size
    clusters.log_potential[k] = log_potential_of(model, forest, members.size, clusters.sums[k])
    clusters.split_weight[k] = split_weight(model, forest, tallest, members)


@compiled
def _move_row(clusters: Clusters, source: int, target: int) -> None:
    clusters.counts[target] = clusters.counts[source]
    clusters.sums[target] = clusters.sums[source]
    clusters.log_potential[target] = clusters.log_potential[source]
    clusters.split_weight[target] = clusters.split_weight[source]


@compiled
def _node_logs(forest: Forest, nodes: Integers) -> Floats:
    """Log probabilities of nodes to be those where a cluster is split, of leaves minus infinity."""
    logs, number = np.full(nodes.size, -np.inf), nodes.size // 2
    total = 0.0
    for index in range(nodes.size):
        if forest.left[nodes[index]] >= 0:
            logs[index] = math.exp(log_like(-forest.log_cost[nodes[index]]))
            total += logs[index]
    for index in range(nodes.size):
        if logs[index] >= 0.0:
            guided = logs[index] / total if total > 0.0 else 1.0 / number
            logs[index] = math.log((1.0 - _FLAT_NODES) * guided + _FLAT_NODES / number)
    return logs


@compiled
def anchors_of(forest: Forest, tree: int, members: Integers) -> tuple[int, int]:
    """Draw two points of a tree that a split sets apart, in rising order."""
    if np.random.random() < _FLAT_PAIRS:
        first = np.random.randint(members.size)
        second = np.random.randint(members.size - 1)
        second += second >= first
        one, other = members[first], members[second]
    else:
        nodes = nodes_below(forest, tree)
        node = nodes[draw_index(_node_logs(forest, nodes))]
        left = leaves_below(forest, forest.left[node])
        right = leaves_below(forest, forest.right[node])
        one = left[np.random.randint(left.size)]
        other = right[np.random.randint(right.size)]
    return min(one, other), max(one, other)


@compiled
def _path(parents: Integers, index: int) -> Integers:
    """Indices of a node and all above it."""
    length, above = 1, index
    while parents[above] >= 0:
        above = parents[above]
        length += 1
    path = np.empty(length, np.int64)
    for step in range(length):
        path[step] = index
        index = parents[index]
    return path


@compiled
def _paths(
    forest: Forest, nodes: Integers, parents: Integers, first: int, second: int
) -> tuple[Integers, int]:
    """Path of the first point to the root, and the step that the second one's has in common."""
    path = _path(parents, np.nonzero(nodes == first)[0][0])
    other = _path(parents, np.nonzero(nodes == second)[0][0])
    common = 1
    while common < min(path.size, other.size) and (
        path[path.size - 1 - common] == other[other.size - 1 - common]
    ):
        common += 1
    return path, path.size - common


@compiled
def log_anchors(forest: Forest, tree: int, first: int, second: int) -> float:
    """Log probability of two anchors, in whichever order."""
    nodes = nodes_below(forest, tree)
    path, meeting = _paths(forest, nodes, parents_of(forest, nodes), first, second)
    node, count = nodes[path[meeting]], forest.num_points[tree]
    pairs = forest.num_points[forest.left[node]] * forest.num_points[forest.right[node]]
    guided = _node_logs(forest, nodes)[path[meeting]] - math.log(pairs)
    flat = math.log(2.0) - math.log(count) - math.log(count - 1.0)
    return float(np.logaddexp(math.log(1.0 - _FLAT_PAIRS) + guided, math.log(_FLAT_PAIRS) + flat))


@compiled
def lay_out(
    model: Model,
    forest: Forest,
    tree: int,
    members: Integers,
    first: int,
    second: int,
    sides: Integers,
) -> None:
    """Lay the points of a tree to the sides of two anchors, subtree by subtree."""
    start = forest.top[0]
    nodes = nodes_below(forest, tree)
    parents = parents_of(forest, nodes)
    path, meeting = _paths(forest, nodes, parents, first, second)
    side_of = np.zeros(model.points.shape[0], np.int64)
    own = nodes[path[meeting - 1]]
    node = nodes[path[meeting]]
    other = forest.right[node] if forest.left[node] == own else forest.left[node]
    side_of[leaves_below(forest, other)] = 1
    for step in range(meeting + 1, path.size):
        node, below = nodes[path[step]], nodes[path[step - 1]]
        sibling = forest.right[node] if forest.left[node] == below else forest.left[node]
        gain = log_union(model, forest, own, sibling) - forest.log_potential[own]
        loss = log_union(model, forest, other, sibling) - forest.log_potential[other]
        if gain >= loss:
            own = join(model, forest, own, sibling)
        else:
            other = join(model, forest, other, sibling)
            side_of[leaves_below(forest, sibling)] = 1
    for index in range(members.size):
        sides[index] = side_of[members[index]]
    forest.top[0] = start


@compiled
def draw_sides(
    model: Model,
    table: Floats,
    log_size: Floats,
    points: Floats,
    sides: Integers,
    current: Integers,
    num_scans: int,
    is_forced: bool,
) -> float:
    """Settle sides as they were laid out, then draw them, or follow the current ones."""
    own = Compiled(model.kind, model.parameters, table, points)
    counts, records = records_of_labels(own, sides, 2)
    for _ in range(num_scans):
        if not greedy_scan(own, sides, records, counts, log_size):
            break
    return restricted_scan(own, sides, current, records, counts, log_size, is_forced)


@compiled
def _partner_logs(model: Model, forest: Forest, clusters: Clusters, number: int, k: int) -> Floats:
    """Log probabilities of the clusters to be merged with a given one."""
    logs, total, both = np.empty(number), 0.0, np.empty(clusters.sums.shape[1])
    by_number = model.log_number[number] - model.log_number[number - 1]
    for other in range(number):
        logs[other] = 0.0
        if other != k:
            for i in range(both.size):
                both[i] = clusters.sums[k, i] + clusters.sums[other, i]
            count = clusters.counts[k] + clusters.counts[other]
            apart = clusters.log_potential[k] + clusters.log_potential[other] + by_number
            cost = apart - log_potential_of(model, forest, count, both)
            logs[other] = math.exp(log_like(cost)) + _FLAT_PARTNERS / (number - 1)
            total += logs[other]
    return np.log(logs / total)


@compiled
def log_pair(
    model: Model, forest: Forest, clusters: Clusters, number: int, one: int, other: int
) -> float:
    """Log probability that two clusters are taken to be merged, whichever is picked first."""
    forward = _partner_logs(model, forest, clusters, number, one)[other]
    back = _partner_logs(model, forest, clusters, number, other)[one]
    return float(np.logaddexp(forward, back) - math.log(number))


@compiled
def log_ratio_of_split(
    model: Model, forest: Forest, clusters: Clusters, number: int, whole: int, one: int, other: int
) -> float:
    """Log acceptance ratio of a split but for what depends on anchors and sides."""
    # The clusters after the split fill the first rows; that of the whole comes after those.
    weights = clusters.split_weight
    rest = weights[:number].sum() - weights[one] - weights[other]
    log_ratio = model.log_number[number] - model.log_number[number - 1]
    log_ratio += clusters.log_potential[one] + clusters.log_potential[other]
    log_ratio -= clusters.log_potential[whole]
    log_ratio += log_pair(model, forest, clusters, number, one, other)
    log_ratio -= math.log(float(clusters.counts[one])) + math.log(float(clusters.counts[other]))
    return float(log_ratio + math.log(max(rest, 0.0) + weights[whole]) - math.log(weights[whole]))


@compiled
def _move(
    model: Model,
    table: Floats,
    log_size: Floats,
    tallest: Floats,
    forest: Forest,
    clusters: Clusters,
    labels: Integers,
    number: int,
    num_scans: int,
) -> tuple[int, int]:
    """Propose a split, 0, or a merge, 1; return which, and the number of clusters after it."""
    is_split = np.random.random() < 0.5
    spare = clusters.counts.size - 1
    start = forest.top[0]
    if is_split:
        if not clusters.split_weight[:number].max() > 0.0:
            return 0, number
        one = draw_index(np.log(clusters.split_weight[:number]))
        other = number
        members = np.nonzero(labels == one)[0]
        tree = block_tree(model, forest, tallest, members)
        first, second = anchors_of(forest, tree, members)
    else:
        if number == 1:
            return 1, number
        one = np.random.randint(number)
        other = draw_index(_partner_logs(model, forest, clusters, number, one))
        first = _any_member(labels, one, clusters.counts[one])
        second = _any_member(labels, other, clusters.counts[other])
        if first > second:
            first, second, one, other = second, first, other, one
        members = np.nonzero((labels == one) | (labels == other))[0]
        tree = block_tree(model, forest, tallest, members)
    log_ratio = -log_anchors(forest, tree, first, second)
    is_anchor = (members == first) | (members == second)
    members = np.append(members[~is_anchor], np.array([first, second]))
    current = (labels[members] != one).astype(np.int64)
    sides = np.empty(members.size, np.int64)
    lay_out(model, forest, tree, members, first, second, sides)
    forest.top[0] = start
    log_ratio -= draw_sides(
        model, table, log_size, model.points[members], sides, current, num_scans, not is_split
    )
    if is_split:
        _move_row(clusters, one, spare)
        for k in range(2):
            own = np.sort(members[sides == k])
            _refresh(model, forest, tallest, own, clusters, other if k else one)
        log_ratio += log_ratio_of_split(model, forest, clusters, number + 1, spare, one, other)
        if math.log(np.random.random()) < log_ratio:
            labels[members[sides == 1]] = other
            return 0, number + 1
        _move_row(clusters, spare, one)
        return 0, number
    _refresh(model, forest, tallest, np.sort(members), clusters, spare)
    log_ratio += log_ratio_of_split(model, forest, clusters, number, spare, one, other)
    if math.log(np.random.random()) < -log_ratio:
        _move_row(clusters, spare, one)
        labels[labels == other] = one
        labels[labels == number - 1] = other
        _move_row(clusters, number - 1, other)
        return 1, number - 1
    return 1, number


@compiled
def _any_member(labels: Integers, k: int, count: int) -> int:
    """A random point of a cluster."""
    index, skip = 0, np.random.randint(count)
    while skip or labels[index] != k:
        skip -= labels[index] == k
        index += 1
    return index


@compiled
def exact_sweep(
    data: Compiled,
    labels: Integers,
    tallest: Floats,
    log_size: Floats,
    log_number: Floats,
    num_moves: int,
    num_scans: int,
    seed: int,
) -> Integers:
    """Propose splits and merges; return how many splits were accepted and tried, and merges."""
    np.random.seed(seed)
    model = model_of(data.kind, data.parameters, data.points, log_size, log_number)
    forest = new_forest(model, 3 * labels.size + 1)
    number = labels.max() + 1
    clusters = clusters_of(model, forest, tallest, labels, number + num_moves + 2)
    counts = np.zeros(4, np.int64)
    for _ in range(num_moves):
        direction, after = _move(
            model, data.table, log_size, tallest, forest, clusters, labels, number, num_scans
        )
        counts[2 * direction] += after != number
        counts[2 * direction + 1] += 1
        number = after
    return counts
