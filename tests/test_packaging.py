"""The layout: folders of the checkout are floors of one package."""

import ast
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from shutil import copy2, copytree, ignore_patterns

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("inference", "models", "tutorials")
BESIDE = ("tests", "benchmarks", "tools")  # folders that no wheel holds
MAX_LINES = 600


def sources(folder: str) -> Iterator[Path]:
    """Python files below a real folder, links not followed."""
    for directory, _, names in os.walk(ROOT / folder):
        yield from (Path(directory, name) for name in sorted(names) if name.endswith(".py"))


def module_name(path: Path) -> str:
    """The one name a file of the package has: floors are parts of pyro_ext."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in FLOORS:
        parts.insert(0, "pyro_ext")
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def package_files() -> list[Path]:
    return [path for folder in ("pyro_ext", *FLOORS) for path in sources(folder)]


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of whatever a file imports; a relative import keeps its dots."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("floor", FLOORS)
def test_floor_is_a_link(floor: str) -> None:
    link = ROOT / "pyro_ext" / floor
    assert link.is_symlink(), (
        f"{link} is no symbolic link: see CONTRIBUTING.md, 'Setting up', for Windows"
    )
    assert os.readlink(link) == f"../{floor}"
    assert link.resolve() == ROOT / floor


@pytest.mark.parametrize("floor", FLOORS)
def test_short_name_is_refused(floor: str) -> None:
    result = run_python(f"import {floor}")
    assert result.returncode == 1
    assert f"ImportError: '{floor}' is a folder" in result.stderr
    assert f"import pyro_ext.{floor} instead" in result.stderr


def test_no_second_name() -> None:
    """Without the guard each class would exist twice, and isinstance would fail between the two.

    Every folder of a floor is a package, so importing a file of it runs the guard first.
    """
    for floor in FLOORS:
        guard = ROOT / floor / "__init__.py"
        first = ast.parse(guard.read_text(encoding="utf-8")).body[1]  # after the docstring
        assert isinstance(first, ast.If), guard
        assert ast.unparse(first.test) == f"__name__ == '{floor}'"
        assert isinstance(first.body[0], ast.Raise), guard
    folders = sorted({path.parent for floor in FLOORS for path in sources(floor)})
    bare = [str(folder) for folder in folders if not (folder / "__init__.py").exists()]
    assert not bare, f"folders that need an __init__.py: {bare}"


IMPORT_EVERYTHING = """
import importlib, os, pkgutil, sys
import pyro_ext

for found in pkgutil.walk_packages(pyro_ext.__path__, "pyro_ext."):
    # Importing a tutorial would run it.
    if not found.name.endswith("__main__") and not found.name.startswith("pyro_ext.tutorials."):
        importlib.import_module(found.name)
for name, module in list(sys.modules.items()):
    path = getattr(module, "__file__", None)
    if path and name != "__main__":
        print(name, os.path.realpath(path), sep="\\t")
"""


@pytest.mark.slow
def test_every_module_is_imported_once() -> None:
    result = run_python(IMPORT_EVERYTHING)
    assert result.returncode == 0, result.stderr
    names: dict[str, list[str]] = {}
    ours = {str(path) for path in package_files()}
    for line in result.stdout.splitlines():
        name, _, path = line.partition("\t")
        if path in ours:
            names.setdefault(path, []).append(name)
    wrong = {path: found for path, found in names.items() if found != [module_name(Path(path))]}
    assert names and not wrong, wrong


def test_pages_import_public_modules_only() -> None:
    """But for what stands beside them, which is no page."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources("tutorials")
        for line, name in imported_names(path)
        if name.startswith("pyro_ext.")
        and not name.startswith("pyro_ext.tutorials.")
        and any(part.startswith("_") for part in name.split("."))
        and not path.name.startswith("_")
    ]
    assert not wrong, "\n".join(wrong)


def test_files_stay_short() -> None:
    files = [*package_files(), *(path for name in BESIDE for path in sources(name))]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    long = {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > MAX_LINES}
    assert not long, f"files of more than {MAX_LINES} lines: {long}"


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist, built from a copy so that the checkout stays as it is."""
    scratch = tmp_path_factory.mktemp("build")
    copy = scratch / "checkout"
    copy.mkdir()
    skip = ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("pyro_ext", "tests", "tools", *FLOORS):
        copytree(ROOT / folder, copy / folder, symlinks=True, ignore=skip)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"):
        copy2(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(scratch / "dist")]
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = (scratch / "dist").glob("*.whl")
    (sdist,) = (scratch / "dist").glob("*.tar.gz")
    return wheel, sdist


def data_files() -> list[Path]:
    """Files of numbers and pages that modules read, links not followed."""
    return [
        Path(directory, name)
        for folder in ("pyro_ext", *FLOORS)
        for directory, _, names in os.walk(ROOT / folder)
        for name in names
        if name.endswith((".safetensors", ".html", ".jinja"))
    ]


def expected_files() -> list[str]:
    """What both distributions hold: the folders below pyro_ext, with each floor inside it."""
    files = [*package_files(), *data_files()]
    paths = [path.relative_to(ROOT).as_posix() for path in files]
    modules = [path if path.startswith("pyro_ext/") else f"pyro_ext/{path}" for path in paths]
    return sorted([*modules, "pyro_ext/inference/__init__.pyi", "pyro_ext/py.typed"])


@pytest.mark.slow
def test_wheel_holds_every_module_once(distributions: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(distributions[0]) as wheel:
        names = wheel.namelist()
    assert len(names) == len(set(names))
    metadata = [name for name in names if name.split("/")[0].endswith(".dist-info")]
    assert sorted(set(names) - set(metadata)) == expected_files()
    assert any(name.endswith("licenses/LICENSE") for name in metadata)


@pytest.mark.slow
def test_sdist_holds_every_module_once(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[1]) as sdist:
        members = sdist.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)
    names = [member.name.split("/", 1)[1] for member in members if member.isfile()]
    assert len(names) == len(set(names))
    assert sorted(name for name in names if name.startswith("pyro_ext/")) == expected_files()
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= set(names)
    assert not [name for name in names if name.split("/")[0] in (*BESIDE, *FLOORS)]
