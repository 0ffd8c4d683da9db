"""Compiled loop of Bayesian hierarchical clustering, apart since Numba is slow to import."""

import numpy as np

from pyro_ext._compiled import compiled
from pyro_ext.inference.partitions._tree_loops import (
    Floats,
    Forest,
    Integers,
    Model,
    join,
    log_dissimilarity,
    new_forest,
)

__all__ = ["merge_greedily"]


@compiled
def merge_greedily(model: Model, merges: Integers, heights: Floats) -> float:
    """Merge the two trees of least dissimilarity until one is left.

    :param merges: to be filled with the nodes of each merge.
    :param heights: to be filled with the log dissimilarities.
    :returns: the log total of the last tree.
    """
    number = model.points.shape[0]
    forest = new_forest(model, 2 * number - 1)
    # The trees that are left, and for each tree where it stands among them, if at all.
    trees, places = np.arange(number), np.full(2 * number - 1, -1)
    for place in range(number):
        places[place] = place
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
        while places[neighbors[first]] < 0:
            _search(model, forest, trees[: last + 1], first, neighbors, least)
            first = int(least[: last + 1].argmin())
        second = places[neighbors[first]]
        low, high = min(first, second), max(first, second)
        one, other = min(trees[low], trees[high]), max(trees[low], trees[high])
        merges[step, 0], merges[step, 1], heights[step] = one, other, least[first]
        node = join(model, forest, one, other)
        trees[high], neighbors[high], least[high] = trees[last], neighbors[last], least[last]
        places[trees[high]] = high
        places[one] = places[other] = -1
        trees[low], places[node] = node, low
        neighbors[low], least[low] = -1, np.inf
        for place in range(last):
            if place == low:
                continue
            cost = log_dissimilarity(model, forest, node, trees[place])
            if neighbors[low] < 0 or cost < least[low]:
                neighbors[low], least[low] = trees[place], cost
            is_gone = places[neighbors[place]] < 0
            if cost < least[place] or (is_gone and cost == least[place]):
                neighbors[place], least[place] = node, cost
    return float(forest.log_total[2 * number - 2])


@compiled
def _search(
    model: Model, forest: Forest, trees: Integers, one: int, neighbors: Integers, least: Floats
) -> None:
    """Find the nearest other of one tree."""
    neighbors[one] = -1
    for place in range(trees.size):
        if place != one:
            cost = log_dissimilarity(model, forest, trees[one], trees[place])
            if neighbors[one] < 0 or cost < least[one]:
                neighbors[one], least[one] = trees[place], cost
