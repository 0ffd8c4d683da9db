"""The loop over steps where compiling does not work."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from pyro_ext.inference import MCMC, SGHMC
from pyro_ext.inference.vectorized import compiled_loop


def potential_fn(z: dict[str, torch.Tensor]) -> torch.Tensor:
    return z["x"].pow(4).sum()


def draws(backend: str) -> torch.Tensor:
    mcmc = MCMC(
        SGHMC(potential_fn=potential_fn, step_size=0.1, friction=1.0, backend=backend),
        num_samples=4,
        thinning=2,
        num_chains=2,
        initial_params={"x": torch.zeros(2, 3)},
        seed=0,
        progress=False,
    )
    return mcmc.run().get_samples()["x"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raises", "disagrees"])
def test_a_compiler_that_fails_gives_one_warning_and_the_same_draws(fault, monkeypatch):
    def broken(graph, *example):
        if fault == "raises":
            raise RuntimeError("no compiler")
        return lambda *arguments: [leaf + 1.0 for leaf in graph(*arguments)]

    monkeypatch.setattr(compiled_loop, "compile_graph", broken)
    expected = draws("trace")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        actual = draws("compile")
    (warning,) = [entry for entry in caught if entry.category is UserWarning]
    assert "graph" in str(warning.message)
    torch.testing.assert_close(actual, expected)


@pytest.mark.slow
def test_without_a_cpp_compiler(tmp_path):
    """In a process of its own, since PyTorch looks for the compiler once."""
    code = (
        "import warnings; from tests.inference.vectorized.test_loop import draws\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always'); one = draws('compile')\n"
        "count = sum('cannot be compiled' in str(w.message) for w in caught)\n"
        "assert count == 1, [str(w.message) for w in caught]\n"
        "assert (one == draws('trace')).all()\n"
    )
    environment = os.environ | {"CXX": "false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
