"""Lévy densities written out once more, and their integrals without the library."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
from scipy import special

from pyro_ext.random_measures import (
    BetaPrimeProcess,
    GeneralizedBFRYProcess,
    GeneralizedGammaProcess,
    LevyDensityProcess,
    ParetoMixtureProcess,
    ParetoProcess,
    StableBetaProcess,
)

Array = Any
LogFunction = Callable[[Array], Array]

NUM_NODES = 64
FALL = 50.0
LARGEST_LOG = 700.0


def log_gamma_ratio(first: float, second: float) -> float:
    return float(special.gammaln(first) - special.gammaln(second))


def identity(point: Array) -> Array:
    return point


def exp(point: Array) -> Array:
    """Exponential that stays within the numbers of its type."""
    return np.exp(np.minimum(point, LARGEST_LOG))


def log_1m_exp(log_value: Array) -> Array:
    """Logarithm of one minus the exponential of minus a number, given by its logarithm."""
    near = np.maximum(log_value, -40.0)
    return np.where(log_value < -40.0, log_value, np.log(-np.expm1(-exp(near))))


@dataclass(frozen=True)
class Reference:
    """A measure, and its Lévy density per unit of a coordinate, over logarithms by default.

    The density times a size to the power ``order`` falls with ``at_infinity - order`` there,
    where sizes are unbounded. ``corners`` are sizes where its slope changes, in logarithms.
    """

    name: str
    make: type
    parameters: dict[str, Any]
    log_mass: LogFunction
    at_zero: float
    at_infinity: float = math.inf
    corners: tuple[float, ...] = (0.0,)
    log_size: LogFunction = identity
    point: LogFunction = identity
    start: float = -math.inf
    is_bounded: bool = False

    def __str__(self) -> str:
        return self.name

    def measure(self) -> Any:
        return self.make(**self.parameters)

    def log_density(self, size: Array) -> Array:
        """Logarithm of the Lévy density."""
        point = self.point(np.log(size))
        step = 1e-5
        slope = (self.log_size(point + step) - self.log_size(point - step)) / (2 * step)
        return self.log_mass(point) - np.log(slope) - np.log(size)

    def log_integral(
        self,
        log_factor: LogFunction,
        corners: tuple[float, ...] = (),
        power: float = 1.0,
        order: float = 0.0,
        low: float = -math.inf,
        high: float = math.inf,
    ) -> float:
        """Integral of a function of the logarithm of the size, by Gaussian quadrature in panels.

        :param power: with which the function rises at zero, at least.
        :param order: with which it rises at infinity.
        """
        points = [float(self.point(np.array(c))) for c in (*corners, *self.corners)]
        lowest, highest = min(points), max(points)
        start = lowest - FALL / (power - self.at_zero)
        fall = self.at_infinity - (0.0 if self.is_bounded else order)
        stop = highest + (FALL / fall if math.isfinite(fall) else 8.0)
        start = max(start, self.start)
        if low > -math.inf:
            start = max(float(self.point(np.array(low))), self.start)
            stop = max(stop, start + 8.0)
        if high < math.inf:
            stop = float(self.point(np.array(high)))
            start = min(start, stop - FALL / (power - self.at_zero))

        def log_integrand(point: Array) -> Array:
            return self.log_mass(point) + log_factor(self.log_size(point))

        grid = np.unique(
            np.clip([start, stop, *points, *np.arange(start, stop, 0.02)], start, stop)
        )
        values = log_integrand(0.5 * (grid[1:] + grid[:-1]))
        kept = np.flatnonzero(values > values.max() - 60.0)
        first, last = grid[max(kept[0] - 2, 0)], grid[min(kept[-1] + 3, len(grid) - 1)]
        inside = [p for p in points if first < p < last]
        edges = [np.linspace(*ends, 60) for ends in pairwise([first, *sorted(inside), last])]
        return log_quadrature(log_integrand, np.unique(np.concatenate(edges)))

    def exponent(self, t: float) -> float:
        shift = math.log(t)
        return math.exp(self.log_integral(lambda v: log_1m_exp(shift + v), (-shift,)))

    def log_kappa(self, n: float, u: float) -> float:
        if u == 0.0:
            return self.log_integral(lambda v: n * v, (), 1.0, n)
        bend = math.log(n / u)
        return self.log_integral(lambda v: n * v - u * exp(v), (bend,), 1.0, -math.inf)

    def log_tail(self, x: float) -> float:
        return self.log_integral(np.zeros_like, (math.log(x),), low=math.log(x))


def log_quadrature(log_integrand: LogFunction, edges: Array) -> float:
    """Logarithm of an integral, by Gaussian quadrature between edges."""
    nodes, weights = np.polynomial.legendre.leggauss(NUM_NODES)
    half = 0.5 * np.diff(edges)[:, None]
    points = (edges[:-1, None] + half * (1 + nodes)).ravel()
    logs = log_integrand(points) + np.log(half * weights).ravel()
    return float(special.logsumexp(logs))


def gamma(mass: float, discount: float, tilt: float) -> Reference:
    scale = math.log(mass) - special.gammaln(1 - discount)
    return Reference(
        f"gamma({mass},{discount},{tilt})",
        GeneralizedGammaProcess,
        {"mass": mass, "discount": discount, "tilt": tilt},
        lambda v: scale - discount * v - tilt * exp(v),
        discount,
        math.inf if tilt else discount,
        (-math.log(tilt) if tilt else 0.0,),
    )


def stable_beta(
    mass: float, discount: float, concentration: float, tilt: float = 0.0, scale: float = 1.0
) -> Reference:
    constant = math.log(mass) + log_gamma_ratio(1 + concentration, concentration + discount)
    constant -= special.gammaln(1 - discount)
    power = concentration + discount

    def log_mass(point: Array) -> Array:
        share = special.expit(point)
        log_share, log_rest = special.log_expit(point), special.log_expit(-point)
        return constant - discount * log_share + power * log_rest - tilt * scale * share

    def to_place(log_size: Array) -> Array:
        log_share = log_size - math.log(scale)
        # Beyond the largest size there is nothing; a place near the end stands for it.
        log_share = np.minimum(log_share, -1e-9)
        return log_share - np.log(-np.expm1(log_share))

    return Reference(
        f"stable_beta({mass},{discount},{concentration},{tilt},{scale})",
        StableBetaProcess,
        {
            "mass": mass,
            "discount": discount,
            "concentration": concentration,
            "tilt": tilt,
            "scale": scale,
        },
        log_mass,
        discount,
        power,
        (math.log(0.5 * scale), -math.log(tilt) if tilt else math.log(0.5 * scale)),
        lambda point: special.log_expit(point) + math.log(scale),
        to_place,
        is_bounded=True,
    )


def beta_prime(
    mass: float, discount: float, tail_index: float, rate: float, tilt: float = 0.0
) -> Reference:
    power = tail_index - discount
    constant = math.log(mass) + log_gamma_ratio(power, 1 - discount)
    return Reference(
        f"beta_prime({mass},{discount},{tail_index},{rate},{tilt})",
        BetaPrimeProcess,
        {"mass": mass, "discount": discount, "tail_index": tail_index, "rate": rate, "tilt": tilt},
        lambda v: constant - discount * v - power * np.logaddexp(v, math.log(rate)) - tilt * exp(v),
        discount,
        math.inf if tilt else tail_index,
        (math.log(rate), -math.log(tilt) if tilt else 0.0),
    )


def generalized_bfry(
    mass: float, discount: float, tail_index: float, cutoff: float, tilt: float = 0.0
) -> Reference:
    power = tail_index - discount
    constant = math.log(mass) - special.gammaln(1 - discount)

    def log_mass(v: Array) -> Array:
        argument = exp(np.maximum(v + math.log(cutoff), -500.0))
        lower = np.log(np.maximum(special.gammainc(power, argument), 1e-300))
        lower = lower + special.gammaln(power)
        first = power * (v + math.log(cutoff)) - math.log(power)
        lower = np.where(v + math.log(cutoff) < -40.0, first, lower)
        return constant - tail_index * v + lower - tilt * exp(v)

    return Reference(
        f"generalized_bfry({mass},{discount},{tail_index},{cutoff},{tilt})",
        GeneralizedBFRYProcess,
        {
            "mass": mass,
            "discount": discount,
            "tail_index": tail_index,
            "cutoff": cutoff,
            "tilt": tilt,
        },
        log_mass,
        discount,
        math.inf if tilt else tail_index,
        (-math.log(cutoff), -math.log(tilt) if tilt else 0.0),
    )


def pareto(mass: float, scale: float, tail_index: float, tilt: float = 0.0) -> Reference:
    start = math.log(scale)
    bend = -math.log(tilt) if tilt else start
    return Reference(
        f"pareto({mass},{scale},{tail_index},{tilt})",
        ParetoProcess,
        {"mass": mass, "scale": scale, "tail_index": tail_index, "tilt": tilt},
        lambda v: math.log(mass) - tail_index * v - tilt * exp(v),
        0.0,
        math.inf if tilt else tail_index,
        (start, max(start, bend)),
        start=start,
    )


def levy_density(mass: float, discount: float, tilt: float) -> Reference:
    """The density of a generalized gamma process, given as a user gives one."""
    reference = gamma(mass, discount, tilt)
    parameters = {
        "log_levy_density": lambda w, mass, discount, tilt: (
            mass.log() - (1 - discount).lgamma() - (1 + discount) * w.log() - tilt * w
        ),
        "parameters": reference.parameters,
        "corners": (1.0 / tilt,),
    }
    return Reference(
        f"levy_density({mass},{discount},{tilt})",
        LevyDensityProcess,
        parameters,
        reference.log_mass,
        discount,
        corners=reference.corners,
    )


@dataclass(frozen=True)
class Mixture:
    """The reference of a sum, whose integrals are sums."""

    name: str
    make: Callable[..., Any]
    parameters: dict[str, Any]
    parts: tuple[Reference, ...]

    def __str__(self) -> str:
        return self.name

    def measure(self) -> Any:
        return self.make(**self.parameters)

    def log_density(self, size: Array) -> Array:
        logs = [
            np.where(np.log(size) > part.start, part.log_density(size), -np.inf)
            for part in self.parts
        ]
        return np.logaddexp.reduce(logs)

    def exponent(self, t: float) -> float:
        return sum(part.exponent(t) for part in self.parts)

    def log_kappa(self, n: float, u: float) -> float:
        return float(np.logaddexp.reduce([part.log_kappa(n, u) for part in self.parts]))

    def log_tail(self, x: float) -> float:
        return float(np.logaddexp.reduce([part.log_tail(x) for part in self.parts]))


def pareto_mixture(
    mass: float,
    discount: float,
    tilt: float,
    pareto_mass: float,
    pareto_scale: float,
    tail_index: float,
) -> Mixture:
    return Mixture(
        f"pareto_mixture({mass},{discount},{tilt},{pareto_mass},{pareto_scale},{tail_index})",
        ParetoMixtureProcess,
        {
            "mass": mass,
            "discount": discount,
            "tilt": tilt,
            "pareto_mass": pareto_mass,
            "pareto_scale": pareto_scale,
            "tail_index": tail_index,
        },
        (gamma(mass, discount, tilt), pareto(pareto_mass, pareto_scale, tail_index)),
    )


# One of each kind, those of the notes.
GAMMA = gamma(2.0, 0.4, 1.5)
STABLE_BETA = stable_beta(2.0, 0.4, 1.5)
BETA_PRIME = beta_prime(1.5, 0.4, 2.3, 1.0)
GENERALIZED_BFRY = generalized_bfry(1.5, 0.4, 2.3, 1.2)
PARETO_MIXTURE = pareto_mixture(1.5, 0.4, 1.0, 1.5, 2.0, 2.2)
NOTED = [GAMMA, STABLE_BETA, BETA_PRIME, GENERALIZED_BFRY, PARETO_MIXTURE]

ALL = [
    *NOTED,
    gamma(2.0, 0.0, 1.5),
    gamma(0.7, 0.5, 3.0),
    gamma(2.0, -0.7, 1.5),
    gamma(2.0, 0.4, 0.0),
    gamma(1.0, 0.9, 1e-6),
    stable_beta(3.0, 0.0, 2.0),
    stable_beta(2.0, 0.6, -0.3),
    stable_beta(2.0, 0.4, 1.5, 3.0, 2.5),
    stable_beta(1.0, 0.1, 0.02, 0.5),
    beta_prime(1.5, 0.0, 0.7, 2.0),
    beta_prime(1.5, 0.4, 2.3, 1.0, 0.8),
    beta_prime(0.3, 0.7, 6.0, 0.1),
    generalized_bfry(1.5, 0.0, 0.7, 2.0),
    generalized_bfry(1.5, 0.4, 2.3, 1.2, 0.8),
    generalized_bfry(0.3, 0.7, 3.5, 0.1),
    pareto(3.0, 2.0, 1.5),
    pareto(3.0, 2.0, 1.5, 0.7),
    levy_density(2.0, 0.4, 1.5),
]


def precise(value: Any) -> float:
    """A number of mpmath as one in float64."""
    return float(mpmath.re(value))


def exponent_in_closed_form(reference: Reference, t: float) -> float:
    """Laplace exponents by hypergeometric functions, of measures without tilt."""
    p = {name: mpmath.mpf(value) for name, value in reference.parameters.items()}
    with mpmath.workdps(60):
        t = mpmath.mpf(t)
        eta, sigma = p["mass"], p["discount"]
        if reference.make is StableBetaProcess:
            c = p["concentration"]
            return precise(eta * t * mpmath.hyp2f2(1, 1 - sigma, 2, 1 + c, -t))
        tau = p["tail_index"]
        k = tau - sigma
        if reference.make is GeneralizedBFRYProcess:
            c = p["cutoff"]
            value = c**k * t**sigma / k * mpmath.hyp2f1(-sigma, k, k + 1, -c / t) - c**tau / tau
            return precise(eta / sigma * value)
        c = p["rate"]
        value = mpmath.gamma(tau) / mpmath.gamma(k) - mpmath.hyperu(-sigma, 1 - tau, c * t)
        scale = eta * mpmath.gamma(k) / mpmath.gamma(1 - sigma) * mpmath.gamma(-sigma)
        return precise(scale * c**-tau * value)


def log_kappa_in_closed_form(reference: Reference, n: int, u: float) -> float:
    """Tilted moments by hypergeometric functions, of measures without tilt."""
    p = {name: mpmath.mpf(value) for name, value in reference.parameters.items()}
    with mpmath.workdps(60):
        u = mpmath.mpf(u)
        eta, sigma = p["mass"], p["discount"]
        if reference.make is StableBetaProcess:
            c = p["concentration"]
            scale = eta * mpmath.gamma(1 + c) / mpmath.gamma(1 - sigma) / mpmath.gamma(c + sigma)
            value = mpmath.beta(n - sigma, c + sigma) * mpmath.hyp1f1(n - sigma, n + c, -u)
            return precise(mpmath.log(scale * value))
        tau = p["tail_index"]
        k = tau - sigma
        scale = eta * mpmath.gamma(n - sigma) / mpmath.gamma(1 - sigma)
        if reference.make is GeneralizedBFRYProcess:
            c = p["cutoff"]
            value = c**k * u ** (sigma - n) / k * mpmath.hyp2f1(n - sigma, k, k + 1, -c / u)
            return precise(mpmath.log(scale * value))
        c = p["rate"]
        value = mpmath.gamma(k) * c ** (n - tau) * mpmath.hyperu(n - sigma, n + 1 - tau, c * u)
        return precise(mpmath.log(scale * value))
