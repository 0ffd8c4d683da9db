"""The driver: what runs, what is kept, and what happens when something goes wrong."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, NUTS
from pyro.infer.reparam import LocScaleReparam

from pyro_ext.inference import MCMC, SGLD, CyclicalSchedule
from pyro_ext.inference.driver.segments import KeptSteps
from pyro_ext.potential import FunctionPotential, Potential
from tests.inference.models import interrupting, normal


def model(x, subsample_size=20):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    pyro.deterministic("ratio", loc / scale, event_dim=1)
    with pyro.plate("data", len(x), subsample_size=subsample_size) as index:
        pyro.deterministic("residual", x[index] - loc, event_dim=1)
        pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x[index])


def kernel(**options):
    return SGLD(model, **({"step_size": 1e-3} | options))


def test_run_returns_the_driver_and_shapes_are_right(x):
    mcmc = MCMC(kernel(), num_samples=4, warmup_steps=5, num_chains=3, thinning=2, progress=False)
    assert mcmc.run(x) is mcmc
    grouped = mcmc.get_samples(group_by_chain=True)
    assert {name: tuple(value.shape) for name, value in grouped.items()} == {
        "loc": (3, 4, 2),
        "scale": (3, 4),
        "ratio": (3, 4, 2),
    }
    flat = mcmc.get_samples()
    assert torch.equal(flat["loc"], grouped["loc"].reshape(12, 2))
    torch.testing.assert_close(flat["ratio"], flat["loc"] / flat["scale"][:, None])
    assert (flat["scale"] > 0).all()
    statistics = mcmc.sample_statistics()
    assert set(statistics) == {"lp", "step_size", "temperature"}
    assert all(value.shape == (3, 4) for value in statistics.values())


def test_statistics_report_the_potential_of_the_step(x):
    mcmc = MCMC(kernel(), num_samples=1, thinning=1, seed=3, progress=False).run(x, 60)
    start = Potential(model, x, 60).init_chains(range(1), 3)
    lp = mcmc.sample_statistics()["lp"][0, 0]
    assert lp == pytest.approx(-Potential(model, x, 60).full(start)[0].item(), rel=1e-5)


def test_thinning_keeps_every_so_many_steps(x):
    options = {"num_chains": 2, "seed": 4, "progress": False}
    every = MCMC(kernel(), num_samples=12, **options).run(x).get_samples(True)["loc"]
    third = MCMC(kernel(), num_samples=3, warmup_steps=3, thinning=3, **options).run(x)
    torch.testing.assert_close(third.get_samples(True)["loc"], every[:, [5, 8, 11]])


def test_kept_steps_of_a_cyclical_schedule():
    schedule = CyclicalSchedule(0.1, num_cycles=4, num_steps=40, exploration=0.7)

    def first(number, *plan):
        kept = KeptSteps(*plan, schedule)
        return [kept(draw) for draw in range(number)]

    assert first(4, 10, 10) == [20, 30, 40, 50]
    # Steps 8, 9 and 10 of each cycle sample.
    assert first(7, 0, 1) == [8, 9, 10, 18, 19, 20, 28]
    assert first(4, 0, 3) == [9, 18, 30, 39]
    with pytest.raises(ValueError, match="warmup_steps and thinning"):
        KeptSteps(5, 10, schedule)


def test_initial_params_are_constrained(x):
    start = {"loc": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "scale": torch.tensor([0.5, 1.5])}
    still = kernel(step_size=1e-12, temperature=0.0)
    mcmc = MCMC(still, 1, num_chains=2, initial_params=start, progress=False).run(x)
    samples = mcmc.get_samples(group_by_chain=True)
    for name, value in start.items():
        torch.testing.assert_close(samples[name][:, 0], value, rtol=1e-4, atol=1e-4)


def test_samples_before_a_run():
    with pytest.raises(RuntimeError, match="run"):
        MCMC(kernel(), num_samples=5).get_samples()


@pytest.fixture
def step_by_step(monkeypatch):
    """Ctrl-C loses at most a call of the kernel, which is a step then."""
    monkeypatch.setattr("pyro_ext.inference.driver.vectorized_kernels._MOST_STEPS_PER_CALL", 1)


def interrupted(count, num_samples, method, start):
    """A run that is interrupted after so many steps of chains."""
    # The potential is called twice at the start, then once per chain and step.
    kernel = SGLD(potential_fn=interrupting(2 + count), step_size=0.1, backend="eager")
    options = {"initial_params": {"x": start}, "chain_method": method, "progress": False}
    mcmc = MCMC(kernel, num_samples, num_chains=len(start), **options).run()
    assert mcmc.interrupted
    return mcmc


@pytest.mark.parametrize(("method", "expected"), [("vectorized", (2, 14)), ("sequential", (1, 29))])
def test_ctrl_c_keeps_what_has_been_drawn(method, expected, step_by_step):
    mcmc = interrupted(29, 100, method, torch.zeros(2, 3))
    assert mcmc.get_samples(group_by_chain=True)["x"].shape == (*expected, 3)


def test_ctrl_c_in_a_later_sequential_chain_sets_it_aside(step_by_step):
    mcmc = interrupted(10 + 4, 10, "sequential", torch.zeros(3, 1))
    assert mcmc.get_samples(group_by_chain=True)["x"].shape == (1, 10, 1)
    assert mcmc.stopped_chains[1]["samples"]["x"].shape == (4, 1)
    assert "interrupted" in mcmc.stopped_chains[1]["reason"]


def test_calls_of_the_kernel_are_longer_where_steps_are_short(monkeypatch):
    """A slow step is a call of its own, so that Ctrl-C and the deadline are heard."""
    record = SGLD.record
    kernel = SGLD(potential_fn=lambda z: z["x"].square().sum())
    for seconds, expected in ((1000.0, [1, 2, 4, 2]), (0.0, [1] * 9)):
        calls = []
        monkeypatch.setattr(
            "pyro_ext.inference.driver.vectorized_kernels._SECONDS_PER_CALL", seconds
        )
        monkeypatch.setattr(
            SGLD,
            "record",
            lambda self, chains, steps, calls=calls: (
                calls.append(len(steps)) or record(self, chains, steps)
            ),
        )
        MCMC(kernel, 9, initial_params={"x": torch.zeros(1, 1)}, progress=False).run()
        assert calls == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [NUTS, lambda m: HMC(m, step_size=0.1, num_steps=4)], ids=["NUTS", "HMC"]
)
def test_pyros_kernels(make, x):
    options = {"num_samples": 15, "warmup_steps": 10, "thinning": 2, "progress": False, "seed": 2}
    mcmc = MCMC(make(normal), num_chains=2, **options).run(x)
    samples = mcmc.get_samples(group_by_chain=True)
    assert samples["loc"].shape == (2, 15, 2) and (samples["scale"] > 0).all()
    assert samples["loc"].mean((0, 1)).sub(1.0).abs().max() < 0.5
    statistics = mcmc.sample_statistics()
    assert statistics["diverging"].dtype == torch.bool and statistics["step_size"].shape == (2, 15)
    diagnostics = mcmc.diagnostics()
    assert set(diagnostics["acceptance rate"]) == {"chain 0", "chain 1"}
    alone = MCMC(make(normal), num_chains=1, **options).run(x).get_samples(True)
    torch.testing.assert_close(alone["loc"][0], samples["loc"][0])


def test_pyros_kernels_take_constrained_initial_params_and_leave_the_generators_alone(x):
    start = {"loc": torch.ones(1, 2), "scale": torch.full((1,), 0.9)}
    still = HMC(normal, step_size=1e-6, num_steps=1, adapt_step_size=False)
    mcmc = MCMC(still, 1, initial_params=start, seed=0, progress=False)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy())
    samples = mcmc.run(x).get_samples()
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    torch.testing.assert_close(samples["scale"], start["scale"], rtol=1e-3, atol=1e-3)


def test_reparameterized_model_keeps_its_own_sites(x):
    reparameterized = pyro.poutine.reparam(normal, config={"loc": LocScaleReparam(0.0)})
    sampler = SGLD(reparameterized, step_size=1e-3)
    samples = MCMC(sampler, num_samples=3, num_chains=2, progress=False).run(x).get_samples()
    assert set(samples) == {"loc_decentered", "loc", "scale", "ratio"}
    torch.testing.assert_close(samples["loc"], 3.0 * samples["loc_decentered"])


def test_potential_fn_needs_a_start():
    mcmc = MCMC(SGLD(potential_fn=lambda z: z["x"].sum()), num_samples=1, progress=False)
    with pytest.raises(ValueError, match="initial_params"):
        mcmc.run()
    with pytest.raises(ValueError, match="scalar"):
        FunctionPotential(lambda z: z["x"], {"x": torch.zeros(1, 2)})


def test_progress_bar_and_summary(x, capsys):
    mcmc = MCMC(kernel(), num_samples=10, num_chains=2, thinning=30).run(x)
    bar = capsys.readouterr().err
    assert "SGLD" in bar and "300/300" in bar and "lp=" in bar and "step/s" in bar
    mcmc.summary()
    assert "r_hat" in capsys.readouterr().out


def test_changed_data_between_runs(x):
    mcmc = MCMC(kernel(), num_samples=20, warmup_steps=400, seed=0, progress=False)
    first = mcmc.run(x).get_samples()["loc"].mean(0)
    second = mcmc.run(x + 5.0).get_samples()["loc"].mean(0)
    assert (second - first).min() > 3.0
