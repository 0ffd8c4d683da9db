"""Pages of papers: reading them without running them, and running each in its own process."""

import ast
import difflib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pyro_ext._lib.files import read_json, write_bytes
from pyro_ext._lib.optional import optional_module
from pyro_ext._lib.requirements import extra_with
from pyro_ext.reproduction import (
    FIGURES_VARIABLE,
    FILE_NAME,
    SEEDS_VARIABLE,
    Report,
    is_smoke,
    versions,
)
from pyro_ext.reproduction.cells import MARK

RUN_NAME, PRINTED_NAME = "run.json", "printed.txt"


@dataclass(frozen=True)
class Script:
    """A script that checks the claims of a paper."""

    path: Path  # the script
    title: str  # first line of its docstring
    statements: tuple[str, ...]  # what it claims

    @property
    def slug(self) -> str:
        """The short name of the script and its report."""
        return self.path.stem.replace("_", "-")


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run of a page."""

    page: Script  # the page
    returncode: int  # exit status of its process
    seconds: float  # how long it ran
    report: Report | None  # the report it left, if it left one
    cpu_seconds: float | None = None  # of its process and those it started, where they are known
    machine: str = ""  # what it ran on
    smoke: bool = False  # whether it was a short run
    is_current: bool = True  # whether the script is still the one that ran
    # How many lines were printed before each cell of code that has output, by its number from 0.
    lines_before: Mapping[int, int] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Tell whether the page ran to its end, with or without claims that fail."""
        return self.returncode == (self.report.status if self.report else 0)

    @property
    def passed(self) -> bool:
        """Tell whether the page ran to its end and no claim failed."""
        return self.returncode == 0 and self.report is not None and self.report.status == 0

    @property
    def verdict(self) -> str:
        """Outcome in a few words."""
        if self.returncode and (self.report is None or not self.report.status):
            return f"stopped with status {self.returncode}"
        return "left no report" if self.report is None else self.report.verdict


def find_pages(folder: Path) -> list[Script]:
    """Read the scripts of a folder without running them."""
    return [read_page(path) for path in sorted(folder.glob("[!_]*.py"))]


def read_page(path: Path) -> Script:
    """Read a script without running it."""
    tree = ast.parse(path.read_text("utf-8"))
    title = (ast.get_docstring(tree) or path.stem).splitlines()[0]
    return Script(path, title, tuple(_statements(tree)))


def choose(pages: Sequence[Script], slugs: Sequence[str]) -> list[Script]:
    """Pages by their names, or by the paths of scripts that exist."""
    known = {page.slug: page for page in pages}
    chosen = []
    for slug in slugs:
        if slug.endswith(".py") and Path(slug).is_file():
            chosen.append(read_page(Path(slug)))
            continue
        name = slug.lower().replace("_", "-")
        if name not in known:
            close = difflib.get_close_matches(name, known)
            others = [other for other in known if other not in close]
            raise ValueError(f"slug must be one of {', '.join([*close, *others])}; got {slug!r}")
        chosen.append(known[name])
    return list(dict.fromkeys(chosen))


def check_modules(page: Script) -> None:
    """Check that the modules that a page imports, and extras install, are available.

    :raises MissingModuleError: if one is missing; the message names the extra to install.
    """
    for node in ast.walk(ast.parse(page.path.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for module in {name.partition(".")[0] for name in names} - sys.stdlib_module_names:
            if find_spec(module) is None and (extra := extra_with("pyro-ext", module)):
                optional_module(module, page.slug, module, extra)


def run_page(page: Script, output: Path, seeds: Sequence[int], *, quiet: bool = False) -> Outcome:
    """Run a page in its own process; its folder records its outcome and its output."""
    folder = output / page.slug
    # What an older run left must not be taken for that of this run.
    written = (FILE_NAME, RUN_NAME, PRINTED_NAME)
    for path in [folder / name for name in written] + list(folder.glob("*.png")):
        path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        FIGURES_VARIABLE: str(folder),
        SEEDS_VARIABLE: " ".join(map(str, seeds)),
    }
    # Pictures go to files, whether or not there is a screen.
    environment.setdefault("MPLBACKEND", "Agg")
    environment.setdefault("COLUMNS", str(shutil.get_terminal_size().columns))
    source = _source(page, seeds)
    started = time.perf_counter()
    # -u: what it prints is seen at once. -P: modules beside a page of ours belong to its package.
    is_ours = (page.path.parent / "__init__.py").exists()
    runner = "pyro_ext.reproduction.cells"
    command = [sys.executable, "-u", *["-P"] * is_ours, "-m", runner, str(page.path)]
    num_lines, lines_before = 0, {"0": 0}
    if not quiet:
        print(f"{page.slug}: {page.title}", flush=True)
    with (
        (folder / PRINTED_NAME).open("x", encoding="utf-8") as printed,
        subprocess.Popen(
            command,
            env=environment | {"PYTHONIOENCODING": "utf-8"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            text, mark, cell = line.partition(MARK)
            if mark:
                lines_before[cell.strip()] = num_lines
            num_lines += text.endswith("\n")
            print(text, end="", file=printed, flush=True)
            if not quiet:
                print(text, end="", flush=True)
        cpu_seconds = _wait(process)
    record = {
        "returncode": process.returncode,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": cpu_seconds,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "smoke": is_smoke(),
        "lines_before": lines_before,
        **source,
    }
    write_bytes(folder / RUN_NAME, json.dumps(record, indent=1).encode())
    return _outcome(page, folder, record)


def run_pages(
    pages: Sequence[Script], output: Path, seeds: Sequence[int], num_processes: int
) -> Iterator[Outcome]:
    """Run pages in order, several at once, and yield the outcome of each."""
    with ThreadPoolExecutor(num_processes) as executor:
        futures = [
            executor.submit(run_page, page, output, seeds, quiet=num_processes > 1)
            for page in pages
        ]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def last_outcome(page: Script, output: Path, seeds: Sequence[int] | None = None) -> Outcome | None:
    """Return the outcome of a page's last run if its script has not changed since.

    With seeds, also only if it ran with these and the package as it is now, to its end.
    """
    record = _read_record(output / page.slug)
    source = _source(page, seeds or ())
    needed = source if seeds else {"script": source["script"]}
    if any(record.get(key) != value for key, value in needed.items()):
        return None
    outcome = _outcome(page, output / page.slug, record)
    return outcome if outcome.is_whole or seeds is None else None


def kept_outcome(page: Script, output: Path) -> Outcome | None:
    """Return the outcome of a page's last run even if its script has changed since."""
    record = _read_record(output / page.slug)
    return _outcome(page, output / page.slug, record) if record else None


def last_result(page: Script, output: Path) -> str:
    """Describe the result of a page's last run in a few words."""
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


def _read_record(folder: Path) -> dict[str, Any]:
    """Read the record of the last run; return an empty one if it is missing or invalid."""
    try:
        record = read_json(folder / RUN_NAME)
    except (OSError, ValueError):
        return {}
    number = int | float
    types = {"returncode": int, "seconds": number, "cpu_seconds": number | None, "script": str}
    before = record.get("lines_before", {})  # runs of 0.2 do not have it
    is_valid = isinstance(before, dict) and all(
        cell.isdecimal() and isinstance(lines, int) for cell, lines in before.items()
    )
    is_valid = is_valid and all(isinstance(record.get(key), its) for key, its in types.items())
    return record if is_valid else {}


def _outcome(page: Script, folder: Path, record: Mapping[str, Any]) -> Outcome:
    """Build the outcome of a run from its record and report."""
    try:
        report = Report.load(folder)
    except (OSError, ValueError):  # most workflows make no claims, and what crashes leaves none
        report = None
    return Outcome(
        page,
        record["returncode"],
        record["seconds"],
        report,
        record["cpu_seconds"],
        record.get("machine", ""),
        record.get("smoke", False) or bool(report and report.smoke),
        record["script"] == _source(page, ())["script"],
        {int(cell): lines for cell, lines in record.get("lines_before", {}).items()},
    )


def _wait(process: "subprocess.Popen[str]") -> float | None:
    """Wait for the end of a process; CPU seconds of it and of those it has waited for."""
    if not hasattr(os, "wait4"):  # Windows
        process.wait()
        return None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def _source(page: Script, seeds: Sequence[int]) -> dict[str, object]:
    """Describe what a page's result depends on: the script, the package around it, the seeds."""
    script = hashlib.sha256(_code(page).encode()).hexdigest()
    return {"script": script, "package": _package_digest(), "seeds": list(seeds)}


def _code(page: Script) -> str:
    """The script without its docstring and its cells of text, on which no result depends."""
    text = page.path.read_text("utf-8")
    match ast.parse(text).body:
        case [ast.Expr(ast.Constant(str()), end_lineno=end), *_]:
            text = "".join(text.splitlines(keepends=True)[end:])
    return re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)


@cache
def _package_digest() -> str:
    """Digest of the package without its pages, and of the versions of what it runs with."""
    digest = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    for folder, folders, files in os.walk(Path(__file__).parent, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        is_roof = "tutorials" in Path(folder).parts
        for name in sorted(name for name in files if not is_roof or name.startswith("_")):
            digest.update(Path(folder, name).read_bytes())
    return digest.hexdigest()
