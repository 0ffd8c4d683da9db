"""The benchmarks: that they start, say what is missing, and report what they measured."""

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


@pytest.mark.slow
def test_tiny_run_of_parameter_expansion():
    done = run(FOLDER / "expansion_step_time.py", "--smoke")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["limits"] == {"MLP": 1.4, "MLP on 256": 1.4, "ResNet": 1.25}
    for row in result["results"]:
        assert row["ratio"]["expanded"] > 0


@pytest.mark.slow
def test_tiny_run_of_the_posterior_bootstrap():
    done = run(FOLDER / "posterior_bootstrap.py", "--smoke")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["results"]
    assert row["ratio"]["scipy loop"] > 0
    assert row["quality"]["pyro_ext"]["distance"] < 0.01


@pytest.mark.slow
def test_tiny_run_of_coresets():
    """A forward step keeps less in memory than one that goes back through all inner steps."""
    done = run(FOLDER / "pseudocoresets.py", "--smoke")
    assert done.returncode == 0, done.stderr
    rows = {row["case"]: row for row in json.loads(done.stdout)["results"]}
    assert rows["ForwardKL, GaussianSurrogate"]["median"]["pyro_ext"] > 0
    memory = rows["ForwardKL, 10 images, 20 steps"]["quality"]["pyro_ext"]["saved MB"]
    assert 0 < memory < rows["Wasserstein, 10 images, 20 steps"]["quality"]["pyro_ext"]["saved MB"]


@pytest.mark.slow
def test_tiny_run_of_sampling_through_a_coreset():
    done = run(FOLDER / "coreset_sampling.py", "--smoke")
    assert done.returncode == 0, done.stderr
    for row in json.loads(done.stdout)["results"]:
        assert {"pyro_nuts", "pyro_ext_nuts"} <= set(row["ratio"])
        assert row["quality"]["pyro_ext"]["ess"] > 0


@pytest.mark.slow
def test_tiny_run_of_predictions():
    done = run(FOLDER / "predictive_samples.py", "--smoke")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["posterior_tv"]) == {"wine"}
    assert [row["case"] for row in result["results"]] == [
        "wine, SGHMC",
        "wine, PX-SGHMC",
        "wine, NUTS",
    ]
    for row in result["results"]:
        for side in ("pyro_ext", "pyro_nuts_jit"):
            assert row["quality"][side]["ess_per_s"] > 0
            assert 0 < row["quality"][side]["tv"] < 1


@pytest.mark.slow
def test_tiny_run_of_attention_in_sets():
    done = run(FOLDER / "set_attention.py", "--smoke")
    assert done.returncode == 0, done.stderr
    *_, network = json.loads(done.stdout)["results"]
    assert network["ratio"]["by hand"] > 0


@pytest.mark.slow
def test_tiny_run_of_copulas():
    done = run(FOLDER / "copula.py", "--smoke")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for row in result["results"]:
        assert row["ratio"]["numpy"] > 0
    assert result["results"][0]["ratio"]["numpy, all permutations at once"] > 0
    fitted = result["results"][0]["quality"]
    assert abs(fitted["pyro_ext"]["bandwidth"] - fitted["numpy"]["bandwidth"]) < 0.1


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


@pytest.mark.slow
def test_tiny_run_of_neural_processes():
    done = run(FOLDER / "neural_processes.py", "--smoke")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["case"] for row in result["results"]] == ["CNP", "MPNP"]
    for row in result["results"]:
        assert row["ratio"]["plain torch"] > 0


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


@pytest.mark.slow
@pytest.mark.skipif(find_spec("diffusers") is None, reason="the extra 'diffusion' is not installed")
def test_tiny_run_of_erasing_has_the_losses_of_the_loop_by_hand():
    done = run(FOLDER / "concept_erasure.py", "--smoke")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["results"]
    assert row["quality"]["diffusers loop"]["relative difference of losses"] < 1e-3
