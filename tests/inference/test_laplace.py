"""Gaussians at a mode, of few parameters and of weights, against conjugate answers; as guides."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import Tensor, nn
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

from pyro_ext.diagnostics import psis, to_arviz
from pyro_ext.inference import AutoLaplaceGGN, laplace_posterior
from pyro_ext.nn import BayesianClassifier, BayesianModule
from pyro_ext.posterior import ConvergenceWarning
from pyro_ext.potential import Potential

pytestmark = pytest.mark.usefixtures("float64")


def test_laplace_is_exact_for_a_gaussian():
    covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]])

    def model():
        z = pyro.sample("z", dist.MultivariateNormal(torch.tensor([1.0, -1.0]), covariance))
        pyro.sample("x", dist.Normal(z[0], 2.0), obs=torch.tensor(3.0))

    found = laplace_posterior(model, seed=0)
    gain = covariance[:, 0] / (covariance[0, 0] + 4.0)
    expected = covariance - torch.outer(gain, covariance[0])
    torch.testing.assert_close(found.scale_tril @ found.scale_tril.mT, expected)
    torch.testing.assert_close(
        found.mode, torch.tensor([1.0, -1.0]) + 2.0 * gain, atol=1e-4, rtol=0
    )
    evidence = dist.Normal(1.0, 6.0**0.5).log_prob(torch.tensor(3.0))
    assert found.log_evidence == pytest.approx(float(evidence))
    assert found.efficiency > 0.999
    draws = found.get_samples()["z"]
    torch.testing.assert_close(draws.mT.cov(), expected, rtol=0.0, atol=0.3)


def test_a_gaussian_is_a_guide():
    """Of a posterior that is normal in unconstrained space: all weights are the same."""

    def model():
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor([0.5, -1.0]), 0.7).to_event(1))
        pyro.sample("loc", dist.Normal(3.0, scale.new_tensor(2.0)))

    guide = laplace_posterior(model, seed=0)
    found = psis(guide, model, num_samples=200, seed=0)
    assert found.effective_sample_size > 199.0
    draws = Predictive(model, guide=guide, num_samples=500)()
    assert draws["scale"].shape == (500, 2) and (draws["scale"] > 0).all()
    assert abs(float(draws["loc"].mean()) - 3.0) < 4.5 * 2.0 / 500**0.5


def test_single_precision_units_and_rows():
    """Of a regression on columns of sizes from 1e-3 to 1e3: within a percent."""
    torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1e-3, 1.0, 1e3])
    x = torch.randn(2000, 3, generator=generator) * scales
    y = x @ (1.0 / scales) + torch.randn(2000, generator=generator)

    def model(x, y):
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(3), 10.0 / scales).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ slopes, 1.0), obs=y)

    found = laplace_posterior(model, x, y, seed=1)
    exact = (x.mT.double() @ x.double() + (scales.double() / 10.0).square().diag()).inverse()
    deviations = (found.scale_tril @ found.scale_tril.mT).diagonal().sqrt()
    torch.testing.assert_close(deviations.double(), exact.diagonal().sqrt(), rtol=0.01, atol=0.0)
    center = exact @ x.mT.double() @ y.double()
    assert float(((found.mode - center) / exact.diagonal().sqrt()).abs().max()) < 0.05
    assert found.k_hat < 0.7 and found.get_samples()["slopes"].shape == (1000, 3)


def test_the_highest_mode_and_a_warning():
    """Of two modes the one with more mass; the other is in no draw, which importance can't see."""

    def model():
        sides = dist.Normal(torch.tensor([-5.0, 5.0]), 1.0)
        weights = dist.Categorical(torch.tensor([0.2, 0.8]))
        pyro.sample("x", dist.MixtureSameFamily(weights, sides))

    assert float(laplace_posterior(model, num_starts=8, seed=0).mode) > 4.0

    def heavy():
        pyro.sample("x", dist.StudentT(torch.tensor(1.5), 0.0, 1.0))

    with pytest.warns(ConvergenceWarning, match="k_hat is .*, where at most 0.7 is right"):
        laplace_posterior(heavy, seed=0)


def test_a_potential_and_data_that_decide_nothing():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x = torch.tensor(1.0)
    one, other = laplace_posterior(model, x, seed=3), laplace_posterior(Potential(model, x), seed=3)
    assert torch.equal(one.get_samples()["loc"], other.get_samples()["loc"])
    found = to_arviz(other, x)
    assert found.posterior["loc"].shape == (1, 1000) and "log_likelihood" in found.groups()
    with pytest.raises(ValueError, match="args must be empty with a Potential"):
        laplace_posterior(Potential(model, x), x)

    def ridge():
        z = pyro.sample("z", dist.ImproperUniform(constraints.real_vector, (), (2,)))
        pyro.factor("f", -((z[0] - z[1]) ** 2))

    with pytest.raises(ValueError, match="laplace_posterior wants a mode of the posterior"):
        laplace_posterior(ridge, seed=0)


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
