"""The benchmarks: that they start, say what is missing, and report what they measured."""

import json
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
PEERS = ("jax", "blackjax", "posteriors", "tensordict")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_says_what_it_does(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 0
    assert "--smoke" in capsys.readouterr().out


@pytest.mark.slow
def test_table_of_a_tiny_run(tmp_path):
    out = tmp_path / "lines.jsonl"
    done = run(FOLDER / "table.py", "data_size", "--smoke", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "1,000 rows" in done.stdout
    (line,) = out.read_text().splitlines()
    result = json.loads(line)
    assert result["benchmark"] == "data_size"
    assert result["results"][0]["median"]["pyro_ext"] > 0
    assert {"pyro-ext", "torch", "python"} <= set(result["versions"])


@pytest.mark.slow
@pytest.mark.skipif(
    any(find_spec(peer) is None for peer in PEERS), reason="the extra 'bench' is not installed"
)
def test_tiny_run_beside_peers():
    done = run(FOLDER / "library_step_time.py", "--smoke")
    assert done.returncode == 0, done.stderr
    for row in json.loads(done.stdout)["results"]:
        assert set(row["ratio"]) == {"blackjax", "posteriors"}


def test_table_refuses_an_unknown_name():
    done = run(FOLDER / "table.py", "no_such_benchmark")
    assert done.returncode != 0
    assert "no_such_benchmark" in done.stderr and "data_size" in done.stderr


def test_missing_peer_names_the_extra():
    from _common import peer_module

    with pytest.raises(SystemExit, match=r"no_such_peer.*pyro-ext\[bench\]"):
        peer_module("no_such_peer")


def test_ratio_is_of_medians_and_peer_over_ours():
    from _common import Case, Timings

    timings = Timings({"pyro_ext": [2.0, 1.0, 90.0], "peer": [5.0, 6.0, 1.0]})
    row = Case("case", timings).as_json()
    assert row == {
        "case": "case",
        "median": {"pyro_ext": 2.0, "peer": 5.0},
        "ratio": {"peer": 2.5},
    }


def test_sides_take_turns():
    from _common import in_turn

    order = []

    def measure(side):
        order.append(side)
        return float(len(order))

    timings = in_turn({side: lambda side=side: measure(side) for side in "ab"}, rounds=2)
    assert order == ["a", "b", "a", "b"]
    assert timings.rounds == {"a": [1.0, 3.0], "b": [2.0, 4.0]}


def test_quality_of_known_draws():
    from _problems import moment_errors

    reference = {"weight": np.array([[-1.0, -2.0], [1.0, 2.0]])}
    draws = {"weight": np.array([[-1.5, -3.0], [2.5, 5.0]])}
    errors = moment_errors(draws, reference)
    assert errors == pytest.approx({"mean_error": 0.5, "sd_ratio": 2.0})


@pytest.mark.parametrize("name", ["logistic regression", "network"])
@pytest.mark.parametrize("algorithm", ["SGLD", "SGHMC"])
def test_hand_written_gradient_is_that_of_the_model(name, algorithm, monkeypatch):
    """Without noise, and on all rows at once, a step is one of the model's full gradient."""
    import _torch_loops
    import torch
    from _problems import PROBLEMS, start

    from pyro_ext.potential import Potential

    problem = PROBLEMS[name]
    size = len(problem.arguments[0])
    monkeypatch.setattr(_torch_loops, "BATCH_SIZE", size)
    monkeypatch.setattr(torch, "randint", lambda high, shape: torch.arange(size).expand(shape))
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    loop = _torch_loops.TorchLoop(False, problem, algorithm, 2)
    before = loop.params()
    loop.advance(1)
    after = loop.params()

    potential = Potential(problem.model, *problem.arguments, backend="eager")
    position = {key: torch.from_numpy(value) for key, value in start(problem, 2).items()}
    _, gradients = potential.full_value_and_grad(position)
    for key, gradient in gradients.items():
        moved = (before[key] - after[key]) / problem.step_size
        scale = float(gradient.abs().max())
        np.testing.assert_allclose(moved, gradient.numpy(), atol=0.02 * scale)
