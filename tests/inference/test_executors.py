"""Chains in other processes: the same draws, even if workers fail."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import NUTS

from pyro_ext._lib import executors
from pyro_ext.inference import MCMC, SGHMC, SGLD, ExecutorError
from pyro_ext.inference.driver.dispatch import Pace
from tests.inference.models import assert_same, subsampled_normal, whole
from tests.killing import first_process, killed_after_draws


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(Pace, "shortest", 0.05)


def driver(kernel=None, **options):
    defaults = {"num_samples": 30, "warmup_steps": 5, "num_chains": 4, "thinning": 3, "seed": 3}
    kernel = kernel or SGHMC(subsampled_normal, step_size=0.02, friction=5.0)
    return MCMC(kernel, progress=False, **(defaults | {"group_size": 2} | options))


@pytest.fixture
def pool():
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.mark.slow
def test_a_pool_of_processes(x, pool, capfd):
    """Models and quantities may be defined anywhere: they are pickled by value."""
    width = torch.tensor(2.0)

    def local(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), width).to_event(1))
        with pyro.plate("data", len(x), subsample_size=20) as index:
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x[index])

    options = {"quantities": {"size": lambda sample: sample["loc"].norm()}}
    expected = driver(SGLD(local), **options).run(x)
    elsewhere = driver(SGLD(local), chain_method=pool, **options)
    elsewhere.progress = True
    assert_same(expected, elsewhere.run(x))
    assert expected.sample_statistics().keys() == elsewhere.sample_statistics().keys()
    assert "190/190" in capfd.readouterr().err  # two groups of 5 + 30 * 3 steps


@pytest.mark.slow
def test_pyros_kernels_in_a_pool(x, pool):
    options = {"num_samples": 15, "warmup_steps": 20, "thinning": 1, "num_chains": 2}
    expected = driver(NUTS(whole), group_size=None, **options).run(x)
    assert_same(expected, driver(NUTS(whole), group_size=1, chain_method=pool, **options).run(x))


def test_threads_take_turns(x):
    with ThreadPoolExecutor(3) as executor:
        assert_same(driver().run(x), driver(chain_method=executor).run(x))


class Immediate(ThreadPoolExecutor):
    """Runs a task at once, through what a cluster would make of it."""

    def __init__(self, fail=lambda number: None):
        super().__init__(1)
        self.fail = fail
        self.payloads = []

    def submit(self, function, /, *args, **kwargs):
        self.payloads.append(args[1])
        future = Future()
        try:
            self.fail(len(self.payloads))
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def test_model_and_data_travel_once_to_each_worker(x):
    executors._known.clear()
    executor = Immediate()
    driver(chain_method=executor, num_samples=60).run(x)
    assert sum(payload is not None for payload in executor.payloads) <= 2
    assert len(executor.payloads) > 3


def test_tasks_that_are_lost_are_run_again(x):
    def fail(number):
        if number in (2, 3, 7):
            raise ConnectionError("the worker has gone")

    executor = Immediate(fail)
    assert_same(driver().run(x), driver(chain_method=executor).run(x))


def test_an_executor_that_fails_for_good_keeps_the_draws(x, tmp_path):
    def fail(number):
        if number > 8:
            raise ConnectionError("the cluster has gone")

    options = {"num_samples": 20_000, "checkpoint": tmp_path}
    mcmc = driver(chain_method=Immediate(fail), **options)
    with pytest.raises(ExecutorError, match="chain_method=.*draws made before are kept"):
        mcmc.run(x)
    kept = mcmc.get_samples(True)["loc"]
    assert kept.shape[0] >= 2 and kept.shape[1] > 0
    again = driver(num_samples=kept.shape[1], checkpoint=tmp_path).run(x)
    chosen, _ = mcmc._choose()  # which chains got far depends on how busy the machine is
    assert torch.equal(again.get_samples(True)["loc"][chosen], kept)


def test_an_executor_that_was_shut_down(x):
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(ExecutorError):
        driver(chain_method=executor).run(x)


@pytest.mark.slow
def test_a_process_that_dies(x, tmp_path):
    """A broken pool ends the run with what had been drawn, and another one goes on."""
    options = {"num_samples": 1000, "checkpoint": tmp_path}
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        mcmc = driver(chain_method=executor, **options)
        with killed_after_draws(tmp_path, first_process(executor)), pytest.raises(ExecutorError):
            mcmc.run(x)
        assert mcmc.num_draws > 0
    assert_same(driver(num_samples=1000).run(x), driver(**options).run(x))


def test_an_error_of_the_model_is_raised_here(x):
    def broken(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x.mean(0))

    def quantity(sample):
        raise ZeroDivisionError("my quantity")

    with pytest.raises(ZeroDivisionError, match="my quantity") as caught:
        driver(SGLD(broken), chain_method=Immediate(), quantities={"q": quantity}).run(x)
    assert "Raised in a worker" in "".join(caught.value.__notes__)


def main_thread_waits():
    frame = sys._current_frames()[threading.main_thread().ident]
    return frame.f_code is threading.Condition.wait.__code__


@pytest.mark.slow
def test_ctrl_c(x, pool, tmp_path):
    """The interrupt reaches the driver alone; segments on their way are waited for."""
    options = {"num_samples": 100_000, "checkpoint": tmp_path}
    mcmc = driver(chain_method=pool, **options)

    def interrupt():
        # Python would drop an interrupt that comes while it runs a finalizer.
        while len(list(tmp_path.rglob("draws-*"))) < 4 or not main_thread_waits():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    mcmc.run(x)
    interrupter.join()
    assert mcmc.interrupted and mcmc.num_draws > 0
    drawn = mcmc.get_samples(True)["loc"]
    numbers = [number for number in range(4) if number not in mcmc.stopped_chains]
    expected = driver(num_samples=drawn.shape[1]).run(x).get_samples(True)["loc"]
    assert torch.equal(drawn, expected[numbers])


@pytest.mark.slow
def test_a_dask_cluster_that_loses_a_worker(x, tmp_path):
    """A worker is killed in the middle of the run; its segments are run by others."""
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=str(tmp_path / "dask"),
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = client.get_executor()
        workers = client.run(os.getpid)
        folder, options = tmp_path / "run", {"num_samples": 1000, "group_size": 1}
        with killed_after_draws(folder, lambda: next(iter(workers.values()))):
            mcmc = driver(chain_method=executor, checkpoint=folder, **options).run(x)
        assert_same(driver(**options).run(x), mcmc)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="no package brings an MPI there")
def test_mpi():
    script = Path(__file__).with_name("mpi_run.py")
    launcher = Path(sys.executable).with_name("mpiexec")
    result = subprocess.run(
        [launcher, "-n", "3", sys.executable, script], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "the same draws\n"
