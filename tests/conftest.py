"""What every test starts from: one thread, fixed seeds, fresh global state, and no figures."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's and SciPy's; see the threads of torch
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


from tests import caches

os.environ.update(caches.ENVIRONMENT)

import hypothesis
import pyro
import pytest
import torch

from tests import durations

# Small tensors gain nothing from threads, several workers share few cores, and the order of a sum
# should not depend on how many there are. That tests pass with more is tried by OMP_NUM_THREADS=2.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

_RECORDED = durations.load()["tests"]

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part",
        type=durations.part,
        metavar="K/N",
        help="divide the selected tests into N parts that take as long, and run the K-th",
    )
    parser.addoption(
        "--record-durations",
        action="store_true",
        help=f"write CPU seconds of slow tests into {durations.FILE.name}",
    )
    parser.addoption(
        "--devices",
        action="store_true",
        help="run the tests with the fixture `device` alone, on a simulated device too",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what runs in the background with Ctrl-C ignored, which some tests press.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("devices"):
        import tests.simulated_device  # noqa: F401  # before the first gradient, or it has no queue
    config.pluginmanager.register(durations.CPUSeconds())
    if config.getoption("record_durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(durations.Recorder())


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what is recorded to take long as slow."""
    if item.nodeid in _RECORDED and not any(map(item.get_closest_marker, durations.TIERS)):
        item.add_marker("slow")


@pytest.hookimpl(trylast=True)  # after those that -m leaves out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("devices"):
        kept = [item for item in items if "device" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
    if part := config.getoption("part"):
        others = {item.nodeid: item for item in items}
        items[:] = [others.pop(test) for test in durations.choose(list(others), *part)]
        config.hook.pytest_deselected(items=list(others.values()))


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    """Empty the parameter store and seed; afterwards put settings back and close all figures."""
    pyro_settings = pyro.settings.get()
    default_dtype = torch.get_default_dtype()
    pyro.enable_validation(True)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(default_dtype)
    pyro.settings.set(**pyro_settings)
    pyro.clear_param_store()
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture(params=["cpu", "simulated", "cuda"])
def device(
    request: pytest.FixtureRequest, pytestconfig: pytest.Config, clean_state: None
) -> Iterator[torch.device]:
    """A device each: the processor; one that only tells tensors apart, for ``--devices``; a GPU.

    It is the default device of the test, as users of Pyro set it.
    """
    with ExitStack() as stack:
        if request.param == "simulated":
            if not pytestconfig.getoption("devices"):
                pytest.skip("--devices was not given")
            from tests.simulated_device import Simulation

            stack.enter_context(Simulation())
        elif request.param == "cuda" and not torch.cuda.is_available():
            pytest.skip("there is no CUDA device")
        torch.set_default_device(request.param)
        stack.callback(torch.set_default_device, None)
        yield torch.device(request.param, None if request.param == "cpu" else 0)


@pytest.fixture
def float64(clean_state: None) -> None:
    """Make float64 the default dtype of the test: what statistical tests run in."""
    torch.set_default_dtype(torch.float64)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, driven by selenium; what its console says is kept."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs Chromium; on Debian: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    # As root it has no sandbox, and containers have little shared memory.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()
