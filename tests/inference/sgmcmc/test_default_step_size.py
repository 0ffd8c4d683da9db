"""The default step size: draws are hardly too wide, and soon there, for any amount of data."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.inference import MCMC, PSGLD, SGHMC, SGLD, SGNHT

DECAY = 0.1  # of SGHMC by default


def location(x: Tensor, batch_size: int | None = None) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=batch_size) as index:
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])


def langevin(step_size: float, curvature: float, noise: float) -> tuple[float, float]:
    """Variance of draws over the posterior's, and the steps of an autocorrelation time."""
    excess = (1.0 + step_size * noise / 2.0) / (1.0 - step_size * curvature / 2.0)
    return excess, 1.0 / (step_size * curvature)


def preconditioned(step_size: float, curvature: float, noise: float) -> tuple[float, float]:
    gradient = math.sqrt(noise + curvature) / (curvature - 1.0)  # of an observation
    return langevin(step_size / gradient, curvature, noise)


def with_momentum(step_size: float, curvature: float, noise: float) -> tuple[float, float]:
    heat = 1.0 + step_size**2 * noise / (2.0 * DECAY)
    shape = 2.0 * (2.0 - DECAY) / (4.0 - 2.0 * DECAY - step_size**2 * curvature)
    return heat * shape, max(DECAY / (step_size**2 * curvature), 2.0 / DECAY)


@pytest.mark.parametrize(
    ("kernel_type", "theory"),
    [(SGLD, langevin), (PSGLD, preconditioned), (SGHMC, with_momentum)],
)
@pytest.mark.parametrize("size", [40, 4000])
@pytest.mark.parametrize("num_batches", [1, 4, 40])
def test_errors_are_bounded(kernel_type: Any, theory: Any, size: int, num_batches: int) -> None:
    """By the exact variance of the discretized chain, with independent noise of minibatches."""
    x = torch.linspace(-1.7, 1.7, size)  # with a variance of one
    batch_size = size // num_batches
    kernel = kernel_type(location)
    kernel.setup(0, x, batch_size)
    noise = size * (size - batch_size) / batch_size * float(x.var())
    excess, num_steps = theory(kernel.schedule.step_size, size + 1.0, noise)
    assert 1.0 < excess < 1.15
    assert num_steps < 25 + 6 * num_batches


@pytest.mark.parametrize("kernel_type", [SGLD, SGHMC, SGNHT])
def test_units_are_those_of_the_mass(kernel_type: Any) -> None:
    """A parameter in other units, of which the mass knows, takes the same steps."""
    x = torch.linspace(-1.7, 1.7, 60)

    def in_hundredths(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 100.0))
        with pyro.plate("data", len(x), subsample_size=20) as index:
            pyro.sample("x", dist.Normal(loc / 100.0, 1.0), obs=x[index])

    plain = kernel_type(location, backend="eager")
    other = kernel_type(in_hundredths, backend="eager", mass=1e-4)
    plain.setup(0, x, 20)
    other.setup(0, x)
    start = torch.tensor([0.5, -0.5])
    ends = [
        kernel.advance(kernel.begin(range(2), 0, {"loc": scale * start}), 20).position / scale
        for kernel, scale in ((plain, 1.0), (other, 100.0))
    ]
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)


def test_what_it_goes_by(subtests: pytest.Subtests) -> None:
    x = torch.linspace(-1.7, 1.7, 100)

    def no_plate(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x)]).to_event(1), obs=x)

    for name, kernel, args, wanted in (
        ("all data", SGLD(location), (x,), 0.05 / 100),
        ("data twice", SGLD(location), (torch.cat([x, x]),), 0.05 / 200),
        ("minibatches", SGLD(location), (x, 10), 0.2 / 10 / 100),
        ("cold minibatches", SGLD(location, temperature=0.1), (x, 10), 0.02 / 10 / 100),
        ("no temperature", SGLD(location, temperature=0.0), (x, 10), 0.05 / 100),
        ("momentum", SGHMC(location), (x, 10), (0.02 / 10 / 100) ** 0.5),
        ("friction", SGHMC(location, friction=30.0), (x,), 0.02),
        ("much friction", SGHMC(location, friction=1000.0), (x,), 1e-3),
        ("a thermostat", SGNHT(location), (x,), 0.1 / 100**0.5),
        ("no plate", SGHMC(no_plate), (x,), 1e-3),
        ("what is given", SGHMC(location, step_size=0.03), (x,), 0.03),
    ):
        with subtests.test(name):
            kernel.setup(0, *args)
            assert kernel.schedule.step_size == pytest.approx(wanted)
            assert kernel.diagnostics()["step_size"] == kernel.schedule.step_size
    thermostat = SGNHT(location)
    thermostat.setup(0, x)
    assert float(thermostat.begin([0], 0).state.thermostat) == 10.0
    assert SGNHT(location, friction=2.0).friction == 2.0


def test_a_potential_does_not_tell_its_data() -> None:
    kernel = SGHMC(potential_fn=lambda z: z["x"].square().sum())
    start = {"x": torch.zeros(2, 3)}
    mcmc = MCMC(kernel, 4, num_chains=2, initial_params=start, seed=0, progress=False).run()
    assert mcmc.sample_statistics()["step_size"].unique().tolist() == pytest.approx([1e-3])
