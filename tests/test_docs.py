"""The site: its code runs and prints what it says, it names all that is public, and it builds."""

import importlib
import re
import types
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in DOCS.rglob("*.md")
    if path.relative_to(DOCS).parts[0] not in ("_build", "gallery")
)
# Start processes, draw much, or compile.
SLOW_PAGES = ("coming_from.md", "concepts.md") + tuple(
    f"how_to/{name}.md"
    for name in (
        "arviz",
        "averaging_networks",
        "bayesian_networks",
        "calibration",
        "clustering",
        "comparing_models",
        "control_variates",
        "elsewhere",
        "evidence",
        "hierarchical_models",
        "martingale_posteriors",
        "pseudocoresets",
        "random_measures",
        "step_size",
        "stopping_early",
    )
)
# Pages of runs with a warning: draws that are too wide or too narrow, atoms whose order is free.
WARNING_PAGES = [
    f"how_to/{name}.md"
    for name in (
        "bayesian_networks",
        "calibration",
        "control_variates",
        "random_measures",
        "step_size",
    )
]
# A block of Python, and what it prints where a block of text follows.
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```$(?:\n+```text\n(?P<printed>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)


def name_of(page):
    return page.relative_to(DOCS).as_posix()


def parameters():
    for page in PAGES:
        if BLOCK.search(page.read_text("utf-8")):
            marks = [pytest.mark.slow] if name_of(page) in SLOW_PAGES else []
            if name_of(page) in WARNING_PAGES:
                marks.append(pytest.mark.filterwarnings("ignore:the draws of"))
            if name_of(page) == "how_to/comparing_models.md":  # explains one, the other is ArviZ's
                marks.append(pytest.mark.filterwarnings("ignore:Estimated shape parameter"))
                marks.append(pytest.mark.filterwarnings("ignore:The inplace keyword"))
            yield pytest.param(page, id=name_of(page), marks=marks)


@pytest.mark.parametrize("page", list(parameters()))
def test_code_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = page.read_text("utf-8")
    names = {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        # Blank lines before it let an error name the line of the page.
        code = "\n" * text.count("\n", 0, block.start("code")) + block["code"]
        exec(compile(code, str(page), "exec"), names)
        printed = capsys.readouterr().out
        if block["printed"] is not None:
            flags = ELLIPSIS | NORMALIZE_WHITESPACE
            assert OutputChecker().check_output(block["printed"], printed, flags), printed


def test_slow_pages_exist():
    assert {*SLOW_PAGES, *WARNING_PAGES} <= {name_of(page) for page in PAGES}


def test_names_in_prose_exist(subtests):
    for page in PAGES:
        with subtests.test(name_of(page)):
            for path in re.findall(r"`~?(pyro_ext(?:\.\w+)+)`", page.read_text("utf-8")):
                assert resolve(path) is not None, path


def resolve(path):
    """What a dotted name stands for."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    return None


def test_quoted_messages_are_in_the_source():
    page = (DOCS / "how_to" / "messages.md").read_text("utf-8")
    ours, _, _ = page.partition("## From ArviZ")
    quoted = re.findall(r"^`(.+)`$", ours, re.MULTILINE)
    assert len(quoted) > 10
    files = [path for name in ("pyro_ext", "inference") for path in (ROOT / name).rglob("*.py")]
    source = "\n".join(path.read_text("utf-8") for path in files)
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # strings that go on in the next line
    for message in quoted:
        # Between values, which are numbers, quoted, in brackets or left out.
        parts = re.split(r"\d+(?:th)?|'[^']*'|\([A-Z]\w+\)|\[[^]]*\]|\.\.\.|; ", message)
        assert all(part.strip() in source for part in parts), message


def documented():
    """Names that the pages of the API document, and the objects behind them."""
    text = "\n".join(path.read_text("utf-8") for path in (DOCS / "api").glob("*.rst"))
    names = set(re.findall(r"(?:auto\w+|py:data)(?<!automodule):: (pyro_ext\S+)", text))
    names |= set(re.findall(r"``(pyro_ext\.__version__)``", text))
    for module, options in re.findall(r"automodule:: (\S+)\n((?:   :.*\n)*)", text):
        names.add(module)
        if ":no-members:" not in options:
            names |= {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    return names, {id(resolve(name)) for name in names}


def packages():
    """Folders of the package that say what is public."""
    for path in [ROOT / "pyro_ext" / "__init__.py", *(ROOT / "pyro_ext").glob("[!_]*/__init__.py")]:
        for inner in [path, *path.resolve().parent.glob("[!_]*/**/__init__.py")]:
            parts = inner.resolve().parent.relative_to(ROOT).parts
            name = ".".join(parts if parts[0] == "pyro_ext" else ("pyro_ext", *parts))
            if hasattr(importlib.import_module(name), "__all__"):
                yield name


def test_every_public_name_is_documented(subtests):
    names, objects = documented()
    modules = {name for name in names if isinstance(resolve(name), types.ModuleType)}
    assert len(modules) > 30
    for package in sorted({*packages(), *modules} - {"pyro_ext.testing"}):
        with subtests.test(package):
            module = importlib.import_module(package)
            missing = [
                name
                for name in module.__all__
                if f"{package}.{name}" not in names and id(getattr(module, name)) not in objects
            ]
            assert not missing
