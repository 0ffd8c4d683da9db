"""The page on copula densities: its parts against exact answers."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

PAGE = "copula-densities"
pytestmark = pytest.mark.slow


@pytest.mark.statistical
def test_random_densities_average_to_the_predictive_law(parts):
    """The mixture's predictive density given a partition, which the library has in closed form.

    The mean of 2,000 draws is within five standard errors at seven points, where less than one
    seed in 100,000 fails but for the skewness of the draws.
    """
    x, concentration = parts["x"], torch.tensor(60.0)  # much weight on new clusters
    labels = (x > 0.7).long()
    pyro.set_rng_seed(0)
    points = torch.linspace(-1.5, 2.5, 7)
    distributions = [parts["random_density"](labels, concentration) for _ in range(2000)]
    draws = torch.stack([distribution.log_prob(points).exp() for distribution in distributions])
    mixture = parts["NRMMixture"](parts["prior"], parts["CLUSTER"])
    samples = {"assignment": labels[None], "concentration": concentration[None]}
    exact = mixture.predictive_log_prob(points[:, None], x[:, None], samples).exp()
    errors = (draws.mean(0) - exact) / (draws.std(0) / math.sqrt(len(draws)))
    assert errors.abs().max() < 5


def test_quantiles_of_a_mixture(parts):
    distribution = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([1.0, 0.0])),
        dist.Normal(torch.tensor([0.5, 0.0]), torch.tensor([0.7, 1.0])),
    )
    exact = dist.Normal(0.5, 0.7).icdf(torch.tensor(parts["LEVELS"]))
    torch.testing.assert_close(parts["quantiles_of"](distribution), exact, rtol=0, atol=1e-4)


def test_share_outside_a_band(parts):
    draws = torch.linspace(0, 1, 101)[:, None].expand(-1, 4)
    density = torch.tensor([0.5, 0.01, 0.99, 0.03])
    assert parts["share_outside"](draws, density) == 0.5


def test_usual_width(parts):
    """Of a copula of bandwidth one half, whose steps are about twice as large as of a mean."""
    values, run = parts["x"], parts["run"]
    distribution = parts["CopulaDensity"](0.5).fit(values)
    width, normal = parts["widths"](distribution, values, 60, 0)
    n = len(values)
    assert normal == pytest.approx(math.sqrt(n * (1 / n - 1 / (n + 60))), rel=0.02)
    draws = run(distribution, parts["Mean"](), values, horizon=60, seed=0).get_samples()["theta"]
    usual = float(distribution.variance.sqrt()) / math.sqrt(n)
    assert width == pytest.approx(float(draws.std()) / usual)
