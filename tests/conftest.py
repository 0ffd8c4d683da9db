"""What every test starts from: one thread, fixed seeds, and fresh global state of Pyro."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import hypothesis
import pyro
import pytest
import torch


def _numba_cache() -> Path:
    """A folder for what Numba compiles from the sources as they are.

    Numba's own cache does not see that a function has changed which a function of another file
    calls, and runs the old one.
    """
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted([*root.glob("pyro_ext/**/*.py"), *root.glob("inference/**/*.py")]):
        if b"import numba" in (source := path.read_bytes()):
            digest.update(source)
    return root / ".numba_cache" / digest.hexdigest()[:16]


os.environ.setdefault("NUMBA_CACHE_DIR", str(_numba_cache()))  # read as Numba is imported

# Small tensors gain nothing from threads, several workers share few cores, and the order of a sum
# should not depend on how many there are.
torch.set_num_threads(1)

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes minutes, so that no worker is left with it when others are done."""
    items.sort(key=lambda item: not ("full_run" in item.name or "site_builds" in item.name))


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    """Empty the parameter store, seed, and put global settings back after the test."""
    pyro_settings = pyro.settings.get()
    default_dtype = torch.get_default_dtype()
    pyro.enable_validation(True)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(default_dtype)
    pyro.settings.set(**pyro_settings)
    pyro.clear_param_store()


@pytest.fixture
def float64(clean_state: None) -> None:
    """Make float64 the default dtype of the test: what statistical tests run in."""
    torch.set_default_dtype(torch.float64)
