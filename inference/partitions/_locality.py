"""Neighborhoods of points: an order of them, and a tree over them, made of the data alone."""

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage

from pyro_ext.inference.partitions._slice_sampling import Floats
from pyro_ext.inference.partitions.mixtures import Integers

_SMALL = 4
_MOST_CELLS = 2_048  # Ward's method takes the square of their number


def locality_order(points: Floats) -> Integers:
    """Order of the leaves of a k-d tree: halves along the widest axis, and so on within each."""
    order, waiting = [], [np.arange(len(points))]
    while waiting:
        members = waiting.pop()
        if len(members) <= _SMALL:
            order.append(members)
            continue
        axis = points[members].var(0).argmax()
        members = members[points[members, axis].argsort(kind="stable")]
        waiting += [members[len(members) // 2 :], members[: len(members) // 2]]
    return np.concatenate(order)


def neighbor_tree(points: Floats) -> tuple[Integers, Floats]:
    """A binary tree over points, by Ward's method; of small cells of neighbors where they are many.

    Returns the order of the leaves, and the heights of the nodes that join neighboring leaves,
    followed by rows of the largest of 2, 4, 8 and so on of them in succession.
    """
    order = locality_order(points)
    cells = np.array_split(order, min(len(order), _MOST_CELLS))
    heights = np.empty(len(order) - 1)
    if len(cells) > 1:
        joints = linkage(np.stack([points[cell].mean(0) for cell in cells]), "ward")
        leaves = leaves_list(joints)
        cells = [cells[leaf] for leaf in leaves]
        order = np.concatenate(cells)
        # Within a cell a balanced tree below all joints.
        indices = np.arange(1, len(order))
        heights[:] = np.log2(indices & -indices) - len(order).bit_length()
        ends = np.cumsum([len(cell) for cell in cells])
        heights[ends[:-1] - 1] = _joint_heights(joints, leaves)
    levels = [heights]
    while 2 ** len(levels) <= len(heights):
        half, last = 2 ** (len(levels) - 1), levels[-1]
        largest = last.copy()
        largest[:-half] = np.maximum(last[:-half], last[half:])
        levels.append(largest)
    return order, np.stack(levels)


def _joint_heights(joints: Floats, leaves: Integers) -> Floats:
    """Ranks of the joints between neighboring leaves of a hierarchical clustering."""
    number = len(leaves)
    first, last = np.empty(2 * number - 1, np.int64), np.empty(2 * number - 1, np.int64)
    first[leaves] = last[leaves] = np.arange(number)
    heights = np.empty(number - 1)
    for rank, pair in enumerate(joints[:, :2].astype(np.int64)):
        left, right = pair[np.argsort(first[pair])]
        heights[last[left]] = rank
        first[number + rank], last[number + rank] = first[left], last[right]
    return heights
