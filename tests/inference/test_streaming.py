"""Running moments: those of the draws that a run would have kept."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyro_ext.inference as ours
from pyro_ext.inference import MCMC, SGLD, StreamingMCMC
from pyro_ext.inference.driver.dispatch import Pace
from pyro_ext.inference.driver.moments import merge, moments_of, pool
from pyro_ext.posterior import ConvergenceWarning
from tests.inference.models import normal

OPTIONS = {"num_samples": 40, "warmup_steps": 10, "num_chains": 3, "seed": 2, "progress": False}


@pytest.mark.parametrize("group_size", [None, 2])
def test_moments_are_those_of_the_draws(x, group_size, monkeypatch):
    monkeypatch.setattr(Pace, "shortest", 0.0)
    quantities = {"square": lambda sample: sample["loc"].square()}
    options = OPTIONS | {"quantities": quantities, "group_size": group_size}
    samples = MCMC(SGLD(normal), **options).run(x).get_samples(True)
    streaming = StreamingMCMC(SGLD(normal), **options).run(x)
    by_chain, whole = streaming.get_statistics(True), streaming.get_statistics()
    assert set(by_chain) == set(whole) == set(samples) == {"loc", "scale", "ratio", "square"}
    for name, value in samples.items():
        value = value.double()
        assert (by_chain[name]["count"] == 40).all() and whole[name]["count"] == 120
        torch.testing.assert_close(by_chain[name]["mean"], value.mean(1))
        torch.testing.assert_close(by_chain[name]["variance"], value.var(1))
        torch.testing.assert_close(whole[name]["mean"], value.mean((0, 1)))
        torch.testing.assert_close(whole[name]["variance"], value.flatten(0, 1).var(0))
    within, between = samples["loc"].double().var(1).mean(0), samples["loc"].double().mean(1).var(0)
    r_hat = ((39 / 40 * within + between) / within).sqrt()
    torch.testing.assert_close(streaming.diagnostics()["loc"]["r_hat"], r_hat)


def test_it_goes_on_from_a_checkpoint_without_draws(x, tmp_path):
    expected = StreamingMCMC(SGLD(normal), **OPTIONS).run(x).get_statistics()
    StreamingMCMC(SGLD(normal), **(OPTIONS | {"num_samples": 13}), checkpoint=tmp_path).run(x)
    again = StreamingMCMC(SGLD(normal), **OPTIONS, checkpoint=tmp_path).run(x).get_statistics()
    for name, parts in expected.items():
        torch.testing.assert_close(again[name], parts)
    assert not list(tmp_path.rglob("draws-*"))
    with pytest.raises(RuntimeError, match="driver is StreamingMCMC there and MCMC here"):
        MCMC(SGLD(normal), **OPTIONS, checkpoint=tmp_path).run(x)


def test_it_warns_of_what_moments_show(tmp_path):
    """Divergences, kept over checkpoints, and chains that do not agree."""

    def half_line():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("support", torch.where(x[0] > 0, 0.0, -math.inf))

    kernel = ours.NUTS(half_line, step_size=1.0, adapt_step_size=False, adapt_mass_matrix=False)
    options = OPTIONS | {"num_samples": 60, "checkpoint": tmp_path}
    start = {"x": torch.ones(3, 2)}
    with pytest.warns(ConvergenceWarning, match="come after a transition that diverged"):
        StreamingMCMC(kernel, **options | {"num_samples": 30}, initial_params=start).run()
    with pytest.warns(ConvergenceWarning, match="diverged"):
        streaming = StreamingMCMC(kernel, **options, initial_params=start).run()
    kept = MCMC(kernel, **options | {"checkpoint": None}, initial_params=start).run()
    assert streaming.diagnostics()["divergences"] == kept.sample_statistics()["diverging"].sum() > 0
    assert set(streaming.get_statistics()) == {"x"}
    with pytest.warns(ConvergenceWarning, match="R-hat is .* at 'x'"):
        apart = {"x": torch.tensor([[-9.0], [0.0], [9.0]])}
        slow = SGLD(potential_fn=lambda z: z["x"].square().sum() / 2, step_size=1e-4)
        StreamingMCMC(slow, **OPTIONS | {"num_samples": 60}, initial_params=apart).run()
    descent = slow.replace(temperature=0.0)
    with warnings.catch_warnings(action="error"):
        StreamingMCMC(descent, **OPTIONS | {"num_samples": 60}, initial_params=apart).run()


def test_before_a_run():
    with pytest.raises(RuntimeError, match="no draws"):
        StreamingMCMC(SGLD(normal), 10).get_statistics()


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.floats(-1e3, 1e3),
    st.integers(0, 2**31 - 1),
)
def test_merging_is_like_taking_all_at_once(lengths, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.randn(n, 2, 3, generator=generator, dtype=torch.float64) + shift for n in lengths
    ]
    total = moments_of(parts[0], [lengths[0]] * 2)
    for part, length in zip(parts[1:], lengths[1:], strict=True):
        total = merge(total, moments_of(part, [length] * 2))
    whole = torch.cat(parts)
    if len(whole):
        torch.testing.assert_close(total.mean, whole.mean(0))
        torch.testing.assert_close(pool(total).mean[0], whole.mean((0, 1)))
    if len(whole) > 1:
        torch.testing.assert_close(total.variance, whole.var(0), atol=1e-9, rtol=1e-7)
        pooled = whole.flatten(0, 1).var(0)
        torch.testing.assert_close(pool(total).variance[0], pooled, atol=1e-9, rtol=1e-7)
    else:
        assert torch.isnan(total.variance).all()
