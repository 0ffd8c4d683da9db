"""The diagonal Laplace approximation, exact where slopes are orthogonal."""

import pytest
import torch
from torch import nn

from pyro_ext.inference import diagonal_laplace

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def regression():
    generator = torch.Generator().manual_seed(0)
    x = torch.linalg.qr(torch.randn(30, 4, generator=generator))[0] * 5.0
    return x, x @ torch.randn(4, generator=generator) + 0.4 * torch.randn(30, generator=generator)


def linear(weights, row):
    return row @ weights["w"]


def exact_evidence(x, y, noise, prior_scale):
    covariance = noise**2 * torch.eye(len(x)) + prior_scale**2 * x @ x.mT
    zero = torch.zeros(len(x))
    return torch.distributions.MultivariateNormal(zero, covariance).log_prob(y)


def mode(x, y, noise, prior_scale):
    precision = x.mT @ x / noise**2 + torch.eye(4) / prior_scale**2
    return torch.linalg.solve(precision, x.mT @ y / noise**2)


def test_posterior_and_evidence_of_a_linear_model(regression):
    x, y = regression
    w = mode(x, y, 0.4, 2.0)
    found = diagonal_laplace(linear, {"w": w}, x, y, noise=0.4, prior_scale=2.0, batch_size=7)
    precision = x.square().sum(0) / 0.16 + 0.25
    torch.testing.assert_close(found.scale["w"], precision**-0.5)
    torch.testing.assert_close(found.log_evidence, exact_evidence(x, y, 0.4, 2.0))
    new = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 0.0, 3.0, 1.0]])
    mean, variance = found.predict(linear, new, batch_size=1)
    torch.testing.assert_close(mean, new @ w)
    torch.testing.assert_close(variance, new.square() @ (1 / precision))


def test_noise_and_prior_are_where_the_evidence_is_largest(regression):
    """The mode moves little with them, so that the exact evidence is largest there as well."""
    x, y = regression
    found = diagonal_laplace(linear, {"w": mode(x, y, 0.4, 1.0)}, x, y, num_steps=400)
    noise, prior = float(found.noise), float(found.prior_scale)
    best = exact_evidence(x, y, noise, prior)
    for factor in (0.8, 1.25):
        assert exact_evidence(x, y, factor * noise, prior) < best
        assert exact_evidence(x, y, noise, factor * prior) < best + 0.02
    assert 0.3 < noise < 0.5


def test_noise_is_overestimated_with_more_weights_than_targets():
    """What is found is the largest of the diagonal evidence, and this is what is to blame."""
    x, w = torch.linspace(-1.0, 1.0, 20), torch.full((200,), 0.005)
    y = x + 0.1 * torch.cos(9.0 * x)
    errors, curvature = y - x, x.square().sum()

    def evidence(noise, prior):
        fit = torch.distributions.Normal(0.0, noise).log_prob(errors).sum()
        volume = 0.5 * len(w) * (1.0 + curvature * prior**2 / noise**2).log()
        return float(fit - 0.5 * w.square().sum() / prior**2 - volume)

    found = diagonal_laplace(lambda w, row: w["w"].sum() * row, {"w": w}, x, y, prior_scale=0.1)
    best = max((0.01 * k for k in range(2, 300)), key=lambda noise: evidence(noise, 0.1))
    assert abs(float(found.noise) - best) < 0.01
    assert best > 3.0 * errors.square().mean().sqrt()


def test_slopes_of_a_network_with_two_outputs():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    x, y = torch.randn(5, 2), torch.randn(5, 2)
    found = diagonal_laplace(
        lambda w, row: torch.func.functional_call(network, w, row),
        dict(network.named_parameters()),
        x,
        y,
        noise=1.0,
        prior_scale=1e6,
        batch_size=2,
    )
    total = torch.zeros(3, 2)
    for row in x:
        for output in range(2):
            network.zero_grad()
            network(row)[output].backward()
            total += network[0].weight.grad.square()
    torch.testing.assert_close(found.scale["0.weight"], total**-0.5, rtol=1e-4, atol=0)


def test_draws():
    x = torch.ones(10)
    found = diagonal_laplace(
        lambda w, row: w["a"] * row, {"a": torch.tensor(1.0)}, x, x, noise=1.0, prior_scale=9.0
    )
    before = torch.get_rng_state()
    draws = found.sample(4000, seed=0)["a"]
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(draws.std(), found.scale["a"], rtol=0.06, atol=0)
    assert torch.equal(found.sample(4000, seed=0)["a"], draws)


def test_the_network_may_change_afterwards():
    network, x = nn.Linear(2, 1).float(), torch.randn(5, 2)

    def function(weights, row):
        return torch.func.functional_call(network, weights, row)[0]

    parameters = dict(network.named_parameters())
    found = diagonal_laplace(function, parameters, x, x.sum(-1), noise=1.0, prior_scale=1.0)
    before = found.predict(function, x)[0]  # of double precision, which become single
    with torch.no_grad():
        network.weight.add_(1.0)
    assert torch.equal(found.predict(function, x)[0], before)


def test_shapes_of_targets_and_outputs():
    def function(weights, row):
        return weights["w"] * row.expand(2, 3)

    weights, x = {"w": torch.ones(3)}, torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"targets of one input must have the shape \(2, 3\)"):
        diagonal_laplace(function, weights, x, torch.zeros(4, 3, 2), noise=1.0, prior_scale=1.0)
    with pytest.raises(TypeError, match="what function returns must be a tensor, got 1.0"):
        diagonal_laplace(lambda w, row: 1.0, weights, x, x, noise=1.0, prior_scale=1.0)
