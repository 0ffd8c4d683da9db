"""Whatever stands in the place of a file, an error names it, or it counts as missing, at once.

What is written follows no link, waits at no pipe, and has one writer at a time.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn

from pyro_ext._lib.files import UNFINISHED
from pyro_ext.checkpoint import Checkpoint, CheckpointError
from pyro_ext.datasets import _records
from pyro_ext.inference import MCMC, SGLD, PriorDataFittedNetwork, PriorFittedTransformer, Trainer
from pyro_ext.inference.averaging import ModelFusion
from pyro_ext.inference.pseudocoresets import AutoPseudocoreset, ExpertBuffer
from pyro_ext.inference.sgmcmc import ResidualKinetics
from pyro_ext.models.ensembles import load_reference_posterior
from pyro_ext.models.ensembles.reference_posterior import path_of
from pyro_ext.models.federated import FederatedServer
from pyro_ext.models.scaling_laws import read_curve
from pyro_ext.nn import MLP, add_lora, load_lora, save_lora
from pyro_ext.ratings import add_ratings, read_ratings
from pyro_ext.reproduction import FIGURES_VARIABLE, Claim, Page, Report
from pyro_ext.reproduction.notebooks import write_notebooks
from pyro_ext.reproduction.pages import kept_outcome, read_page, run_page
from pyro_ext.reproduction.scoreboard import write_scoreboard

SECONDS = 100.0  # that something may wait at a pipe, until it is found out

X = torch.linspace(-1.0, 1.0, 20)
CLIENTS = [(torch.randn(8, 4), torch.arange(8) % 3) for _ in range(2)]


def model(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def sampled(folder: Path) -> None:
    kernel = SGLD(model, step_size=0.01)
    MCMC(kernel, 2, num_chains=2, seed=0, checkpoint=folder, progress=False).run(X)


def trained(path: Path, while_training: Callable[[], Any] = lambda: None) -> None:
    parameter = torch.zeros(2, requires_grad=True)

    def loss() -> Tensor:
        while_training()
        return parameter.square().sum()

    Trainer([parameter], seed=0).run(loss, 1, checkpoint=path, progress=False)


def fused(path: Path, while_training: Callable[[], Any] = lambda: None) -> None:
    def evaluate(network: nn.Module) -> dict[str, float]:
        while_training()
        return {"loss": float(network.weight.sum())}

    weights = {"weight": torch.tensor([[[0.0]], [[1.0]]])}
    fusion = ModelFusion(nn.Linear(1, 1, bias=False), weights, evaluate, {"loss": "minimize"})
    fusion.run(0, checkpoint=path, progress=False)


def served(path: Path, while_training: Callable[[], Any] = lambda: None) -> None:
    torch.manual_seed(0)
    module = add_lora(MLP(4, [4], 3), rank=2)
    server = FederatedServer(module, "fedavg", num_local_steps=1, seed=0)
    server.module.register_forward_hook(lambda net, *_: net.training and while_training() and None)
    server.run(CLIENTS, 1, checkpoint=path, progress=False)


def guide() -> AutoPseudocoreset:
    return AutoPseudocoreset(model, X, size=2, seed=0)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2))


def report(folder: Path) -> None:
    claim = Claim("One is one.", {0: 1, 1: 1, 2: 1}, "<=", 1.0, "arithmetic")
    Report("counts", [claim], figures={"a-figure": Drawing()}).save(folder)


class Drawing:
    def savefig(self, fname: Path, /, *, dpi: float) -> None:
        fname.write_bytes(b"drawn")


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A pipe at which nothing waits forever, so that a failure ends."""
    path = tmp_path / "a pipe"
    os.mkfifo(path)
    command = ["sh", "-c", f'while sleep {SECONDS:g}; do : <> "$0"; done', str(path)]
    started = time.monotonic()
    with subprocess.Popen(command, start_new_session=True) as process:
        yield path
        os.killpg(process.pid, signal.SIGKILL)
    assert time.monotonic() - started < SECONDS, "it waited at a pipe"


# Reading -----------------------------------------------------------------------------------------

TENSORS, JSON, OTHER = "tensors", "JSON", "other"
RUN, STATE, DRAWS = "run.json", "chains-00000/state.safetensors", "draws-00000000.safetensors"
PFN = PriorDataFittedNetwork(
    None, PriorFittedTransformer(num_bars=4, width=8, num_layers=1), torch.linspace(0.0, 1.0, 5)
)

# What writes, into a folder, a file of a name and of a kind, and what reads it.
READERS: dict[str, tuple[Callable[[Path], Any], str, str, Callable[[Path], Any]]] = {
    "run": (sampled, RUN, JSON, Checkpoint),
    "state": (sampled, STATE, TENSORS, lambda f: Checkpoint(f).get_samples()),
    "draws": (sampled, f"chains-00000/{DRAWS}", TENSORS, lambda f: Checkpoint(f).get_samples()),
    "training": (lambda f: trained(f / "file"), "file", TENSORS, lambda f: trained(f / "file")),
    "fusion": (lambda f: fused(f / "file"), "file", TENSORS, lambda f: fused(f / "file")),
    "server": (lambda f: served(f / "file"), "file", TENSORS, lambda f: served(f / "file")),
    "coreset": (
        lambda f: guide().save(f / "file"),
        "file",
        TENSORS,
        (lambda one: lambda f: one.load(f / "file"))(guide()),
    ),
    "experts": (
        lambda f: ExpertBuffer(torch.zeros(1, 2, 1), {"loc": ()}, torch.ones(1, 1)).save(f / "e"),
        "e",
        TENSORS,
        lambda f: ExpertBuffer.load(f / "e"),
    ),
    "kinetics": (
        lambda f: ResidualKinetics().save(f / "file"),
        "file",
        TENSORS,
        lambda f: ResidualKinetics.load(f / "file"),
    ),
    "fitted network": (
        lambda f: PFN.save(f / "file"),
        "file",
        TENSORS,
        lambda f: PriorDataFittedNetwork.load(f / "file"),
    ),
    "posterior": (
        lambda f: shutil.copy(path_of("wine"), f),
        "wine.safetensors",
        TENSORS,
        partial(load_reference_posterior, "wine"),
    ),
    "adapter": (
        lambda f: save_lora(add_lora(network(), rank=1), f),
        "adapter_model.safetensors",
        TENSORS,
        lambda f: load_lora(network(), f),
    ),
    "settings of an adapter": (
        lambda f: save_lora(add_lora(network(), rank=1), f),
        "adapter_config.json",
        JSON,
        lambda f: load_lora(network(), f),
    ),
    "report": (report, "report.json", JSON, Report.load),
    "ratings": (lambda f: ratings(f), "ratings.jsonl", JSON, read_ratings),
    "curve": (
        lambda f: (f / "curve").write_text("1,2\n3,4\n"),
        "curve",
        OTHER,
        lambda f: read_curve(f / "curve"),
    ),
}


def ratings(folder: Path) -> None:
    for name in "ab":
        (folder / f"{name}.png").touch()
    header = '{"format": "pyro_ext ratings", "version": 1, "concept": "seven", "rank": 1}'
    answer = '{"images": ["a.png"], "label": true}'
    answers = folder.parent / f"{folder.name} answers"
    answers.write_text(f"{header}\n{answer}\n")
    add_ratings(folder, answers)


def nested(depth: int) -> str:
    return f'{{"content": {"[" * depth}{"]" * depth}}}'


def of_tensors(text: str) -> bytes:
    """A whole file that holds this text."""
    return save({}, {"content": text, "digest": hashlib.sha256(text.encode()).hexdigest()})


def damages(kind: str, whole: bytes, pipe: Path) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """What may stand in the place of a file, and what puts it there."""

    def bytes_of(content: bytes) -> Callable[[Path], Any]:
        return lambda path: path.write_bytes(content)

    yield "a pipe", lambda path: os.link(pipe, path)
    yield "a link to a pipe", lambda path: path.symlink_to(pipe)
    yield "a folder", Path.mkdir
    yield "garbage", bytes_of(np.random.default_rng(0).bytes(300))
    if kind == OTHER:
        return
    for name, content in {"empty": b"", "cut": whole[: len(whole) // 2]}.items():
        yield name, bytes_of(content)
    texts = ("[1]", "null", "3", "{}", '{"figures": 1}', nested(300), nested(3000), nested(100_000))
    for text in texts:
        content = text.encode() if kind == JSON else of_tensors(text)
        yield f"{text:.20} of {len(text)}", bytes_of(content)


@pytest.mark.parametrize("name", READERS)
def test_what_stands_in_the_place_of_a_file_is_named(
    name: str, tmp_path: Path, pipe: Path, subtests: pytest.Subtests
) -> None:
    write, file, kind, read = READERS[name]
    (tmp_path / "whole").mkdir()
    write(tmp_path / "whole")
    read(tmp_path / "whole")
    whole = (tmp_path / "whole" / file).read_bytes()
    for number, (damage, put) in enumerate(damages(kind, whole, pipe)):
        with subtests.test(damage):
            folder = tmp_path / f"damaged {number}"
            shutil.copytree(tmp_path / "whole", folder)
            (folder / file).unlink()
            put(folder / file)
            with pytest.raises((CheckpointError, ValueError, OSError)) as caught:
                read(folder)
            assert str(folder / file) in str(caught.value)


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Plain values with another one somewhere."""
    if not path:
        return value
    first, *rest = path
    found = content.copy()
    found[first] = changed(content[first], tuple(rest), value)
    return found


def places(content: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all parts of plain values."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, part in pairs:
        yield (*before, key)
        if isinstance(part, dict | list):
            yield from places(part, (*before, key))


@pytest.mark.parametrize("name", ["report", "settings of an adapter"])
def test_json_of_another_shape_is_refused_or_can_be_used(name: str, tmp_path: Path) -> None:
    write, file, _, read = READERS[name]
    write(tmp_path)
    content = json.loads((tmp_path / file).read_text())
    for place in places(content):
        for value in (None, [1], "text", -7):
            (tmp_path / file).write_text(json.dumps(changed(content, place, value)))
            try:
                found = read(tmp_path)
                if isinstance(found, Report):
                    found.print(Console(file=io.StringIO()))
                    found.save(tmp_path / "again")
            except (CheckpointError, ValueError, OSError) as error:
                assert str(tmp_path) in str(error), (place, value)


def test_what_can_be_made_again_counts_as_missing(
    tmp_path: Path, pipe: Path, subtests: pytest.Subtests
) -> None:
    script = tmp_path / "page.py"
    script.write_text('"""A page."""\n')
    page = read_page(script)
    run_page(page, tmp_path, (0, 1, 2), quiet=True)
    record = tmp_path / "page" / "run.json"
    whole = record.read_bytes()
    assert kept_outcome(page, tmp_path) is not None
    for damage, put in damages(JSON, whole, pipe):
        with subtests.test(damage):
            record.unlink()
            put(record)
            assert kept_outcome(page, tmp_path) is None
            assert _records._read(record) is None
            if record.is_dir():
                record.rmdir()
                record.touch()


# Writing -----------------------------------------------------------------------------------------


def figure(folder: Path) -> None:
    from matplotlib.figure import Figure

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FIGURES_VARIABLE, str(folder))
        Page("a-page", num_threads=None).figure("a-figure", Figure())


def page_run(folder: Path) -> None:
    script = folder.parent / "page.py"
    script.write_text('"""A page."""\nprint("ran")\n')
    run_page(read_page(script), folder, (0, 1, 2), quiet=True)


def notebook(folder: Path) -> None:
    script = folder.parent / "page.py"
    script.write_text('"""A page."""\n\n# %% [markdown]\n# # Title\n')
    write_notebooks([read_page(script)], script.parent, folder)


WRITERS: dict[str, Callable[[Path], Any]] = {
    **{name: row[0] for name, row in READERS.items() if name not in ("posterior", "curve")},
    "figure": figure,
    "scoreboard": lambda folder: write_scoreboard([], folder),
    "page": page_run,
    "notebook": notebook,
    "data set": lambda f: _records._write(f / "table.npy", np.zeros((2, 2), np.uint8)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_written_through_a_link_or_waits_at_a_pipe(
    name: str, tmp_path: Path, pipe: Path
) -> None:
    folder = tmp_path / "whole"
    folder.mkdir()
    WRITERS[name](folder)
    written = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for number, put in enumerate((lambda path: path.symlink_to(precious), partial(os.link, pipe))):
        folder = tmp_path / f"{number}"
        for path in written:
            (folder / path.parent).mkdir(parents=True, exist_ok=True)
            for planted in (path.name, path.name + UNFINISHED, f".{path.name}{UNFINISHED}"):
                put(folder / path.parent / planted)
        with suppress(CheckpointError, OSError, ValueError):
            WRITERS[name](folder)
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("run", [trained, fused, served])
def test_a_training_file_has_one_writer_at_a_time(run: Any, tmp_path: Path) -> None:
    refused = []

    def once_more() -> None:
        with pytest.raises(CheckpointError, match="another process is writing to checkpoint="):
            run(tmp_path / "file")
        refused.append(True)

    run(tmp_path / "file", once_more)
    assert refused
    run(tmp_path / "file")  # goes on where it ended
