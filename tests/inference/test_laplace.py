"""Gaussians at a mode, of few parameters and of weights, against conjugate answers; as guides."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_ext.diagnostics import psis, to_arviz
from pyro_ext.inference import AutoLaplaceGGN, laplace_posterior
from pyro_ext.nn import BayesianClassifier, BayesianModule
from pyro_ext.potential import Potential

pytestmark = pytest.mark.usefixtures("float64")


def test_laplace_is_exact_for_a_gaussian():
    covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]])

    def model():
        z = pyro.sample("z", dist.MultivariateNormal(torch.tensor([1.0, -1.0]), covariance))
        pyro.sample("x", dist.Normal(z[0], 2.0), obs=torch.tensor(3.0))

    found = laplace_posterior(Potential(model), [{"z": torch.zeros(2)}])
    gain = covariance[:, 0] / (covariance[0, 0] + 4.0)
    expected = covariance - torch.outer(gain, covariance[0])
    torch.testing.assert_close(found.scale_tril @ found.scale_tril.mT, expected)
    torch.testing.assert_close(
        found.mode, torch.tensor([1.0, -1.0]) + 2.0 * gain, atol=1e-4, rtol=0
    )
    evidence = dist.Normal(1.0, 6.0**0.5).log_prob(torch.tensor(3.0))
    torch.testing.assert_close(found.log_evidence, evidence)


def test_a_gaussian_is_a_guide():
    """Of a posterior that is normal in unconstrained space: all weights are the same."""

    def model():
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor([0.5, -1.0]), 0.7).to_event(1))
        pyro.sample("loc", dist.Normal(3.0, scale.new_tensor(2.0)))

    start = {"scale": torch.ones(2), "loc": torch.tensor(0.0)}
    guide = laplace_posterior(Potential(model), [start])
    found = psis(guide, model, num_samples=200, seed=0)
    assert found.effective_sample_size > 199.0
    draws = Predictive(model, guide=guide, num_samples=500)()
    assert draws["scale"].shape == (500, 2) and (draws["scale"] > 0).all()
    assert abs(float(draws["loc"].mean()) - 3.0) < 4.5 * 2.0 / 500**0.5


# Weights of networks -------------------------------------------------------------------------


NOISE = 0.4


def linear_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, generator=generator)
    return x, x @ torch.tensor([[1.0], [-0.5], [0.2]]) + NOISE * torch.randn(
        30, 1, generator=generator
    )


def linear_posterior(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    precision = x.mT @ x / NOISE**2 + torch.eye(3) / scale**2
    return torch.linalg.solve(precision, x.mT @ y / NOISE**2)[:, 0], precision


@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
def test_a_linear_network(structure):
    """Its posterior is normal: with the full matrix all weights of importance are the same."""
    x, y = linear_data()
    mode, precision = linear_posterior(x, y, 2.0)
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(mode[None])
    network = BayesianModule(layer, 2.0)

    def model(x, y=None):
        mean = network(x)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, NOISE).to_event(1), obs=y)

    loader = DataLoader(TensorDataset(x, y), batch_size=7)
    guide = AutoLaplaceGGN(network, loader, "regression", hessian_structure=structure, noise=NOISE)
    if structure == "diag":
        precision = precision.diag().diag()
    draws = Predictive(model, guide=guide, num_samples=1500)(x)
    covariance = torch.linalg.inv(precision)
    torch.testing.assert_close(draws["weight"].reshape(1500, 3).mean(0), mode, rtol=0.0, atol=0.03)
    found = draws["weight"].reshape(1500, 3).mT.cov()
    torch.testing.assert_close(found, covariance, rtol=0.17, atol=0.1 * float(covariance.max()))
    assert draws["y"].shape == (1500, 30, 1)
    ess = psis(guide, model, x, y, num_samples=200, seed=0).effective_sample_size
    assert ess > 199.0 if structure != "diag" else ess < 199.0
    if structure == "full":
        joint = dist.MultivariateNormal(
            torch.zeros(30), 4.0 * x @ x.mT + NOISE**2 * torch.eye(30)
        ).log_prob(y[:, 0])
        torch.testing.assert_close(guide.laplace.log_marginal_likelihood(), joint)


def normalized() -> tuple[nn.Module, BayesianModule, Tensor, DataLoader]:
    torch.manual_seed(0)
    trained = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2))
    x, labels = torch.randn(40, 3), torch.arange(40) % 2
    return trained, BayesianModule(trained), x, DataLoader(TensorDataset(x, labels), batch_size=10)


@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
def test_a_part_of_the_weights(structure):
    """The others stay, nothing of the user's changes, and the prior is that of the network."""
    trained, network, x, loader = normalized()
    guide = AutoLaplaceGGN(
        network,
        loader,
        "classification",
        subset_of_weights="last_layer",
        hessian_structure=structure,
    )
    assert guide.names == ["3.weight", "3.bias"]
    assert not any(value.requires_grad for value in network.module.parameters())
    draws = Predictive(BayesianClassifier(network), guide=guide, num_samples=3)(x)
    for name, value in trained.named_parameters():
        is_drawn = name in guide.names
        assert bool((draws[name].squeeze(1) != value).any()) == is_drawn, name
    if structure != "kron":
        prior = guide.laplace.posterior_precision - guide.laplace.H
        expected = torch.tensor([network.prior_scales["3.weight"] ** -2.0] * 8 + [1.0] * 2)
        torch.testing.assert_close(prior, expected if structure == "diag" else expected.diag())


def test_normalization_and_another_prior():
    """Gains have a prior around one; draws follow a prior that laplace-torch has found."""
    trained, network, x, loader = normalized()
    whole = AutoLaplaceGGN(network, loader, "classification", hessian_structure="diag")
    gains = dict(zip(whole.names, whole.laplace.prior_mean.split([12, 4, 4, 4, 8, 2]), strict=True))
    assert (gains["1.weight"] == 1.0).all() and (gains["0.weight"] == 0.0).all()
    found = to_arviz(whole, BayesianClassifier(network), x, num_samples=6, seed=0)
    assert found.posterior["3.weight"].shape == (1, 6, 2, 4)
    # Another prior, as laplace-torch may find it, is that of later draws.
    whole.laplace.prior_precision = 1e8
    values, centers = whole()["0.weight"], trained[0].weight
    torch.testing.assert_close(values, centers, rtol=0.0, atol=1e-3)
