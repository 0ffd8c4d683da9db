"""The benchmarks: that they start, say what is missing, and report what they measured."""

import importlib
import json
import runpy
import subprocess
import sys
from functools import partial
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


def tiny(name):
    """The cases of a tiny run of a benchmark."""
    done = run(FOLDER / f"{name}.py", "--smoke")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_says_what_it_does(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 0
    assert "--smoke" in capsys.readouterr().out


@pytest.mark.slow
def test_table_of_a_tiny_run(tmp_path):
    """It goes on where it was stopped, and what has failed has a row that says why."""
    out = tmp_path / "speed.json"
    kept = {"rbhc": {"cases": [{"case": "kept", "unit": "s", "device": "cpu", "versions": {}}]}}
    broken = {"graphs": {"cases": [], "error": "it was stopped"}}
    out.write_text(json.dumps({"benchmarks": kept | broken}))
    command = ["rbhc", "graphs", "data_size", "--smoke", "--resume", "--out", str(out)]
    done = run(FOLDER / "table.py", *command, "--timeout", "0.1")
    assert done.returncode != 0 and "--resume" in done.stderr
    results = json.loads(out.read_text())
    done = run(FOLDER / "table.py", "graphs", "--resume", "--out", str(out))
    assert done.returncode != 0 and "--resume needs the sizes" in done.stderr
    assert results["smoke"] and results["benchmarks"]["rbhc"] == kept["rbhc"]
    assert results["benchmarks"]["graphs"]["error"] == "it took longer than 0.1 s"
    done = run(FOLDER / "table.py", *command)
    assert done.returncode == 0, done.stderr
    assert "1,000 rows" in done.stdout and "measure nothing" in done.stdout
    found = json.loads(out.read_text())["benchmarks"]["data_size"]["cases"][0]
    assert found["median"]["pyro_ext"] > 0
    assert {"pyro-ext", "torch", "python"} <= set(found["versions"])


@pytest.mark.slow
@pytest.mark.skipif(
    any(find_spec(peer) is None for peer in PEERS), reason="the extra 'bench' is not installed"
)
def test_tiny_run_beside_peers():
    for row in tiny("step_time"):
        assert {"BlackJAX", "posteriors", "Pyro, eager"} <= set(row["ratio"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "peers"),
    [
        ("coreset_sampling", {"Pyro, NUTS on all", "pyro_ext, NUTS on all"}),
        ("expansion_step_time", {"pyro_ext, expanded"}),
        ("neural_processes", {"PyTorch, by hand"}),
        ("set_attention", {"PyTorch, by hand"}),
    ],
)
def test_tiny_run(name, peers):
    rows = tiny(name)
    for row in rows[-1:] if name == "set_attention" else rows:
        assert all(row["ratio"][peer] > 0 for peer in peers)


@pytest.mark.slow
def test_tiny_run_of_the_posterior_bootstrap():
    (row,) = tiny("posterior_bootstrap")
    assert row["ratio"]["SciPy, loop"] > 0
    assert row["quality"]["pyro_ext"]["distance"] < 0.01


@pytest.mark.slow
def test_tiny_run_of_coresets():
    """A forward step keeps less in memory than one that goes back through all inner steps."""
    rows = {row["case"]: row for row in tiny("pseudocoresets")}
    assert rows["ForwardKL, GaussianSurrogate"]["median"]["pyro_ext"] > 0
    memory = rows["ForwardKL, 10 images, 20 steps"]["quality"]["pyro_ext"]["saved MB"]
    assert 0 < memory < rows["Wasserstein, 10 images, 20 steps"]["quality"]["pyro_ext"]["saved MB"]


@pytest.mark.slow
def test_tiny_run_of_predictions():
    rows = tiny("predictive_samples")
    assert [row["case"] for row in rows] == ["wine, SGHMC", "wine, PX-SGHMC", "wine, NUTS"]
    for row in rows:
        assert row["quality"]["reference"]["tv"] > 0
        for side in ("pyro_ext", "Pyro, NUTS by jit_compile"):
            assert row["quality"][side]["ess_per_s"] > 0
            assert 0 < row["quality"][side]["tv"] < 1


@pytest.mark.slow
def test_tiny_run_of_copulas():
    rows = tiny("copula")
    for row in rows:
        assert row["ratio"]["NumPy, by hand"] > 0
    assert rows[0]["ratio"]["NumPy, permutations at once"] > 0
    fitted = rows[0]["quality"]
    assert abs(fitted["pyro_ext"]["bandwidth"] - fitted["NumPy, by hand"]["bandwidth"]) < 0.1


def test_model_of_nuts_is_that_of_the_reference():
    import predictive_samples
    import torch

    from pyro_ext.models.ensembles import load_reference_posterior
    from pyro_ext.potential import Potential

    reference = load_reference_posterior("wine")
    data = reference.dataset.train_inputs, reference.dataset.train_targets
    plain = partial(predictive_samples.plain_model, reference)
    values = []
    for model in (reference.model(), plain):
        potential = Potential(model, *data, backend="eager")
        generator = torch.Generator().manual_seed(0)
        position = torch.randn(1, 139, generator=generator)
        values.append(potential.full_value_and_grad(potential.layout.unflatten(position))[0])
    torch.testing.assert_close(*values)


def test_table_refuses_an_unknown_name():
    done = run(FOLDER / "table.py", "no_such_benchmark")
    assert done.returncode != 0
    assert "no_such_benchmark" in done.stderr and "data_size" in done.stderr


def test_a_missing_peer_and_one_that_fails_have_their_reasons():
    from _common import Case, available, in_turn

    def absent():
        importlib.import_module("no_such_peer")

    def failing():
        raise ValueError("no step\nof this size")

    sides, missing = available({"pyro_ext": lambda: lambda: 1.0, "absent": absent})
    timings = in_turn(sides | {"failing": failing}, 2, missing)
    assert Case("case", timings).as_json() == {
        "case": "case",
        "median": {"pyro_ext": 1.0},
        "missing": {"absent": "no_such_peer is not installed", "failing": "ValueError: no step"},
    }
    with pytest.raises(ModuleNotFoundError):
        available({"pyro_ext": absent})
    with pytest.raises(ValueError, match="no step"):
        in_turn({"pyro_ext": failing}, 1)


def test_ratio_is_of_medians_and_peer_over_ours():
    from _common import Case, Timings

    timings = Timings({"pyro_ext": [2.0, 1.0, 90.0], "peer": [5.0, 6.0, 1.0]})
    row = Case("case", timings).as_json()
    assert row == {
        "case": "case",
        "median": {"pyro_ext": 2.0, "peer": 5.0},
        "ratio": {"peer": 2.5},
        "span": {"peer": [0.01111, 6.0]},
    }


@pytest.mark.parametrize("name", ["CNP", "MPNP"])
def test_plain_neural_processes_are_the_same_networks(name):
    """With the same parameters and noise, losses and their gradients are equal."""
    import torch
    from neural_processes import pair

    from pyro_ext.models.neural_processes import GPTasks

    process, plain = pair(name, 16)
    batch = GPTasks("rbf", num_tasks=3)(0)
    found = process.loss(batch, 5, generator=torch.Generator().manual_seed(1))
    task = (*batch.context[:2], *batch.points[:2])
    expected = plain.loss(task, torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, expected)
    gradients = [
        torch.autograd.grad(*pair)
        for pair in ((found, list(process.parameters())), (expected, list(plain.parameters())))
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


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
    rows = torch.arange(size)
    monkeypatch.setattr(torch, "randint", lambda high, shape, device: rows.expand(shape))
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


def test_known_answers_of_the_samplers_densities():
    """Evidence of two modes by quadrature, moments by exact draws."""
    import _sampler_densities as densities
    import torch
    from blackjax_samplers import moment_errors
    from scipy.integrate import quad
    from scipy.stats import norm

    def integrand(x):
        return norm.pdf(x, 0.0, densities.PRIOR_SCALE) * norm.pdf(x, densities.MODE, 0.5)

    evidence = densities.NUM_MODE_DIMS * np.log(quad(integrand, -10.0, 10.0, points=[2.0])[0])
    found = densities.tempering_errors([(evidence + 0.1, 0.7), (evidence - 0.1, 0.9)])
    assert found == pytest.approx({"error_of_log_evidence": 0.01, "error_of_share": 0.02})

    density = densities.normal()
    sample = {"x": torch.zeros(2, 5, 100), "y": torch.ones(2, 5)}
    assert densities.positions_of(sample).shape == (2, 5, 101)
    draws = densities.SCALES * np.random.default_rng(0).normal(size=(4, 2500, 100))
    errors = moment_errors(density, (draws, 0))
    for name in ("error", "error_of_means", "error_of_squares"):
        assert errors[name] == pytest.approx(1e-4, rel=0.5)  # of 10,000 independent draws
    shifted = moment_errors(density, (draws + densities.SCALES, 0))
    assert shifted["error_of_means"] == pytest.approx(1.0, rel=0.1)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("blackjax") is not None, reason="peers take minutes to compile")
def test_tiny_run_of_samplers_without_peers():
    for row in tiny("blackjax_samplers"):
        assert row["median"]["pyro_ext"] > 0
        assert "is not installed" in row["missing"]["BlackJAX"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("diffusers") is None, reason="the extra 'diffusion' is not installed")
def test_tiny_run_of_erasing_has_the_losses_of_the_loop_by_hand():
    (row,) = tiny("concept_erasure")
    assert row["quality"]["diffusers, loop by hand"]["relative difference of losses"] < 1e-3


def test_the_page_has_the_numbers_of_the_saved_run():
    from _page import PAGE, PICTURE, README, page, readme, rows, saved

    tables = [json.loads(path.read_text()) for path in saved()]
    assert page(PAGE.read_text(), tables) == PAGE.read_text()
    assert readme(README.read_text(), tables[0]) == README.read_text()
    assert not any(results["smoke"] for results in tables)
    drawn = PICTURE.read_text()
    assert len(drawn) <= 80_000
    for row in rows(tables[0]):
        if row.ratio is not None:
            assert f">{row.what}<" in drawn and f">{row.peer.partition(',')[0]}<" in drawn


def test_rows_of_the_table():
    from _page import cells, page, rows

    case = {
        "case": "draws",
        "unit": "CPU s",
        "device": "cpu",
        "median": {"pyro_ext": 2.0, "pyro_ext, other": 1.0, "Peer, somehow": 3001.0},
        "ratio": {"pyro_ext, other": 0.5, "Peer, somehow": 1500.5},
        "span": {"pyro_ext, other": [0.5, 0.5], "Peer, somehow": [1000.0, 2000.0]},
        "quality": {
            "pyro_ext": {"mean_error": 0.1, "size": 3},
            "Peer, somehow": {"mean_error": 0.25},
        },
        "missing": {"Absent": "it is not installed"},
        "versions": {"torch": "2"},
    }
    results = {
        "date": "2026-01-01",
        "smoke": False,
        "machine": {"processor": "Chip", "system": "Linux"},
        "benchmarks": {"one": {"cases": [case]}, "two": {"error": "it was stopped"}},
    }
    found = [cells(row) for row in rows(results)]
    assert found[0] == [
        *("draws", "Peer, somehow", "2", "3,000", "1,500 (1,000 to 2,000)", "CPU s", ""),
        "mean error 0.1 / 0.25",
    ]
    assert found[1][-1] == "not measured: it is not installed"
    assert found[2][0] == "two.py" and found[2][-1] == "not measured: it was stopped"
    text = "before\n<!-- what follows is written by make -->\nold<!-- end -->\nafter\n"
    written = page(text, [results])
    assert written.startswith("before\n") and written.endswith("<!-- end -->\nafter\n")
    assert "old" not in written and "Chip, Linux, 2026-01-01. torch 2." in written
    assert page(written, [results]) == written


def test_rows_of_the_readme(monkeypatch):
    import _page

    monkeypatch.setattr(_page, "IN_README", ("one", "two"))
    ratio = {"Peer": 1500.5, "pyro_ext, other": 2.0, "Other, compiled": 0.5}
    case = {
        "case": "draws",
        "unit": "CPU s",
        "device": "cpu",
        "median": {"pyro_ext": 2.0} | {peer: 2.0 * value for peer, value in ratio.items()},
        "ratio": ratio,
        "span": {peer: [value, value] for peer, value in ratio.items()},
        "missing": {"Absent": "it is not installed"},
    }
    benchmarks = {"one": {"cases": [case]}, "two": {"error": "it was stopped"}, "three": {}}
    machine = {"processor": "Chip", "system": "Linux"}
    results = {"date": "2026-01-01", "machine": machine, "benchmarks": benchmarks}
    text = "before\n<!-- what follows is written by make -->\n<!-- end -->\nafter\n"
    written = _page.readme(text, results)
    row = "| draws | CPU s | 2 | 3,000 Peer; 1 Other, compiled; Absent not measured |"
    assert f"\n{row}\n| two.py |  |  | every peer not measured |\n" in written
    assert "Chip, Linux, 2026-01-01:\n" in written and written.endswith("<!-- end -->\nafter\n")
    assert _page.readme(written, results) == written
