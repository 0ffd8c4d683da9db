"""Compiled moves guided by trees that leave the posterior invariant.

The state is the partition alone: the tree of a block is made of its points in their order, whatever
the history of the chain, and a proposal counts all ways in which it may come about.
"""

import math

import numpy as np

from pyro_ext._compiled import compiled
from pyro_ext.inference.partitions._tree_guided_loops import (
    draw_partners,
    draw_split,
    log_merge,
    log_split,
    place_from,
)
from pyro_ext.inference.partitions._tree_loops import (
    Floats,
    Forest,
    Integers,
    Model,
    build,
    leaves_below,
    log_dissimilarity,
    log_subtree_weights,
    new_forest,
    nodes_below,
)

__all__ = ["exact_sweep", "log_odds_of_split", "move_cluster", "move_point", "pick_probabilities"]


@compiled
def trees_of_labels(model: Model, forest: Forest, labels: Integers) -> Integers:
    """Roots of the trees of all clusters."""
    trees = np.empty(labels.max() + 1, np.int64)
    for k in range(trees.size):
        trees[k] = build(model, forest, np.nonzero(labels == k)[0])
    return trees


@compiled
def exact_sweep(
    model: Model,
    labels: Integers,
    num_moves: int,
    num_picks: int,
    depth: int,
    capacity: int,
    seed: int,
) -> tuple[bool, Integers]:
    """Make moves of clusters, and then moves of points that trees pick.

    Labels are changed in place, unless there was no room for the trees.

    :returns: whether there was room; and the numbers of splits and merges that were accepted and
        tried, and of points that were moved and tried.
    """
    np.random.seed(seed)
    forest = new_forest(model, capacity)
    trees = trees_of_labels(model, forest, labels)
    counts = np.zeros(6, np.int64)
    for _ in range(num_moves):
        trees, kind, is_accepted, has_room = move_cluster(model, forest, trees)
        if not has_room:
            return False, counts
        counts[2 * kind] += is_accepted
        counts[2 * kind + 1] += 1
    for _ in range(num_picks):
        if forest.top[0] + 2 * labels.size + 2 > forest.left.size:
            return False, counts
        trees, is_accepted = move_point(model, forest, trees, depth)
        counts[4] += is_accepted
        counts[5] += 1
    for k in range(trees.size):
        labels[leaves_below(forest, trees[k])] = k
    return True, counts


@compiled
def log_odds_of_split(
    model: Model,
    forest: Forest,
    tree: int,
    blocks: Integers,
    block_of: Integers,
    rest: Integers,
) -> tuple[float, bool]:
    """Log ratio at which a split is accepted, and one over which its merge is.

    :param int tree: the whole.
    :param blocks: trees of its parts.
    :param block_of: part of each of its points, numbers from zero.
    :param rest: the other trees.
    :returns: the log ratio, and whether there was room.
    """
    log_ratio = log_merge(model, forest, blocks, rest) - forest.log_potential[tree]
    for block in blocks:
        log_ratio += forest.log_potential[block]
    log_ratio += model.log_number[rest.size + blocks.size] - model.log_number[rest.size + 1]
    room = forest.left.size - forest.top[0]
    log_forward, has_room = log_split(model, forest, tree, block_of, rest, room)
    return log_ratio - log_forward, has_room


@compiled
def move_cluster(model: Model, forest: Forest, trees: Integers) -> tuple[Integers, int, bool, bool]:
    """Propose to split a cluster, or to merge it with others.

    :returns: the trees after it, 0 for a split and 1 for a merge, whether it was accepted, and
        whether there was room.
    """
    start, capacity = forest.top[0], forest.left.size
    chosen = np.random.randint(trees.size)
    partners = draw_partners(model, forest, trees, chosen)
    is_own = np.zeros(trees.size, np.bool_)
    is_own[chosen] = True
    is_own[partners] = True
    rest = trees[~is_own]
    block_of = np.empty(model.points.shape[0], np.int64)
    count = forest.num_points[trees[is_own]].sum()
    room = capacity - start - 2 * count
    if room < 0:
        return trees, 0, False, False
    is_split = partners.size == 0
    if is_split:
        tree = trees[chosen]
        if count == 1:
            return trees, 0, False, True
        blocks = np.empty(count + 1, np.int64)
        number, _, has_room = draw_split(model, forest, tree, block_of, blocks, room)
        if not has_room:
            return trees, 0, False, False
        forest.top[0] = start
        members = leaves_below(forest, tree)
        blocks = blocks[:number]
        for block in range(number):
            blocks[block] = build(model, forest, members[block_of[members] == block])
        proposed = np.append(rest, blocks)
    else:
        blocks = trees[is_own]
        is_member = np.zeros(block_of.size, np.bool_)
        for block in range(blocks.size):
            leaves = leaves_below(forest, blocks[block])
            block_of[leaves] = block
            is_member[leaves] = True
        tree = build(model, forest, np.nonzero(is_member)[0])
        proposed = np.append(rest, np.array([tree]))
    log_odds, has_room = log_odds_of_split(model, forest, tree, blocks, block_of, rest)
    if not has_room:
        return trees, 0, False, False
    kind = 0 if is_split else 1
    if math.log(np.random.random()) < (log_odds if is_split else -log_odds):
        return proposed, kind, True, True
    forest.top[0] = start
    return trees, kind, False, True


@compiled
def move_point(model: Model, forest: Forest, trees: Integers, depth: int) -> tuple[Integers, bool]:
    """Propose another cluster for a point that the tree of a random cluster picks.

    :returns: the trees after it, and whether the point moved.
    """
    start = forest.top[0]
    chosen = np.random.randint(trees.size)
    own = trees[chosen]
    nodes, probabilities = pick_probabilities(forest, own, depth)
    point = nodes[place_from(np.log(probabilities))]
    log_pick = math.log(probabilities[nodes == point][0]) - math.log(trees.size)

    members = leaves_below(forest, own)
    remaining = members[members != point]
    number = trees.size
    logs = np.empty(number + 1)
    alone = forest.log_potential[point]
    for place in range(number):
        if place != chosen:
            tree = trees[place]
            apart = forest.log_total[tree] + forest.log_total[point]
            both = apart - log_dissimilarity(model, forest, tree, point)
            logs[place] = both - forest.log_potential[tree]
    logs[number] = alone
    left = -1
    if remaining.size == 0:
        # The cluster goes with its point, and a new one is the old one.
        logs[chosen] = -np.inf
        logs[number] += model.log_number[number] - model.log_number[number - 1]
    else:
        left = build(model, forest, remaining)
        logs[chosen] = forest.log_potential[own] - forest.log_potential[left]
        logs[number] += model.log_number[number + 1] - model.log_number[number]
    largest = logs.max()
    choice = place_from(logs - largest - math.log(np.exp(logs - largest).sum()))
    is_back = choice == chosen or (choice == number and remaining.size == 0)
    if is_back:
        forest.top[0] = start
        return trees, False

    if choice == number:
        joined = point
    else:
        others = np.append(leaves_below(forest, trees[choice]), np.array([point]))
        joined = build(model, forest, np.sort(others))
    keeps = np.ones(number, np.bool_)
    keeps[chosen] = False
    if choice < number:
        keeps[choice] = False
    after = np.append(trees[keeps], np.array([joined]))
    if left >= 0:
        after = np.append(after, np.array([left]))
    nodes, probabilities = pick_probabilities(forest, joined, depth)
    log_back = math.log(probabilities[nodes == point][0]) - math.log(after.size)
    if math.log(np.random.random()) < log_back - log_pick:
        return after, True
    forest.top[0] = start
    return trees, False


@compiled
def pick_probabilities(forest: Forest, tree: int, depth: int) -> tuple[Integers, Floats]:
    """Nodes of a tree, and probabilities of its leaves to be picked after some descents."""
    nodes = nodes_below(forest, tree)
    place_of = np.empty(forest.left.size, np.int64)
    for place in range(nodes.size):
        place_of[nodes[place]] = place
    current = np.zeros(nodes.size)
    current[0] = 1.0
    for _ in range(depth):
        following = np.zeros(nodes.size)
        for place in range(nodes.size):
            if current[place] > 0:
                below = nodes_below(forest, nodes[place])
                logs = log_subtree_weights(forest, below)
                for index in range(below.size):
                    following[place_of[below[index]]] += current[place] * math.exp(logs[index])
        current = following
    picked = np.zeros(nodes.size)
    for place in range(nodes.size):
        if current[place] > 0:
            leaves = leaves_below(forest, nodes[place])
            for leaf in leaves:
                picked[place_of[leaf]] += current[place] / leaves.size
    return nodes, picked
