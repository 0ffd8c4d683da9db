"""Checkpoints: a run goes on to the same draws from wherever it was stopped."""

import os
import shutil

import psutil
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import nn

from pyro_ext.checkpoint import Checkpoint, CheckpointError, files
from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import L2E, MCMC, PSGLD, SGHMC, SGLD, SGNHT, CyclicalSchedule, MetaSGMCMC
from pyro_ext.inference.driver.dispatch import Pace
from tests.inference.models import assert_same, interrupting, whole


def model(x, scale=1.0):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0 * scale).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
    pyro.deterministic("ratio", loc / sigma, event_dim=1)
    with pyro.plate("coordinate", 2):
        pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=20) as index:
        pyro.deterministic("residual", x[index] - loc, event_dim=1)
        pyro.sample("x", dist.Normal(loc, sigma).to_event(1), obs=x[index])


SGMCMC = {
    "SGLD": lambda m: SGLD(m, step_size=1e-3),
    "PSGLD": lambda m: PSGLD(m, step_size=1e-3),
    "SGHMC": lambda m: SGHMC(m, step_size=0.02, friction=5.0),
    "SGNHT": lambda m: SGNHT(m, step_size=0.01),
    "L2E": lambda m: L2E(m),
    "MetaSGMCMC": lambda m: MetaSGMCMC(m),
    "cyclical": lambda m: SGLD(
        m, step_size=CyclicalSchedule(1e-3, num_cycles=4, num_steps=40, exploration=0.5)
    ),
}


@pytest.fixture
def short_segments(monkeypatch):
    """Segments of a step, so that every step is a place to stop at."""
    monkeypatch.setattr(Pace, "shortest", 0.0)
    monkeypatch.setattr(Pace, "fraction", 0.0)


def driver(kernel, checkpoint=None, **options):
    defaults = {"num_samples": 12, "warmup_steps": 3, "num_chains": 3, "thinning": 2, "seed": 3}
    return MCMC(kernel, checkpoint=checkpoint, progress=False, **(defaults | options))


class Crash(BaseException):
    """What no code may catch."""


@pytest.fixture
def crash_after(monkeypatch):
    """Makes writing fail at a moment, as if the process had ended there."""
    replace, dump = os.replace, files.save

    def at(number):
        count = {"left": number}

        def step(function):
            def wrapped(*args, **kwargs):
                if count["left"] == 0:
                    raise Crash
                count["left"] -= 1
                return function(*args, **kwargs)

            return wrapped

        monkeypatch.setattr(files.os, "replace", step(replace))
        monkeypatch.setattr(files, "save", step(dump))

    yield at
    monkeypatch.setattr(files.os, "replace", replace)
    monkeypatch.setattr(files, "save", dump)


@pytest.mark.slow
@pytest.mark.parametrize("name", SGMCMC)
def test_a_crash_at_any_write_changes_no_draw(name, x, tmp_path, short_segments, crash_after):
    make = SGMCMC[name]
    expected = driver(make(model), num_samples=4).run(x)
    number, crashed = 0, True
    while crashed:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        crash_after(number)
        try:
            driver(make(model), tmp_path / "run", num_samples=4).run(x)
            crashed = False
        except Crash:
            crash_after(-1)
            again = driver(make(model), tmp_path / "run", num_samples=4).run(x)
            assert_same(expected, again)
            assert torch.equal(expected.sample_statistics()["lp"], again.sample_statistics()["lp"])
        number += 5 if name != "SGHMC" else 2
    assert number > 16


def test_ctrl_c_and_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_ext.inference.driver.vectorized_kernels._MOST_STEPS_PER_CALL", 1)

    def run(count, folder):
        kernel = SGLD(potential_fn=interrupting(count), step_size=0.1, backend="eager")
        start = {"x": torch.zeros(3, 2)}
        return driver(kernel, folder, initial_params=start).run()

    expected = run(-1, None)
    first = run(1 + 3 * 14 + 8, tmp_path)
    assert first.interrupted and first.num_draws == 5
    # The model's density is looked at eight times before the run goes on.
    second = run(-1, tmp_path)
    assert not second.interrupted
    assert_same(expected, second)


def test_memory_does_not_grow_with_the_draws(tmp_path, monkeypatch):
    """The draws take 80 MB, of which memory holds a segment's worth of a few MB at a time."""
    monkeypatch.setattr("pyro_ext.inference.driver.vectorized_kernels._BYTES_PER_SEGMENT", 1 << 20)
    process = psutil.Process()
    sizes = []

    def size(z):
        sizes.append(process.memory_info().rss)
        return 0.5 * z["x"].square().sum()

    kernel = SGLD(potential_fn=size, step_size=0.1, backend="eager")
    start = {"x": torch.zeros(2, 10_000)}
    options = {"num_chains": 2, "thinning": 1, "initial_params": start}
    driver(kernel, tmp_path, num_samples=1000, **options).run()
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert written > 80e6
    half = len(sizes) // 2
    assert max(sizes[half:]) - max(sizes[:half]) < 20e6


@pytest.mark.slow
def test_a_finished_run_is_read_and_a_longer_one_goes_on(x, tmp_path):
    expected = driver(SGMCMC["SGHMC"](model), num_samples=20).run(x)
    driver(SGMCMC["SGHMC"](model), tmp_path, num_samples=8).run(x)
    before = sorted(path.name for path in tmp_path.rglob("*.safetensors"))
    again = driver(SGMCMC["SGHMC"](model), tmp_path, num_samples=8).run(x)
    assert before == sorted(path.name for path in tmp_path.rglob("*.safetensors"))
    assert again.num_draws == 8
    longer = driver(SGMCMC["SGHMC"](model), tmp_path, num_samples=20).run(x)
    assert_same(expected, longer)
    shorter = driver(SGMCMC["SGHMC"](model), tmp_path, num_samples=5).run(x)
    assert torch.equal(shorter.get_samples(True)["loc"], expected.get_samples(True)["loc"][:, :5])


def test_a_reader_of_a_running_run_shows_one_moment(x, tmp_path):
    """Sites, statistics and settings fit together, however far the run has got in between."""
    driver(SGMCMC["SGHMC"](model), tmp_path, num_samples=8).run(x)
    reader = Checkpoint(tmp_path)
    assert reader.get_samples(True)["loc"].shape == (3, 8, 2)
    driver(SGMCMC["SGHMC"](model), tmp_path, num_samples=20).run(x)
    assert reader.num_samples == 8 and {chain.num_draws for chain in reader.chains()} == {8}
    assert reader.sample_statistics()["lp"].shape == (3, 8)
    assert to_arviz(reader).posterior["loc"].shape == (3, 8, 2)
    assert Checkpoint(tmp_path).get_samples(True)["loc"].shape == (3, 20, 2)


def test_a_seed_that_was_not_given_is_that_of_the_checkpoint(x, tmp_path):
    first = driver(SGMCMC["SGLD"](model), tmp_path, seed=None, num_samples=5).run(x)
    second = driver(SGMCMC["SGLD"](model), tmp_path, seed=None, num_samples=9).run(x)
    assert torch.equal(first.get_samples(True)["loc"], second.get_samples(True)["loc"][:, :5])


@pytest.mark.slow
def test_another_run_is_refused(subtests, x, tmp_path):
    driver(SGLD(model), tmp_path).run(x)
    for change, message in [
        (
            {"kernel": lambda m: SGLD(m, step_size=2e-3)},
            "kernel: step_size is absent there and 0.002",
        ),
        ({"kernel": lambda m: PSGLD(m, step_size=1e-3)}, "type is SGLD there and PSGLD here"),
        ({"kernel": lambda m: SGLD(m, backend="eager")}, "backend is auto there and eager here"),
        ({"seed": 4}, "run: seed is 3 there and 4 here"),
        ({"thinning": 3}, "thinning is 2 there"),
        ({"warmup_steps": 0}, "warmup_steps is 3 there"),
        ({"num_chains": 4}, "num_chains is 3 there"),
        ({"group_size": 1}, "groups"),
        ({"quantities": {"q": lambda s: s["loc"]}}, "quantities"),
        ({"extra_fields": ["position"]}, "fields"),
        ({"model": whole}, "model: name is model there and whole here"),
        ({"args": (torch.zeros(60, 2),)}, r"data: args\[0\] is torch.float32 \(60, 2\)"),
        ({"kwargs": {"scale": 2.0}}, r"kwargs\['scale'\] is absent there and 2.0 here"),
    ]:
        with subtests.test(message):
            options = {key: value for key, value in change.items() if key not in NOT_OPTIONS}
            kernel = change.get("kernel", lambda m: SGLD(m))(change.get("model", model))
            with pytest.raises(CheckpointError, match=f"another run: .*{message}"):
                driver(kernel, tmp_path, **options).run(
                    *change.get("args", (x,)), **change.get("kwargs", {})
                )
            assert Checkpoint(tmp_path).get_samples(True)["loc"].shape == (3, 12, 2)


NOT_OPTIONS = {"kernel", "model", "args", "kwargs"}


def test_another_version_is_refused(x, tmp_path, monkeypatch):
    driver(SGLD(model), tmp_path).run(x)
    monkeypatch.setattr("pyro_ext.posterior.identity.__version__", "9.9")
    with pytest.raises(CheckpointError, match=r"versions: pyro_ext is .* there and 9.9 here"):
        driver(SGLD(model), tmp_path).run(x)


def test_two_runs_at_once_are_refused(x, tmp_path):
    def nested(x):
        if not nested.done:
            nested.done = True
            with pytest.raises(CheckpointError, match="another process"):
                driver(SGLD(model), tmp_path).run(x)
        return model(x)

    nested.done = False
    driver(SGLD(nested), tmp_path).run(x)
    assert nested.done


def test_a_folder_of_other_things_is_refused(x, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(CheckpointError, match="thesis.tex"):
        driver(SGLD(model), tmp_path).run(x)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be created"):
        driver(SGLD(model), tmp_path / "file").run(x)


@pytest.mark.parametrize(("name", "number"), [("state", 12), ("draws-00000007", 7)])
def test_what_can_be_read_until_damage(name, number, x, tmp_path, short_segments):
    mcmc = driver(SGLD(model), tmp_path).run(x)
    expected = mcmc.get_samples(True)["loc"]
    mcmc._gathered = None
    path = tmp_path / "chains-00000" / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    for read in (lambda: driver(SGLD(model), tmp_path).run(x), mcmc.get_samples):
        with pytest.raises(CheckpointError, match=name):
            read()
    with pytest.raises(CheckpointError, match=f"{name}.*until_damage"):
        Checkpoint(tmp_path).get_samples()
    readable = Checkpoint(tmp_path, until_damage=True)
    assert torch.equal(readable.get_samples(True)["loc"], expected[:, :number])
    assert to_arviz(readable)["posterior"]["loc"].shape == (3, number, 2)


def test_a_disk_that_fills_up(x, tmp_path, short_segments, monkeypatch):
    write = files.write_bytes
    count = {"left": 9}

    def full(path, data):
        count["left"] -= 1
        if count["left"] < 0:
            raise CheckpointError(f"{path} cannot be written (No space left on device)")
        write(path, data)

    monkeypatch.setattr(files, "write_bytes", full)
    mcmc = driver(SGLD(model), tmp_path)
    with pytest.raises(CheckpointError, match="No space left"):
        mcmc.run(x)
    kept = mcmc.get_samples(True)["loc"]
    assert 0 < kept.shape[1] < 12
    assert Checkpoint(tmp_path).get_samples(True)["loc"].shape[1] >= kept.shape[1]
    monkeypatch.setattr(files, "write_bytes", write)
    assert_same(driver(SGLD(model)).run(x), driver(SGLD(model), tmp_path).run(x))


class Own(MCMCKernel):
    def sample(self, params):
        return params


def test_a_kernel_of_unknown_state_is_refused(tmp_path):
    with pytest.raises(ValueError, match="checkpoint takes a kernel"):
        MCMC(Own(), num_samples=1, checkpoint=tmp_path)
    with pytest.raises(TypeError, match="checkpoint must be the path"):
        MCMC(SGLD(model), num_samples=1, checkpoint=3)


def test_the_reader_and_arviz(x, tmp_path):
    mcmc = driver(SGHMC(model, step_size=0.02, friction=5.0), tmp_path, extra_fields=["momentum"])
    mcmc.run(x)
    checkpoint = Checkpoint(tmp_path)
    samples, statistics = checkpoint.get_samples(True), checkpoint.sample_statistics()
    assert_same(checkpoint, mcmc)
    assert set(statistics) == set(mcmc.sample_statistics())
    assert checkpoint.num_samples == 12 and checkpoint.dims == {"shift": ["coordinate"]}
    assert "residual" not in samples
    assert torch.equal(checkpoint.get_samples()["loc"], mcmc.get_samples()["loc"])
    data = to_arviz(tmp_path)
    assert data["posterior"]["shift"].dims == ("chain", "draw", "coordinate")
    assert data["posterior"]["loc"].shape == (3, 12, 2)
    assert "log_likelihood" not in data
    whole = to_arviz(str(tmp_path), x, model=model)
    assert whole["log_likelihood"]["x"].dims == ("chain", "draw", "data")


def test_nothing_written_can_execute(x, tmp_path):
    """Only safetensors and JSON: no pickle anywhere, whose streams begin with a protocol mark."""
    driver(SGLD(model), tmp_path).run(x)
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds == {".safetensors", ".json", ""}
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or path.name == "lock" or path.suffix
        assert path.is_dir() or not path.read_bytes().startswith(b"\x80")


def test_module_models(x, tmp_path):
    class Regression(nn.Module):
        def forward(self, x):
            weight = pyro.sample("weight", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(x[:, :1] @ weight, 1.0), obs=x[:, 1])

    expected = driver(SGLD(Regression())).run(x)
    driver(SGLD(Regression()), tmp_path, num_samples=5).run(x)
    assert_same(expected, driver(SGLD(Regression()), tmp_path).run(x))
