"""Schedules of exits: bins and their edges."""

import pytest
import torch

from pyro_ext.models.diffusion import ExitSchedule

ASE = [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]


def test_edges_of_bins_and_means():
    schedule = ExitSchedule([28, 28, 24, 24, 20, 20, 16, 16, 12, 12])
    edges = {0: 28, 99: 28, 100: 28, 199: 28, 200: 24, 899: 12, 900: 12, 999: 12, 1000: 12}
    assert {t: schedule(t) for t in edges} == edges
    by_bin = ExitSchedule(range(10, 0, -1))
    assert [by_bin(t) for t in (99, 100, 899, 900, 999)] == [10, 9, 2, 1, 1]
    assert by_bin(torch.arange(0, 1000, 100)).tolist() == list(range(10, 0, -1))
    DDIMScheduler = pytest.importorskip("diffusers").DDIMScheduler
    scheduler = DDIMScheduler(timestep_spacing="leading")
    scheduler.set_timesteps(50)
    assert schedule(scheduler.timesteps).sum() == 1000
    assert ExitSchedule.linear(8, 4).depths == tuple(ASE)
    assert ExitSchedule.uniform(6)(torch.arange(1000)).unique().tolist() == [6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_timesteps_of_flows(dtype):
    """From 1 to 0, in floating-point numbers."""
    schedule = ExitSchedule(ASE, num_train_timesteps=1)
    t = torch.tensor([0.0, 0.25, 0.45, 0.75, 1.0], dtype=dtype)
    assert schedule(t).tolist() == [8, 7, 6, 5, 4]


@pytest.mark.parametrize("depths", [[8, 7, 8], [4, 0], [], [2.5], [8, 8, -1], [True]])
def test_schedules_that_are_none(depths):
    with pytest.raises(ValueError, match="depths must be"):
        ExitSchedule(depths)
