"""Accountants against noted numbers, and against a closed form."""

import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from pyro_ext.inference.privacy import noise_multiplier_for, pld_epsilon

pytest.importorskip("dp_accounting")
DELTA = 1e-5


@pytest.mark.parametrize(
    ("sampling_rate", "noise", "num_steps", "expected"),
    [(0.25, 4.0, 100, 2.691), (0.25, 10.0, 100, 0.942), (0.01, 1.0, 500, 1.326)],
)
def test_noted_numbers(sampling_rate, noise, num_steps, expected):
    """Of dp-accounting 0.6, from the spec of FedSVD."""
    assert pld_epsilon(sampling_rate, noise, num_steps, DELTA) == pytest.approx(expected, abs=6e-4)


def test_without_sampling_it_is_the_gaussian_mechanism():
    """Whose exact delta is known: Balle and Wang (2018), theorem 8; steps add up in precision."""
    mean = math.sqrt(16) / 8.0

    def excess(epsilon):
        first = norm.cdf(mean / 2 - epsilon / mean)
        return first - math.exp(epsilon) * norm.cdf(-mean / 2 - epsilon / mean) - DELTA

    exact = brentq(excess, 0.01, 20.0)
    found = pld_epsilon(1.0, 8.0, 16, DELTA)
    assert exact <= found + 1e-9 and found == pytest.approx(exact, rel=1e-3)


def test_noise_for_a_budget():
    sigma = noise_multiplier_for(0.1, DELTA, 0.1, 5)
    assert pld_epsilon(0.1, sigma, 5, DELTA) <= 0.1
    assert pld_epsilon(0.1, sigma - 0.01, 5, DELTA) > 0.1


def test_without_noise_nothing_is_private():
    assert pld_epsilon(0.1, 0.0, 1, DELTA) == math.inf
