"""Independence Metropolis with a fitted proposal: exactness, starts, runs, errors."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import init_to_value

from pyro_ext.inference import MCMC, IndependenceMetropolis
from pyro_ext.potential.graph_capture import Gradient
from pyro_ext.testing.kernels import check_kernel
from tests.inference.models import assert_mean

pytestmark = pytest.mark.usefixtures("float64")

X = torch.linspace(-2.0, 2.0, 50).double()


def curved() -> None:
    """A heavy-tailed gamma variable in the logarithm, and a pair that lies on a parabola."""
    pyro.sample("scale", dist.Gamma(0.8, 0.5))
    first = pyro.sample("first", dist.Normal(0.0, 1.0))
    pyro.sample("second", dist.Normal(first.square(), 1.0))


def two_modes() -> None:
    weights = torch.tensor([0.7, 0.3])
    parts = dist.Normal(torch.tensor([-4.0, 4.0]), torch.tensor([0.5, 1.0]))
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), parts))


def regression(x: torch.Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, scale), obs=x)


def run(model: Any, num_samples: int, num_chains: int, *args: Any, **options: Any) -> MCMC:
    kernel = IndependenceMetropolis(model, **options)
    mcmc = MCMC(kernel, num_samples, 20, num_chains=num_chains, seed=0, progress=False)
    return mcmc.run(*args)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("local_fraction", [0.25, 0.9])
def test_moments(local_fraction: float) -> None:
    """Moments of 50 chains of 200 draws, within 4.5 standard errors from the means of chains.

    Six numbers and two settings: false-alarm rate 1e-4. Half of the proposals are lost, and the
    test would notice draws that are taken as they come.
    """
    mcmc = run(curved, 200, 50, local_fraction=local_fraction)
    draws = mcmc.get_samples(group_by_chain=True)
    first, rest = draws["first"], draws["second"] - draws["first"].square()
    for values, exact in (
        (draws["scale"], 1.6),
        (draws["scale"].log(), float(torch.digamma(torch.tensor(0.8))) + math.log(2.0)),
        (first, 0.0),
        (first.square(), 1.0),
        (rest, 0.0),
        (rest.square(), 1.0),
    ):
        assert_mean(values.mean(1), exact)
    assert 0.2 < float(mcmc.sample_statistics()["acceptance_rate"].mean()) < 0.7


@pytest.mark.statistical
def test_modes_have_their_shares() -> None:
    """The share of the wider mode from 100 chains, within 5 standard errors: one in 10^6."""
    draws = run(two_modes, 100, 100).get_samples(group_by_chain=True)["x"]
    assert_mean((draws > 0.0).double().mean(1), 0.3, most=5.0)
    assert float((draws[:, 1:].sign() != draws[:, :-1].sign()).double().mean()) > 0.1


def test_mixtures_have_their_density() -> None:
    """The density of a population in one dimension, against its integral and its draws."""
    kernel = IndependenceMetropolis(two_modes, num_points=32)
    kernel.setup(0)
    positions = torch.linspace(-400.0, 400.0, 400_001)[:, None]
    density = kernel.population.log_density(positions).exp()
    density /= density.sum()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = kernel.population.sample(20_000)[:, 0]
    for point in (-5.0, -4.0, 0.0, 3.0, 5.0):
        expected = float(density[positions[:, 0] <= point].sum())
        found = float((draws <= point).double().mean())
        assert abs(found - expected) < 5.0 * math.sqrt(0.25 / 20_000)


def test_laws_of_kernels() -> None:
    options, laws = {"num_points": 64}, ["settings", "draws", "drivers"]
    check_kernel(IndependenceMetropolis, regression, X, options=options, checks=laws)


@pytest.mark.slow
def test_compiled_draws() -> None:
    kinds = [run(regression, 50, 2, X, backend=name) for name in ("trace", "compile")]
    torch.testing.assert_close(*(each.get_samples()["scale"] for each in kinds))


def test_no_gradient_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graph would be several times as large, and its draws need no check of their width."""

    def gradient(*arguments: Any) -> None:
        raise AssertionError("a gradient was taken")

    monkeypatch.setattr(Gradient, "__call__", gradient)
    assert len(run(curved, 50, 8).get_samples()["scale"]) == 400


def test_functions() -> None:
    kernel = IndependenceMetropolis(potential_fn=lambda z: 0.25 * z["x"].square().sum())
    start = {"x": torch.full((2, 3), 5.0)}
    mcmc = MCMC(kernel, 500, 20, num_chains=2, initial_params=start, seed=0, progress=False)
    assert float(mcmc.run().get_samples()["x"].var()) == pytest.approx(2.0, rel=0.2)


def test_a_start_at_one_value_is_left(subtests: Any) -> None:
    """Also where the posterior is narrow: a population of equal points would stay there."""
    for scale in (0.1, 0.001):
        with subtests.test(scale=scale):

            def narrow(scale: float = scale) -> None:
                value = pyro.sample("value", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.factor("data", -0.5 * ((value - 0.3) / scale).square().sum())

            start = init_to_value(values={"value": torch.full((2,), 0.3 + 2.0 * scale)})
            kernel = IndependenceMetropolis(narrow, num_points=64, init_strategy=start)
            kernel.setup(0)
            spread = kernel.population.points.std(0) / scale
            assert ((spread > 0.5) & (spread < 2.0)).all()


def test_many_parameters_are_warned_about() -> None:
    def model() -> None:
        scale = torch.logspace(0.0, 3.0, 40)
        value = pyro.sample("x", dist.Normal(torch.zeros(40), scale).to_event(1))
        pyro.factor("ridge", -10.0 * value.sum().square())

    with pytest.warns(UserWarning, match="too many parameters"):
        IndependenceMetropolis(model, num_points=32).setup(0)


def test_wrong_arguments() -> None:
    def subsampled() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 10, subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.zeros(10)[rows])

    with pytest.raises(RuntimeError, match="call setup"):
        _ = IndependenceMetropolis(curved).population
    with pytest.raises(ValueError, match="must see all of its data"):
        IndependenceMetropolis(subsampled).setup(0)
