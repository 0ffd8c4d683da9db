"""Dynamics of constant speed: against the differential equation, and exact identities."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from pyro_ext.inference import MAMS, MCLMC, MCMC
from pyro_ext.inference.hmc.masses import Lengths
from pyro_ext.inference.hmc.trajectories import MicrocanonicalPaths, Settings, kick
from tests.inference.models import assert_mean

pytestmark = pytest.mark.usefixtures("float64")


def directions(number: int, size: int, seed: int) -> Tensor:
    vectors = torch.randn(number, size, generator=torch.Generator().manual_seed(seed))
    return vectors / vectors.norm(dim=-1, keepdim=True)


def test_kicks_solve_the_equation() -> None:
    """Direction and kinetic energy, for slopes weak and strong, forward and back."""
    size, step_size = 7, torch.tensor([0.3, 0.7, 1.1])
    start = directions(3, size, 0)
    slope = 5.0 * directions(3, size, 1) * torch.tensor([[1.0], [20.0], [1e-6]])
    turned, change = kick(start, slope, step_size)
    for row in range(3):
        own = slope[row]

        def rates(_: float, state: object, own: Tensor = own) -> Tensor:
            u = torch.as_tensor(state)[:size]
            along = u @ own
            return torch.cat([(own - along * u) / (size - 1), along[None]])

        begin = torch.cat([start[row], torch.zeros(1)])
        end = solve_ivp(rates, (0.0, float(step_size[row])), begin, rtol=1e-10, atol=1e-12).y[:, -1]
        expected = torch.as_tensor(end)
        torch.testing.assert_close(turned[row], expected[:size], rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(change[row], expected[size], rtol=1e-7, atol=1e-8)
    back, loss = kick(-turned, slope, step_size)
    torch.testing.assert_close(back, -start)
    torch.testing.assert_close(loss, -change)
    torch.testing.assert_close(kick(start, torch.zeros_like(start), step_size)[0], start)


def test_kicks_against_the_slope() -> None:
    """A direction nearly opposite to a slope so strong that it turns around all the way."""
    slope = torch.tensor([[300.0, 0.0, 0.0]])
    direction = torch.tensor([[-1.0, 1e-6, 0.0]])
    direction = direction / direction.norm()
    turned, change = kick(direction, slope, torch.ones(1))
    torch.testing.assert_close(turned, torch.tensor([[1.0, 0.0, 0.0]]))
    # Twice (delta - log 2 + log(1 + cosine)) with 1 + cosine = half the square of what is off.
    expected = 2.0 * (150.0 - math.log(2.0) + math.log(0.5e-12))
    torch.testing.assert_close(change, torch.tensor([expected]), rtol=1e-6, atol=0.0)


def quartic(position: Tensor) -> tuple[Tensor, Tensor]:
    return 0.25 * position.pow(4).sum(-1), position.pow(3)


@pytest.mark.statistical
@pytest.mark.parametrize("factor", [torch.ones(1, 4), torch.tensor([[0.5, 1.0, 1.0, 1.6]])])
def test_ratios_have_mean_one(factor: Tensor) -> None:
    """From exact draws the mean of exp(-energy error) is one whatever the step, and weighted means
    of squares are exact: 100,000 trajectories, within 4.5 standard errors (false alarms 3e-5)."""
    number, steps = 100_000, 3
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = dist.Gamma(0.25, 1.0).sample((number, 4))
    sign = 2.0 * torch.randint(2, (number, 4), generator=generator) - 1.0
    position = sign * (4.0 * size).pow(0.25)
    noise = torch.randn(number, 4, generator=generator)
    paths = MicrocanonicalPaths()
    path = paths.start(position, *quartic(position), noise)
    # As many steps for all: with a mean of two, the largest number is three.
    uniforms, mean = torch.full((number, 4), 0.999), torch.full((number,), 2.0)
    for _ in range(steps):
        path, has_ended, outcome, _ = paths.extend(
            path, quartic, uniforms, Settings(torch.full((number,), 0.45), factor, mean)
        )
    assert has_ended.all() and (outcome.num_steps == steps).all()
    value = quartic(path.point.position)[0]
    ratio = (path.origin.value - value - path.kinetic).exp()
    exact = 2.0 * math.gamma(0.75) / math.gamma(0.25)  # of a square
    squares = path.point.position.square().mean(-1)
    for found, wanted in ((ratio, 1.0), (ratio * squares, exact)):
        assert_mean(found, wanted)
    # The step is long enough for a mistake to show, and the error small enough.
    assert 0.1 < float(ratio.std()) < 10.0


def test_lengths_are_uniform() -> None:
    """Numbers of steps from one to twice the mean less one."""
    uniforms = torch.linspace(0.001, 0.999, 7)[:, None].expand(7, 4)
    zeros = torch.zeros(7, 2)
    paths = MicrocanonicalPaths()
    path = paths.start(zeros, zeros[:, 0], zeros, torch.ones(7, 2))
    settings = Settings(torch.full((7,), 0.1), torch.ones(1, 2), torch.full((7,), 4.0))
    path, *_ = paths.extend(path, quartic, uniforms, settings)
    assert path.length.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_lengths_follow_from_jumps() -> None:
    """Of an autoregressive sequence jumps are shorter by the root of one less its correlation."""
    number, correlation = 20_000, torch.tensor([0.0, 0.75, -0.3])[:, None]
    noise = torch.randn(number, 3, 2, generator=torch.Generator().manual_seed(0))
    draws = noise.clone()
    for step in range(1, number):
        draws[step] = correlation * draws[step - 1] + (1 - correlation**2).sqrt() * noise[step]
    draws = 5.0 + torch.tensor([0.01, 100.0]) * draws.repeat_interleave(2, 0)  # half are rejected
    begun = Lengths.begun(torch.full((3,), 8.0), draws[0])
    found = begun.with_draws(draws[0], draws[1:10_000]).with_draws(draws[9_999], draws[10_000:])
    late, after = found.adapted(is_late=True), found.adapted(is_late=False)
    expected = torch.tensor([8.0, 8.0 / math.sqrt(0.25), 8.0 / math.sqrt(1.3)])
    torch.testing.assert_close(late.mean_steps, expected, rtol=0.04, atol=0.0)
    # Half of the lengths that may be too long, which draws of half a turn or more do not tell.
    expected = torch.tensor([4.0, 8.0 / math.sqrt(0.25), 4.0])
    torch.testing.assert_close(after.mean_steps, expected, rtol=0.04, atol=0.0)
    assert (after.jumps == 0).all() and (after.draws.number == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(("correlation", "least", "most"), [(0.0, 0.7, 1.4), (0.9, 2.5, 25.0)])
def test_warm_up_finds_the_length(correlation: float, least: float, most: float) -> None:
    """A quarter of a period; more where an axis is 23 times longer than the masses know."""
    size = 60
    covariance = torch.full((size, size), correlation).fill_diagonal_(1.0)

    def model() -> None:
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(size), covariance))

    mcmc = MCMC(MAMS(model), 100, 400, num_chains=2, seed=0, progress=False).run()
    found = mcmc.sample_statistics()
    length = (found["n_steps"] * found["step_size"]).mean(-1)
    assert ((length > least * math.pi / 2) & (length < most * math.pi / 2)).all(), length


@pytest.mark.parametrize("kernel_type", [MAMS, MCLMC])
def test_chains_start_in_the_posterior(kernel_type: Any) -> None:
    """From where the strategy puts them, 3,000 standard deviations away, they would not arrive."""

    def model() -> None:
        pyro.sample("x", dist.Normal(torch.full((3,), 300.0), 0.1).to_event(1))

    kernel = kernel_type(model)
    kernel.setup(10)
    position = kernel.begin(range(2), 0).position
    assert ((position - 300.0).abs() < 0.6).all() and not torch.equal(position[0], position[1])


def test_one_unknown() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="at least two unknowns for MAMS.*got 1; use NUTS"):
        MAMS(model).setup(10)
