"""Copula densities: numbers by hand, distributions, predictive resampling, and a real data set.

A statistical comparison allows 4.5 standard errors for each of its numbers, or the 1e-5 level of a
test: a false-alarm rate below 1e-5 each, for a new seed.
"""

import numpy as np
import pytest
import scipy.stats
import torch

from pyro_ext.inference.martingale.copula_density import CopulaDensity
from pyro_ext.inference.martingale.functionals import Expectation, Mean, MEstimator, Quantile
from pyro_ext.inference.martingale.martingale_posterior import MartingalePosterior
from pyro_ext.random import chain_keys
from tests.inference.martingale import copula_reference as reference

ALLOWED = 4.5
LEVEL = 1e-5
NUMBERS = torch.tensor([-1.0, 0.3, 0.8], dtype=torch.float64)
PAIRS = torch.tensor([[0.2, -0.5], [1.0, 0.7], [-0.3, 0.4]], dtype=torch.float64)


def in_order(bandwidth, data):
    return CopulaDensity(bandwidth, 0, standardize=False).fit(data)


def two_groups(n, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(n, generator=generator, dtype=torch.float64)
    return torch.cat([3.0 + 0.6 * values[: n // 2], 6.0 + 1.5 * values[n // 2 :]]).to(dtype)


def populations(rule, data, num_draws, *steps, first=0):
    state = rule.begin((data,), chain_keys(0, range(first, first + num_draws)))
    for number in steps:
        state = rule.advance(state, number)
    return rule.population(state)


# Numbers known by hand ----------------------------------------------------------------------------


def test_numbers_of_the_paper(float64):
    distribution = in_order(0.8, NUMBERS)
    points = torch.tensor([0.5, -1.0])
    assert distribution.cdf(points).tolist() == pytest.approx([0.6265599, 0.0819935], abs=1e-6)
    assert distribution.log_prob(points).exp().tolist() == pytest.approx(
        [0.5133224, 0.1549164], abs=1e-6
    )
    assert distribution.prequential_log_prob.item() == pytest.approx(-4.1859306, abs=1e-6)


def test_pairs_of_the_paper(float64):
    distribution, point = in_order(0.7, PAIRS), torch.tensor([0.1, 0.2])
    cdfs = distribution.conditional_cdfs(point)
    assert cdfs.tolist() == pytest.approx([0.4424012, 0.4677425], abs=1e-6)
    first = in_order(0.7, PAIRS[:, :1])
    assert first.log_prob(point[:1]).exp().item() == pytest.approx(0.5216832, abs=1e-6)
    assert distribution.log_prob(point).exp().item() == pytest.approx(0.3096808, abs=1e-6)


def test_without_data_it_is_the_standard_normal_law(float64):
    distribution, points = CopulaDensity(), torch.linspace(-4, 4, 9)
    normal = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(distribution.log_prob(points), normal.log_prob(points))
    torch.testing.assert_close(distribution.cdf(points), normal.cdf(points))
    probability = torch.tensor([1e-6, 0.2, 0.975])
    torch.testing.assert_close(
        distribution.icdf(probability), normal.icdf(probability), rtol=0, atol=1e-6
    )
    assert distribution.mean.item() == pytest.approx(0.0, abs=1e-9)
    assert distribution.variance.item() == pytest.approx(1.0, abs=1e-4)
    assert distribution.bandwidth is None and distribution.num_observed == 0


# The distribution
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bandwidth", [0.5, 0.9, 0.97])
def test_a_fit_is_a_law_on_the_scale_of_the_data(bandwidth, float64):
    distribution, grid = (
        CopulaDensity(bandwidth, 4).fit(two_groups(60)),
        torch.linspace(-25, 35, 60001),
    )
    levels = torch.tensor([1e-4, 0.1, 0.5, 0.77, 1 - 1e-4])
    reference.assert_is_law(distribution, grid, levels, variance=1e-3)
    cdf = distribution.cdf(grid)
    assert bool((cdf.diff() >= 0).all()) and cdf[0] < 1e-9 and cdf[-1] > 1 - 1e-9


def test_density_of_pairs_is_one_in_all(float64):
    distribution = CopulaDensity(0.8, 3).fit(PAIRS)
    grid = torch.linspace(-6.0, 6.0, 241)
    points = torch.cartesian_prod(grid, grid)
    density = distribution.log_prob(points).exp().reshape(241, 241)
    first = torch.trapezoid(density, grid)
    assert torch.trapezoid(first, grid).item() == pytest.approx(1.0, abs=1e-4)
    marginal = CopulaDensity(0.8, 3).fit(PAIRS[:, :1]).log_prob(grid[:, None]).exp()
    torch.testing.assert_close(marginal, first, rtol=0, atol=1e-4)
    inner = torch.cumulative_trapezoid(density[130], grid) / first[130]
    at = torch.stack([grid[130].expand(240), grid[1:]], 1)
    torch.testing.assert_close(distribution.conditional_cdfs(at)[:, 1], inner, rtol=0, atol=2e-3)


def test_mean_over_permutations_against_numpy(float64):
    data, points = two_groups(30), torch.linspace(2.0, 9.0, 15)
    distribution = CopulaDensity(0.85, 3, seed=5).fit(data)
    generator = torch.Generator().manual_seed(5)
    loc, scale = data.mean().item(), data.std(correction=0).item()
    several, log_predicted = [], []
    for _ in range(3):
        order = torch.randperm(30, generator=generator)
        y = ((data[order] - loc) / scale).numpy()[:, None]
        at = ((points - loc) / scale).numpy()[:, None]
        cdfs, density, predicted = reference.recursion(y, at, [0.85])
        several.append((cdfs[:, 0], density / scale))
        log_predicted.append(predicted.sum() - 30 * np.log(scale))
    cdf, density = np.mean(several, 0)
    np.testing.assert_allclose(distribution.cdf(points), cdf, atol=1e-9)
    np.testing.assert_allclose(distribution.log_prob(points).exp(), density, atol=1e-9)
    assert distribution.prequential_log_prob.item() == pytest.approx(
        np.mean(log_predicted), abs=1e-7
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_and_shapes(dtype):
    distribution = CopulaDensity(0.8).fit(two_groups(20, dtype))
    assert distribution.batch_shape == distribution.event_shape == ()
    for value in (
        distribution.mean,
        distribution.variance,
        distribution.log_prob(distribution.mean),
        distribution.sample(),
        distribution.bandwidth[0],
    ):
        assert value.dtype == dtype and value.shape == ()
    assert distribution.sample((4, 2)).shape == (4, 2)
    assert distribution.expand((3, 2)).log_prob(torch.zeros(2, dtype=dtype)).shape == (3, 2)
    assert distribution.support.check(distribution.mean)
    pairs = CopulaDensity(0.8).fit(torch.stack([two_groups(20, dtype)] * 2, 1))
    assert pairs.event_shape == (2,) and pairs.sample((5,)).shape == (5, 2)
    assert pairs.log_prob(pairs.sample((5,))).shape == (5,)
    assert pairs.expand((4,)).log_prob(torch.zeros(2, dtype=dtype)).shape == (4,)


def test_gradient_in_the_value(float64):
    distribution = CopulaDensity(0.8, 3).fit(two_groups(25))
    points = torch.linspace(1.0, 8.0, 5, requires_grad=True)
    assert torch.autograd.gradcheck(distribution.log_prob, points, fast_mode=True)


@pytest.mark.statistical
def test_samples_have_the_law(float64):
    distribution = CopulaDensity(0.9).fit(two_groups(60))
    test = scipy.stats.kstest(
        distribution.sample((4000,)).numpy(), lambda x: distribution.cdf(torch.tensor(x)).numpy()
    )
    assert test.pvalue > LEVEL


@pytest.mark.statistical
def test_samples_of_pairs_have_the_law(float64):
    """Their conditional distribution functions are independent uniform numbers."""
    first = two_groups(40)
    distribution = CopulaDensity(0.8, 3).fit(torch.stack([first, 0.5 * first + first.flip(0)], 1))
    uniform = distribution.conditional_cdfs(distribution.sample((1500,))).numpy()
    for column in uniform.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > LEVEL
    assert scipy.stats.spearmanr(*uniform.T).pvalue > LEVEL


# The fit ------------------------------------------------------------------------------------------


def test_fitted_bandwidth_maximizes_the_prequential_likelihood(float64):
    data = two_groups(80)
    distribution = CopulaDensity().fit(data)
    best = distribution.bandwidth.item()
    values = [
        CopulaDensity(rho).fit(data).prequential_log_prob.item()
        for rho in (best - 0.01, best, best + 0.01)
    ]
    assert values[1] == pytest.approx(distribution.prequential_log_prob.item())
    assert values[1] > max(values[0], values[2])


# Predictive resampling ----------------------------------------------------------------------------


def test_populations_against_numpy(float64):
    """The steps of each draw, repeated with its uniform numbers."""
    from pyro_ext.inference.martingale.predictive_rule import uniforms

    data, points = two_groups(25), torch.linspace(2.0, 8.0, 9)
    distribution = CopulaDensity(0.8, 2).fit(data)
    population = populations(distribution, data, 3, 40)
    log_density, cdf = population.log_prob(points[:, None]), population.cdf(points[:, None])
    for draw in range(3):
        numbers = uniforms(chain_keys(0, [draw]), 25, 65)[0].numpy()
        cdfs, density = (
            distribution.cdf(points).numpy()[:, None],
            distribution.log_prob(points).exp().numpy(),
        )
        for step, number in enumerate(numbers):
            cdfs, density = reference.step(
                cdfs, density, [number], reference.alpha(26 + step), [0.8]
            )
        np.testing.assert_allclose(cdf[:, draw], cdfs[:, 0], atol=1e-9)
        np.testing.assert_allclose(log_density[:, draw], np.log(density), atol=1e-8)


def test_populations_are_laws(float64):
    population = populations(CopulaDensity(0.9), two_groups(50), 4, 300)
    grid, levels = torch.linspace(-15.0, 25.0, 8001)[:, None], torch.tensor([0.01, 0.3, 0.5, 0.9])
    reference.assert_is_law(population, grid, levels[:, None], 2e-4, 1e-3, 2e-5)


def test_shapes_of_populations(float64):
    data = two_groups(20)
    population = populations(CopulaDensity(0.8), data, 3, 10)
    assert population.batch_shape == (3,) and population.event_shape == ()
    assert population.mean.shape == population.variance.shape == (3,)
    assert population.log_prob(torch.zeros(5, 1)).shape == (5, 3)
    assert population.log_prob(torch.zeros(5, 3)).shape == (5, 3)
    assert population.icdf(torch.tensor(0.5)).shape == (3,)
    assert population.sample((7,)).shape == (7, 3)
    wide = population.expand((2, 3))
    assert wide.mean.shape == (2, 3) and wide.cdf(torch.zeros(4, 1, 3)).shape == (4, 2, 3)
    one = populations(CopulaDensity(0.8), data, 1, 10)
    torch.testing.assert_close(one.expand((3,)).mean, one.mean.expand(3))
    values = torch.tensor([3.0, 4.0, 5.0])
    torch.testing.assert_close(
        population.log_prob(values), population.log_prob(values[:, None]).diagonal()
    )


def test_narrow_posterior_is_warned_of(float64):
    """Normal data fit the distribution from which the recursion starts."""
    data = torch.special.ndtri((torch.arange(50.0) + 0.5) / 50)
    with pytest.warns(RuntimeWarning, match=r"bandwidth of .*pass a larger bandwidth"):
        populations(CopulaDensity(), data, 2, 5)


# Errors -------------------------------------------------------------------------------------------


def test_errors_name_the_argument(subtests):
    for make, message in [
        (
            lambda: CopulaDensity().fit(torch.ones(5)),
            "data must hold at least two different values",
        ),
        (lambda: CopulaDensity().fit(torch.zeros(2, 2, 2)), r"\(n,\) or \(n, dimension\)"),
        (lambda: CopulaDensity(torch.tensor([0.5, 0.6])).fit(torch.randn(5, 3)), "a vector of 3"),
        (lambda: CopulaDensity().icdf(torch.tensor(1.0)), r"probabilities in \(0, 1\)"),
    ]:
        with subtests.test(message), pytest.raises(ValueError, match=message):
            make()


@pytest.mark.slow
def test_points_stand_for_populations_of_vectors():
    """Their moments are those of a fine grid, up to what 2,000 points with weights leave."""
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 60, generator=generator, dtype=torch.float64)
    data = torch.stack([x, 0.5 * x**2 + 0.3 * noise], -1)
    rule = CopulaDensity(0.8).fit(data)
    axis = torch.linspace(-6.0, 6.0, 121, dtype=torch.float64)
    grid = data.mean(0) + data.std(0) * torch.cartesian_prod(axis, axis)
    for distribution in (populations(rule, data, 2, 200), populations(rule, data, 2)):
        density = distribution.log_prob(grid[:, None]).exp().T
        expected = (density / density.sum(1, keepdim=True)) @ grid
        points = distribution.weighted_points(2000)
        error = (points.variance * points.weights.square().sum(1, keepdim=True)).sqrt()
        assert ((points.mean - expected).abs() < 0.5 * error).all()  # spread evenly
    torch.testing.assert_close(rule.weighted_points(2000).mean, points.mean[:1])


@pytest.mark.slow
def test_functionals_of_vectors():
    data = PAIRS + torch.randn(20, 3, 2, dtype=torch.float64)
    data = data.flatten(0, 1)

    def squares(params, y):
        return (y - params["center"]).square().sum(-1)

    options = {"num_samples": 5, "horizon": 50, "num_checks": 1, "seed": 0, "progress": False}
    found = [
        MartingalePosterior(CopulaDensity(0.8), functional, **options).run(data).get_samples()
        for functional in (
            Mean(),
            Quantile((0.25, 0.75)),
            Expectation(lambda y: y),
            MEstimator(squares, {"center": torch.zeros(2, dtype=torch.float64)}, num_points=500),
        )
    ]
    assert found[1]["theta"].shape == (5, 2, 2)
    torch.testing.assert_close(found[3]["center"], found[0]["theta"], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[2]["theta"], found[0]["theta"], atol=0.05, rtol=0)


def test_vectors_have_no_quantiles():
    distribution = CopulaDensity(0.5).fit(PAIRS)
    for wanted in (
        lambda: distribution.mean,
        lambda: distribution.icdf(torch.tensor(0.5)),
        lambda: distribution.cdf(PAIRS),
    ):
        with pytest.raises(NotImplementedError, match="vectors"):
            wanted()
