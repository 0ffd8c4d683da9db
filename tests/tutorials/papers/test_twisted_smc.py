"""The page on self-distilled twisted SMC: its parts, and in full its claims."""

import pytest

from pyro_ext.inference import TwistedSMC
from pyro_ext.inference.smc import sequence_log_prob

pytest.importorskip("wordfreq")

PAGE = "twisted-smc"
pytestmark = pytest.mark.slow


def rate_of(names, sequences):
    """Fraction of words with two rare letters."""
    return float((names["log_potential"](sequences) > 0).double().mean())


def test_exact_numbers(names):
    assert len(names["words"]) == 44_461
    assert names["LOG_Z"] == pytest.approx(2.464887, abs=1e-5)
    exact, length = names["exact"], names["LENGTH"]
    assert names["BASE_RATE"] == pytest.approx(0.0036115, abs=1e-6)
    assert names["TARGET_RATE"] == pytest.approx(0.915, abs=1e-3)
    drawn = exact.sample(4000, seed=1)
    assert drawn.shape == (4000, length)
    assert rate_of(names, drawn) == pytest.approx(0.915, abs=4 * (0.915 * 0.085 / 4000) ** 0.5)


def test_divergences(names):
    """Zero of the best twist, and of the base model that of the target from it."""
    exact, draws = names["exact"], names["EXACT_DRAWS"]
    best = TwistedSMC(exact.base, exact, exact.log_potential, length=names["LENGTH"])
    assert names["divergence"](best.proposal_log_prob(draws)) == pytest.approx(0.0, abs=1e-9)
    base = names["divergence"](sequence_log_prob(exact.base, draws))
    expected = 8.0 * rate_of(names, draws) - names["LOG_Z"]
    assert base == pytest.approx(expected, abs=1e-6)


def test_bounds_of_the_best_twist_meet(names):
    exact = names["exact"]
    best = TwistedSMC(exact.base, exact, exact.log_potential, length=names["LENGTH"])
    found = names["bounds"](best, 4, 0)
    assert tuple(found) == pytest.approx((names["LOG_Z"],) * 3, abs=1e-6)
