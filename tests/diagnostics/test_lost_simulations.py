"""Simulations that are lost with a worker, and runs that go on from a checkpoint."""

import time
import warnings
from collections import OrderedDict
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
from torch import Tensor

from pyro_ext._lib import executors
from pyro_ext.checkpoint import Checkpoint, CheckpointError
from pyro_ext.checkpoint.folder import SimulationFolder
from pyro_ext.diagnostics import SBCResult, _simulations
from pyro_ext.inference import ExecutorError
from tests.diagnostics.test_calibration import Inline, exact, failing, run, spawned
from tests.killing import first_process, killed_after_draws


@pytest.fixture
def no_work_known(monkeypatch):
    """Workers are this process, and what an earlier test sent them has come to them."""
    monkeypatch.setattr(executors, "_known", OrderedDict())


class Lossy(Inline):
    """Loses the tasks that it is given between two numbers."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last = first, last

    def submit(self, function, /, *args, **kwargs):
        future = super().submit(function, *args, **kwargs)
        if self.first < self.num_submitted <= self.last:
            future = Future()
            future.set_exception(ConnectionError("the worker has gone"))
        return future


def assert_same(one: SBCResult, other: SBCResult) -> None:
    assert one.failures.keys() == other.failures.keys()
    np.testing.assert_array_equal(one.simulations, other.simulations)
    for name, ranks in one.ranks.items():
        np.testing.assert_array_equal(ranks, other.ranks[name])


@pytest.mark.usefixtures("no_work_known")
def test_simulations_that_are_lost_are_run_again():
    """Before, each was left out as if its inference had failed."""
    executor = Lossy(8, 12)
    assert_same(run(exact, 6), run(exact, 6, executor=executor))
    assert executor.num_submitted > 12


@pytest.mark.parametrize("executor", [None, Inline()])
def test_a_checkpoint_goes_on(executor, tmp_path, monkeypatch):
    """What was killed goes on with what is missing, failures too, and so does one with more."""
    monkeypatch.setattr(_simulations, "_SECONDS_PER_FILE", 0.0)
    folder, calls = tmp_path / "run", SimpleNamespace(number=0)

    def inference(model, x: Tensor) -> dict[str, Tensor]:
        calls.number += 1
        if calls.number == 8:
            raise SystemExit  # as a kill would, it passes by all that catches errors
        return failing(model, x)

    with warnings.catch_warnings(action="ignore"):
        whole = run(failing, 20)
        with pytest.raises(SystemExit):
            run(inference, 12, checkpoint=folder)
        assert len(list(folder.glob("draws-*"))) == 7
        run(inference, 12, checkpoint=folder, executor=executor)
        assert calls.number == 8 + 5 or executor is not None
        assert_same(whole, run(inference, 20, checkpoint=folder, executor=executor, seed=None))
        few = run(inference, 5, checkpoint=folder)
    assert few.simulations.tolist() == [n for n in whole.simulations if n < 5]


@pytest.mark.usefixtures("no_work_known")
def test_a_broken_executor_leaves_what_was_done(tmp_path):
    with pytest.raises(ExecutorError, match="executor=.*with checkpoint=... the same program goes"):
        run(exact, 6, executor=Lossy(9, 1000), checkpoint=tmp_path / "run")
    found = SimulationFolder(tmp_path / "run")
    found.describe(found.description())
    assert 0 < len(found.open()) < 6
    found.close()
    assert_same(run(exact, 6), run(exact, 6, checkpoint=tmp_path / "run"))


def test_a_checkpoint_is_of_one_inference(tmp_path):
    def infer(scale: float):
        return lambda model, x: exact(model, x, scale)

    folder = tmp_path / "run"
    run(infer(1.0), 2, checkpoint=folder)
    run(infer(1.0), 2, checkpoint=folder)
    for message, options in {
        "inference: code": {"inference": infer(2.0)},
        "run: seed": {"seed": 7},
        "run: num_draws": {"num_draws": 50},
        "quantities: square": {"quantities": {"square": lambda v: v["loc"] ** 2}},
    }.items():
        with pytest.raises(CheckpointError, match=message):
            run(**{"inference": infer(1.0), "num_simulations": 2, "checkpoint": folder, **options})
    with pytest.raises(CheckpointError, match="simulations of a sbc, wanted chains"):
        Checkpoint(folder)


@pytest.mark.slow
def test_a_process_that_dies(tmp_path):
    """It takes the pool along; another one goes on."""
    folder = tmp_path / "run"

    def slowly(model, x: Tensor) -> dict[str, Tensor]:
        time.sleep(0.2)
        return exact(model, x)

    with spawned() as workers, killed_after_draws(folder, first_process(workers)):
        with pytest.raises(ExecutorError):
            run(slowly, 60, executor=workers, checkpoint=folder)
    with spawned() as workers:
        assert_same(run(exact, 60), run(slowly, 60, executor=workers, checkpoint=folder))
