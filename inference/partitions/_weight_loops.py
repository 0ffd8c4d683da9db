"""Compiled moves between clusters of given weights, apart since Numba is slow to import."""

import math

import numpy as np
import numpy.typing as npt

from pyro_ext._compiled import compiled
from pyro_ext.inference.partitions._cluster_loops import (
    copy_row,
    empty_record,
    exclude,
    include,
    log_predictive,
    record_of,
    record_size,
)
from pyro_ext.inference.partitions._gibbs_loops import draw_place, rebuild, sums_of_labels

__all__ = ["slice_sweep"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@compiled
def slice_sweep(
    kind: int,
    parameters: Floats,
    table: Floats,
    points: Floats,
    labels: Integers,
    order: Integers,
    weights: Floats,
    levels: Floats,
    seed: int,
) -> None:
    """Draw the cluster of each point among those whose weight exceeds its level.

    Labels are changed in place.

    :param labels: places among the weights.
    :param weights: of all clusters that exceed the least level, whether they have points or not, in
        falling order.
    :param levels: that of each point.
    """
    np.random.seed(seed)
    size, number = points.shape[1], weights.size
    scratch = np.zeros(size * size + size)
    counts, sums = sums_of_labels(kind, points, labels, number)
    slots = np.full(number, -1)  # records of the clusters that have points
    places = np.empty(number, np.int64)  # and where those are among the weights
    occupied = 0
    for place in range(number):
        if counts[place]:
            slots[place], places[occupied] = occupied, place
            occupied += 1
    capacity = min(labels.size, number) + 1
    records = np.zeros((capacity, record_size(kind, size)))
    for slot in range(occupied):
        place = places[slot]
        record_of(kind, parameters, size, float(counts[place]), sums[place], records[slot])
    nothing = np.zeros(record_size(kind, size))
    empty_record(kind, parameters, size, nothing)
    no_points = int(np.int64(0))  # for a literal, Numba would compile the density once more
    logs = np.empty(capacity + 1)
    falling = -weights

    for i in order:
        point, own = points[i], labels[i]
        slot = slots[own]
        if counts[own] == 1:
            occupied -= 1
            last = places[occupied]
            copy_row(records[occupied], records[slot])
            places[slot], slots[last] = last, slot
            slots[own] = -1
        elif not exclude(kind, parameters, records[slot], float(counts[own]), point, scratch):
            rebuild(kind, parameters, points, labels == own, i, records[slot])
        counts[own] -= 1

        reach = np.searchsorted(falling, -levels[i])
        num_empty = reach
        for k in range(occupied):
            logs[k] = -np.inf
            if places[k] < reach:
                num_empty -= 1
                logs[k] = log_predictive(
                    kind, parameters, table, records[k], counts[places[k]], point, scratch
                )
        logs[occupied] = -np.inf
        if num_empty:
            logs[occupied] = math.log(num_empty) + log_predictive(
                kind, parameters, table, nothing, no_points, point, scratch
            )
        choice = draw_place(logs[: occupied + 1])
        if choice == occupied:
            place = np.random.randint(reach)
            while slots[place] >= 0:
                place = np.random.randint(reach)
            copy_row(nothing, records[choice])
            slots[place], places[choice] = choice, place
            occupied += 1
        place = places[choice]
        include(kind, parameters, records[choice], float(counts[place]), point, scratch)
        counts[place] += 1
        labels[i] = place
