"""What every test starts from: one thread, fixed seeds, fresh global state, and no figures."""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import hypothesis
import pyro
import pytest
import torch

# Where Numba keeps machine code, for all workers and for later runs; read as it is imported.
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parent.parent / ".numba_cache"))

# Small tensors gain nothing from threads, several workers share few cores, and the order of a sum
# should not depend on how many there are.
torch.set_num_threads(1)

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full-runs",
        type=_part,
        default=(1, 1),
        metavar="K/N",
        help="run the K-th of N parts of the tests that run a tutorial in full (default: all)",
    )


def _part(text: str) -> tuple[int, int]:
    """Read K/N, a part of several."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"K/N with 1 <= K <= N expected, got {text!r}")
    return int(match[1]), int(match[2])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out full runs of other parts, and begin with what takes minutes.

    Otherwise one worker might be left with the long ones when others are done.
    """
    part, parts = config.getoption("full_runs")
    full_runs = [item for item in items if item.get_closest_marker("full_run")]
    full_runs.sort(key=attrgetter("nodeid"))
    chosen = full_runs[part - 1 :: parts]
    left_out = [item for item in full_runs if item not in chosen]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: not (item in full_runs or "site_builds" in item.name))


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


@pytest.fixture
def float64(clean_state: None) -> None:
    """Make float64 the default dtype of the test: what statistical tests run in."""
    torch.set_default_dtype(torch.float64)
