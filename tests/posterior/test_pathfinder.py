"""Pathfinder: its algebra, exact posteriors and evidence, modes, starts, and importance weights."""

import warnings

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from scipy.stats import multivariate_normal

from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MCMC, NUTS
from pyro_ext.posterior import ConvergenceWarning, pathfinder, smoothed_weights
from pyro_ext.posterior.paths import Curvature, find_paths
from pyro_ext.potential import Potential

pytestmark = pytest.mark.usefixtures("float64")


def dense(size, seed=0):
    """A covariance with correlations, whose scales differ by factors of ten."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator)
    scale = torch.randn(size, generator=generator).mul(1.2).exp()
    return scale[:, None] * (root @ root.mT / size + 0.2 * torch.eye(size)) * scale


def normal(mean, covariance, constant=0.0):
    pyro.sample("x", dist.MultivariateNormal(mean, covariance))
    pyro.factor("constant", torch.as_tensor(constant))


def regression(x, y):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(x.shape[1]), 3.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ weight, 0.5), obs=y)


def rows(n=40, size=4):
    x = torch.randn(n, size, generator=torch.Generator().manual_seed(1))
    return x, x.sum(1) + 0.3 * x[:, 0].square()


def eight_schools():
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        effect = pyro.sample("effect", dist.Normal(mean, scale))
        error = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
        pyro.sample("y", dist.Normal(effect, error), obs=y)


# The algebra of an approximation -----------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 30])  # fewer and more than twice the steps
def test_an_approximation_is_that_of_the_dense_recursion(size):
    generator = np.random.default_rng(0)
    precision = np.linalg.inv(dense(size).numpy())
    points = generator.normal(size=(7, size))
    gradients = points @ precision
    curvature = Curvature(5)
    (*_, found) = map(curvature.take, points, gradients)
    factor = found.draw(np.eye(size)) - found.mean
    covariance = factor.T @ factor

    # The diagonal before the last five steps is what the recursion itself gives of all six.
    diagonal = found.scale**2
    expected = np.diag(diagonal)
    for number in range(2, 7):
        step, change = (part[number] - part[number - 1] for part in (points, gradients))
        left = np.eye(size) - np.outer(step, change) / (step @ change)
        expected = left @ expected @ left.T + np.outer(step, step) / (step @ change)
    np.testing.assert_allclose(covariance, expected, rtol=1e-8, atol=1e-9 * diagonal.max())
    np.testing.assert_allclose(
        covariance @ (gradients[6] - gradients[5]), points[6] - points[5], rtol=1e-7
    )
    np.testing.assert_allclose(found.mean, points[6] - covariance @ gradients[6], rtol=1e-7)
    at = generator.normal(size=(4, size))
    exact = multivariate_normal(found.mean, covariance).logpdf(at)
    np.testing.assert_allclose(found.log_prob(at), exact, rtol=1e-7)


def test_steps_of_negative_curvature_are_left_out():
    points = np.array([[0.0], [1.0], [2.0], [2.5]])
    gradients = np.array([[1.0], [0.0], [-1.0], [0.5]])  # positive curvature at the last step only
    *before, found = map(Curvature(5).take, points, gradients)
    assert before == [None] * 3
    assert found.mean == pytest.approx(2.5 - 0.5 * 0.5 / 1.5)


# Posteriors --------------------------------------------------------------------------------------


def test_evidence_and_moments_of_a_regression():
    x, y = rows()
    found = pathfinder(regression, x, y, num_samples=4000, seed=0)
    covariance = 9.0 * x @ x.mT + 0.25 * torch.eye(len(y))
    exact = dist.MultivariateNormal(torch.zeros(len(y)), covariance).log_prob(y)
    assert found.log_evidence == pytest.approx(float(exact), abs=0.05)
    assert found.k_hat < 0.7 and max(found.elbos) < exact + 0.2
    inverse = torch.linalg.inv(x.mT @ x / 0.25 + torch.eye(4) / 9.0)
    weight = found.get_samples()["weight"]
    error = (weight.mean(0) - inverse @ (x.mT @ y) / 0.25) / inverse.diagonal().sqrt()
    assert error.abs().max() < 0.1
    torch.testing.assert_close(weight.std(0), inverse.diagonal().sqrt(), rtol=0.1, atol=0.0)


def test_a_constant_changes_no_draw():
    covariance = dense(6)
    one, other = (pathfinder(normal, torch.ones(6), covariance, c, seed=3) for c in (0.0, 5.0))
    torch.testing.assert_close(one.get_samples()["x"], other.get_samples()["x"])
    assert other.log_evidence - one.log_evidence == pytest.approx(5.0)


def test_modes_count_by_their_mass_and_not_by_their_paths():
    def model():
        modes = dist.Normal(torch.tensor([-8.0, 8.0]), torch.ones(2))
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.8, 0.2])), modes))

    potential = Potential(model)

    def start(site):  # five of six paths begin at the smaller mode
        numbers.append(len(numbers))
        return torch.tensor(-7.0 if len(numbers) == 1 else 7.0)

    numbers: list[int] = []
    paths = find_paths(potential, 0, start, num_paths=6)
    mass = paths.weights.log_weights.exp()[paths.positions[:, 0] > 0].sum()
    assert mass == pytest.approx(0.2, abs=0.02)
    assert paths.log_evidence == pytest.approx(0.0, abs=0.05)


def test_where_it_is_good_for_starts_alone():
    with pytest.warns(ConvergenceWarning, match="only useful for starting chains"):
        found = pathfinder(eight_schools, seed=0)
    assert found.k_hat > 0.7


@pytest.mark.parametrize("subsample_size", [None, 10])
def test_discrete_sites_are_summed_out_and_minibatches_made_whole(subsample_size):
    x = torch.cat([torch.randn(25) - 4.0, torch.randn(15) + 4.0])

    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-3.0, 3.0]), 2.0).to_event(1))
        with pyro.plate("rows", len(x), subsample_size=subsample_size) as index:
            batch = x if subsample_size is None else x[index]
            if subsample_size is None:
                part = pyro.sample("part", dist.Bernoulli(torch.tensor(0.4)))
                pyro.sample("x", dist.Normal(loc[part.long()], 1.0), obs=batch)
            else:
                mixture = dist.Categorical(torch.tensor([0.6, 0.4]))
                parts = dist.MixtureSameFamily(mixture, dist.Normal(loc, torch.ones(2)))
                pyro.sample("x", parts, obs=batch)

    loc = pathfinder(model, x, seed=0, num_samples=300).get_samples()["loc"]
    assert loc.shape == (300, 2)
    assert (loc.mean(0) - torch.stack([x[:25].mean(), x[25:].mean()])).abs().max() < 0.3


# What it is used for -----------------------------------------------------------------------------


def test_draws_for_arviz_and_as_a_guide():
    x, y = rows()

    def model(x, y=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(x.shape[1]), 3.0).to_event(1))
        pyro.deterministic("first", weight[0])
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(x @ weight, 0.5), obs=y)

    one, other = (pathfinder(model, x, y, num_samples=50, seed=2) for _ in range(2))
    samples = one.get_samples()
    assert torch.equal(samples["first"], samples["weight"][:, 0])
    assert torch.equal(samples["weight"], other.get_samples()["weight"])
    data = to_arviz(one)
    assert data.posterior["weight"].shape == (1, 50, 4)
    assert "lp" in data.sample_stats and "y" in data.log_likelihood
    predicted = Predictive(model, guide=one, num_samples=7)(x)["y"]
    assert predicted.shape == (7, 40)


def test_starts_of_chains():
    x, y = rows()
    options = dict(warmup_steps=1, initial_params="pathfinder", seed=4, progress=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        three, five = (
            MCMC(NUTS(eight_schools), 2, num_chains=number, **options)
            .run()
            .get_samples(group_by_chain=True)["mean"]
            for number in (3, 5)
        )
    assert not any("k_hat" in str(each.message) for each in caught)  # starts are good enough
    assert torch.equal(three, five[:3]) and len(five[:, -1].unique()) == 5
    mcmc = MCMC(NUTS(regression), 3, 3, num_chains=2, initial_params=pathfinder(regression, x, y))
    assert mcmc.run(x, y).get_samples()["weight"].shape == (6, 4)


def test_a_model_without_a_density_near_its_starts():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("edge", torch.where(x.detach() == x, 0.0, 0.0) + 1e300 * x.pow(3) * 1e300)

    with pytest.raises(ValueError, match=r"initial points will do|normal approximation"):
        pathfinder(model, seed=0)


# Smoothed weights --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variance", "least", "most"), [(1.2, 0.0, 0.4), (2.0, 0.2, 0.8), (4.0, 0.4, 1.1)]
)
def test_weights_are_those_of_arviz(variance, least, most):
    """Of a normal of this variance by draws of a standard one: k is 1 - 1 / variance."""
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    log_weights = 0.5 * x.square() * (1.0 - 1.0 / variance)
    found = smoothed_weights(log_weights)
    expected, k_hat = az.psislw(log_weights.numpy().copy())
    np.testing.assert_allclose(found.log_weights.numpy(), expected, atol=1e-9)
    assert found.k_hat == pytest.approx(float(k_hat)) and least < found.k_hat < most
    assert found.log_weights.exp().sum() == pytest.approx(1.0)


def test_draws_without_a_density_weigh_nothing():
    log_weights = torch.tensor([0.0, torch.nan, -torch.inf, 0.0])
    assert smoothed_weights(torch.full((1000,), -3.0)).k_hat == -np.inf  # a perfect approximation
    found = smoothed_weights(log_weights)
    torch.testing.assert_close(found.log_weights.exp(), torch.tensor([0.5, 0.0, 0.0, 0.5]))
    assert found.effective_sample_size == pytest.approx(2.0) and found.k_hat == np.inf
    with pytest.raises(ValueError, match="must have a finite maximum"):
        smoothed_weights(log_weights[1:3])
