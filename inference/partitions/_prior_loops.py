"""Compiled probabilities of random partitions, apart since Numba is slow to import.

A process is a vector: its kind, and its parameters. The density of a generalized gamma process is
joint with the auxiliary variable, whose logarithm the others do not look at.
"""

import math

import numpy as np
import numpy.typing as npt

from pyro_ext._lib.compiled import compiled

GENERALIZED_GAMMA, PITMAN_YOR = range(2)

Floats = npt.NDArray[np.float64]


@compiled
def in_range(process: Floats) -> bool:
    """Tell whether parameters of a process are in their range."""
    for value in process:
        if not math.isfinite(value):
            return False
    if process[0] == PITMAN_YOR:
        discount, concentration = process[1], process[2]
        return bool(0.0 <= discount < 1.0 and concentration > -discount)
    mass, discount, tilt = process[1], process[2], process[3]
    return bool(mass > 0.0 and 0.0 <= discount < 1.0 and tilt >= 0.0 and discount + tilt > 0.0)


@compiled
def log_joint(process: Floats, sizes: Floats, times: Floats, log_u: float) -> float:
    """Log density of a partition, and of the auxiliary variable where there is one."""
    total = (sizes * times).sum()
    value = _log_of_all(process, total, log_u) + _log_of_number(process, times.sum())
    for i in range(len(sizes)):
        value += times[i] * _log_of_size(process, sizes[i], log_u)
    return value


@compiled
def log_factors(process: Floats, most: int, log_u: float) -> tuple[Floats, Floats]:
    """Log factors of the density by sizes of clusters from zero on, and by their number."""
    by_size, by_number = np.zeros(most + 1), np.zeros(most + 2)
    for size in range(1, most + 1):
        by_size[size] = _log_of_size(process, float(size), log_u)
        by_number[size + 1] = _log_of_number(process, size + 1.0)
    return by_size, by_number


@compiled
def _log_of_size(process: Floats, size: float, log_u: float) -> float:
    discount = process[2] if process[0] == GENERALIZED_GAMMA else process[1]
    value = math.lgamma(size - discount) - math.lgamma(1.0 - discount)
    if process[0] == GENERALIZED_GAMMA:
        tilt = process[3]
        log_rate = _log_sum(log_u, math.log(tilt)) if tilt > 0.0 else log_u
        value += math.log(process[1]) - (size - discount) * log_rate
    return value


@compiled
def _log_of_number(process: Floats, number: float) -> float:
    if process[0] == GENERALIZED_GAMMA:
        return 0.0
    discount, concentration = process[1], process[2]
    if discount == 0.0:
        return (number - 1.0) * math.log(concentration)
    start = concentration / discount + 1.0
    rising = math.lgamma(start + number - 1.0) - math.lgamma(start)
    return (number - 1.0) * math.log(discount) + rising


@compiled
def _log_of_all(process: Floats, total: float, log_u: float) -> float:
    """Compute the term that depends on neither the sizes nor the number of clusters."""
    if process[0] == PITMAN_YOR:
        return math.lgamma(process[2] + 1.0) - math.lgamma(process[2] + total)
    exponent = math.exp(_log_exponent(process[1], process[2], process[3], log_u))
    return (total - 1.0) * log_u - math.lgamma(total) - exponent


@compiled
def _log_exponent(mass: float, discount: float, tilt: float, log_shift: float) -> float:
    """Logarithm of the Laplace exponent of a generalized gamma process."""
    if tilt == 0.0:
        return math.log(mass) + discount * log_shift - math.log(discount)
    log_tilt = math.log(tilt)
    growth = _log_sum(log_shift - log_tilt, 0.0)
    if growth == 0.0:  # where the exponent is a linear function that has underflown
        return -math.inf
    value = math.log(mass) + discount * log_tilt + math.log(growth)
    # The logarithm of (exp(x) - 1) / x.
    product = discount * growth
    if product > 1.0:
        return value + product + math.log(-math.expm1(-product) / product)
    return value if product == 0.0 else value + math.log(math.expm1(product) / product)


@compiled
def _log_sum(one: float, other: float) -> float:
    """Logarithm of a sum, of the logarithms of its terms."""
    return max(one, other) + math.log1p(math.exp(-abs(one - other)))
