"""Copula regression and classification: against NumPy, as distributions, and as predictive rules.

A statistical comparison allows 4.5 standard errors for each of its numbers: a false-alarm rate
below 1e-5 each, for a new seed.
"""

import numpy as np
import pytest
import torch

from pyro_ext.inference.martingale.copula_regression import (
    CopulaClassifier,
    CopulaRegression,
    _predict_labels,
)
from pyro_ext.inference.martingale.covariate_rule import future_rows
from pyro_ext.inference.martingale.predictive_rule import uniforms
from pyro_ext.random import chain_keys
from tests.inference.martingale import copula_reference as reference

ALLOWED = 4.5
QUERIES = torch.tensor([[-1.0, 0.0], [0.2, 1.0], [1.5, -0.5]], dtype=torch.float64)


def pairs(n, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    return x.to(dtype), ((2 * x[:, 0]).sin() + 0.3 * noise).to(dtype)


def labelled(n, dtype=torch.float64):
    x, y = pairs(n, dtype)
    return x, (y > 0.2).to(dtype)


RULES = {
    "regression": (CopulaRegression(0.7, 0.8, 3, queries=QUERIES), pairs),
    "classifier": (CopulaClassifier(0.7, 0.8, 3, queries=QUERIES), labelled),
}


def populations(rule, data, num_draws, *steps, first=0):
    state = rule.begin(data, chain_keys(0, range(first, first + num_draws)))
    for number in steps:
        state = rule.advance(state, number)
    return rule.population(state)


# The distributions
# -----------------------------------------------------------------------------------------


def test_regression_against_numpy(float64):
    x, y = pairs(30)
    rho, rho_x = 0.8, torch.tensor([0.9, 0.6])
    rule = CopulaRegression(rho, rho_x, 2, seed=4).fit(x, y)
    distribution = rule.conditional(QUERIES)
    generator = torch.Generator().manual_seed(4)
    scale_x, scale = x.std(0, correction=0), y.std(correction=0)
    scores, at = (x - x.mean(0)) / scale_x, ((QUERIES - x.mean(0)) / scale_x).numpy()
    for value in (-1.0, 0.3):
        points = np.full((3, 1), ((value - y.mean()) / scale).item())
        several, predicted = [], []
        for _ in range(2):
            order = torch.randperm(30, generator=generator)
            given = ((y[order] - y.mean()) / scale).numpy()[:, None]
            cdfs, density, log_predicted = reference.recursion(
                given, points, [rho], scores[order].numpy(), at, rho_x.numpy()
            )
            several.append((cdfs[:, 0], density / scale.item()))
            predicted.append(log_predicted.sum() - 30 * scale.log().item())
        generator.manual_seed(4)
        cdf, density = np.mean(several, 0)
        np.testing.assert_allclose(distribution.cdf(torch.tensor(value)), cdf, atol=1e-9)
        np.testing.assert_allclose(
            distribution.log_prob(torch.tensor(value)).exp(), density, atol=1e-9
        )
        assert rule.prequential_log_prob.item() == pytest.approx(np.mean(predicted), abs=1e-7)


def test_classifier_against_numpy(float64):
    x, y = labelled(40)
    rule = CopulaClassifier(0.8, torch.tensor([0.9, 0.6]), 0).fit(x, y)
    scale = x.std(0, correction=0)
    scores, at = ((value - x.mean(0)) / scale for value in (x, QUERIES))
    expected = reference.classify(y.numpy(), scores.numpy(), at.numpy(), 0.8, np.array([0.9, 0.6]))
    np.testing.assert_allclose(rule.probabilities(QUERIES), expected[0], atol=1e-10)
    assert rule.prequential_log_prob.item() == pytest.approx(expected[1].sum(), abs=1e-9)


def test_conditional_densities_are_laws(float64):
    distribution = CopulaRegression(0.8, 0.8).fit(*pairs(50)).conditional(QUERIES)
    assert distribution.batch_shape == (3,)
    levels = torch.tensor([0.01, 0.5, 0.95])[:, None]
    reference.assert_is_law(distribution, torch.linspace(-8.0, 8.0, 20001)[:, None], levels)


@pytest.mark.parametrize("make", [CopulaRegression, CopulaClassifier])
def test_fitted_bandwidths_are_a_maximum(make, float64):
    data = pairs(60) if make is CopulaRegression else labelled(60)
    rule = make().fit(*data)
    rho, rho_x = rule.bandwidth.item(), rule.covariate_bandwidth
    # The likelihood of labels has kinks, at which the search may stop.
    allowed = 1e-4 if make is CopulaRegression else 0.02
    best = make(rho, rho_x).fit(*data).prequential_log_prob
    assert best.item() == pytest.approx(rule.prequential_log_prob.item())
    for change in (-0.02, 0.02):
        moved = [(min(rho + change, 0.9975), rho_x)]
        moved += [(rho, (rho_x + change * unit).clamp(1e-5, 0.9975)) for unit in torch.eye(2)]
        for pair in moved:
            assert make(*pair).fit(*data).prequential_log_prob <= best + allowed


def test_gradient_of_the_classifier(float64):
    x, y = labelled(45)
    fit = CopulaClassifier(0.5, 0.5, 2).fit(x, y)._fit
    both, unit, step = torch.tensor([0.8, 0.6, 0.7]), torch.eye(3), 1e-6

    def total(value):
        return _predict_labels(fit.orders, y, fit.covariates, value, unit)[0].sum(1)

    gradient = _predict_labels(fit.orders, y, fit.covariates, both, unit)[1]
    for point in range(3):
        numeric = (total(both + step * unit[point]) - total(both - step * unit[point])) / (2 * step)
        torch.testing.assert_close(gradient[:, point], numeric, rtol=1e-6, atol=1e-6)


# Predictive resampling ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
@pytest.mark.statistical
def test_populations_are_a_martingale(name, float64):
    """The mean of P_N(A | x) over draws is P_n(A | x)."""
    rule, make = RULES[name]
    data = make(40)
    population = populations(rule, data, 2000, 80)
    start = populations(rule, data, 1, 0)
    if name == "classifier":
        values, expected = population.probs, start.probs[0]
    else:
        points = torch.tensor([-0.7, 0.1, 0.8])[:, None, None]
        values = torch.cat([population.cdf(points), population.log_prob(points).exp()])
        expected = torch.cat([start.cdf(points), start.log_prob(points).exp()])[:, 0]
        values = values.movedim(1, 0)
    error = values.std(0) / len(values) ** 0.5
    assert bool((error > 0).all())
    assert bool(((values.mean(0) - expected).abs() < ALLOWED * error).all())


def test_regression_populations_against_numpy(float64):
    """The steps of each draw, repeated with its uniform numbers and rows."""
    x, y = pairs(25)
    rule = CopulaRegression(0.8, 0.7, 2, queries=QUERIES).fit(x, y)
    population, distribution = populations(rule, (x, y), 2, 40), rule.conditional(QUERIES)
    value = torch.tensor(0.4)
    scores = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    at = ((QUERIES - x.mean(0)) / x.std(0, correction=0)).numpy()
    for draw in range(2):
        keys = chain_keys(0, [draw])
        numbers = uniforms(keys, 50, 130).reshape(1, 40, 2)
        rows = future_rows(keys, numbers[..., 1], 25)[0]
        cdfs, density = (
            distribution.cdf(value).numpy()[:, None],
            distribution.log_prob(value).exp().numpy(),
        )
        for step in range(40):
            weight = reference.kernel(at, scores[rows[step]], 0.7)
            a = reference.rate(26 + step, weight)
            v = [numbers[0, step, 0].item()]
            cdfs, density = reference.step(cdfs, density, v, a, [0.8])
        np.testing.assert_allclose(population.cdf(value)[draw], cdfs[:, 0], atol=1e-9)
        np.testing.assert_allclose(population.log_prob(value)[draw], np.log(density), atol=1e-8)


@pytest.mark.statistical
def test_future_covariates_are_a_polya_urn(float64):
    """Fractions of rows have the mean 1/n, and the variance of flat weights and counts."""
    keys = chain_keys(0, range(4000))
    picks = uniforms(keys, 0, 60)
    rows = future_rows(keys, picks, 5)
    share = torch.stack([(rows == row).double().mean(1) for row in range(5)], 1)
    error = share.std(0) / 4000**0.5
    assert bool(((share.mean(0) - 0.2).abs() < ALLOWED * error).all())
    # A Dirichlet-multinomial share of T picks: p (1 - p) (T + n) / (T (n + 1)).
    expected = 0.2 * 0.8 * (60 + 5) / (60 * 6)
    squares = (share - 0.2) ** 2
    assert bool(((squares.mean(0) - expected).abs() < ALLOWED * squares.std(0) / 4000**0.5).all())


@pytest.mark.parametrize("make", [CopulaRegression, CopulaClassifier])
def test_queries_are_those_observed_by_default(make):
    x, y = labelled(12)
    population = populations(make(0.7, 0.7), (x[:, 0], y), 2, 5)
    assert population.mean.shape == (2, 12)


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [CopulaRegression, CopulaClassifier])
def test_errors_name_the_argument(make):
    x, y = labelled(10)
    rule = make(0.5, 0.5)
    for arguments, message in (
        ((x, y[:5]), "y must have the shape"),
        ((x, y[:, None]), r"y must have the shape \(10,\)"),
        ((torch.ones(10, 2, dtype=torch.float64), y), "x must hold at least two different values"),
    ):
        with pytest.raises(ValueError, match=message):
            rule.fit(*arguments)
    with pytest.raises(ValueError, match="two tensors, x and y, got 1"):
        rule.begin((x,), chain_keys(0, range(2)))
    with pytest.raises(ValueError, match="covariate_bandwidth must be a number or a vector of 2"):
        make(0.5, torch.full((3,), 0.5)).fit(x, y)
    with pytest.raises(RuntimeError, match="call fit"):
        _ = rule.prequential_log_prob
    fitted = rule.fit(x, y)
    ask = fitted.conditional if make is CopulaRegression else fitted.probabilities
    with pytest.raises(ValueError, match=r"x must have the shape \(num_queries, 2\)"):
        ask(torch.zeros(4, 3))


@pytest.mark.parametrize("name", RULES)
def test_draws_are_the_same_alone_and_in_many_steps(name, float64):
    rule, make = RULES[name]
    data = make(30)
    together = populations(rule, data, 5, 90).mean
    assert torch.equal(populations(rule, data, 5, 1, 50, 39).mean, together)
    fitted = rule.fit(*data)
    assert torch.equal(populations(fitted, data, 2, 90, first=2).mean, together[2:4])


def test_populations_of_regression_are_laws(float64):
    population = populations(RULES["regression"][0], pairs(40), 2, 200)
    assert population.batch_shape == (2, 3)
    grid = torch.linspace(-7.0, 7.0, 7001)[:, None, None]
    levels = torch.tensor([0.05, 0.5, 0.9])[:, None, None]
    reference.assert_is_law(population, grid, levels, mean=5e-4, variance=5e-3, reached=5e-5)
    assert population.sample((4,)).shape == (4, 2, 3)
