"""Extrapolation by the network that ships: what it answers, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pyro_ext.cli.commands import app
from pyro_ext.models.scaling_laws import (
    extrapolate,
    extrapolation,
    read_curve,
)

X = torch.logspace(2.0, 3.5, 8)
Y = 3.0 * X**-0.4 + 0.05
runner = CliRunner()
WIDE = {"COLUMNS": "300", "TERMINAL_WIDTH": "300"}


def test_the_file_is_small():
    path = Path(extrapolation.__file__).with_name("scaling_curves.safetensors")
    assert path.stat().st_size < 1_500_000


def test_an_easy_curve():
    """A power law with a floor, four times as far as it is given."""
    found = extrapolate(X, Y, 4.0 * X[-1:])
    truth = 3.0 * (4.0 * X[-1:]) ** -0.4 + 0.05
    low, high = found.interval(0.9)
    assert bool((low < truth).all()) and bool((truth < high).all())
    assert float((found.median.log() - truth.log()).abs()) < 0.35


def test_units_and_order_do_not_matter():
    query = torch.tensor([5_000.0, 10_000.0])
    one = extrapolate(X, Y, query, scale=float(Y.max()))
    order = torch.randperm(8)
    other = extrapolate(7.0 * X[order], 100.0 * Y[order], 7.0 * query)
    torch.testing.assert_close(other.median, 100.0 * one.median, rtol=1e-4, atol=0)
    density = one.log_prob([0.2, 0.15]) - torch.tensor(100.0).log()
    torch.testing.assert_close(other.log_prob([20.0, 15.0]), density, rtol=1e-3, atol=1e-3)


def test_a_query_does_not_change_others_but_the_horizon_does():
    both, one = (extrapolate(X, Y, query, horizon=20_000.0).median for query in ([5e3, 9e3], [9e3]))
    torch.testing.assert_close(both[1:], one, rtol=1e-5, atol=0)
    assert float(extrapolate(X, Y, [9e3]).median) != float(one)


def test_more_points_than_training_has_seen():
    x = torch.linspace(100.0, 3_000.0, 500)
    found = extrapolate(x, 3.0 * x**-0.4 + 0.05)
    assert len(found.x) == 500 and bool(found.median.isfinite().all())
    assert found.query.shape == (25,) and found.horizon == pytest.approx(30_000.0)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X[:3], Y[:3], {}, "x must be at least 4 different sizes, got 3"),
        (X[[0, 0, 0, 1, 1]], Y[:5], {}, "x must be at least 4 different sizes, got 2"),
        (-X, Y, {}, "x must be sizes > 0"),
        (X, -Y, {}, "y must be errors or losses >= 0"),
        (X, 0 * Y, {}, "y must not be zero everywhere"),
        (X, 1 - Y, {}, "y must not rise above its first value"),
        (X, 100 * Y, {"scale": 1.0}, "y must be at most"),
        (X, Y, {"query": [50.0]}, "query must be at least the smallest size"),
        (X, Y, {"query": [1e7]}, "query must be at most"),
        (X, Y, {"horizon": 1e7}, "horizon must be at most"),
        (X, Y, {"query": [9e3], "horizon": 5e3}, "query must be at most the horizon"),
    ],
)
def test_curves_that_it_cannot_answer_for(x, y, options, message):
    with pytest.raises(ValueError, match=message):
        extrapolate(x, y, **options)


def test_files_of_curves(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text("note,size,error\na,10,0.5\nb,20,0.4\nc,40,\n")
    x, y, asked = read_curve(path, "size", "error")
    assert (x.tolist(), y.tolist(), asked.tolist()) == ([10.0, 20.0], [0.5, 0.4], [40.0])
    with pytest.raises(ValueError, match="path must hold numbers, got 'a'"):
        read_curve(path)
    path.write_text("10,0.5\n20,0.4\n")
    assert read_curve(path)[0].tolist() == [10.0, 20.0]


@pytest.mark.slow
def test_the_command(tmp_path):
    path, picture = tmp_path / "curve.csv", tmp_path / "new" / "curve.png"
    lines = [f"{x:g},{y:g}" for x, y in zip(X.tolist(), Y.tolist(), strict=True)]
    path.write_text("\n".join(["size,error", *lines, "8000,"]))
    result = runner.invoke(app, ["extrapolate", str(path), "--plot", str(picture)], env=WIDE)
    assert result.exit_code == 0, result.output
    assert "8000" in result.output and "90 %" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = runner.invoke(app, ["extrapolate", str(path), "--at", "1e9"], env=WIDE)
    assert result.exit_code == 2 and "query must be at most" in result.output
    result = runner.invoke(app, ["extrapolate", str(tmp_path / "no.csv")], env=WIDE)
    assert result.exit_code == 2 and "path must be a file" in result.output


@pytest.mark.slow
def test_it_loads_little():
    """It answers within seconds since what is slow to import is left out."""
    code = (
        "import sys, pyro; known = set(sys.modules)\n"
        "from pyro_ext.models.scaling_laws import extrapolate\n"
        f"extrapolate({X.tolist()}, {Y.tolist()}).interval(0.9)\n"
        "print(*sys.modules.keys() - known)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert not loaded & {"scipy", "sympy", "sklearn", "matplotlib", "numba", "pandas", "arviz"}
