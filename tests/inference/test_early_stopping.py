"""Early stopping: the same place whatever happens on the way, and honest numbers there."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.stats import effective_sample_size, split_gelman_rubin

from pyro_ext.checkpoint import Checkpoint
from pyro_ext.inference import MCMC, SGLD, EarlyStopping
from pyro_ext.inference.driver.dispatch import Pace


def model():
    pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(0.0, 1.0))


def driver(stopping, **options):
    defaults = {"num_samples": 2000, "num_chains": 4, "warmup_steps": 20, "seed": 1}
    kernel = options.pop("kernel", SGLD(model, step_size=0.2))
    return MCMC(kernel, early_stopping=stopping, progress=False, **(defaults | options))


STOPPING = EarlyStopping(["x"], r_hat=1.05, effective_sample_size=300, interval=50)


def suffices(draws):
    return split_gelman_rubin(draws).max() <= 1.05 and effective_sample_size(draws).min() >= 300


@pytest.fixture(scope="module")
def whole():
    return driver(None).run().get_samples(True)["x"].double()


def test_it_stops_at_the_first_look_that_will_do(whole):
    mcmc = driver(STOPPING).run()
    looks = [until for until in range(50, 2001, 50) if suffices(whole[:, :until])]
    assert mcmc.num_draws == looks[0] < 2000
    assert torch.equal(mcmc.get_samples(True)["x"].double(), whole[:, : looks[0]])
    assert not mcmc.stopped_chains and not mcmc.interrupted


@pytest.mark.parametrize("options", [{"group_size": 1}, {"chain_method": "sequential"}])
def test_groups_are_brought_there_together(options, whole):
    mcmc = driver(STOPPING, **options).run()
    assert torch.allclose(mcmc.get_samples(True)["x"].double(), whole[:, : mcmc.num_draws])
    assert suffices(mcmc.get_samples(True)["x"].double())


def test_where_it_stops_does_not_depend_on_legs_or_checkpoints(tmp_path, monkeypatch):
    expected = driver(STOPPING).run().num_draws
    driver(STOPPING, num_samples=expected // 100 * 50 + 20, checkpoint=tmp_path).run()
    monkeypatch.setattr(Pace, "shortest", 0.0)
    again = driver(STOPPING, checkpoint=tmp_path).run()
    assert again.num_draws == expected
    assert driver(STOPPING, checkpoint=tmp_path).run().num_draws == expected
    assert Checkpoint(tmp_path).get_samples(True)["x"].shape[1] == expected


def test_quantities_count_and_what_never_suffices_runs_to_the_end():
    quantities = {
        "radius": lambda sample: sample["x"].norm(),
        "fixed": lambda sample: torch.ones(()),
    }
    stopping = EarlyStopping(["rad*"], r_hat=1.1, effective_sample_size=100, interval=100)
    assert driver(stopping, quantities=quantities).run().num_draws < 2000
    constant = EarlyStopping(["fixed"], interval=100)
    assert driver(constant, quantities=quantities, num_samples=250).run().num_draws == 250


def test_an_unknown_name():
    with pytest.raises(ValueError, match="early_stopping names 'z'"):
        driver(EarlyStopping(["z"], interval=4), num_samples=10).run()
