"""Laws all over their parameters' range, with Laplace transforms that do not use the library."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import integrate, special

from pyro_ext.distributions import (
    BFRY,
    BetaPrimeBFRY,
    GeneralizedBFRY,
    PositiveStable,
    RectifiedGamma,
    StableBetaBFRY,
    TiltedBFRY,
    TiltedStable,
    TruncatedBFRY,
)

Transform = Callable[[float], float]
Numbers = Any


@dataclass(frozen=True)
class Case:
    """A distribution, its Laplace transform, and maybe the probability beyond exp(300)."""

    make: type
    parameters: tuple[float, ...]
    laplace: Transform
    tail_mass: float | None = None

    def __str__(self) -> str:
        return f"{self.make.__name__}{self.parameters}"

    def fn(self) -> Any:
        """The distribution."""
        return self.make(*self.parameters)


def width(discount: float, low: Numbers, gap: Numbers) -> Numbers:
    """Difference of powers over the discount, of logarithms in the limit."""
    if np.ndim(low) == 0 and low == 0.0:
        return gap**discount / discount
    ratio = np.log1p(gap / low)
    return low**discount * np.expm1(discount * ratio) / discount if discount else ratio


def tilted_bfry(discount: float, level: float, tilt: float) -> Case:
    def laplace(s: Numbers) -> Numbers:
        return width(discount, s + tilt, level) / width(discount, tilt, level)

    return Case(TiltedBFRY, (discount, level, tilt), laplace)


def generalized_bfry(discount: float, tail_index: float, level: float, scale: float) -> Case:
    inner = tilted_bfry(discount, level, 1.0).laplace
    point = np.linspace(0.0, 60.0, 60_001)  # of an exponential variable, the logarithm's multiple

    def laplace(s: float) -> float:
        values = inner(s * scale * np.exp(np.minimum(point / tail_index, 600.0)))
        return float(integrate.simpson(values * np.exp(-point), point))

    return Case(GeneralizedBFRY, (discount, tail_index, level, scale), laplace)


def beta_prime(discount: float, tail_index: float, level: float, rate: float) -> Case:
    inner = tilted_bfry(discount, level, 1.0).laplace
    point = np.linspace(-60.0 / min(tail_index, 1.0), 10.0, 60_001)
    weight = np.exp(tail_index * point - np.exp(point) - special.gammaln(tail_index))

    def laplace(s: float) -> float:
        values = inner(s * rate * np.exp(np.minimum(-point, 600.0)))
        return float(integrate.simpson(values * weight, point))

    return Case(BetaPrimeBFRY, (discount, tail_index, level, rate), laplace)


def by_kernel(log_kernel: Numbers, point: Numbers, value: Numbers) -> Transform:
    weight = np.exp(log_kernel - log_kernel.max())
    return lambda s: float(
        integrate.simpson(weight * np.exp(-s * value), point) / integrate.simpson(weight, point)
    )


def log1mexp(log_x: Numbers) -> Numbers:
    """Logarithm of one minus the exponential of a negative number, given by its logarithm."""
    return np.where(log_x < -40.0, log_x, np.log(-np.expm1(-np.exp(np.maximum(log_x, -40.0)))))


def stable_beta(discount: float, concentration: float, level: float) -> Case:
    point = np.linspace(-60.0 / (1 - discount) - 40.0, 40.0 + 60.0 / concentration, 400_001)
    value, log_rest = special.expit(point), special.log_expit(-point)
    log_prel = np.log(np.log1p(level * value + 1e-300) / (level * value + 1e-300))
    log_kernel = (
        -discount * special.log_expit(point)
        + (concentration + discount) * log_rest
        + log1mexp(np.log(concentration * level) + log_prel + special.log_expit(point))
    )
    laplace = by_kernel(log_kernel, point, value)
    return Case(StableBetaBFRY, (discount, concentration, level), laplace)


def truncated_bfry(discount: float, high: float) -> Case:
    point = np.linspace(math.log(high) - 60.0 / (1 - discount), math.log(high), 400_001)
    value = np.exp(point)
    laplace = by_kernel(-discount * point + log1mexp(point), point, value)
    return Case(TruncatedBFRY, (discount, high), laplace)


def stable_tail_mass(stability: float) -> float:
    """Probability of more than exp(300), by the alternating series."""
    order = np.arange(1.0, 40.0)
    terms = (-1.0) ** order * special.rgamma(1 - stability * order) / special.factorial(order)
    return -float((terms * np.exp(-300.0 * stability * order)).sum())


def positive_stable(stability: float) -> Case:
    def laplace(t: float) -> float:
        return math.exp(-(t**stability))

    return Case(PositiveStable, (stability,), laplace, stable_tail_mass(stability))


def tilted_stable(mass: float, stability: float, tilt: float) -> Case:
    def laplace(s: float) -> float:
        return math.exp(-mass * stability * width(stability, tilt, s))

    tail_mass = stable_tail_mass(stability) if tilt == 0 and mass == 1 else None
    return Case(TiltedStable, (mass, stability, tilt), laplace, tail_mass)


def rectified_gamma(concentration: float, rate: float, high: float) -> Case:
    def laplace(s: float) -> float:
        below = special.gammainc(concentration, (rate + s) * high)
        atom = special.gammaincc(concentration, rate * high)
        return float((rate / (rate + s)) ** concentration * below + math.exp(-s * high) * atom)

    return Case(RectifiedGamma, (concentration, rate, high), laplace)


CASES = [
    *(Case(BFRY, (s,), lambda t, s=s: s * width(s, t, 1.0)) for s in (0.01, 0.5, 0.99)),
    *(tilted_bfry(s, 1e3, tilt) for s in (0.01, 0.5, 0.99) for tilt in (0.0, 1.0, 1e4)),
    tilted_bfry(0.0, 30.0, 1e-3),
    tilted_bfry(0.0, 30.0, 1.2),
    tilted_bfry(0.4, 30.0, 1.2),
    tilted_bfry(0.7, 0.01, 2.0),
    *(truncated_bfry(s, high) for s in (0.01, 0.99) for high in (0.1, 1e4)),
    truncated_bfry(0.0, 5.0),
    truncated_bfry(0.3, 100.0),
    truncated_bfry(0.9, 0.01),
    *(generalized_bfry(s, s + 1.2, 1e3, 2.0) for s in (0.0, 0.01, 0.99)),
    generalized_bfry(0.4, 2.3, 5.0, 2.0),
    generalized_bfry(0.01, 0.6, 0.01, 0.5),
    *(beta_prime(s, s + 1.2, 1e3, 2.0) for s in (0.0, 0.01, 0.99)),
    beta_prime(0.4, 5.3, 0.01, 2.0),
    *(stable_beta(s, c, 1e3) for s in (0.0, 0.01, 0.99) for c in (0.3, 20.0)),
    *(positive_stable(s) for s in (0.01, 0.3, 0.5, 0.99)),
    *(tilted_stable(1.0, s, tilt) for s in (0.01, 0.5, 0.99) for tilt in (0.0, 1.0, 1e4)),
    tilted_stable(3.0, 0.5, 1.0),
    tilted_stable(2.0, 0.4, 0.0),
    tilted_stable(2.0, 0.4, 3.0),
    tilted_stable(50.0, 0.9, 1.0),
    *(rectified_gamma(a, 1.2 * a, 1.0) for a in (0.01, 1.3, 50.0)),
]
