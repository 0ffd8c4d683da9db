"""Importing the package loads nothing heavy that ``import pyro`` does not load itself."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PUBLIC = (
    "pyro_ext, pyro_ext.inference, pyro_ext.inference.partitions, pyro_ext.potential, "
    "pyro_ext.diagnostics, pyro_ext.diagnostics.arviz_conversion, pyro_ext.distributions, "
    "pyro_ext.random_measures, pyro_ext.models.ensembles, pyro_ext.models.neural_processes, "
    "pyro_ext.models.nonparametric, pyro_ext.models.wide_networks, pyro_ext.nn, pyro_ext.reparam"
)

HEAVY = (
    "arviz",
    "arviz_base",
    "arviz_plots",
    "arviz_stats",
    "ase",
    "gpytorch",
    "h5netcdf",
    "h5py",
    "laplace",
    "matplotlib",
    "mlxtend",
    "numba",
    "pandas",
    "scipy.optimize",
    "scipy.stats",
    "sklearn",
    "sympy",
    "tblite",
    "torch._dynamo",
    "torch._inductor",
    "xarray",
)


@pytest.mark.slow
def test_import_loads_nothing_heavy() -> None:
    code = (
        "import pyro, sys; known = set(sys.modules); "
        f"import {PUBLIC}; from pyro_ext.inference import *; print(*sys.modules.keys() - known)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    added = result.stdout.split()
    assert "pyro_ext.diagnostics.arviz_conversion" in added
    heavy = {
        root for root in HEAVY if any(name == root or name.startswith(root + ".") for name in added)
    }
    assert not heavy, f"import these where they are used: {sorted(heavy)}"


@pytest.mark.parametrize(
    "code",
    [
        "import pyro_ext.inference as inference; assert 'SGHMC' in dir(inference)",
        "from typer.testing import CliRunner; from pyro_ext.cli.commands import app; "
        "assert CliRunner().invoke(app, ['list']).exit_code == 0",
        "from pyro_ext.ratings import rating_page; rating_page({folder!r})",
    ],
    ids=["kernels", "list", "rate"],
)
def test_what_loads_no_torch(code: str, tmp_path: Path) -> None:
    (tmp_path / "image.png").touch()
    code = f"{code.format(folder=str(tmp_path))}; import sys; assert 'torch' not in sys.modules"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
