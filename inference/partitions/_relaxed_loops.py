"""Compiled loops of relaxed BHC, apart since Numba is slow to import.

Clusters are columns of arrays, of which the first so many are in use: a merge writes the union
into one of its two columns and moves the last one into the other. Costs are computed from the
statistics whenever they are needed, so memory is linear in the number of points.

Of pairs with equal costs the one comes first that holds the lowest point, the least of each cluster
standing for it. So either algorithm sees an order without ties, in which the tree is the same and a
chain of nearest neighbors cannot run in circles.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_ext._lib.compiled import compiled
from pyro_ext.inference.partitions.bregman import DETERMINANT, ENTROPY, SQUARE

_BLOCK = 512  # of costs, which stay in the cache nearest to the processor

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Clusters(NamedTuple):
    """Clusters and what their merging costs are computed from.

    The statistics are means; with a covariance the features are followed by the scatter about
    their means, row by row, which loses no precision where the mean is large.
    """

    kind: int
    floor: float
    statistics: Floats
    values: Floats
    sizes: Floats
    excess: Floats
    lowest: Integers  # point of each cluster


def singletons(kind: int, floor: float, statistics: Floats) -> Clusters:
    """Each point as a cluster. **Shape** of statistics: ``(num_statistics, num_points)``."""
    num_statistics, num_points = statistics.shape
    num_values = num_statistics
    if kind == SQUARE:
        num_values = 0
    elif kind == DETERMINANT:
        num_values = 1
    clusters = Clusters(
        kind,
        floor,
        statistics,
        np.empty((num_values, num_points)),
        np.ones(num_points),
        np.zeros(num_points),
        np.arange(num_points),
    )
    _evaluate_all(clusters)
    return clusters


@compiled
def merge_greedily(
    clusters: Clusters, cluster_cost: float, merges: Integers, heights: Floats
) -> None:
    """Merge the pair of least cost until one is left, and hand on what exceeds the cluster cost."""
    number = clusters.sizes.size
    nodes, costs = np.arange(number), np.empty(number)
    neighbors, least = np.empty(number, np.int64), np.empty(number)
    for one in range(number):
        neighbors[one], least[one] = _nearest(clusters, number, one, costs)
    for step in range(number - 1):
        last = number - 1 - step
        first = _first(clusters, least, 0, last + 1)
        low, high = min(first, neighbors[first]), max(first, neighbors[first])
        heights[step] = least[first]
        merges[step, 0] = min(nodes[low], nodes[high])
        merges[step, 1] = max(nodes[low], nodes[high])
        _join(clusters, low, high, last)
        clusters.excess[low] = max(heights[step] - cluster_cost, 0.0)
        nodes[low], nodes[high] = number + step, nodes[last]
        neighbors[high], least[high] = neighbors[last], least[last]
        _fill_costs(clusters, low, 0, last, costs)
        neighbors[low] = -1
        for one in range(last):
            if one == low:
                continue
            is_lost = neighbors[one] == low or neighbors[one] == high
            if is_lost:
                neighbors[one] = -1
            elif neighbors[one] == last:
                neighbors[one] = high
            is_first = is_lost or clusters.lowest[low] < clusters.lowest[neighbors[one]]
            if costs[one] < least[one] or (costs[one] == least[one] and is_first):
                neighbors[one], least[one] = low, costs[one]
        for one in range(last):
            if neighbors[one] == -1 and last > 1:
                neighbors[one], least[one] = _nearest(clusters, last, one, costs)


@compiled
def merge_along_chain(clusters: Clusters, merges: Integers, heights: Floats) -> None:
    """Follow nearest neighbors to a pair that is mutual, and merge it, until one is left."""
    number = clusters.sizes.size
    nodes, costs = np.arange(number), np.empty(_BLOCK)
    chain, indices, length = np.empty(number, np.int64), np.full(number, -1), 0
    step = 0
    while step < number - 1:
        if length == 0:
            chain[0], indices[0], length = 0, 0, 1
        top = chain[length - 1]
        nearest, cost = _nearest(clusters, number - step, top, costs)
        if length > 1 and nearest == chain[length - 2]:
            last, low, high = number - 1 - step, min(top, nearest), max(top, nearest)
            heights[step] = cost
            merges[step, 0] = min(nodes[low], nodes[high])
            merges[step, 1] = max(nodes[low], nodes[high])
            length -= 2
            indices[low] = indices[high] = -1
            _join(clusters, low, high, last)
            nodes[low], nodes[high], indices[high] = number + step, nodes[last], indices[last]
            if indices[high] >= 0:
                chain[indices[high]] = high
            indices[last] = -1
            step += 1
        elif indices[nearest] >= 0:
            # A merge has come nearer than its parts were, so that the chain runs into itself.
            while chain[length - 1] != nearest:
                length -= 1
                indices[chain[length]] = -1
        else:
            chain[length], indices[nearest] = nearest, length
            length += 1


@compiled
def height_levels(merges: Integers, heights: Floats) -> Floats:
    """The largest height at or below each merge."""
    levels = heights.copy()
    for row in range(heights.size):
        for child in merges[row]:
            if child > heights.size:
                levels[row] = max(levels[row], levels[child - heights.size - 1])
    return levels


@compiled
def _nearest(clusters: Clusters, num_active: int, one: int, costs: Floats) -> tuple[int, float]:
    """The cluster of least cost to one, and that cost."""
    nearest, best = -1, np.inf
    for start in range(0, num_active, _BLOCK):
        stop = min(start + _BLOCK, num_active)
        _fill_costs(clusters, one, start, stop, costs)
        if start <= one < stop:
            costs[one - start] = np.inf
        least = _least(costs, stop - start)
        if least < best or (least == best and nearest >= 0):
            found = start + _first(clusters, costs, start, stop - start)
            if least < best or clusters.lowest[found] < clusters.lowest[nearest]:
                nearest, best = found, least
    return nearest, best


@compiled
def _first(clusters: Clusters, costs: Floats, start: int, number: int) -> int:
    """Index of the least cost, of those with equal costs the one with the lowest point."""
    least, first = _least(costs, number), -1
    for index in range(number):
        if costs[index] == least and (
            first < 0 or clusters.lowest[start + index] < clusters.lowest[start + first]
        ):
            first = index
    return first


@compiled(fastmath={"nnan", "nsz"})
def _least(costs: Floats, number: int) -> float:
    """The minimum, by a loop that may take several at a time since none is NaN."""
    least = np.inf
    for index in range(number):
        least = min(least, costs[index])
    return least


@compiled
def _fill_costs(clusters: Clusters, one: int, start: int, stop: int, costs: Floats) -> None:
    """Costs of merging one with each of a range of clusters.

    Both of a pair give the same number to the last bit, without which a chain need not end.
    """
    kind, statistics, sizes = clusters.kind, clusters.statistics, clusters.sizes
    size = sizes[one]
    costs[: stop - start] = 0.0
    if kind == DETERMINANT:
        features = _num_features(clusters)
        scratch = np.empty((features, features))
        for other in range(start, stop):
            union = _covariance_value(clusters, one, other, scratch)
            apart = size * clusters.values[0, one] + sizes[other] * clusters.values[0, other]
            costs[other - start] = max(apart - (size + sizes[other]) * union, 0.0)
    elif kind == SQUARE:
        for row in range(statistics.shape[0]):
            mean, means = statistics[row, one], statistics[row]
            for other in range(start, stop):
                difference = mean - means[other]
                costs[other - start] += difference * difference
        for other in range(start, stop):
            costs[other - start] *= 0.5 * (size * sizes[other]) / (size + sizes[other])
    else:
        for row in range(statistics.shape[0]):
            mean, means = statistics[row, one], statistics[row]
            value, values = size * clusters.values[row, one], clusters.values[row]
            for other in range(start, stop):
                if means[other] != mean:
                    total = size + sizes[other]
                    union = _potential(kind, (size * mean + sizes[other] * means[other]) / total)
                    cost = value + sizes[other] * values[other] - total * union
                    costs[other - start] += max(cost, 0.0)
    for other in range(start, stop):
        costs[other - start] += clusters.excess[one] + clusters.excess[other]


@compiled
def _potential(kind: int, mean: float) -> float:
    """The generator of one coordinate, less what is linear and cancels in every cost."""
    if kind == ENTROPY:
        return mean * math.log(mean) if mean > 0.0 else 0.0
    return -math.log(mean)


@compiled
def _join(clusters: Clusters, low: int, high: int, last: int) -> None:
    """Put the union of two clusters where the lower was, and the last one where the other was."""
    statistics, sizes = clusters.statistics, clusters.sizes
    total = sizes[low] + sizes[high]
    left, right = sizes[low] / total, sizes[high] / total
    if clusters.kind == DETERMINANT:
        features = _num_features(clusters)
        for row in range(features):
            for column in range(features):
                between = (statistics[row, low] - statistics[row, high]) * (
                    statistics[column, low] - statistics[column, high]
                )
                index = features + row * features + column
                within = left * statistics[index, low] + right * statistics[index, high]
                statistics[index, low] = within + left * right * between
        num_means = features
    else:
        num_means = statistics.shape[0]
    for row in range(num_means):
        if statistics[row, low] != statistics[row, high]:  # so that equal means stay as they are
            merged = sizes[low] * statistics[row, low] + sizes[high] * statistics[row, high]
            statistics[row, low] = merged / total
    sizes[low] = total
    clusters.lowest[low] = min(clusters.lowest[low], clusters.lowest[high])
    _evaluate(clusters, low)
    for row in range(statistics.shape[0]):
        statistics[row, high] = statistics[row, last]
    for row in range(clusters.values.shape[0]):
        clusters.values[row, high] = clusters.values[row, last]
    sizes[high], clusters.excess[high] = sizes[last], clusters.excess[last]
    clusters.lowest[high] = clusters.lowest[last]


@compiled
def _evaluate_all(clusters: Clusters) -> None:
    for one in range(clusters.sizes.size):
        _evaluate(clusters, one)


@compiled
def _evaluate(clusters: Clusters, one: int) -> None:
    """Keep the values of the generator at a cluster, which many costs need."""
    if clusters.kind == DETERMINANT:
        features = _num_features(clusters)
        scratch = np.empty((features, features))
        clusters.values[0, one] = _covariance_value(clusters, one, one, scratch)
    else:
        for row in range(clusters.values.shape[0]):
            clusters.values[row, one] = _potential(clusters.kind, clusters.statistics[row, one])


@compiled
def _num_features(clusters: Clusters) -> int:
    """The d of d + d * d statistics."""
    return int(math.sqrt(clusters.statistics.shape[0]))


@compiled
def _covariance_value(clusters: Clusters, one: int, other: int, scratch: Floats) -> float:
    """Minus half the log determinant of the floored covariance of a union, by Cholesky."""
    statistics, sizes = clusters.statistics, clusters.sizes
    features, total = scratch.shape[0], sizes[one] + sizes[other]
    left, right = sizes[one] / total, sizes[other] / total
    half_log_determinant = 0.0
    for row in range(features):
        for column in range(row + 1):
            index = features + row * features + column
            value = left * statistics[index, one] + right * statistics[index, other]
            value += (left * right) * (
                (statistics[row, one] - statistics[row, other])
                * (statistics[column, one] - statistics[column, other])
            )
            if row == column:
                value += clusters.floor
            for inner in range(column):
                value -= scratch[row, inner] * scratch[column, inner]
            if row == column:
                scratch[row, row] = math.sqrt(
                    max(value, clusters.floor)
                )  # what pivots are at least
                half_log_determinant += math.log(scratch[row, row])
            else:
                scratch[row, column] = value / scratch[column, column]
    return -half_log_determinant
