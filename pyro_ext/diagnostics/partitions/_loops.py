"""Compiled loops over partitions, apart since Numba is slow to import."""

import numpy as np
import numpy.typing as npt

from pyro_ext._lib.compiled import compiled

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int32]

# Of a sum of numbers of the order of the logarithm of n: less is rounding.
_LEAST_GAIN = 1e-9


@compiled
def co_clustering(draws: Counts) -> Floats:
    """Fraction of the draws in which two points have the same label."""
    num_draws, num_points = draws.shape
    probabilities = np.empty((num_points, num_points))
    for point in range(num_points):
        together = np.zeros(point + 1, np.int32)
        for draw in range(num_draws):
            row = draws[draw]
            label = row[point]
            for other in range(point + 1):
                together[other] += np.int32(row[other] == label)
        for other in range(point + 1):
            probabilities[point, other] = probabilities[other, point] = together[other] / num_draws
    return probabilities


@compiled
def _overlap(first: Integers, second: Integers, counts: Counts, table: Floats) -> float:
    """Sum of f over the intersections of clusters; the counts are zero before and after."""
    total = 0.0
    for point in range(first.size):
        count = counts[first[point], second[point]]
        total += table[count]
        counts[first[point], second[point]] = count + 1
    for point in range(first.size):
        counts[first[point], second[point]] = 0
    return total


@compiled
def paired_distances(first: Integers, second: Integers, table: Floats) -> Floats:
    """Distance of each row from the other at the same index, times its constant."""
    distances = np.empty(len(first))
    size = max(first.max(), second.max()) + 1
    counts = np.zeros((size, size), np.int32)
    for row in range(len(first)):
        distances[row] = (
            _overlap(first[row], first[row], counts, table)
            + _overlap(second[row], second[row], counts, table)
            - 2.0 * _overlap(first[row], second[row], counts, table)
        )
    return distances


@compiled
def mean_distances(candidates: Integers, draws: Integers, table: Floats) -> Floats:
    """Distance of each candidate from the draws on average, times its constant."""
    means = np.empty(len(candidates))
    size = max(candidates.max(), draws.max()) + 1
    counts = np.zeros((size, size), np.int32)
    own = 0.0
    for draw in range(len(draws)):
        own += _overlap(draws[draw], draws[draw], counts, table)
    for row in range(len(candidates)):
        shared = 0.0
        for draw in range(len(draws)):
            shared += _overlap(candidates[row], draws[draw], counts, table)
        of_candidate = _overlap(candidates[row], candidates[row], counts, table)
        means[row] = of_candidate + (own - 2.0 * shared) / len(draws)
    return means


@compiled
def _costs(
    costs: Floats,
    columns: Integers,
    own: int,
    number: int,
    counts: Counts,
    sizes: Integers,
    table: Floats,
) -> None:
    """Compute the increase of the mean distance if a point, taken out, joins each cluster."""
    costs[:number] = 0.0
    for column in columns:
        row = counts[column]
        for cluster in range(number):
            costs[cluster] += table[row[cluster]]
        if own >= 0:
            costs[own] += table[row[own] - 1] - table[row[own]]
    for cluster in range(number):
        size = sizes[cluster] - (1 if cluster == own else 0)
        costs[cluster] = table[size] - 2.0 * costs[cluster] / columns.size
    costs[number] = -table[0]


@compiled
def _count_in(counts: Counts, columns: Integers, cluster: int) -> Counts:
    """Count a point into a cluster, in a table that has room for it afterwards."""
    if cluster >= counts.shape[1]:
        wider = np.zeros((counts.shape[0], 2 * cluster), np.int32)
        for row in range(counts.shape[0]):
            for other in range(counts.shape[1]):
                wider[row, other] = counts[row, other]
        counts = wider
    for column in columns:
        counts[column, cluster] += 1
    return counts


@compiled
def descend(labels: Integers, columns: Integers, table: Floats, seed: int) -> None:
    """Move single points where the mean distance falls most, until no move lowers it.

    Sweeps visit the points in random orders. Labels are changed in place. They are numbers from
    zero without gaps, or -1 for a point that is in no cluster yet, which joins the best one when
    it is visited. The columns, of shape ``(n, num_draws)``, number the clusters of all draws.
    """
    np.random.seed(seed)
    num_points = labels.size
    number = labels.max() + 1
    counts = np.zeros((columns.max() + 1, max(2 * number, 8)), np.int32)
    sizes = np.zeros(num_points + 1, np.int64)
    costs = np.empty(num_points + 1)
    for point in range(num_points):
        if labels[point] >= 0:
            sizes[labels[point]] += 1
            counts = _count_in(counts, columns[point], labels[point])
    has_moved = True
    while has_moved:
        has_moved = False
        for point in np.random.permutation(num_points):
            own = labels[point]
            _costs(costs, columns[point], own, number, counts, sizes, table)
            may_be_new = own < 0 or sizes[own] > 1
            chosen = int(np.argmin(costs[: number + 1 if may_be_new else number]))
            if chosen == own or (own >= 0 and costs[chosen] > costs[own] - _LEAST_GAIN):
                continue
            has_moved = True
            number = max(number, chosen + 1)
            labels[point] = chosen
            sizes[chosen] += 1
            counts = _count_in(counts, columns[point], chosen)
            if own < 0:
                continue
            sizes[own] -= 1
            for column in columns[point]:
                counts[column, own] -= 1
            if sizes[own] == 0:
                # The last cluster takes the number that has become free.
                number -= 1
                sizes[own], sizes[number] = sizes[number], 0
                for column in range(counts.shape[0]):
                    counts[column, own], counts[column, number] = counts[column, number], 0
                for other in range(num_points):
                    if labels[other] == number:
                        labels[other] = own
