"""The project that ``pyro-ext new`` writes is whole, passes its own checks and runs."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from pyro_ext import __version__
from pyro_ext.cli import new_project
from pyro_ext.cli.commands import app
from pyro_ext.reproduction import Report
from tests.test_cli import WIDE

FILES = {
    ".gitignore",
    "README.md",
    "model.py",
    "page.py",
    "pyproject.toml",
    "run.py",
    "test_model.py",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new(*arguments: str):
    return CliRunner().invoke(app, ["new", *arguments], env=WIDE)


def run(command: list[str], folder: Path) -> str:
    """Run a command as a user would, in the folder of the project and with nothing else at hand."""
    root = str(Path(__file__).parents[1])
    result = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": root, "PYRO_EXT_SMOKE": "1", "COLUMNS": "150"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def test_files(place):
    result = new("my-study")
    assert result.exit_code == 0, result.output
    for command in ("cd my-study", "python run.py", "python -m pytest", "pyro-ext reproduce page"):
        assert f"\n{command}" in result.output
    folder = place / "my-study"
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in place.iterdir()] == ["my-study"], "nothing is left beside it"
    assert folder.stat().st_mode & 0o777 == 0o777 & ~(umask := os.umask(0)) and os.umask(umask) == 0
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["name"] == "my-study"
    (needed,) = map(Requirement, project["dependencies"])
    assert needed.name == "pyro-ext" and needed.specifier.contains(__version__)
    for path in folder.iterdir():
        text = path.read_text("utf-8")
        assert "{{" not in text and "}}" not in text and text.endswith("\n"), path
    assert "# My study\n" in (folder / "README.md").read_text("utf-8")
    run(["-m", "ruff", "check", "--no-cache", "."], folder)
    run(["-m", "ruff", "format", "--no-cache", "--check", "."], folder)


@pytest.mark.parametrize(
    "name", ["My-study", "my_study", "1st", "-x", "a--b", "a/b", "..", "", "my study", "torch"]
)
def test_bad_names(place, name):
    result = new("--", name)
    assert result.exit_code == 2 and "NAME must" in result.output
    assert not list(place.iterdir())


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_exists_stays(place, kind):
    existing = place / "study"
    if kind == "folder":
        existing.mkdir()
    elif kind == "file":
        existing.write_text("mine")
    else:
        existing.symlink_to(place / "nowhere")
    result = new("study")
    assert result.exit_code == 2 and "study exists" in result.output
    assert [path.name for path in place.iterdir()] == ["study"]
    assert existing.is_symlink() or existing.is_dir() or existing.read_text() == "mine"


def test_all_or_nothing(place, monkeypatch):
    written = Path.write_text

    def fail(path, *args):
        if path.name == "page.py":
            raise OSError(28, "No space left on device")
        return written(path, *args)

    monkeypatch.setattr(new_project.Path, "write_text", fail)
    result = new("study")
    assert result.exit_code == 2 and "No space left" in result.output
    assert not list(place.iterdir())


def test_missing_packages_are_named(place, monkeypatch):
    monkeypatch.setattr("pyro_ext.cli.commands.find_spec", lambda module: None)
    output = new("study").output
    assert "\npython -m pip install 'pyro-ext[plots]'\n" in output
    assert "\npython -m pip install pytest\n" in output


@pytest.mark.slow
def test_project_runs(place):
    import xarray

    assert new("my-study").exit_code == 0
    folder = place / "my-study"
    assert "2 passed" in run(["-m", "pytest", "-q", "-p", "no:cacheprovider"], folder)

    table = place / "table.csv"
    rows = ["age,dose,outcome", *(f"{i % 7 / 3},{i % 5 / 2},{i % 7 - i % 5}" for i in range(30))]
    table.write_text("\n".join(rows))
    printed = run(["run.py", str(table), "--num-samples", "100"], folder)
    assert "slopes[1]" in printed and "r_hat" in printed
    results = folder / "results"
    assert {path.name for path in results.iterdir()} == {
        "posterior.nc",
        "posterior.png",
        "predictions.png",
    }
    with xarray.open_dataset(results / "posterior.nc", group="posterior") as posterior:
        assert posterior["slopes"].shape == (4, 100, 2)
        # Of a seventh, a fifth and no more, exactly.
        assert abs(float(posterior["slopes"][..., 0].mean()) - 3) < 0.1
        assert abs(float(posterior["slopes"][..., 1].mean()) + 2) < 0.1

    command = "from pyro_ext.cli.commands import main; main()"
    printed = run(["-c", command, "reproduce", "page.py"], folder)
    assert "passed" in printed
    report = Report.load(folder / "figures" / "page")
    assert report.slug == "my-study" and report.smoke and report.holds
