"""A chain that dies, whatever of, leaves the others alone and keeps its draws."""

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, NUTS

from pyro_ext.checkpoint import Checkpoint
from pyro_ext.inference import MCMC, SGLD, StreamingMCMC

QUIET = {"seed": 0, "progress": False}
WALL = 10.0


class OfTwoWords(Exception):
    """Cannot be pickled: it is made of other arguments than it holds."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def trap(z):
    """Pushes to the right, where there is a wall."""
    if z["x"].max() > WALL:
        raise OfTwoWords("a", "wall")
    return -z["x"].sum()


def hole(z):
    """Pushes to the right, where nothing is a number."""
    return (z["x"] * torch.where(z["x"] > WALL, math.nan, -1.0)).sum()


def sgld(potential_fn, backend):
    return SGLD(potential_fn=potential_fn, step_size=0.5, temperature=1e-3, backend=backend)


def hmc(potential_fn):
    return HMC(potential_fn=potential_fn, step_size=1.0, num_steps=1, adapt_step_size=False)


KERNELS = {
    "SGLD, eager": (lambda: sgld(trap, "eager"), "raised OfTwoWords: a wall"),
    "SGLD, traced": (lambda: sgld(hole, "trace"), "diverged"),
    "HMC": (lambda: hmc(trap), "raised OfTwoWords: a wall"),
}
METHODS = {
    "vectorized": lambda: {},
    "sequential": lambda: {"chain_method": "sequential"},
    "executor": lambda: {"chain_method": ThreadPoolExecutor(1)},
}


def start(*values):
    return {"x": torch.tensor(values)[:, None]}


def run(make, near, driver=MCMC, num_samples=12, **options):
    """Three chains, of which the second begins near the wall, or all of them."""
    begin = start(near, near, near) if options.pop("all_near", False) else start(-99.0, near, -50.0)
    settings = {"warmup_steps": 0, "num_chains": 3, "initial_params": begin} | QUIET | options
    return driver(make(), num_samples, **settings)


@pytest.mark.parametrize(
    ("name", "method"), [*product(KERNELS, METHODS), ("SGLD, traced", "groups")]
)
def test_one_chain_dies_and_the_others_go_on(name, method):
    make, reason = KERNELS[name]
    options = METHODS[method]() if method in METHODS else {"group_size": 2}
    expected = run(make, -70.0, **options).run().get_samples(group_by_chain=True)["x"][[0, 2]]
    mcmc = run(make, 7.0, **options)
    with pytest.warns(RuntimeWarning, match=rf"chains \[1\] of 3 stopped .*: chain 1 {reason}"):
        mcmc.run()
    assert torch.equal(mcmc.get_samples(group_by_chain=True)["x"], expected)
    (stopped,) = mcmc.stopped_chains.values()
    assert reason in stopped["reason"] and 1 < stopped["step"] < 12
    draws = stopped["samples"]["x"]
    assert all(len(each[0]) == 12 for each in mcmc.sample_statistics().values())
    assert stopped["step"] - 2 <= len(draws) <= stopped["step"] and draws.isfinite().all()
    assert mcmc.diagnostics()["stopped_chains"][1]["reason"] == stopped["reason"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", KERNELS)
def test_all_chains_die(name, method):
    make, reason = KERNELS[name]
    mcmc = run(make, 7.0, all_near=True, **METHODS[method]())
    with pytest.raises(RuntimeError, match=rf"all 3 chains stopped: chain 0 {reason}.*draws from"):
        mcmc.run()
    assert all(len(chain["samples"]["x"]) > 0 for chain in mcmc.stopped_chains.values())
    with pytest.raises(RuntimeError, match="all chains stopped: stopped_chains"):
        mcmc.get_samples()
    assert set(mcmc.diagnostics()["stopped_chains"]) == {0, 1, 2}


@pytest.mark.parametrize("name", KERNELS)
def test_a_dead_chain_stays_dead_in_a_checkpoint(name, tmp_path):
    make, reason = KERNELS[name]
    with pytest.warns(RuntimeWarning, match=reason):
        first = run(make, 7.0, checkpoint=tmp_path).run()
    with pytest.warns(RuntimeWarning, match=reason):
        longer = run(make, 7.0, num_samples=20, checkpoint=tmp_path).run()
    with pytest.warns(RuntimeWarning, match=reason):
        whole = run(make, 7.0, num_samples=20).run()
    assert longer.num_draws == 20 and first.num_draws == 12
    assert torch.equal(longer.get_samples()["x"], whole.get_samples()["x"])
    chains = Checkpoint(tmp_path).chains()
    assert [chain.stopped_at is None for chain in chains] == [True, False, True]
    assert torch.equal(Checkpoint(tmp_path).get_samples()["x"], whole.get_samples()["x"])
    for mcmc in (longer, whole):
        stopped = mcmc.stopped_chains[1]
        assert stopped["reason"] == first.stopped_chains[1]["reason"]
        assert torch.equal(stopped["samples"]["x"], first.stopped_chains[1]["samples"]["x"])


def test_moments_leave_it_out():
    with pytest.warns(RuntimeWarning, match=r"chains \[1\] of 3"):
        mcmc = run(KERNELS["HMC"][0], 7.0, driver=StreamingMCMC).run()
    assert "a wall" in mcmc.diagnostics()["stopped_chains"][1]["reason"]
    assert mcmc.get_statistics(group_by_chain=True)["x"]["mean"].shape == (2, 1)


def positive(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.sample("scale", dist.HalfNormal(1.0))
    pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def test_a_chain_that_cannot_begin(subtests):
    """The second one's start is nowhere; where none can begin, the error is raised as it is."""
    nowhere = {"loc": torch.tensor([0.0, math.nan, 1.0]), "scale": torch.ones(3)}
    x = torch.tensor(1.0)
    mcmc = MCMC(NUTS(positive), 4, 2, 3, initial_params=nowhere, **QUIET)
    with pytest.warns(RuntimeWarning, match=r"chains \[1\] of 3 stopped .* before its first step"):
        mcmc.run(x)
    assert mcmc.get_samples(group_by_chain=True)["loc"].shape == (2, 4)
    assert mcmc.stopped_chains[1]["samples"] == {}
    for method in METHODS:
        with subtests.test(method), pytest.raises((TypeError, ValueError), match="positive"):
            MCMC(NUTS(positive), 4, 2, 3, **METHODS[method](), **QUIET).run()
