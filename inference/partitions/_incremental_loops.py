"""Compiled loop of incremental clustering, apart since Numba is slow to import."""

import numpy as np

from pyro_ext._compiled import compiled
from pyro_ext.inference.partitions._tree_loops import (
    Forest,
    Integers,
    Model,
    insert,
    join,
    log_dissimilarity,
    new_forest,
)

__all__ = ["grow"]


@compiled
def grow(
    model: Model, order: Integers, most_returns: int, is_noisy: bool
) -> tuple[Forest, Integers]:
    """Put points into trees one after the other, and cut those that no longer hold together.

    All nodes of the trees have dissimilarities of at most one, unless there are too many returns.

    :param order: the points, as they come.
    :param most_returns: number of trees to put back into the queue, beyond which none is cut.
    :param is_noisy: join each point to a tree at its root, and cut none.
    :returns: the forest, and the roots of its trees.
    """
    number = order.size
    forest, parents = new_forest(model, 2 * number), np.full(2 * number, -1)
    free, num_free = np.arange(2 * number - 1, number - 1, -1), number
    queue, head, waiting = order.copy(), 0, number
    roots, num_roots, returns = np.empty(number, np.int64), 0, 0
    while waiting > 0:
        one = queue[head]
        head, waiting = (head + 1) % number, waiting - 1
        place = _nearest(model, forest, roots[:num_roots], one)
        if place < 0:
            roots[num_roots] = one
            num_roots += 1
            continue
        num_free -= 1
        node = free[num_free]
        forest.top[0] = node  # the place that the new node takes
        if is_noisy:
            roots[place] = join(model, forest, roots[place], one)
            continue
        roots[place] = insert(model, forest, roots[place], one, False)
        left, right = forest.left[node], forest.right[node]
        parents[node] = max(parents[left], parents[right])
        parents[left] = parents[right] = node
        if returns >= most_returns:
            continue
        above = parents[node]
        while above >= 0 and forest.log_cost[above] <= 0.0:
            node, above = above, parents[above]
        if above >= 0:
            roots[place], parents[node] = node, -1
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
    """Place of the tree of least dissimilarity, or -1 where that exceeds one."""
    nearest, least = -1, 0.0
    for place in range(roots.size):
        cost = log_dissimilarity(model, forest, roots[place], one)
        if cost < least or (nearest < 0 and cost == least):
            nearest, least = place, cost
    return nearest
