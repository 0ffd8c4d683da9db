"""Draws recorded inside a call are those of calls step by step."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference import SGHMC, SGLD, CyclicalSchedule


def regression(x, y):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x), subsample_size=25) as index:
        pyro.sample("y", dist.Normal(x[index] @ weight, 0.4), obs=y[index])


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 3, generator=generator)
    return x, x.sum(-1) + 0.4 * torch.randn(200, generator=generator)


def test_more_draws_than_a_call_makes(data, monkeypatch):
    kernel = SGHMC(regression, step_size=0.01, friction=20.0)
    kernel.setup(0, *data)
    start = kernel.begin(range(2), seed=2)
    _, expected = kernel.record(start, range(3, 60, 3))
    monkeypatch.setattr(type(kernel._loop), "max_rows", lambda *sizes: 4)
    monkeypatch.setattr(type(kernel._loop), "max_steps", lambda *sizes: 5)
    _, draws = kernel.record(start, range(3, 60, 3))
    assert torch.equal(draws.position, expected.position)
    assert np.array_equal(draws.steps, np.arange(3, 60, 3))


def test_statistics_follow_the_schedule():
    schedule = CyclicalSchedule(0.1, num_cycles=2, num_steps=20, exploration=0.5)
    kernel = SGLD(potential_fn=lambda z: z["x"].square().sum(), step_size=schedule, temperature=0.5)
    kernel.initial_params = {"x": torch.zeros(1)}
    kernel.setup(0)
    start = kernel.begin(range(2), 0, {"x": torch.zeros(2, 1)})
    statistics = kernel.statistics(kernel.record(start, [1, 6, 11])[1])
    assert statistics["temperature"].tolist() == [[0.0, 0.0], [0.5, 0.5], [0.0, 0.0]]
    expected = torch.from_numpy(schedule.step_sizes(np.array([0, 5, 10]))).float()
    assert torch.equal(statistics["step_size"], expected[:, None].expand(-1, 2))


@pytest.mark.parametrize("steps", [[], [0], [3, 3], [4, 2]])
def test_steps_must_increase(steps):
    kernel = SGLD(potential_fn=lambda z: z["x"].square().sum())
    kernel.initial_params = {"x": torch.zeros(1)}
    kernel.setup(0)
    with pytest.raises(ValueError, match="steps must increase"):
        kernel.record(kernel.begin(range(2), 0, {"x": torch.zeros(2, 1)}), steps)
