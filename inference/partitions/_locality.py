"""An order of points in which those that are near each other come one after the other."""

import numpy as np

from pyro_ext.inference.partitions._mixture import Floats, Integers

__all__ = ["locality_order"]

_SMALL = 4


def locality_order(points: Floats) -> Integers:
    """Order of the leaves of a k-d tree: halves along the widest axis, and so on within each.

    :param points: **Shape:** ``(n, d)``.
    :returns: **Shape:** ``(n,)``.
    """
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
