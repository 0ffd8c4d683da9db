"""Compiled moves of single points between clusters, and of pairs of clusters.

A partition of n points has the log probability

    sum of log_size[m] over the sizes m of its clusters, plus log_number[K],

but for a constant, and plus the log densities of the points of each cluster.
"""

import math

import numpy as np
import numpy.typing as npt

from pyro_ext._lib.compiled import compiled
from pyro_ext.inference.partitions._cluster_loops import (
    add_point,
    copy_row,
    empty_record,
    exclude,
    include,
    log_marginal,
    log_predictive,
    num_sums,
    record_of,
    record_size,
    sums_of_labels,
)
from pyro_ext.inference.partitions.mixtures import Compiled

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@compiled
def records_of_labels(data: Compiled, labels: Integers, number: int) -> tuple[Integers, Floats]:
    """Sizes and records of clusters whose labels are below a number."""
    kind, parameters, _, points = data
    size = points.shape[1]
    counts, sums = sums_of_labels(kind, points, labels, number)
    records = np.zeros((number, record_size(kind, size)))
    for k in range(number):
        record_of(kind, parameters, size, float(counts[k]), sums[k], records[k])
    return counts, records


@compiled
def draw_index(logs: Floats) -> int:
    """Draw an index with given log probabilities, but for a constant; the logs are overwritten."""
    top, total = logs.max(), 0.0
    for index in range(logs.size):
        total += math.exp(logs[index] - top)
        logs[index] = total
    level, index = np.random.random() * total, 0
    while index < logs.size - 1 and logs[index] <= level:
        index += 1
    return index


@compiled
def gibbs_sweep(
    data: Compiled,
    labels: Integers,
    order: Integers,
    log_size: Floats,
    log_number: Floats,
    seed: int,
) -> int:
    """Draw the cluster of each of some points given those of all others, one after the other."""
    kind, parameters, table, points = data
    np.random.seed(seed)
    size = points.shape[1]
    scratch = np.zeros(size * size + size)
    number = labels.max() + 1
    capacity = number + 16
    sizes, records = records_of_labels(data, labels, capacity)
    active, position = np.arange(capacity), np.arange(capacity)  # slots: of clusters, then free
    nothing = np.zeros(record_size(kind, size))
    empty_record(kind, parameters, size, nothing)
    no_points = int(np.int64(0))  # for a literal, Numba would compile the density once more
    logs = np.empty(capacity)

    for index in range(order.size):
        i = order[index]
        point, slot = points[i], labels[i]
        if sizes[slot] == 1:
            sizes[slot] = 0
            number -= 1
            last = active[number]
            active[position[slot]], position[last] = last, position[slot]
            active[number], position[slot] = slot, number
        else:
            if not exclude(kind, parameters, records[slot], float(sizes[slot]), point, scratch):
                rebuild(kind, parameters, points, labels == slot, i, records[slot])
            sizes[slot] -= 1
        if number + 1 >= capacity:
            capacity *= 2
            sizes, records, logs = _grown(sizes), _grown_rows(records), np.empty(capacity)
            active, position = _grown_slots(active), _grown_slots(position)

        for k in range(number):
            slot = active[k]
            m = sizes[slot]
            logs[k] = log_size[m + 1] - log_size[m]
            logs[k] += log_predictive(kind, parameters, table, records[slot], m, point, scratch)
        logs[number] = log_size[1] + log_number[number + 1] - log_number[number]
        logs[number] += log_predictive(kind, parameters, table, nothing, no_points, point, scratch)
        choice = draw_index(logs[: number + 1])
        slot = active[choice]
        if choice == number:
            copy_row(nothing, records[slot])
            number += 1
        include(kind, parameters, records[slot], float(sizes[slot]), point, scratch)
        sizes[slot] += 1
        labels[i] = slot

    for i in range(labels.size):
        labels[i] = position[labels[i]]
    return number


@compiled
def rebuild(
    kind: int, parameters: Floats, points: Floats, is_member: Bools, left_out: int, record: Floats
) -> None:
    """Make a record anew from the points of a cluster but one."""
    size = points.shape[1]
    sums, count = np.zeros(num_sums(kind, size)), 0
    for i in range(is_member.size):
        if is_member[i] and i != left_out:
            add_point(kind, sums, points[i], 1.0)
            count += 1
    record_of(kind, parameters, size, float(count), sums, record)


@compiled
def _grown(values: Integers) -> Integers:
    larger = np.zeros(2 * values.size, np.int64)
    copy_row(values, larger)
    return larger


@compiled
def _grown_slots(slots: Integers) -> Integers:
    larger = np.arange(2 * slots.size)
    copy_row(slots, larger)
    return larger


@compiled
def _grown_rows(rows: Floats) -> Floats:
    larger = np.zeros((2 * rows.shape[0], rows.shape[1]))
    for k in range(rows.shape[0]):
        copy_row(rows[k], larger[k])
    return larger


@compiled
def restricted_scan(
    data: Compiled,
    sides: Integers,
    wanted: Integers,
    records: Floats,
    counts: Integers,
    log_size: Floats,
    is_forced: bool,
) -> float:
    """Draw the side of each point but the last two, given the others, or follow wanted sides."""
    kind, parameters, _, points = data
    size = points.shape[1]
    scratch = np.zeros(size * size + size)
    total = 0.0
    for index in range(sides.size - 2):
        odds = _log_odds_of_second_side(data, sides, index, records, counts, log_size, scratch)
        log_second = -math.log1p(math.exp(-odds)) if odds > 0 else odds - math.log1p(math.exp(odds))
        if is_forced:
            side = wanted[index]
        else:
            side = 1 if math.log(np.random.random()) < log_second else 0
        total += log_second if side == 1 else log_second - odds
        include(kind, parameters, records[side], float(counts[side]), points[index], scratch)
        counts[side] += 1
        sides[index] = side
    return total


@compiled
def greedy_scan(
    data: Compiled, sides: Integers, records: Floats, counts: Integers, log_size: Floats
) -> int:
    """Put each point but the last two on its likelier side, and return how many have moved."""
    kind, parameters, _, points = data
    size, num_moved = points.shape[1], 0
    scratch = np.zeros(size * size + size)
    for index in range(sides.size - 2):
        before = sides[index]
        odds = _log_odds_of_second_side(data, sides, index, records, counts, log_size, scratch)
        side = 1 if odds > 0.0 else 0
        include(kind, parameters, records[side], float(counts[side]), points[index], scratch)
        counts[side] += 1
        sides[index] = side
        num_moved += side != before
    return num_moved


@compiled
def _log_odds_of_second_side(
    data: Compiled,
    sides: Integers,
    index: int,
    records: Floats,
    counts: Integers,
    log_size: Floats,
    scratch: Floats,
) -> float:
    """Take a point out of its side, and return the log odds of the second one given the others."""
    kind, parameters, table, points = data
    point, side = points[index], sides[index]
    if not exclude(kind, parameters, records[side], float(counts[side]), point, scratch):
        rebuild(kind, parameters, points, sides == side, index, records[side])
    counts[side] -= 1
    odds = 0.0
    for k in range(2):
        m = counts[k]
        log_weight = log_size[m + 1] - log_size[m]
        log_weight += log_predictive(kind, parameters, table, records[k], m, point, scratch)
        odds += log_weight if k == 1 else -log_weight
    return odds


@compiled
def split_or_merge(
    data: Compiled,
    labels: Integers,
    log_size: Floats,
    log_number: Floats,
    num_scans: int,
    seed: int,
) -> tuple[bool, bool]:
    """Propose a split or a merge of clusters of two points; return which, and if it is accepted."""
    kind, parameters, table, points = data
    np.random.seed(seed)
    size, number = points.shape[1], labels.max() + 1
    scratch = np.zeros(size * size + size)
    first = np.random.randint(labels.size)
    second = np.random.randint(labels.size - 1)
    second += second >= first
    one, other = labels[first], labels[second]
    is_split = one == other
    # The two points come last, each on its side.
    is_member = (labels == one) | (labels == other)
    is_member[first] = is_member[second] = False
    members = np.append(np.nonzero(is_member)[0], np.array([first, second]))
    length = members.size
    own = Compiled(kind, parameters, table, points[members])
    current = (labels[members] != one).astype(np.int64)
    sides = np.random.randint(0, 2, length)
    sides[length - 2], sides[length - 1] = 0, 1

    counts, records = records_of_labels(own, sides, 2)
    log_forward = 0.0
    for scan in range(num_scans + 1):
        # The last scan is the proposal; for a merge it is the way back to the present state.
        is_forced = scan == num_scans and not is_split
        log_forward = restricted_scan(own, sides, current, records, counts, log_size, is_forced)

    # Both states from their sums, since records have been through many updates.
    counts, sums = sums_of_labels(kind, own.points, sides, 2)
    log_split = 0.0
    for k in range(2):
        log_split += log_size[counts[k]]
        log_split += log_marginal(kind, parameters, size, float(counts[k]), sums[k], scratch)
    log_whole = log_size[length] + log_marginal(
        kind, parameters, size, float(length), sums[0] + sums[1], scratch
    )

    if is_split:
        log_ratio = log_split - log_whole - log_forward
        log_ratio += log_number[number + 1] - log_number[number]
    else:
        log_ratio = log_whole - log_split + log_forward
        log_ratio += log_number[number - 1] - log_number[number]
    is_accepted = math.log(np.random.random()) < log_ratio
    if is_accepted and is_split:
        labels[members[sides == 1]] = number
    elif is_accepted:
        labels[labels == other] = one
        labels[labels == number - 1] = other  # none where that was the last one
    return is_split, is_accepted


@compiled
def auxiliary_sweep(
    labels: Integers,
    order: Integers,
    index: int,
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
    """
    np.random.seed(seed)
    logs = np.empty(active.size)
    log_each = -np.log(float(num_auxiliary))
    position = np.empty(active.size, np.int64)
    for k in range(active.size):
        position[active[k]] = k
    while index < order.size and ready >= number + num_auxiliary:
        i = order[index]
        index += 1
        slot = labels[i]
        sizes[slot] -= 1
        if sizes[slot] == 0:
            # It is empty now, instead of a random one of those that were.
            number -= 1
            _exchange(active, position, position[slot], number)
            dropped = number + 1 + np.random.randint(num_auxiliary)
            _exchange(active, position, dropped, number + num_auxiliary)
            ready -= 1
            _exchange(active, position, number + num_auxiliary, ready)
        for k in range(number):
            size = sizes[active[k]]
            logs[k] = log_size[size + 1] - log_size[size] + log_likelihood[i, active[k]]
        fresh = log_size[1] + log_number[number + 1] - log_number[number] + log_each
        for k in range(number, number + num_auxiliary):
            logs[k] = fresh + log_likelihood[i, active[k]]
        choice = draw_index(logs[: number + num_auxiliary])
        slot = active[choice]
        if choice >= number:
            _exchange(active, position, choice, number)
            number += 1
        labels[i] = slot
        sizes[slot] += 1
    return index, number, ready


@compiled
def _exchange(active: Integers, position: Integers, one: int, other: int) -> None:
    active[one], active[other] = active[other], active[one]
    position[active[one]], position[active[other]] = one, other


@compiled
def slice_sweep(
    data: Compiled, labels: Integers, order: Integers, weights: Floats, levels: Floats, seed: int
) -> None:
    """Draw the cluster of each point among those whose weight exceeds its level."""
    kind, parameters, table, points = data
    np.random.seed(seed)
    size, number = points.shape[1], weights.size
    scratch = np.zeros(size * size + size)
    counts, sums = sums_of_labels(kind, points, labels, number)
    slots = np.full(number, -1)  # records of the clusters that have points
    indices = np.empty(number, np.int64)  # and where those are among the weights
    occupied = 0
    for index in range(number):
        if counts[index]:
            slots[index], indices[occupied] = occupied, index
            occupied += 1
    capacity = min(labels.size, number) + 1
    records = np.zeros((capacity, record_size(kind, size)))
    for slot in range(occupied):
        index = indices[slot]
        record_of(kind, parameters, size, float(counts[index]), sums[index], records[slot])
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
            last = indices[occupied]
            copy_row(records[occupied], records[slot])
            indices[slot], slots[last] = last, slot
            slots[own] = -1
        elif not exclude(kind, parameters, records[slot], float(counts[own]), point, scratch):
            rebuild(kind, parameters, points, labels == own, i, records[slot])
        counts[own] -= 1

        reach = np.searchsorted(falling, -levels[i])
        num_empty = reach
        for k in range(occupied):
            logs[k] = -np.inf
            if indices[k] < reach:
                num_empty -= 1
                logs[k] = log_predictive(
                    kind, parameters, table, records[k], counts[indices[k]], point, scratch
                )
        logs[occupied] = -np.inf
        if num_empty:
            logs[occupied] = math.log(num_empty) + log_predictive(
                kind, parameters, table, nothing, no_points, point, scratch
            )
        choice = draw_index(logs[: occupied + 1])
        if choice == occupied:
            index = np.random.randint(reach)
            while slots[index] >= 0:
                index = np.random.randint(reach)
            copy_row(nothing, records[choice])
            slots[index], indices[choice] = choice, index
            occupied += 1
        index = indices[choice]
        include(kind, parameters, records[choice], float(counts[index]), point, scratch)
        counts[index] += 1
        labels[i] = index
