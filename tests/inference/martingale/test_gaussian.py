"""Normal predictive rules against closed forms.

A statistical comparison allows 3.5 standard errors, or the 5e-4 level of a test: a false-alarm rate
of 5e-4 each, for a new seed.
"""

import math

import pytest
import scipy.stats
import torch
from scipy.special import polygamma

from pyro_ext.inference.martingale.gaussian import (
    NormalPredictive,
    PlugInNormal,
    StudentTPredictive,
)
from pyro_ext.random import chain_keys
from pyro_ext.testing.moments import estimate_moment

ALLOWED = 3.5
LEVEL = 5e-4
NUM_DRAWS = 20_000
RULES = [
    NormalPredictive(1.5),
    NormalPredictive(0.7, loc=1.0, loc_scale=0.4),
    PlugInNormal(1.5),
    StudentTPredictive(),
    StudentTPredictive(loc=1.0, loc_precision=2.0, concentration=1.5, rate=0.3),
]
NAMES = ["flat", "normal", "plug_in", "reference", "conjugate"]


def data(size: int = 10) -> torch.Tensor:
    return torch.linspace(-1.0, 2.0, size)


def begin(rule, num_draws: int = NUM_DRAWS, values: torch.Tensor | None = None):
    values = data() if values is None else values
    return rule.begin((values,), chain_keys(0, range(num_draws)))


def mean_of(rule, state) -> torch.Tensor:
    return rule.population(state).mean


def assert_moments(draws: torch.Tensor, mean: float, variance: float) -> None:
    assert abs(estimate_moment(draws).z_score(mean)) < ALLOWED
    assert abs(estimate_moment((draws - mean) ** 2).z_score(variance)) < ALLOWED


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("rule", "size", "variance"),
    [
        (NormalPredictive(), 20, 1 / 10 - 1 / 20),
        (NormalPredictive(), 1010, 1 / 10 - 1 / 1010),
        (PlugInNormal(), 1010, float(polygamma(1, 11) - polygamma(1, 1011))),
        # The posterior mean of the variance, and how much of it is left.
        (StudentTPredictive(), 100, 9.166666666666666 / 7 * (1 / 10 - 1 / 100)),
    ],
)
def test_variance_of_the_mean(rule, size, variance, float64):
    assert_moments(mean_of(rule, rule.advance(begin(rule), size - 10)), 0.5, variance)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("rule", "variance"),
    [
        (NormalPredictive(), 0.1),
        (NormalPredictive(2.0, loc=1.0, loc_scale=0.5), 1 / (10 / 4 + 4)),
        (PlugInNormal(), 0.0951663357),
        (StudentTPredictive(), 9.166666666666666 / 7 / 10),
    ],
    ids=["flat", "normal", "plug_in", "reference"],
)
def test_limits(rule, variance, float64):
    mean = 0.5 if rule.__class__ is not NormalPredictive else float(begin(rule, 1).value.loc)
    assert_moments(rule.limit(begin(rule)).mean, mean, variance)


@pytest.mark.statistical
def test_limit_variance_of_student_t(float64):
    rule = StudentTPredictive(loc=1.0, loc_precision=2.0, concentration=1.5, rate=0.3)
    state = begin(rule)
    distribution = scipy.stats.invgamma(6.5, scale=float(state.value.rate[0]))
    assert scipy.stats.kstest(rule.limit(state).variance.numpy(), distribution.cdf).pvalue > LEVEL


@pytest.mark.statistical
@pytest.mark.parametrize("rule", [RULES[0], RULES[1], RULES[3], RULES[4]])
def test_later_observations_have_the_law_of_the_next(rule, float64):
    """What exchangeability asks for, after many steps of the recursion."""
    state = begin(rule)
    distribution = rule.predictive(state)
    if isinstance(rule, StudentTPredictive):
        exact = scipy.stats.t(
            float(distribution.df[0]), float(distribution.loc[0]), float(distribution.scale[0])
        )
    else:
        exact = scipy.stats.norm(float(distribution.loc[0]), float(distribution.scale[0]))
    values = rule.advance(state, 40).value.values
    for point in (10, 11, 49):
        assert scipy.stats.kstest(values[:, point].numpy(), exact.cdf).pvalue > LEVEL


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_resampled_populations_are_larger_data(rule, float64):
    end = rule.advance(begin(rule, 3, torch.randn(5, 2)), 7)
    fresh = rule.begin((end.value.values[1],), chain_keys(0, range(1)))
    assert end.size == fresh.size == 12
    for one, other in zip(end.value, fresh.value, strict=True):
        torch.testing.assert_close(one[1:2], other)


def test_laws():
    state = begin(StudentTPredictive(), 2, torch.tensor([1.0, 2.0, 3.0]))
    distribution = StudentTPredictive().predictive(state)
    assert (float(distribution.df[0]), float(distribution.loc[0])) == (2.0, 2.0)
    assert float(distribution.scale[0]) == pytest.approx(math.sqrt(4 / 3))
    distribution = NormalPredictive(2.0).predictive(
        begin(NormalPredictive(2.0), 2, torch.tensor([1.0, 2.0, 3.0]))
    )
    assert float(distribution.variance[0]) == pytest.approx(4 + 4 / 3)


def test_errors(subtests):
    for make, message in [
        (lambda: begin(StudentTPredictive(), 1, torch.ones(1)), "n >= 2, got"),
        (lambda: begin(StudentTPredictive(), 1, torch.ones(3)), "data must vary"),
        (lambda: begin(PlugInNormal(), 1, torch.tensor(1.0)), r"shape \(n, \*event\)"),
    ]:
        with subtests.test(message), pytest.raises(ValueError, match=message):
            make()
