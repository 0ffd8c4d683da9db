"""Hamiltonian Monte Carlo in Laplace coordinates: exactness at any step, starts, runs, errors."""

import math
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MCMC
from pyro_ext.inference.hmc.laplace_hmc import LaplaceHMC
from pyro_ext.inference.pseudocoresets import AutoPseudocoreset
from pyro_ext.posterior import ConvergenceWarning
from tests.inference.models import assert_mean
from tests.inference.pseudocoresets.coreset_models import labeled, location, logistic, points

pytestmark = pytest.mark.usefixtures("float64")


def skewed() -> None:
    """A gamma distribution, far from a Gaussian even in the logarithm, and a correlated pair."""
    pyro.sample("scale", dist.Gamma(0.8, 0.5))
    covariance = torch.tensor([[1.0, 1.9], [1.9, 4.0]])
    pyro.sample("pair", dist.MultivariateNormal(torch.tensor([1.0, -1.0]), covariance))


def run(model: Any, num_samples: int, num_chains: int, *args: Any, **options: Any) -> MCMC:
    kernel = LaplaceHMC(model, **options)
    mcmc = MCMC(kernel, num_samples, 20, num_chains=num_chains, seed=0, progress=False)
    return mcmc.run(*args)


@pytest.mark.statistical
@pytest.mark.parametrize("options", [{}, {"num_steps": 1, "trajectory_length": 1.4}])
def test_moments(options: Any) -> None:
    """Moments of 200 chains of 200 draws, within 4.5 standard errors from the means of chains.

    Six numbers and two settings: false-alarm rate 1e-4. With one coarse step a fifth of the
    proposals and more is lost, and the test would notice draws that are taken as they come.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # some are long in the tail
        mcmc = run(skewed, 200, 200, **options)
    draws = mcmc.get_samples(group_by_chain=True)
    scale, pair = draws["scale"], draws["pair"]
    centred = pair - torch.tensor([1.0, -1.0])
    for values, exact in (
        (scale, 1.6),
        (scale.square(), 0.8 * 1.8 / 0.25),
        (scale.log(), float(torch.digamma(torch.tensor(0.8))) + math.log(2.0)),
        (pair[..., 0], 1.0),
        (centred[..., 1].square(), 4.0),
        (centred.prod(-1), 1.9),
    ):
        assert_mean(values.mean(1), exact)
    rate = float(mcmc.sample_statistics()["acceptance_rate"].mean())
    assert rate < 0.8 if options else rate > 0.8


@pytest.mark.statistical
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_parameters_on_different_scales(dtype: torch.dtype) -> None:
    """Standard deviations of 1e-5 and 10 from 4 chains of 200 draws, within 5 standard errors.

    The draws are worth 800 or more, so that an error of a ratio is 0.025. Eight numbers:
    false-alarm rate 5e-6.
    """

    def model() -> None:
        pyro.sample("small", dist.Normal(torch.zeros((), dtype=dtype), 1e-5))
        pyro.sample("large", dist.Normal(torch.zeros((), dtype=dtype), 10.0))

    draws = run(model, 200, 4).get_samples()
    for name, scale in (("small", 1e-5), ("large", 10.0)):
        assert abs(float(draws[name].std()) / scale - 1.0) < 0.125
        assert abs(float(draws[name].mean()) / scale) < 0.18


@pytest.mark.statistical
def test_regression_on_incomes() -> None:
    """A column of mean 50,000: standard deviations within 5 standard errors of the Laplace ones.

    That approximation is near enough: 2000 rows leave a skewness of about 0.05. The 1600 draws are
    worth half of their number or more, so that the error of a ratio is 0.025. Six numbers:
    false-alarm rate 3e-6.
    """
    generator = torch.Generator().manual_seed(0)
    income = 50_000.0 + 20_000.0 * torch.randn(2000, generator=generator)
    x = torch.stack([income, torch.randn(2000, generator=generator), torch.ones(2000)], 1)
    logits = x @ torch.tensor([1 / 20_000, 1.0, -2.5])
    y = (torch.rand(2000, generator=generator) < logits.sigmoid()).double()
    mode, prior = torch.tensor([1 / 20_000, 1.0, -2.5]), torch.eye(3) / 4.0
    for _ in range(20):
        share = (x @ mode).sigmoid()
        hessian = (x * (share * (1 - share))[:, None]).mT @ x + prior
        mode = mode - torch.linalg.solve(hessian, x.mT @ (share - y) + prior @ mode)
    exact = hessian.inverse().diagonal().sqrt()
    draws = run(logistic, 200, 8, x, y).get_samples()["weight"]
    assert bool(((draws.std(0) / exact - 1.0).abs() < 0.125).all())
    assert bool(((draws.mean(0) - mode).abs() / exact < 0.18).all())


def test_draws_are_hardly_correlated() -> None:
    """On a Gaussian, correlated or not: neighbours in a chain have a correlation below 0.2."""
    mcmc = run(location, 300, 10, points(), num_steps=6)
    draws = mcmc.get_samples(group_by_chain=True)["mean"]
    centred = (draws - draws.mean((0, 1))) / draws.std((0, 1))
    assert float((centred[:, 1:] * centred[:, :-1]).mean().abs()) < 0.2
    assert float(mcmc.sample_statistics()["acceptance_rate"].mean()) > 0.98


def test_chains_start_at_the_mode() -> None:
    x, y = labeled(4000)
    kernel = LaplaceHMC(logistic)
    kernel.setup(0, x, y)
    positions = kernel.begin(range(500), 0).position
    rows = kernel.potential.layout.unflatten(positions)
    energy = kernel.potential(rows)
    lowest = float(energy.min())
    assert float((energy - lowest).mean()) == pytest.approx(1.5, abs=0.3)
    assert positions.std(0).max() < 0.2
    given = {"weight": torch.ones(2, 3)}
    assert torch.equal(kernel.begin(range(2), 0, given).position, given["weight"])


def test_kernel_of_a_guide() -> None:
    x, y = labeled()
    guide = AutoPseudocoreset(logistic, x, y, size=10, weights="scaled", seed=0)
    assert guide.kernel is LaplaceHMC
    mcmc = guide.sample_posterior(10, warmup_steps=2, num_chains=3)
    assert to_arviz(mcmc).posterior["weight"].shape == (3, 10, 3)
    statistics = mcmc.sample_statistics()
    assert statistics["acceptance_rate"].shape == (3, 10)
    assert float(statistics["step_size"][0, 0]) == pytest.approx(0.5)


def test_a_function() -> None:
    """A potential without a model: a Gaussian with variance two."""
    kernel = LaplaceHMC(potential_fn=lambda z: 0.25 * z["x"].square().sum())
    start = {"x": torch.full((2, 3), 5.0)}
    mcmc = MCMC(kernel, 500, 20, num_chains=2, initial_params=start, seed=0, progress=False)
    draws = mcmc.run().get_samples()["x"]
    assert float(draws.var()) == pytest.approx(2.0, rel=0.2)


def test_a_function_that_is_not_finite_at_its_start() -> None:
    kernel = LaplaceHMC(potential_fn=lambda z: z["x"].log().sum())
    mcmc = MCMC(kernel, 5, 5, initial_params={"x": torch.tensor(-1.0)}, progress=False)
    with pytest.raises(ValueError, match="^initial_params must have a finite potential .* nan"):
        mcmc.run()


def test_a_posterior_far_from_a_gaussian() -> None:
    """A wall that no curvature tells of: few proposals are taken, and a warning says so."""

    def wall() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        pyro.factor("wall", -1e9 * (z.abs() - 0.02).relu().sum())

    with pytest.warns(UserWarning, match="the posterior is far from a Gaussian"):
        LaplaceHMC(wall).setup(0)


def test_errors() -> None:
    def subsampling(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=5) as index:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[index])

    with pytest.raises(ValueError, match=r"model must see all of its data.*\['data'\]"):
        LaplaceHMC(subsampling).setup(0, torch.zeros(20))
    with pytest.raises(RuntimeError, match=r"call setup"):
        LaplaceHMC(skewed).begin(range(1), 0)
