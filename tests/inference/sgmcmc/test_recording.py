"""Draws recorded inside a call are those of calls step by step."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference import PSGLD, SGHMC, SGLD, SGNHT, CyclicalSchedule

STEPS = [1, 2, 3, 7, 8, 100, 101, 102, 350]
KERNELS = {
    "SGLD": lambda **options: SGLD(regression, step_size=1e-4, **options),
    "PSGLD": lambda **options: PSGLD(regression, step_size=1e-3, **options),
    "SGHMC": lambda **options: SGHMC(regression, step_size=0.01, friction=20.0, **options),
    "SGNHT": lambda **options: SGNHT(regression, step_size=0.01, **options),
}


def regression(x, y):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x), subsample_size=25) as index:
        pyro.sample("y", dist.Normal(x[index] @ weight, 0.4), obs=y[index])


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 3, generator=generator)
    return x, x.sum(-1) + 0.4 * torch.randn(200, generator=generator)


def check_against_steps(kernel):
    """The same numbers to the last bit, with all that a draw carries."""
    start = kernel.begin(range(3), seed=2)
    chains, draws = kernel.record(start, STEPS)
    statistics = kernel.statistics(draws)
    expected = start
    for number, step in enumerate(STEPS):
        expected = kernel.advance(expected, step - expected.step)
        for field, value in expected.state._asdict().items():
            assert torch.equal(getattr(draws.state, field)[number], value)
        assert torch.equal(draws.position[number], expected.position)
        assert torch.equal(draws.potential_energy[number], expected.potential_energy)
        for name, value in kernel.statistics(expected).items():
            assert torch.equal(statistics[name][number], value) and value.shape == (3,)
    assert chains.step == STEPS[-1] == draws.steps[-1]
    assert torch.equal(chains.position, expected.position)
    assert torch.equal(chains.potential_energy, expected.potential_energy)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("backend", ["eager", "trace"])
def test_draws_are_those_of_single_steps(name, backend, data):
    kernel = KERNELS[name](backend=backend)
    kernel.setup(0, *data)
    check_against_steps(kernel)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_compiled_draws_are_those_of_single_steps(name, data):
    kernel = KERNELS[name](backend="compile")
    kernel.setup(0, *data)
    check_against_steps(kernel)


def test_more_draws_than_a_call_makes(data, monkeypatch):
    kernel = KERNELS["SGHMC"]()
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
