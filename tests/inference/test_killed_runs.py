"""Runs that are killed at random moments give the draws of one that is not."""

import json
import subprocess
import sys

import pytest
import torch

from pyro_ext.checkpoint import Checkpoint
from tests.inference import killed_runs

NUM_KILLS = 5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vectorized", "executor"])
@pytest.mark.parametrize("name", killed_runs.KERNELS)
def test_the_draws_are_those_of_an_unkilled_run(name, method, tmp_path):
    command = [sys.executable, killed_runs.__file__, name, str(tmp_path / "run"), method]
    result = subprocess.run(
        [*command, str(NUM_KILLS), "0.3"], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    draws = json.loads(result.stdout)["draws_at_kills"]
    # Not always more: draws that were written without the state after them are made once more.
    assert draws and max(draws) > 0
    expected = killed_runs.sample(name, None).get_samples(True)
    resumed = Checkpoint(tmp_path / "run").get_samples(True)
    assert set(expected) == set(resumed)
    for site, value in expected.items():
        assert torch.equal(value, resumed[site]), site
