"""The test of uniformity is exact, and its bands are those of the test."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from pyro_ext.diagnostics._uniformity import (
    ecdf_band,
    ecdf_difference,
    ecdf_p_value,
    ecdf_statistic,
    holm,
)

SIZES = {"num_ranks": st.integers(1, 60), "num_draws": st.integers(1, 40)}
SEEDS = st.integers(0, 2**32 - 1)


def uniform_ranks(num_ranks, num_draws, num_columns, seed):
    generator = np.random.default_rng(seed)
    return generator.integers(0, num_draws, (num_ranks, num_columns), endpoint=True)


@pytest.mark.parametrize(("num_ranks", "num_draws"), [(3, 2), (4, 3), (5, 1), (2, 5), (6, 3)])
def test_p_value_against_all_possible_ranks(num_ranks, num_draws):
    every = np.array(list(itertools.product(range(num_draws + 1), repeat=num_ranks))).T
    statistics = ecdf_statistic(every, num_draws)
    for value in np.unique(statistics.round(12)):
        exact = (statistics <= value * (1 + 1e-9)).mean()
        assert ecdf_p_value(value, num_ranks, num_draws) == pytest.approx(exact, abs=1e-10)


def test_statistic_by_definition():
    ranks = np.random.default_rng(0).integers(0, 8, size=(30, 4))
    tails = []
    for k in range(7):
        count, fn = (ranks <= k).sum(0), stats.binom(30, (k + 1) / 8)
        tails.append(2.0 * np.minimum(fn.cdf(count), fn.sf(count - 1)))
    np.testing.assert_allclose(ecdf_statistic(ranks, 7), np.min(tails, 0))


@given(seed=SEEDS, **SIZES)
def test_statistic_knows_no_order_and_no_direction(seed, num_ranks, num_draws):
    ranks = uniform_ranks(num_ranks, num_draws, 5, seed)
    shuffled = np.random.default_rng(seed).permutation(ranks)
    for other in (shuffled, num_draws - ranks):
        wanted = ecdf_statistic(ranks, num_draws)
        np.testing.assert_allclose(ecdf_statistic(other, num_draws), wanted, rtol=1e-9)


@given(seed=SEEDS, **SIZES)
def test_p_value_lies_between_those_of_one_test_and_of_all(seed, num_ranks, num_draws):
    """At the k where the statistic is smallest, that tail alone has half its probability."""
    statistics = np.unique(ecdf_statistic(uniform_ranks(num_ranks, num_draws, 5, seed), num_draws))
    p_values = np.array([ecdf_p_value(value, num_ranks, num_draws) for value in statistics])
    assert (p_values >= statistics / 2.0 * (1.0 - 1e-9)).all()
    assert (p_values <= np.minimum(1.0, num_draws * statistics)).all()
    assert (np.diff(p_values) >= -1e-10).all()


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(("num_ranks", "num_draws"), [(100, 100), (1000, 20), (30, 60)])
def test_p_values_of_uniform_ranks_are_uniform(num_ranks, num_draws):
    """Shares below five levels within 4 standard errors: false-alarm rate 3e-4 each at most."""
    ranks = np.random.default_rng(1).integers(0, num_draws, (num_ranks, 2000), endpoint=True)
    statistics = ecdf_statistic(ranks, num_draws)
    p_values = np.array([ecdf_p_value(value, num_ranks, num_draws) for value in statistics])
    for level in (0.01, 0.05, 0.25, 0.5, 0.9):
        allowed = 4.0 * (level * (1.0 - level) / 2000) ** 0.5
        assert abs((p_values <= level).mean() - level) < allowed + 0.01 * level


@pytest.mark.statistical
def test_band_holds_uniform_ranks_as_often_as_it_says():
    """Within 4 standard errors of the coverage, a false-alarm rate of 6e-5."""
    ranks = np.random.default_rng(2).integers(0, 50, (200, 4000), endpoint=True)
    low, high = ecdf_band(200, 50, 0.9)
    difference = ecdf_difference(ranks, 50)
    inside = (difference >= low[:, None] - 1e-12) & (difference <= high[:, None] + 1e-12)
    assert 0.9 - 0.019 < inside.all(0).mean() < 0.9 + 0.025


@settings(max_examples=30)
@given(seed=SEEDS, prob=st.floats(0.05, 0.99), **SIZES)
def test_band_and_test_agree(seed, prob, num_ranks, num_draws):
    ranks = uniform_ranks(num_ranks, num_draws, 20, seed)
    low, high = ecdf_band(num_ranks, num_draws, prob)
    difference = ecdf_difference(ranks, num_draws)
    inside = (difference >= low[:, None] - 1e-12) & (difference <= high[:, None] + 1e-12)
    statistics = ecdf_statistic(ranks, num_draws)
    p_values = np.array([ecdf_p_value(value, num_ranks, num_draws) for value in statistics])
    assert inside.all(0)[p_values > 1.0 - prob + 1e-9].all()
    assert not inside.all(0)[p_values < 1.0 - prob - 1e-9].any()


def test_small_p_values_are_bounds():
    assert ecdf_p_value(0.0, 100, 100) == 0.0
    assert ecdf_p_value(1e-20, 100, 100) == pytest.approx(1e-18)
    assert 1e-12 < ecdf_p_value(1e-12, 100, 100) < 1e-10
    assert ecdf_p_value(1.0, 1, 1) == 1.0


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6))
def test_holm_is_bonferroni_closed(p_values):
    """A hypothesis is rejected where Bonferroni rejects each set that it belongs to."""
    numbers = range(len(p_values))
    wanted = np.zeros(len(p_values))
    for size in range(1, len(p_values) + 1):
        for members in map(list, itertools.combinations(numbers, size)):
            together = min(1.0, size * min(p_values[member] for member in members))
            wanted[members] = np.maximum(wanted[members], together)
    np.testing.assert_allclose(holm(np.array(p_values)), wanted)
