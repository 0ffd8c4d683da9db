"""The handler that hides what was observed."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive

from pyro_ext.handlers import obs_dropout

MASK = torch.tensor([[True, True, False], [True, False, True]])


def filled(x, mask):
    """What is seen after the mask has been used once."""
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).mask(mask).to_event(1), obs=x)
        seen = pyro.deterministic("seen", mask, event_dim=1)
        return torch.where(seen > 0, x, 0.0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_observed_entries_are_hidden_from_what_comes_after(dtype):
    x, mask = torch.randn(2, 3), MASK.to(dtype)
    found = torch.stack([obs_dropout(["seen"], 0.4)(filled)(x, mask) for _ in range(300)])
    is_seen = found != 0
    assert not is_seen[:, ~MASK].any() and torch.equal(found[is_seen], x.expand(300, 2, 3)[is_seen])
    fraction = is_seen[:, MASK].float().mean(0)
    assert bool(((fraction - 0.6).abs() < 4.5 * (0.24 / 300) ** 0.5).all())  # false alarms 3e-5
    trace = poutine.trace(obs_dropout(["seen"], 1.0)(filled)).get_trace(x, mask)
    assert trace.nodes["seen"]["value"].dtype == dtype and not trace.nodes["seen"]["value"].any()
    trace.compute_log_prob()
    expected = (dist.Normal(0.0, 1.0).log_prob(x) * MASK).sum(-1)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], expected)
    assert trace.log_prob_sum() == trace.nodes["x"]["log_prob"].sum()
    assert torch.equal(MASK, mask.bool())
    assert torch.equal(obs_dropout(["seen"], 0.0)(filled)(x, mask), filled(x, mask))


def test_particles_have_masks_of_their_own():
    """Whether their plate is outside of the handler or within it."""
    mask = torch.ones(2, 3, dtype=torch.bool)
    handled = obs_dropout(["seen"], 0.5)(filled)

    def vectorized(x, mask):
        with pyro.plate("particles", 50, dim=-2):
            return filled(x, mask)

    torch.manual_seed(0)
    with pyro.plate("particles", 50, dim=-2):
        outside = handled(torch.ones(2, 3), mask)
    within = obs_dropout(["seen"], 0.5)(vectorized)(torch.ones(2, 3), mask)
    for found in (outside, within):
        assert found.shape == (50, 2, 3) and bool(found.std(0).gt(0.3).all())


def test_a_generator_gives_the_same_masks_and_leaves_the_global_one_alone():
    x, state = torch.ones(2, 3), torch.random.get_rng_state()
    found = [
        obs_dropout(["seen"], 0.5, torch.Generator().manual_seed(3))(filled)(x, MASK)
        for _ in range(2)
    ]
    assert torch.equal(*found) and torch.equal(state, torch.random.get_rng_state())


def test_with_predictive():
    predictive = Predictive(obs_dropout(["seen"], 0.5)(filled), num_samples=20, parallel=True)
    seen = predictive(torch.ones(2, 3), MASK)["seen"]
    assert seen.shape == (20, 2, 3) and bool(seen[:, MASK].float().std(0).gt(0).all())


def test_wrong_sites_are_named():
    def latent():
        pyro.sample("seen", dist.Bernoulli(0.5))

    x = torch.ones(2, 3)
    for model, args, message in (
        (filled, (x, 0.5 * x), "'seen', which must be a mask"),
        (latent, (), "'seen', which is a latent site"),
        (lambda: None, (), r"\['seen'\], which are no sample sites"),
    ):
        with pytest.raises(ValueError, match=message):
            obs_dropout(["seen"], 0.5)(model)(*args)
