"""The prior of soft equivariance: density, draws and limits, and inference with it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal

from pyro_ext.distributions import SoftEquivariantNormal
from pyro_ext.groups import SO, EmbeddedO2, EquivariantProjector, O, Scale, TensorRep
from pyro_ext.inference import MCMC, NUTS
from pyro_ext.nn.equivariant import SoftEquivariantLinear

pytestmark = pytest.mark.usefixtures("float64")

XY, YZ = EmbeddedO2(0, 1), EmbeddedO2(1, 2)
VECTOR, MIXED = TensorRep({1: 1}), TensorRep({0: 1, 1: 2, 2: 1})


@pytest.mark.parametrize("groups", [[O(3), XY, YZ], [SO(3) | Scale(3), Scale(3), O(3)]], ids=str)
@pytest.mark.parametrize("rep_in", [VECTOR, None], ids=str)
def test_density(groups, rep_in):
    """Against the full covariance matrix, whose precision is set up from flat projections."""
    strengths, scale = torch.tensor([[0.0, 2.0, 0.5], [7.0, 0.1, 0.3]]), torch.tensor([0.7, 1.4])
    prior = SoftEquivariantNormal(rep_in, MIXED, groups, strengths, scale)
    size = prior.event_shape.numel()
    unit = torch.eye(size).unflatten(-1, prior.event_shape)
    flat = torch.stack(
        [EquivariantProjector(rep_in, MIXED, group).project(unit).flatten(1) for group in groups]
    )
    precision = torch.eye(size) / scale[:, None, None] ** 2
    precision = precision + torch.einsum("bg,gij->bij", strengths, torch.eye(size) - flat)
    torch.testing.assert_close(prior.precision_matrix, precision)
    exact = dist.MultivariateNormal(torch.zeros(size), precision_matrix=precision)
    draws = prior.sample((5,))
    vectors = draws.reshape(5, 2, size)
    torch.testing.assert_close(prior.log_prob(draws), exact.log_prob(vectors))
    torch.testing.assert_close(prior.variance.reshape(2, size), exact.variance)
    base = 0.5 * vectors.square().sum(-1) / scale**2
    shift = prior.log_prob(draws) + prior.penalty(draws) + base
    torch.testing.assert_close(shift, shift[:1].expand(5, 2))


@pytest.mark.statistical
def test_covariance_of_draws():
    """Of 20,000 draws: any of 90 moments is off by 5 standard errors for one seed in 20,000."""
    prior = SoftEquivariantNormal(VECTOR, VECTOR, [XY, YZ], [3.0, 0.5], 1.3)
    torch.manual_seed(0)
    draws = prior.sample((20_000,)).flatten(1)
    exact = torch.linalg.inv(prior.precision_matrix)
    products = draws[:, :, None] * draws[:, None, :]
    error = products.std(0) / len(draws) ** 0.5
    assert float(((products.mean(0) - exact) / error).abs().max()) < 5.0


def test_limits():
    """Nothing but equivariant weights are left where a strength is large, and all where it is 0."""
    hard = SoftEquivariantNormal(MIXED, VECTOR, [XY], [1e8])
    weight = hard.sample()
    projector = EquivariantProjector(MIXED, VECTOR, XY)
    assert float(projector.residual(weight)) < 1e-5
    assert float(hard.variance.sum()) == pytest.approx(projector.rank, rel=1e-6)
    free = SoftEquivariantNormal(MIXED, VECTOR, [XY], 0.0, 0.6)
    normal = dist.Normal(0.0, 0.6).expand(free.event_shape).to_event(2)
    torch.testing.assert_close(free.log_prob(weight), normal.log_prob(weight))


def data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    exact = torch.tensor([[1.0, 0.3, 0.0], [-0.3, 1.0, 0.0], [0.0, 0.0, -1.0]])
    noise = 0.5 * torch.randn(6, 3, generator=generator, dtype=torch.float64)
    return x.to(dtype), (x @ exact.mT + noise).to(dtype)


def posterior(x, y, prior, noise=0.5):
    """Mean and covariance of the flat weight, in closed form."""
    precision = prior.precision_matrix + torch.kron(torch.eye(3), x.T @ x) / noise**2
    covariance = torch.linalg.inv(precision)
    return covariance @ (y.T @ x).flatten() / noise**2, covariance


STRENGTHS = [2.0, 0.5]


def layer():
    return SoftEquivariantLinear(VECTOR, VECTOR, [XY, YZ], STRENGTHS, bias=False)


def model(x, y):
    weight = pyro.sample("weight", SoftEquivariantNormal(VECTOR, VECTOR, [XY, YZ], STRENGTHS))
    with pyro.plate("data", len(x)) as rows:
        pyro.sample("y", dist.Normal(x[rows] @ weight.mT, 0.5).to_event(1), obs=y[rows])


def of_layer(network):
    def run(x, y):
        with_mean = network(x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(with_mean, 0.5).to_event(1), obs=y)

    return run


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: model, lambda: of_layer(layer())], ids=["site", "layer"])
def test_nuts(make):
    """Of 800 draws, worth at least 400: 5 standard errors, one seed in 10,000."""
    x, y = data()
    mean, covariance = posterior(x, y, SoftEquivariantNormal(VECTOR, VECTOR, [XY, YZ], STRENGTHS))
    mcmc = MCMC(NUTS(make()), num_samples=200, warmup_steps=150, num_chains=4, seed=0)
    draws = mcmc.run(x, y).get_samples()["weight"].flatten(1)
    sd = covariance.diagonal().sqrt()
    assert float(((draws.mean(0) - mean) / sd).abs().max()) < 5 * (1 / 400) ** 0.5
    assert float((draws.std(0) / sd).log().abs().max()) < 5 * (1 / 800) ** 0.5


@pytest.mark.parametrize("guide", [AutoDelta, AutoNormal])
def test_guides(guide):
    """The mode is the penalized fit; a guide of independent normals has the same mean."""
    x, y = data()
    prior = SoftEquivariantNormal(VECTOR, VECTOR, [XY, YZ], STRENGTHS)
    mean, _ = posterior(x, y, prior)
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    network = layer()
    fitted = guide(of_layer(network))
    optimizer = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.985})
    svi = SVI(of_layer(network), fitted, optimizer, Trace_ELBO())
    for _ in range(250):
        svi.step(x, y)
    found = fitted.median()["weight"].flatten()
    tolerance = 1e-3 if guide is AutoDelta else 0.15
    torch.testing.assert_close(found, mean, atol=tolerance, rtol=0)
    draws = Predictive(network, guide=fitted, num_samples=3)(x)
    assert draws["weight"].shape[0] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((VECTOR, VECTOR, [O(3), O(2)], 1.0), r"groups\[1\] must act on 3 .* got O\(2\)"),
        (
            (VECTOR, TensorRep({1: 1}, dim=2), [O(3)], 1.0),
            r"groups\[0\] must act on the 2 dimensions of rep_out = 1T\(1\), got O\(3\)",
        ),
        (
            (VECTOR, VECTOR, [O(3)], torch.ones(2, 1), torch.ones(3)),
            r"base_scale must have the batch shape of strengths, which has \(2,\), got \(3,\)",
        ),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        SoftEquivariantNormal(*arguments)
