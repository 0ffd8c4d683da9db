"""The pages of papers: found and read without running them, and run each in its own process."""

import ast
import difflib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pyro_ext.reproduction import FIGURES_VARIABLE, FILE_NAME, SEEDS_VARIABLE, Report


@dataclass(frozen=True)
class Script:
    """A script that checks the claims of a paper."""

    path: Path  # the script
    title: str  # first line of its docstring
    statements: tuple[str, ...]  # what it claims

    @property
    def slug(self) -> str:
        """Its short name, which its report bears too."""
        return self.path.stem.replace("_", "-")


@dataclass(frozen=True)
class Outcome:
    """How a run of a page ended."""

    page: Script  # the page
    returncode: int  # exit status of its process
    seconds: float  # how long it ran
    report: Report | None  # the report it left, if it left one

    @property
    def passed(self) -> bool:
        """Whether the page ran to its end and no claim failed."""
        return self.returncode == 0 and self.report is not None and self.report.status == 0

    @property
    def verdict(self) -> str:
        """What came out, in a few words."""
        if self.returncode and (self.report is None or not self.report.status):
            return f"stopped with status {self.returncode}"
        return "left no report" if self.report is None else self.report.verdict


def find_pages(folder: Path) -> list[Script]:
    """Read the scripts of a folder without running them."""
    pages = []
    for path in sorted(folder.glob("[!_]*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        title = (ast.get_docstring(tree) or path.stem).splitlines()[0]
        pages.append(Script(path, title, tuple(_statements(tree))))
    return pages


def choose(pages: Sequence[Script], slugs: Sequence[str]) -> list[Script]:
    """Pages by their names."""
    known = {page.slug: page for page in pages}
    chosen = []
    for slug in slugs:
        name = slug.lower().replace("_", "-")
        if name not in known:
            close = difflib.get_close_matches(name, known)
            others = [other for other in known if other not in close]
            raise ValueError(f"slug must be one of {', '.join([*close, *others])}; got {slug!r}")
        chosen.append(known[name])
    return list(dict.fromkeys(chosen))


def run_page(
    page: Script, output: Path, seeds: Sequence[int], printed: IO[bytes] | None = None
) -> Outcome:
    """Run a page in a process of its own, which prints as it likes."""
    folder = output / page.slug
    # An older report must not be taken for that of this run.
    (folder / FILE_NAME).unlink(missing_ok=True)
    environment = os.environ | {
        FIGURES_VARIABLE: str(folder),
        SEEDS_VARIABLE: " ".join(map(str, seeds)),
    }
    # Pictures go to files, whether or not there is a screen.
    environment.setdefault("MPLBACKEND", "Agg")
    started = time.perf_counter()
    # -u: what it prints is seen at once. -P: modules beside it are no packages of their own.
    command = [sys.executable, "-u", "-P", str(page.path)]
    errors = None if printed is None else subprocess.STDOUT
    result = subprocess.run(command, env=environment, stdout=printed, stderr=errors, check=False)
    seconds = time.perf_counter() - started
    try:
        report = Report.load(folder)
    except (OSError, ValueError):
        report = None
    return Outcome(page, result.returncode, seconds, report)


def last_result(page: Script, output: Path) -> str:
    """What the last run of a page gave, in a few words."""
    try:
        report = Report.load(output / page.slug / FILE_NAME)
    except FileNotFoundError:
        return "not run"
    except (OSError, ValueError) as error:
        return str(error)
    return f"{report.verdict} ({report.date[:10]})"


def _statements(tree: ast.Module) -> Iterator[str]:
    """Statements that are plain text of the claims of a script, in the order of its lines."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for node in sorted(calls, key=lambda node: node.lineno):
        match node.func:
            case ast.Name(id="Claim") | ast.Attribute(attr="claim"):
                named = [word.value for word in node.keywords if word.arg == "statement"]
                match [*node.args[:1], *named]:
                    case [ast.Constant(value=str(statement))]:
                        yield statement
