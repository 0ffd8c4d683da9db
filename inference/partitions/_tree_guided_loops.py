"""Compiled moves of whole clusters that are guided by trees.

A split starts at a node of the tree of a cluster: its two children are the first blocks, and the
siblings on the way from the node up to the root join a block or open one. A merge unites a cluster
with others that are like it.
"""

import math

import numpy as np

from pyro_ext._compiled import compiled
from pyro_ext.inference.partitions._tree_loops import (
    Floats,
    Forest,
    Integers,
    Model,
    insert,
    leaves_below,
    log_dissimilarity,
    log_subtree_weights,
    nodes_below,
)

__all__ = [
    "draw_partners",
    "draw_split",
    "log_like",
    "log_merge",
    "log_no_merge",
    "log_split",
    "parents_of",
    "place_from",
]


@compiled
def log_like(log_cost: float) -> float:
    """Log probability that two clusters are taken to be one, or not, of minus the cost."""
    return -max(log_cost, 0.0) - math.log1p(math.exp(-abs(log_cost)))


@compiled
def place_from(logs: Floats) -> int:
    """Draw a place with given log probabilities."""
    level, place = np.random.random(), 0
    total = math.exp(logs[0])
    while place < logs.size - 1 and total <= level:
        place += 1
        total += math.exp(logs[place])
    return place


@compiled
def log_merge(model: Model, forest: Forest, blocks: Integers, rest: Integers) -> float:
    """Log probability that blocks are proposed to merge, whichever of them begins."""
    total = -np.inf
    for starter in range(blocks.size):
        log_path = -math.log(blocks.size + rest.size)
        for place in range(rest.size):
            cost = log_dissimilarity(model, forest, blocks[starter], rest[place])
            log_path += log_like(-cost)
        for place in range(blocks.size):
            if place != starter:
                cost = log_dissimilarity(model, forest, blocks[starter], blocks[place])
                log_path += log_like(cost)
        total = np.logaddexp(total, log_path)
    return total


@compiled
def log_no_merge(model: Model, forest: Forest, tree: int, rest: Integers) -> float:
    """Log probability that a tree is picked and nothing is found to be like it."""
    total = -math.log(rest.size + 1)
    for place in range(rest.size):
        total += log_like(-log_dissimilarity(model, forest, tree, rest[place]))
    return total


@compiled
def regroup(
    model: Model,
    forest: Forest,
    way: Integers,
    wanted: Integers,
    trees: Integers,
    room: int,
) -> tuple[int, float, bool]:
    """Distribute subtrees over blocks, the first two each into its own.

    :param way: roots of the subtrees.
    :param wanted: number of the block that each has to go to, or -1 to draw it. Numbers of blocks
        are in the order in which they open. Those that were drawn are put here.
    :param trees: takes the roots of the trees of the blocks.
    :param int room: number of nodes that may be made.
    :returns: number of blocks, log probability of what was done, and whether there was room.
    """
    trees[0], trees[1] = way[0], way[1]
    wanted[0], wanted[1] = 0, 1
    number, total, limit = 2, 0.0, forest.top[0] + room
    logs = np.empty(way.size + 1)
    for place in range(2, way.size):
        norm = 0.0  # the logarithm of one, for a new block
        for block in range(number):
            logs[block] = -log_dissimilarity(model, forest, way[place], trees[block])
            norm = np.logaddexp(norm, logs[block])
        logs[number] = 0.0
        choice = wanted[place]
        if choice < 0:
            choice = place_from(logs[: number + 1] - norm)
            wanted[place] = choice
        total += logs[choice] - norm
        if choice == number:
            trees[number] = way[place]
            number += 1
        else:
            if forest.top[0] + forest.num_points[trees[choice]] + 1 > limit:
                return number, total, False
            trees[choice] = insert(model, forest, trees[choice], way[place], True)
    return number, total, True


@compiled
def way_up(forest: Forest, parents: Integers, nodes: Integers, place: int) -> Integers:
    """Children of a node, and siblings met on the way to the root.

    :param parents: places of parents among nodes.
    :param nodes: of the tree, each before its children.
    :param int place: that of the node.
    """
    way = np.empty(nodes.size + 1, np.int64)
    way[0], way[1] = forest.left[nodes[place]], forest.right[nodes[place]]
    length = 2
    while parents[place] >= 0:
        above = nodes[parents[place]]
        other = forest.right[above] if forest.left[above] == nodes[place] else forest.left[above]
        way[length] = other
        length += 1
        place = parents[place]
    return way[:length]


@compiled
def parents_of(forest: Forest, nodes: Integers) -> Integers:
    """Places of the parents among the nodes of a tree, each of which comes before its children."""
    parents = np.full(nodes.size, -1)
    length = 1
    for place in range(nodes.size):
        if forest.left[nodes[place]] >= 0:
            parents[length] = parents[length + 1] = place
            length += 2
    return parents


@compiled
def inner_places(forest: Forest, nodes: Integers) -> Integers:
    """Places of the nodes that are no leaves."""
    return np.nonzero(forest.left[nodes] >= 0)[0]


@compiled
def log_split(
    model: Model, forest: Forest, tree: int, block_of: Integers, rest: Integers, room: int
) -> tuple[float, bool]:
    """Log probability that a tree is proposed to split into given blocks.

    :param block_of: block of each point of the tree, any numbers from zero.
    :param rest: the other trees.
    :returns: the log probability, and whether there was room.
    """
    nodes = nodes_below(forest, tree)
    parents, inner = parents_of(forest, nodes), inner_places(forest, nodes)
    log_weights = log_subtree_weights(forest, nodes[inner])
    # The block of all points below a node, or -1; and whether all siblings above have one.
    pure = np.full(nodes.size, -2)
    for place in range(nodes.size - 1, -1, -1):
        if forest.left[nodes[place]] < 0:
            pure[place] = block_of[nodes[place]]
        if place:
            above = parents[place]
            pure[above] = pure[place] if pure[above] in (-2, pure[place]) else -1
    is_open = np.ones(nodes.size, np.bool_)
    for place in range(1, nodes.size, 2):
        above = parents[place]
        is_open[place] = is_open[above] and pure[place + 1] >= 0
        is_open[place + 1] = is_open[above] and pure[place] >= 0
    block_at = np.empty(forest.left.size, np.int64)
    for place in range(nodes.size):
        block_at[nodes[place]] = pure[place]
    total, start = -np.inf, forest.top[0]
    for index in range(inner.size):
        place = inner[index]
        one, other = block_at[forest.left[nodes[place]]], block_at[forest.right[nodes[place]]]
        if not is_open[place] or one < 0 or other < 0 or one == other:
            continue
        way = way_up(forest, parents, nodes, place)
        wanted, seen = np.empty(way.size, np.int64), np.empty(way.size, np.int64)
        number = 0
        for step in range(way.size):
            block, known = block_at[way[step]], 0
            while known < number and seen[known] != block:
                known += 1
            if known == number:
                seen[number] = block
                number += 1
            wanted[step] = known
        _, log_path, has_room = regroup(
            model, forest, way, wanted, np.empty(way.size, np.int64), room
        )
        forest.top[0] = start
        if not has_room:
            return 0.0, False
        total = np.logaddexp(total, log_weights[index] + log_path)
    return total + log_no_merge(model, forest, tree, rest), True


@compiled
def draw_partners(model: Model, forest: Forest, trees: Integers, chosen: int) -> Integers:
    """Places of the trees that are taken to be like a chosen one."""
    partners = np.zeros(trees.size, np.bool_)
    for place in range(trees.size):
        if place != chosen:
            cost = log_dissimilarity(model, forest, trees[chosen], trees[place])
            partners[place] = math.log(np.random.random()) < log_like(cost)
    return np.nonzero(partners)[0]


@compiled
def draw_split(
    model: Model, forest: Forest, tree: int, block_of: Integers, trees: Integers, room: int
) -> tuple[int, float, bool]:
    """Split a tree at random.

    :param block_of: takes the block of each point of the tree.
    :param trees: takes the trees of the blocks.
    :returns: number of blocks, log probability of what was done, and whether there was room.
    """
    nodes = nodes_below(forest, tree)
    parents, inner = parents_of(forest, nodes), inner_places(forest, nodes)
    log_weights = log_subtree_weights(forest, nodes[inner])
    index = place_from(log_weights)
    way = way_up(forest, parents, nodes, inner[index])
    wanted = np.full(way.size, -1)
    number, log_path, has_room = regroup(model, forest, way, wanted, trees, room)
    for step in range(way.size):
        for leaf in leaves_below(forest, way[step]):
            block_of[leaf] = wanted[step]
    return number, log_path + log_weights[index], has_room
