"""Trajectories whose length many chains find: its criterion, what it finds, and broken chains."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference import MCMC, MEADS, ChEES
from pyro_ext.inference.hmc.chees import criterion_slope
from tests.inference.hmc.test_nuts import data, regression

pytestmark = pytest.mark.usefixtures("float64")


def test_slope_of_the_criterion() -> None:
    """Of exact trajectories of a normal distribution, with each its mirror image: both centers are
    zero, and the slope is the derivative of the criterion."""
    position, momentum = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    position, momentum = (torch.cat([each, -each]) for each in (position, momentum))
    log_time = torch.tensor(0.3, requires_grad=True)
    after = position * log_time.exp().cos() + momentum * log_time.exp().sin()
    growth = after.square().sum(-1) - position.square().sum(-1)
    (expected,) = torch.autograd.grad(0.25 * growth.square().mean(), log_time)
    time = log_time.detach().exp()
    end = momentum * time.cos() - position * time.sin()
    found = criterion_slope(position, after.detach(), end, torch.ones(100), time[None])
    torch.testing.assert_close(found, expected[None])
    # Chains that do not count may be anything.
    broken = position.clone()
    broken[[0, 50]] = math.nan
    rate = (~broken.isnan()).any(-1).double()
    kept = torch.arange(100) % 50 > 0
    of_rest = criterion_slope(position[kept], after.detach()[kept], end[kept], rate[kept], time)
    torch.testing.assert_close(
        criterion_slope(broken, after.detach(), end, rate, time[None]), of_rest[None].reshape(1)
    )


def normal() -> None:
    scale = torch.tensor([0.01, 1.0, 30.0]).repeat(10)
    pyro.sample("x", dist.Normal(torch.zeros(30), scale).to_event(1))


def test_adaptation() -> None:
    """Of a normal distribution the best length is the root of tan 2T = 2T, 2.25 of its scale."""
    kernel = ChEES(normal, backend="trace")
    kernel.setup(300)
    chains = kernel.advance(kernel.begin(range(32), 0), 300)
    state = chains.state
    assert 1.6 < float(state.search.log_length.exp()) < 3.0
    scale = state.chains.factor[0].square().sum(-1).sqrt()
    assert (scale.reshape(10, 3).mean(0) / torch.tensor([0.01, 1.0, 30.0]) - 1.0).abs().max() < 0.1
    later = kernel.advance(chains, 20).state
    assert torch.equal(later.search.log_length, state.search.log_length)
    assert torch.equal(later.chains.factor, state.chains.factor)


def test_draws_do_not_depend_on_other_chains() -> None:
    """Once nothing adapts."""
    kernel = ChEES(regression, step_size=0.05, adapt_step_size=False, trajectory_length=0.3)
    kernel.setup(0, *data())
    many, few = (kernel.begin(range(number), 0) for number in (12, 8))
    with torch.no_grad():
        factor = many.state.chains.factor
    assert factor.shape[0] == 1
    many, few = (kernel.advance(chains, 5) for chains in (many, few))
    torch.testing.assert_close(many.position[:8], few.position)


@pytest.mark.parametrize(("kernel_type", "number"), [(ChEES, 8), (MEADS, 16)])
def test_chains_that_tune_each_other(kernel_type: Any, number: int) -> None:
    """A broken one does the others no harm; fewer are refused."""
    kernel = kernel_type(regression)
    kernel.setup(40, *data())
    params = kernel.potential.layout.unflatten(kernel.begin(range(number), 0).position.clone())
    params["scale"][3] = math.nan
    chains = kernel.advance(kernel.begin(range(number), 0, params), 40)
    finite = chains.position.isfinite().all(-1)
    assert finite.sum() == number - 1 and not finite[3]
    assert 0.3 < float(kernel.statistics(chains)["acceptance_rate"][finite].mean())
    with pytest.raises(ValueError, match=f"num_chains must be >= {number}, all run together.*4"):
        MCMC(kernel, 5, num_chains=4, progress=False).run(*data())
