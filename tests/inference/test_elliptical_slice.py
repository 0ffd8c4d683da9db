"""Moves along ellipses: exact posteriors, priors of every kind, and what is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.distributions import GaussianRandomWalk, ZeroSumNormal
from pyro_ext.inference import MCMC, NUTS, ConditionalUpdate, EllipticalSlice, Gibbs
from pyro_ext.inference.gibbs.conditional_updates import elliptical_slice
from tests.inference.models import assert_mean

pytestmark = pytest.mark.usefixtures("float64")

TIMES = torch.linspace(0.0, 3.0, 6, dtype=torch.float64)
COVARIANCE = (-0.5 * (TIMES[:, None] - TIMES).square()).exp() + 1e-4 * torch.eye(
    6, dtype=torch.float64
)
Y = torch.tensor([0.4, 1.0, 1.1, 0.2, -0.9, -1.2], dtype=torch.float64)


@pytest.mark.statistical
def test_the_posterior_is_left_as_it_is() -> None:
    """20,000 exact draws stay so: of a normal posterior, means and squares of its three coordinates
    within 4.5 standard errors, false alarms 7e-6 each."""
    number = 20_000
    generator = torch.Generator().manual_seed(0)
    prior = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
    center, y, noise = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([2.0, 0.0, 1.0]), 0.3
    gain = prior @ torch.linalg.inv(prior + noise * torch.eye(3))
    mean, covariance = center + gain @ (y - center), prior - gain @ prior
    factor = torch.linalg.cholesky(covariance)
    start = mean + torch.randn(number, 3, generator=generator) @ factor.mT
    root = torch.linalg.cholesky(prior)
    draw = center + torch.randn(number, 3, generator=generator) @ root.mT

    def log_likelihood(position: torch.Tensor) -> torch.Tensor:
        return -0.5 * (position - y).square().sum(-1) / noise

    uniforms = torch.rand(number, 64, generator=generator)
    moved = elliptical_slice(log_likelihood, start, center.expand(number, 3), draw, uniforms)
    assert (moved != start).any(-1).all()
    standard = torch.linalg.solve_triangular(factor, (moved - mean).mT, upper=False)
    for values, exact in ((standard, 0.0), (standard.square(), 1.0)):
        assert_mean(values.mT, exact)


def process() -> None:
    f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(6), COVARIANCE))
    pyro.sample("y", dist.Normal(f, 0.3).to_event(1), obs=Y)


class OneByOne(EllipticalSlice):
    """Its update for a single chain in Python."""


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("block", "number"),
    [(EllipticalSlice, 500), pytest.param(OneByOne, 150, marks=pytest.mark.slow)],
)
def test_a_gaussian_process(block: type[ConditionalUpdate], number: int) -> None:
    """Regression, exact by linear algebra; means within a quarter, deviations within a third of
    these, six standard errors of a hundred effective draws and more."""
    kernel = Gibbs([(block(), ["f"])], model=process)
    mcmc = MCMC(kernel, number, 50, num_chains=4, seed=0, progress=False).run()
    draws = mcmc.get_samples()["f"]
    gain = COVARIANCE @ torch.linalg.inv(COVARIANCE + 0.09 * torch.eye(6))
    scale = (COVARIANCE - gain @ COVARIANCE).diagonal().sqrt()
    assert ((draws.mean(0) - gain @ Y).abs() < 0.35 * scale).all()
    assert ((draws.std(0) / scale - 1.0).abs() < 0.3).all()


def effects() -> None:
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    walk = pyro.sample("walk", GaussianRandomWalk(scale, 6))
    group = pyro.sample("group", ZeroSumNormal(1.0, (3,)))
    with pyro.plate("data", 6):
        noise = pyro.sample("noise", dist.Normal(torch.arange(6.0), 0.1))
        pyro.sample("y", dist.Normal(walk + group.repeat(2) + noise, 0.5), obs=Y)


@pytest.mark.slow
@pytest.mark.statistical
def test_priors_that_other_blocks_move() -> None:
    """Walk, effects that sum to zero and a plate beside NUTS on the scale: as NUTS on all of them,
    whose means differ by at most six standard errors of 40 effective draws."""
    blocks = [(NUTS(effects), ["scale"]), (EllipticalSlice(), ["walk", "group", "noise"])]
    found = MCMC(Gibbs(blocks), 250, 80, 4, seed=0, progress=False).run().get_samples()
    exact = MCMC(NUTS(effects), 400, 300, 4, seed=0, progress=False).run().get_samples()
    torch.testing.assert_close(found["group"].sum(-1), torch.zeros(1000), atol=1e-8, rtol=0.0)
    for name, values in found.items():
        error = exact[name].std(0) / math.sqrt(40.0)
        assert ((values.mean(0) - exact[name].mean(0)).abs() < 6.0 * error).all(), name


def test_refused_priors() -> None:
    def gamma() -> None:
        pyro.sample("x", dist.Gamma(1.0, 1.0))

    def masked() -> None:
        with pyro.poutine.mask(mask=torch.tensor(True)):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    for model, message in ((gamma, "must have a normal prior.*got Gamma"), (masked, "has a mask")):
        with pytest.raises(ValueError, match=message):
            Gibbs([(EllipticalSlice(), ["x"])], model=model).setup(0)
