"""Chains that tune each other: exact moments, what tuning finds, backends, and one step."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference import MCMC, MEADS
from pyro_ext.inference.hmc.meads import _folds, _largest, _traces
from tests.inference.hmc.test_nuts import EXACT, data, regression, skewed
from tests.inference.models import assert_mean

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("step_size", [0.5, 1.2])
def test_moments(step_size: float) -> None:
    """Of 400 chains that start in equilibrium, with means of chains as independent numbers.

    Five moments within 4.5 standard errors: a false-alarm rate of 4e-5 for each step size. Others
    have tails that are too long for normal means of so few chains.
    """
    with torch.random.fork_rng():
        torch.manual_seed(1)
        gamma = dist.Gamma(2.0, 0.5).sample((400,))
        x, noise = torch.randn(2, 400)
    start = {"gamma": gamma, "x": x, "y": x**2 + 0.5 * noise}
    kernel = MEADS(skewed, step_size=step_size)
    mcmc = MCMC(kernel, 40, 20, 400, 10, initial_params=start, seed=0, progress=False).run()
    draws = mcmc.get_samples(group_by_chain=True)
    for name in ("gamma", "log gamma", "x", "x square", "y"):
        function, exact = EXACT[name]
        assert_mean(function(draws).mean(1), exact)
    rate = float(mcmc.sample_statistics()["acceptance_rate"].mean())
    assert 0.5 < rate < (0.95 if step_size > 1.0 else 1.0)


def test_tuning() -> None:
    """Of a normal distribution: its standard deviations, and half of a stable step's length."""
    scale = torch.tensor([0.01, 1.0, 100.0])

    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(3), scale).to_event(1))

    kernel = MEADS(model)
    kernel.setup(0)
    start = {"x": scale * torch.randn(400, 3, generator=torch.Generator().manual_seed(0))}
    chains = kernel.advance(kernel.begin(range(400), 0, start), 8)
    fold = torch.arange(400) % 4
    deviation, step_size, _ = kernel._tuned(chains.state, fold, torch.tensor(9))
    torch.testing.assert_close(deviation, scale.expand(400, 3), rtol=0.2, atol=0.0)
    torch.testing.assert_close(step_size, torch.full((400,), 0.5), rtol=0.25, atol=0.0)
    position = chains.state.position
    for k in range(4):  # from the fold before
        own = position[fold == (k - 1) % 4].std(0, correction=0)
        torch.testing.assert_close(deviation[fold == k][0], own)


@pytest.mark.statistical
@pytest.mark.parametrize("is_centered", [False, True])
def test_traces_have_no_bias(is_centered: bool) -> None:
    """Of skewed numbers, 8 vectors of 40 in a fold, of which one does not count.

    Within 4.5 standard errors of 4,000 folds: a false-alarm rate of 3e-5 for four numbers.
    """
    scale = torch.linspace(0.2, 2.0, 40)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.empty(4_000, 8, 40).exponential_(generator=generator).sub(1.0) * scale
    members = torch.ones(4_000, 1, 8)
    members[..., -1] = 0.0
    if is_centered:
        vectors = vectors - vectors[:, :-1].mean(1, keepdim=True)
    found = torch.vmap(lambda v, m: _traces(v, m, is_centered=is_centered))(vectors, members)
    for values, power in zip(found, (2, 4), strict=True):
        assert_mean(values, (scale**power).sum())


@pytest.mark.statistical
@pytest.mark.parametrize("is_centered", [False, True])
def test_the_largest_eigenvalue_of_few_vectors(is_centered: bool) -> None:
    """Of 16 standard normal vectors a fold it is one however long these are, not one and d / 16.

    Within 4.5 standard errors, of the 120 pairs with a coefficient of variation of the square root
    of two: a false-alarm rate of 3e-5 for four.
    """
    vectors = torch.randn(64, 400, generator=torch.Generator().manual_seed(0))
    members = (torch.arange(4)[:, None] == torch.arange(64) // 16).double()
    if is_centered:
        vectors = vectors - ((members @ vectors) / 16.0).repeat_interleave(16, 0)
    found = _largest(vectors, members, is_centered=is_centered)
    torch.testing.assert_close(found, torch.ones(4), rtol=4.5 * (2.0 / 120.0) ** 0.5, atol=0.0)
    alone = _largest(vectors, torch.eye(64)[:4], is_centered=is_centered)  # no pair
    assert bool((alone > 0).all())


@pytest.mark.slow
def test_backends() -> None:
    ends = []
    for backend in ("trace", "compile"):
        kernel = MEADS(regression, backend=backend)
        kernel.setup(0, *data())
        ends.append(kernel.advance(kernel.begin(range(16), 0), 60).position)
    torch.testing.assert_close(*ends)


def test_one_step() -> None:
    """A fold stands still; where a proposal is taken the height of the slice stays what it was."""
    kernel = MEADS(regression, step_size=1.0)
    kernel.setup(0, *data())
    state = kernel.advance(kernel.begin(range(128), 0), 41).state
    number = torch.tensor(42)
    fold = _folds(state.keys, number, torch.float64)
    _, step_size, damping = kernel._tuned(state, fold, number)
    noise = torch.zeros_like(state.position)
    with torch.no_grad():
        after, _ = kernel._step(state, kernel.potential.gradient.over_any, noise)
    is_still = fold == 42 % 4
    assert is_still.sum() == 32
    for name in ("position", "momentum", "slice", "value"):
        same = getattr(after, name) == getattr(state, name)
        assert bool(same[is_still].all()) and not bool(same[~is_still].all()), name
    renewed = 1.0 - torch.exp(-2.0 * step_size * damping)
    momentum = (1.0 - renewed).sqrt()[:, None] * state.momentum
    before = torch.remainder(state.slice + 1.0 + 0.5 * renewed, 2.0) - 1.0
    taken = (after.position != state.position).all(-1)
    energies = [
        s.value + 0.5 * m.square().sum(-1) for s, m in ((state, momentum), (after, after.momentum))
    ]
    heights = [u.abs().log() - e for u, e in zip((before, after.slice), energies, strict=True)]
    assert 32 < taken.sum() < 96
    torch.testing.assert_close(heights[1][taken], heights[0][taken])
    rejected = ~taken & ~is_still
    torch.testing.assert_close(after.momentum[rejected], -momentum[rejected])
