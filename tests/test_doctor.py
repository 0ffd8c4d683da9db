"""The doctor finds what is wrong, and says it without naming the user's folders."""

import io
import subprocess
import tomllib
import types
from importlib import metadata
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pyro_ext._lib import requirements
from pyro_ext.cli import doctor
from pyro_ext.cli.doctor import PURPOSES, Compiler, diagnose, try_compiler

ROOT = Path(__file__).parents[1]


def printed(diagnosis) -> str:
    text = io.StringIO()
    diagnosis.print(Console(width=200, file=text))
    return text.getvalue()


@pytest.fixture
def without(monkeypatch):
    """Make distributions seem missing, or of another version."""

    def without(**versions):
        known = metadata.version

        def version(name):
            key = name.replace("-", "_")
            if key not in versions:
                return known(name)
            if versions[key] is None:
                raise metadata.PackageNotFoundError(name)
            return versions[key]

        monkeypatch.setattr(requirements.metadata, "version", version)

    return without


def test_healthy():
    diagnosis = diagnose(compile=False)
    assert diagnosis.status == 0 and not diagnosis.problems
    assert diagnosis.threads["threads of an operation in torch"] == torch.get_num_threads()
    content = diagnosis.to_json()
    assert content["fix"] is None and content["compiler"]["works"] is None
    assert {row["name"]: row["installed"] for row in content["core"]}["torch"] == metadata.version(
        "torch"
    )
    text = printed(diagnosis)
    assert "not tried" in text and f"(line {metadata.version('arviz')[0]}.x)" in text
    assert str(Path.home()) not in text


def test_missing_core_requirement(without):
    without(numba=None, xarray="2020.1")
    diagnosis = diagnose(compile=False)
    assert diagnosis.status == 1
    fix = diagnosis.to_json()["fix"]
    assert fix.startswith("python -m pip install 'numba>=") and "'xarray>=" in fix
    text = printed(diagnosis)
    assert fix in text and "missing" in text and "wrong version" in text


def test_missing_extra(without):
    without(scikit_learn=None)
    diagnosis = diagnose(compile=False)
    assert diagnosis.status == 0
    extras = diagnosis.to_json()["extras"]
    assert extras["data"]["fix"].startswith("python -m pip install 'scikit-learn>=")
    assert extras["all"]["fix"] == extras["data"]["fix"] and extras["plots"]["fix"] is None
    text = printed(diagnosis)
    assert "scikit-learn missing" in text and PURPOSES["data"] in text
    assert f"\n{extras['data']['fix']}  # data\n" in text, "in a line of its own, to be copied"


def test_extras_of_extras_are_not_lost(without):
    """They look like markup of Rich."""
    without(dask=None)
    assert "\npython -m pip install 'dask[distributed]>=" in printed(diagnose(compile=False))


def test_every_extra_has_a_purpose():
    """But for sums of others, and those that work on the package itself takes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    others = {"all", "test", "docs", "bench", "dev"}
    assert {*PURPOSES} == {*project["optional-dependencies"]} - others


def test_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(doctor, "_DISTRIBUTION", "pyro-ext-that-nobody-has")
    diagnosis = diagnose(compile=False)
    assert diagnosis.status == 1
    assert "pip install --editable ." in printed(diagnosis)


def test_torch_that_cannot_be_imported(monkeypatch):
    def fail():
        raise OSError(f"{Path.home()}/lib/libtorch.so: cannot open")

    monkeypatch.setattr(doctor, "_devices", fail)
    diagnosis = diagnose(compile=False)
    text = printed(diagnosis)
    assert diagnosis.status == 1
    assert "torch cannot be imported: ~/lib/libtorch.so" in text and str(Path.home()) not in text


def test_accelerators(monkeypatch):
    card = types.SimpleNamespace(name="Card 9000", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 2**34)
    diagnosis = diagnose(compile=False)
    assert [device.device for device in diagnosis.devices] == ["cpu", "cuda:0", "cuda:1", "mps"]
    text = printed(diagnosis)
    assert "Card 9000" in text and "80.0 GiB" in text and "16.0 GiB" in text


@pytest.mark.slow
def test_compiler_works():
    compiler = try_compiler()
    assert compiler.works and compiler.name and compiler.error is None
    assert compiler.seconds is not None and compiler.seconds > 0


@pytest.mark.slow
def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "a-compiler-that-nobody-has")
    compiler = try_compiler()
    assert compiler.works is False and compiler.name is None and compiler.seconds is None
    assert compiler.error is not None and "No working C++ compiler" in compiler.error


def test_compiler_that_fails(monkeypatch):
    """The line that names the error is picked out of all that the process wrote."""
    written = f"""Traceback (most recent call last):
  File "{Path.home()}/site-packages/torch/x.py", line 1, in f
ValueError: the first of two
torch._inductor.exc.InductorError: CppCompileError: {Path.home()}/main.cpp failed

Set TORCHDYNAMO_VERBOSE=1 for the internal stack trace: it is long
"""

    def run(command, **options):
        return subprocess.CompletedProcess(command, 1, "", written)

    monkeypatch.setattr(doctor.subprocess, "run", run)
    assert try_compiler().error == (
        "torch._inductor.exc.InductorError: CppCompileError: ~/main.cpp failed"
    )
    written = ""
    assert try_compiler().error == "ended with status 1"


def test_compiler_that_hangs():
    assert try_compiler(timeout=0.05).error == "gave up after 0 s"


@pytest.mark.parametrize(
    ("compiler", "words"),
    [
        (Compiler(None), ("none found", "not tried")),
        (Compiler("g++ 12", True, 3.5), ("g++ 12", "yes, a small function in 3.5 s")),
        (Compiler("g++ 12", False, error="[no] header"), ("g++ 12", "no: [no] header")),
    ],
)
def test_words_on_the_compiler(monkeypatch, compiler, words):
    monkeypatch.setattr(doctor, "try_compiler", lambda: compiler)
    text = printed(diagnose())
    assert all(word in text for word in words)
