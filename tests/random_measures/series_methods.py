"""Measures, and the methods by which their weights are drawn in series."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special

from pyro_ext.random_measures import GammaArrivals, LomaxArrivals
from tests.random_measures.references import (
    BETA_PRIME,
    GAMMA,
    GENERALIZED_BFRY,
    PARETO_MIXTURE,
    STABLE_BETA,
    beta_prime,
    exp,
    gamma,
    generalized_bfry,
    levy_density,
    log_1m_exp,
    stable_beta,
)


def identify(value):
    """Name of a parameter that is the same in every process."""
    return getattr(value, "__name__", str(value))


@dataclass(frozen=True)
class WeibullArrivals:
    """A family that the library does not know: a Weibull variable of shape two."""

    def log_density(self, log_value):
        return math.log(2.0) + 2.0 * log_value - (2.0 * log_value).clamp(max=700.0).exp()

    def log_cdf(self, log_value):
        square = 2.0 * log_value
        near = (-torch.expm1(-square.clamp(min=-40.0, max=700.0).exp())).log()
        return torch.where(square < -40.0, square, near)

    def log_survival(self, log_value):
        return -(2.0 * log_value).clamp(max=700.0).exp()


def gamma_law(concentration):
    """Logarithms of distribution function and survival."""

    def log_cdf(v):
        first = concentration * v - special.gammaln(concentration + 1)
        inside = np.log(np.maximum(special.gammainc(concentration, exp(v)), 1e-300))
        return np.where(v < -30, first, inside)

    return log_cdf, lambda v: np.log(np.maximum(special.gammaincc(concentration, exp(v)), 1e-300))


def lomax_law(concentration):
    """Logarithms of distribution function and survival."""
    return (
        lambda v: log_1m_exp(np.log(concentration) + np.log(np.logaddexp(v, 0.0) + 1e-300)),
        lambda v: -concentration * np.logaddexp(v, 0.0),
    )


# Where each draw takes integrals.
FEWER = {"inverse_levy": 300, "rosinski": 100, "rounds": 1000}

CLOSED = [
    (GAMMA, "size_biased"),
    (gamma(2.0, 0.0, 1.5), "size_biased"),
    (gamma(2.0, 0.0, 1.5), "inverse_levy"),
    (GAMMA, "inverse_levy"),
    (GAMMA, "rejection"),
    (GAMMA, "rosinski"),
    (gamma(2.0, 0.7, 0.3), "rosinski"),
    (STABLE_BETA, "lomax"),
    (stable_beta(3.0, 0.0, 2.0), "lomax"),
    (stable_beta(2.0, 0.4, 1.5, 0.0, 2.5), "lomax"),
    (STABLE_BETA, "rounds"),
    (stable_beta(3.0, 0.0, 2.0), "rounds"),
    (stable_beta(2.0, 0.4, 0.3, 0.0, 2.5), "rounds"),
    (BETA_PRIME, "scaled"),
    (beta_prime(1.5, 0.0, 2.3, 2.0), "scaled"),
    (GENERALIZED_BFRY, "scaled"),
    (generalized_bfry(1.5, 0.4, 2.3, 1.2, 0.8), "scaled"),
]
SEARCHED = [
    (GAMMA, GammaArrivals(3.0)),
    (GAMMA, LomaxArrivals(1.7)),
    (GAMMA, WeibullArrivals()),
    (STABLE_BETA, "size_biased"),
    (STABLE_BETA, "inverse_levy"),
    (STABLE_BETA, LomaxArrivals(0.7)),
    (stable_beta(2.0, 0.6, -0.3), "size_biased"),
    (stable_beta(2.0, 0.4, 1.5, 3.0, 2.5), "inverse_levy"),
    (BETA_PRIME, "size_biased"),
    (BETA_PRIME, "inverse_levy"),
    (GENERALIZED_BFRY, "size_biased"),
    (GENERALIZED_BFRY, "inverse_levy"),
    (beta_prime(1.5, 0.4, 2.3, 1.0, 0.8), "size_biased"),
    (PARETO_MIXTURE, "size_biased"),
    (PARETO_MIXTURE, "inverse_levy"),
    (levy_density(2.0, 0.4, 1.5), "size_biased"),
    (levy_density(2.0, 0.4, 1.5), LomaxArrivals(1.3)),
]
