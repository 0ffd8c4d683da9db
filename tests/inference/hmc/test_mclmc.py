"""Steps without an accept step: published errors and biases, what tuning finds, undone steps."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.inference import MCLMC, MCMC
from pyro_ext.inference.hmc.adaptation import new_moments
from pyro_ext.inference.hmc.mclmc import MicrocanonicalState, Tuning

pytestmark = pytest.mark.usefixtures("float64")

SCALE = torch.logspace(-2.0, 2.0, 30, dtype=torch.float64)


def wide() -> None:
    """Scales from a hundredth to a hundred."""
    pyro.sample("x", dist.Normal(torch.zeros(30), SCALE).to_event(1))


def standard(position: Tensor) -> tuple[Tensor, Tensor]:
    return 0.5 * position.square().sum(-1), position


def state_at(position: Tensor, step_size: float) -> MicrocanonicalState:
    value, gradient = standard(position)
    direction = torch.randn_like(position)
    settings = (torch.full_like(value, step_size), torch.ones_like(value))
    return MicrocanonicalState(
        position,
        direction / direction.norm(dim=-1, keepdim=True),
        gradient,
        torch.ones_like(position),
        value,
        torch.zeros_like(value),
        value < 0,
        *settings,
    )


@pytest.mark.statistical
@pytest.mark.parametrize(("step_size", "published"), [(0.4, 2.7e-5), (0.8, 1.7e-3)])
def test_errors_of_the_energy(step_size: float, published: float) -> None:
    """Mean squares per dimension, of exact draws in 100 dimensions: the numbers of two digits that
    stand in the literature, within 5 % and 4.5 standard errors of 20,000 steps."""
    kernel = MCLMC(wide)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        position = torch.randn(20_000, 100)
        state, _ = kernel._step(state_at(position, step_size), standard, torch.randn(20_000, 100))
    squares = state.energy_error.square() / 100.0
    noise = 4.5 * float(squares.std()) / len(squares) ** 0.5
    assert abs(float(squares.mean()) - published) < 0.05 * published + noise


@pytest.mark.statistical
def test_bias() -> None:
    """Of variances in ten dimensions: .0364 with steps of .65, a fourth of it with half as long
    ones, within 4.5 standard errors of 4,000 chains."""
    kernel = MCLMC(wide)
    for step_size, published, number in ((0.65, 0.0364, 40), (0.325, 0.0090, 80)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            state, sums = state_at(torch.randn(4_000, 10), step_size), torch.zeros(4_000)
            for step in range(3 * number):
                state, _ = kernel._step(state, standard, torch.randn(4_000, 10))
                if step >= number:
                    sums += state.position.square().mean(-1) / (2 * number)
        noise = 4.5 * float(sums.std()) / len(sums) ** 0.5
        assert abs(float(sums.mean()) - 1.0 - published) < 0.1 * published + noise
        assert noise < 0.6 * published


@pytest.mark.slow
def test_tuning() -> None:
    """Scales are those of the posterior, and errors of the energy what they shall be."""
    kernel = MCLMC(wide, backend="trace")
    kernel.setup(400)
    chains = kernel.begin(range(3), 0)
    assert (chains.position / SCALE).abs().max() < 10.0  # from the optimizer's path
    chains = kernel.advance(chains, 400)
    state = chains.state.chains
    torch.testing.assert_close(state.scale, SCALE.expand(3, 30), rtol=0.2, atol=0.0)
    _, draws = kernel.record(chains, range(401, 801))
    error = draws.state.energy_error.square().mean(0) / 30.0
    assert ((error > 2e-4) & (error < 1.2e-3)).all(), error
    assert (draws.state.step_size == state.step_size).all()
    # Directions are kept for longer than a step, and not for longer than it takes to turn around.
    assert ((state.length > state.step_size) & (state.length < 10.0)).all(), state.length


def test_length() -> None:
    """Four tenths of what steps take to forget a position, (1 + a) / (1 - a) of them where each is
    a times the one before plus noise: within 15 %, for the mean of 400 coordinates."""
    kernel, kept = MCLMC(wide), 0.8
    kernel._end_of_search, kernel._warmup_steps = 0, 4_000
    state = state_at(torch.zeros(2, 400), 0.3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        moments = new_moments(state.position)
        shape, zero = new_moments(state.position.repeat(1, 2)), torch.zeros_like(state.value)
        tuning = Tuning(zero, zero, zero, shape, moments, moments, torch.zeros(2, 400))
        position = torch.randn(2, 400)
        for step in range(4_000):
            position = kept * position + (1.0 - kept**2) ** 0.5 * torch.randn(2, 400)
            tuning = kernel._seen(tuning, state._replace(position=position), step)
    found = kernel._tuned(state, tuning, 4_000)[0].length
    expected = 0.4 * 0.3 * (1.0 + kept) / (1.0 - kept)
    torch.testing.assert_close(found, torch.full((2,), expected), rtol=0.15, atol=0.0)


def test_directions_lose_their_memory() -> None:
    """Without a slope their cosine after n steps is exp(-n * step size / length), in 1,000
    dimensions within 4.5 standard errors of 2,000 chains."""
    kernel = MCLMC(wide)

    def flat(position: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(position)), torch.zeros_like(position)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = state_at(torch.zeros(2_000, 1_000), 0.2)
        state = state._replace(gradient=torch.zeros(2_000, 1_000), length=torch.full((2_000,), 0.5))
        first = state.direction
        for _ in range(3):
            state, _ = kernel._step(state, flat, torch.randn(2_000, 1_000))
    cosine = (first * state.direction).sum(-1)
    noise = 4.5 * float(cosine.std()) / len(cosine) ** 0.5
    assert abs(float(cosine.mean()) - math.exp(-3 * 0.2 / 0.5)) < noise + 2e-3


def test_a_warmup_that_stops() -> None:
    """Settings do not depend on where a run stops between two of their updates."""
    kernel, start = MCLMC(wide), {"x": SCALE.expand(2, 30)}
    kernel.setup(40)
    whole = kernel.advance(kernel.begin([0, 1], 0, start), 45)
    chains = kernel.begin([0, 1], 0, start)
    for step in (5, 13, 22, 29, 45):
        chains = kernel.advance(chains, step - chains.step)
    for name, value in whole.state.chains._asdict().items():
        assert torch.equal(getattr(chains.state.chains, name), value), name


def test_settings_that_are_given() -> None:
    options = {"adapt_step_size": False, "adapt_mass_matrix": False, "decoherence_length": 2.0}
    kernel = MCLMC(wide, step_size=0.003, **options)
    assert not kernel.adapts and MCLMC(wide).adapts
    kernel.setup(20)
    state = kernel.advance(kernel.begin([4], 0, {"x": SCALE[None]}), 25).state.chains
    assert float(state.step_size) == 0.003 and float(state.length) == 2.0
    assert (state.scale == 1.0).all()


def test_steps_that_lead_out() -> None:
    """Are undone, marked as divergences, and make steps shorter in the warm-up."""

    def boxed(z: dict[str, Tensor]) -> Tensor:
        x = z["x"]
        return x.square().sum() + torch.where((x.abs() < 1.0).all(), 0.0, torch.inf)

    kernel = MCLMC(potential_fn=boxed, step_size=0.5, adapt_mass_matrix=False)
    kernel.initial_params = {"x": torch.zeros(4)}
    kernel.setup(40)
    chains, draws = kernel.record(kernel.begin([0], 0, {"x": torch.zeros(1, 4)}), range(1, 41))
    diverging = draws.state.diverging[:, 0]
    assert 0 < diverging.sum() < 40
    assert (draws.position.abs() < 1.0).all()
    before = torch.cat([torch.zeros(1, 4), draws.position[:-1, 0]])
    assert ((draws.position[:, 0] == before).all(-1) == diverging).all()
    assert float(chains.state.chains.step_size) < 0.5


def test_warnings_and_refusals() -> None:
    mcmc = MCMC(MCLMC(wide, backend="trace"), 5, 10, num_chains=1, seed=0, progress=False)
    with pytest.warns(UserWarning, match="draws of MCLMC are biased"):
        mcmc.run()

    def one() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="at least two unknowns for MCLMC.*got 1; use NUTS"):
        MCLMC(one).setup(10)
    with pytest.raises(ValueError, match="warmup_steps must be >= 1 for MCLMC"):
        MCLMC(wide).setup(0)
