"""Compiled sweep over points whose clusters have parameters, with some empty clusters at hand."""

import numpy as np
import numpy.typing as npt

from pyro_ext._compiled import compiled
from pyro_ext.inference.partitions._gibbs_loops import draw_place

__all__ = ["auxiliary_sweep"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@compiled
def auxiliary_sweep(
    labels: Integers,
    order: Integers,
    place: int,
    log_likelihood: Floats,
    sizes: Integers,
    active: Integers,
    number: int,
    ready: int,
    num_auxiliary: int,
    log_size: Floats,
    log_number: Floats,
    seed: int,
) -> tuple[int, int, int]:
    """Draw the clusters of points given the parameters, until too few empty clusters are left.

    Slots of clusters stand in ``active``: those with points, then ``num_auxiliary`` empty ones that
    a point may take, then others with parameters from the prior, up to ``ready``.

    :param labels: slot of each point, changed in place.
    :param order: of the points.
    :param place: in the order, of the next point.
    :param log_likelihood: of each point by slot. **Shape:** ``(n, num_slots)``.
    :param sizes: of clusters by slot, changed in place.
    :param active: changed in place.
    :param number: of clusters with points.
    :param ready: number of slots with parameters.
    :param num_auxiliary: number of empty clusters that a point may take.
    :param log_size: log factors of a partition's probability by sizes of clusters.
    :param log_number: likewise by their number.
    :param seed: of the random numbers.
    :returns: the next place, and the new ``number`` and ``ready``.
    """
    np.random.seed(seed)
    logs = np.empty(active.size)
    log_share = -np.log(float(num_auxiliary))
    position = np.empty(active.size, np.int64)
    for k in range(active.size):
        position[active[k]] = k
    while place < order.size and ready >= number + num_auxiliary:
        i = order[place]
        place += 1
        slot = labels[i]
        sizes[slot] -= 1
        if sizes[slot] == 0:
            # It is empty now, in the place of a random one of those that were.
            number -= 1
            _exchange(active, position, position[slot], number)
            dropped = number + 1 + np.random.randint(num_auxiliary)
            _exchange(active, position, dropped, number + num_auxiliary)
            ready -= 1
            _exchange(active, position, number + num_auxiliary, ready)
        for k in range(number):
            size = sizes[active[k]]
            logs[k] = log_size[size + 1] - log_size[size] + log_likelihood[i, active[k]]
        fresh = log_size[1] + log_number[number + 1] - log_number[number] + log_share
        for k in range(number, number + num_auxiliary):
            logs[k] = fresh + log_likelihood[i, active[k]]
        choice = draw_place(logs[: number + num_auxiliary])
        slot = active[choice]
        if choice >= number:
            _exchange(active, position, choice, number)
            number += 1
        labels[i] = slot
        sizes[slot] += 1
    return place, number, ready


@compiled
def _exchange(active: Integers, position: Integers, one: int, other: int) -> None:
    active[one], active[other] = active[other], active[one]
    position[active[one]], position[active[other]] = one, other
