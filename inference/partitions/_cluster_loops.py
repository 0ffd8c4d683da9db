r"""Compiled arithmetic of conjugate clusters, apart since Numba is slow to import.

A kind is a number, as the clusters of :mod:`pyro_ext.distributions` give it with their parameters.
Two forms of what a cluster knows of its points are in use, both without their number:

* *sums*, which add. They are the sums of the points, and for Gaussians of their squares or outer
  products too. Points of Gaussians come relative to the prior mean, for the sake of precision.
* *records*, to which points come and from which they go one at a time, at the least cost for
  predictive densities. They are the sums, but for :data:`GAUSSIAN`: there they are the logarithm of
  the determinant of the posterior scale matrix, the posterior mean, and the Cholesky factor.

Terms of the points alone, such as multinomial coefficients, are left out everywhere.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_ext._lib.compiled import compiled

GAUSSIAN, KNOWN_VARIANCE, MULTINOMIAL, BERNOULLI, POISSON = range(5)

_LOG_PI = math.log(math.pi)
_LOG_TWO_PI = math.log(2.0 * math.pi)
_LARGE = 1e280

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@compiled
def num_sums(kind: int, size: int) -> int:
    """Length of the sums of points of a size."""
    if kind == GAUSSIAN:
        return size + size * size
    if kind == KNOWN_VARIANCE:
        return 2 * size
    return size


@compiled
def record_size(kind: int, size: int) -> int:
    """Length of a record."""
    return 1 + size + size * size if kind == GAUSSIAN else num_sums(kind, size)


@compiled
def copy_row(row: npt.NDArray[Any], target: npt.NDArray[Any]) -> None:
    """Copy one row to another."""
    # An assignment brings with it what writes the message of an error: two seconds to compile.
    for i in range(row.size):
        target[i] = row[i]


@compiled
def add_point(kind: int, sums: Floats, point: Floats, sign: float) -> None:
    """Add a point to sums, or take it away."""
    size = point.size
    for i in range(size):
        sums[i] += sign * point[i]
    if kind == GAUSSIAN:
        for i in range(size):
            for j in range(size):
                sums[size + i * size + j] += sign * point[i] * point[j]
    elif kind == KNOWN_VARIANCE:
        for i in range(size):
            sums[size + i] += sign * point[i] * point[i]


@compiled
def in_range(kind: int, parameters: Floats, size: int) -> bool:
    """Tell whether a cluster's parameters are finite, and positive where required."""
    for value in parameters:
        if not math.isfinite(value):
            return False
    if kind == GAUSSIAN:  # only a positive definite matrix has a finite log determinant
        return parameters[0] > 0.0 and parameters[1] > size - 1.0
    return parameters[size if kind == KNOWN_VARIANCE else 0 :].min() > 0.0


@compiled
def constants(kind: int, parameters: Floats, size: int, most: int) -> Floats:
    """Parts of predictive densities that depend on the number of points alone, from zero on."""
    table = np.zeros(most + 1)
    if kind == GAUSSIAN:
        precision, dof = parameters[0], parameters[1]
        for m in range(most + 1):
            degrees = dof + m
            table[m] = 0.5 * size * (math.log(precision + m) - math.log(precision + m + 1.0))
            table[m] += math.lgamma(0.5 * (degrees + 1.0))
            table[m] -= math.lgamma(0.5 * (degrees + 1.0 - size)) + 0.5 * size * _LOG_PI
    return table


@compiled
def log_marginal(
    kind: int, parameters: Floats, size: int, count: float, sums: Floats, scratch: Floats
) -> float:
    """Log density of a block of points, from their sums."""
    if count == 0:
        return 0.0
    by_count = block_constant(kind, parameters, size, count)
    return by_count + log_of_sums(kind, parameters, size, count, sums, scratch)


@compiled
def block_constant(kind: int, parameters: Floats, size: int, count: float) -> float:
    """The part of the log density of a block that depends on the number of its points alone."""
    total = 0.0
    if kind == GAUSSIAN:
        precision, dof = parameters[0], parameters[1]
        total += 0.5 * size * (math.log(precision) - math.log(precision + count))
        total += 0.5 * dof * parameters[2] - 0.5 * count * size * _LOG_PI
        for i in range(size):
            total += math.lgamma(0.5 * (dof + count - i)) - math.lgamma(0.5 * (dof - i))
    elif kind == KNOWN_VARIANCE:
        for i in range(size):
            prior, own = parameters[size + i], parameters[2 * size + i]
            total += 0.5 * (math.log(prior) - math.log(prior + own * count))
            total += 0.5 * count * math.log(own)
        total -= 0.5 * count * size * _LOG_TWO_PI
    elif kind == BERNOULLI:
        for i in range(size):
            total -= _log_rising(parameters[i] + parameters[size + i], count)
    elif kind == POISSON:
        for i in range(size):
            total -= parameters[i] * math.log1p(count / parameters[size + i])
    return total


@compiled
def log_of_sums(
    kind: int, parameters: Floats, size: int, count: float, sums: Floats, scratch: Floats
) -> float:
    """The rest of the log density of a block of at least one point."""
    if kind == GAUSSIAN:
        return _gaussian_of_sums(parameters, size, count, sums, scratch)
    total = 0.0
    if kind == KNOWN_VARIANCE:
        for i in range(size):
            prior, own = parameters[size + i], parameters[2 * size + i]
            mean = sums[i] / count
            scatter = max(sums[size + i] - sums[i] * mean, 0.0)
            scatter += count * prior / (prior + own * count) * mean * mean
            total -= 0.5 * own * scatter
    elif kind == MULTINOMIAL:
        whole = 0.0
        for i in range(size):
            if sums[i] > 0:
                total += _log_rising(parameters[i], sums[i])
                whole += sums[i]
        total -= _log_rising(parameters[size], whole)
    elif kind == BERNOULLI:
        for i in range(size):
            total += _log_rising(parameters[i], sums[i])
            total += _log_rising(parameters[size + i], count - sums[i])
    else:
        for i in range(size):
            total += _log_rising(parameters[i], sums[i])
            total -= sums[i] * math.log(parameters[size + i] + count)
    return total


@compiled
def _gaussian_of_sums(
    parameters: Floats, size: int, count: float, sums: Floats, scratch: Floats
) -> float:
    scale = 3 + size
    weight = 1.0 / (parameters[0] + count)
    for i in range(size):
        for j in range(i + 1):
            value = parameters[scale + i * size + j] + sums[size + i * size + j]
            scratch[i * size + j] = value - weight * sums[i] * sums[j]
    return -0.5 * (parameters[1] + count) * _cholesky(scratch, size)


@compiled
def _cholesky(matrix: Floats, size: int) -> float:
    """Factor the lower triangle in place, and return the log determinant."""
    log_determinant = 0.0
    for i in range(size):
        for j in range(i + 1):
            value = matrix[i * size + j]
            for k in range(j):
                value -= matrix[i * size + k] * matrix[j * size + k]
            if i == j:
                # Far points leave a pivot nothing but rounding errors.
                pivot = max(value, 1e-14 * matrix[i * size + i])
                matrix[i * size + i] = math.sqrt(pivot)
                log_determinant += math.log(pivot)
            else:
                matrix[i * size + j] = value / matrix[j * size + j]
    return log_determinant


@compiled
def _log_rising(start: float, number: float) -> float:
    """Logarithm of a rising factorial, by a product where the number is small."""
    if number > 12.0 or number != math.floor(number) or start > 1e20:
        return math.lgamma(start + number) - math.lgamma(start)
    total, product = 0.0, 1.0
    for step in range(int(number)):
        product *= start + step
        if product > _LARGE:
            total += math.log(product)
            product = 1.0
    return total + math.log(product)


@compiled
def empty_record(kind: int, parameters: Floats, size: int, record: Floats) -> None:
    """Make a record that of no points."""
    record[:] = 0.0
    if kind == GAUSSIAN:
        for i in range(size):
            for j in range(i + 1):
                record[1 + size + i * size + j] = parameters[3 + size + i * size + j]
        record[0] = _cholesky(record[1 + size :], size)


@compiled
def record_of(
    kind: int, parameters: Floats, size: int, count: float, sums: Floats, record: Floats
) -> None:
    """Make a record that of a block of points with given sums."""
    if kind != GAUSSIAN:
        copy_row(sums, record)
        return
    weight = 1.0 / (parameters[0] + count)
    for i in range(size):
        record[1 + i] = weight * sums[i]
        for j in range(i + 1):
            value = parameters[3 + size + i * size + j] + sums[size + i * size + j]
            record[1 + size + i * size + j] = value - weight * sums[i] * sums[j]
    record[0] = _cholesky(record[1 + size :], size)


@compiled
def include(
    kind: int, parameters: Floats, record: Floats, count: float, point: Floats, scratch: Floats
) -> None:
    """Bring a point into a record of so many points."""
    if kind == GAUSSIAN:
        _move(parameters, record, count, point, scratch, 1.0)
    else:
        add_point(kind, record, point, 1.0)


@compiled
def exclude(
    kind: int, parameters: Floats, record: Floats, count: float, point: Floats, scratch: Floats
) -> bool:
    """Take a point out of a record of so many points; false where precision ran out."""
    if kind == GAUSSIAN:
        return _move(parameters, record, count, point, scratch, -1.0)
    add_point(kind, record, point, -1.0)
    return True


@compiled
def _move(
    parameters: Floats, record: Floats, count: float, point: Floats, scratch: Floats, sign: float
) -> bool:
    """Update mean and Cholesky factor by one point."""
    size = point.size
    precision = parameters[0] + count
    weight = math.sqrt(precision / (precision + sign))
    for i in range(size):
        gap = point[i] - record[1 + i]
        scratch[i] = weight * gap
        record[1 + i] += sign * gap / (precision + sign)
    factor = record[1 + size :]
    log_determinant = 0.0
    for k in range(size):
        diagonal = factor[k * size + k]
        square = diagonal * diagonal + sign * scratch[k] * scratch[k]
        if not square > 1e-12 * diagonal * diagonal:
            return False
        root, step = math.sqrt(square), scratch[k]
        factor[k * size + k] = root
        log_determinant += math.log(square)
        for i in range(k + 1, size):
            before = factor[i * size + k]
            if sign > 0:
                # A rotation, which far points leave precise.
                factor[i * size + k] = (diagonal * before + step * scratch[i]) / root
                scratch[i] = (diagonal * scratch[i] - step * before) / root
            else:
                after = (diagonal * before - step * scratch[i]) / root
                factor[i * size + k] = after
                scratch[i] = (root * scratch[i] - step * after) / diagonal
    record[0] = log_determinant
    return True


@compiled
def log_predictive(
    kind: int,
    parameters: Floats,
    table: Floats,
    record: Floats,
    count: int,
    point: Floats,
    scratch: Floats,
) -> float:
    """Log density of a point given a record of so many others."""
    size = point.size
    if kind == GAUSSIAN:
        precision = parameters[0] + count
        distance = 0.0
        for i in range(size):
            value = point[i] - record[1 + i]
            row = 1 + size + i * size
            for j in range(i):
                value -= record[row + j] * scratch[j]
            value /= record[row + i]
            scratch[i] = value
            distance += value * value
        distance *= precision / (precision + 1.0)
        degrees = parameters[1] + count
        return table[count] - 0.5 * record[0] - 0.5 * (degrees + 1.0) * math.log1p(distance)
    total = 0.0
    if kind == KNOWN_VARIANCE:
        for i in range(size):
            prior, own = parameters[size + i], parameters[2 * size + i]
            posterior = prior + own * count
            gap = point[i] - own * record[i] / posterior
            precision = own * posterior / (posterior + own)
            total += 0.5 * (math.log(precision) - precision * gap * gap)
        return total - 0.5 * size * _LOG_TWO_PI
    if kind == MULTINOMIAL:
        whole, own = 0.0, 0.0
        for i in range(size):
            whole += record[i]
            if point[i] > 0:
                total += _log_rising(parameters[i] + record[i], point[i])
                own += point[i]
        return total - _log_rising(parameters[size] + whole, own)
    if kind == BERNOULLI:
        product = 1.0
        for i in range(size):
            first, second = parameters[i] + record[i], parameters[size + i] + count - record[i]
            product *= (first if point[i] > 0 else second) / (first + second)
            if product < 1.0 / _LARGE:
                total += math.log(product)
                product = 1.0
        return total + math.log(product)
    for i in range(size):
        shape, rate = parameters[i] + record[i], parameters[size + i] + count
        total += _log_rising(shape, point[i]) - point[i] * math.log(rate + 1.0)
        total -= shape * math.log1p(1.0 / rate)
    return total


@compiled
def sums_of_labels(
    kind: int, points: Floats, labels: Integers, number: int
) -> tuple[Integers, Floats]:
    """Sizes and sums of clusters whose labels are below a number."""
    counts = np.zeros(number, np.int64)
    sums = np.zeros((number, num_sums(kind, points.shape[1])))
    for i in range(labels.size):
        counts[labels[i]] += 1
        add_point(kind, sums[labels[i]], points[i], 1.0)
    return counts, sums


@compiled
def log_density_of_labels(kind: int, parameters: Floats, points: Floats, labels: Integers) -> float:
    """Log density of all points given their partition."""
    size = points.shape[1]
    scratch = np.zeros(size * size + size)
    counts, sums = sums_of_labels(kind, points, labels, labels.max() + 1)
    total = 0.0
    for k in range(counts.size):
        total += log_marginal(kind, parameters, size, float(counts[k]), sums[k], scratch)
    return total
