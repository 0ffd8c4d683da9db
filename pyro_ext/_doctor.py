"""What ``pyro-ext doctor`` reports: versions, devices, the compiler, threads, what is missing."""

import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_ext import __version__
from pyro_ext._requirements import Finding, extras, findings, pip_line

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Compiler", "Device", "Diagnosis", "diagnose", "try_compiler"]

_DISTRIBUTION = "pyro-ext"
_TIMEOUT = 300.0  # seconds; the first compilation of a fresh installation takes up to half a minute
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

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
    """Where tensors can live.

    :param str device: its name for PyTorch.
    :param str name: what it is.
    :param int memory: bytes of memory, ``None`` where nobody says.
    """

    device: str
    name: str
    memory: int | None


@dataclass(frozen=True)
class Compiler:
    """The C++ compiler that ``backend="compile"`` needs on a CPU.

    :param str name: what it calls itself, ``None`` where none was found.
    :param bool works: whether a small function was compiled; ``None`` where that was not tried.
    :param float seconds: how long that took.
    :param str error: why it did not work.
    """

    name: str | None
    works: bool | None = None
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All that the doctor knows.

    :param dict system: Python, the platform and this package.
    :param list core: what the package requires.
    :param dict extras: what each of its extras adds.
    :param list devices: where tensors can live.
    :param Compiler compiler: the C++ compiler.
    :param dict threads: numbers of processors and threads.
    :param list problems: what keeps the package from being used at all, sentences.
    """

    system: dict[str, str]
    core: list[Finding]
    extras: dict[str, list[Finding]]
    devices: list[Device]
    compiler: Compiler
    threads: dict[str, int | str | None]
    problems: list[str]

    @property
    def status(self) -> int:
        """Exit status: 1 where a core requirement is not met or cannot be used."""
        return int(bool(self.problems) or any(not finding.fits for finding in self.core))

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values, with the command that installs what an extra lacks."""
        content = asdict(self)
        content["core"] = [_finding_to_json(finding) for finding in self.core]
        content["extras"] = {
            name: {"requirements": [_finding_to_json(f) for f in found], "fix": _fix(found)}
            for name, found in self.extras.items()
        }
        content["fix"] = _fix(self.core)
        return content

    def print(self, console: "Console") -> None:
        """Print everything as tables.

        :param Console console: where to print.
        """
        from rich.table import Table

        def table(title: str, *columns: str) -> Table:
            made = Table(title=title, title_justify="left")
            for column in columns:
                made.add_column(column, overflow="fold")
            return made

        versions = table("versions", "package", "installed", "wanted", "")
        for name, value in self.system.items():
            versions.add_row(name, value, "", "")
        for finding in self.core:
            installed = finding.installed or "none"
            if finding.name == "arviz" and finding.installed:
                installed += f" (line {finding.installed.split('.')[0]}.x)"
            versions.add_row(finding.name, installed, finding.wanted, _coloured(finding))
        console.print(versions)
        if fix := _fix(self.core):
            console.print(fix, markup=False, soft_wrap=True)

        devices = table("devices", "device", "name", "memory")
        for device in self.devices:
            memory = "" if device.memory is None else f"{device.memory / 2**30:.1f} GiB"
            devices.add_row(device.device, device.name, memory)
        console.print(devices)

        compiler = table('C++ compiler, for backend="compile"', "compiler", "works")
        compiler.add_row(self.compiler.name or "none found", _works(self.compiler))
        console.print(compiler)

        threads = table("threads", "", "number")
        for name, number in self.threads.items():
            threads.add_row(name, "not set" if number is None else str(number))
        console.print(threads)

        added = table("extras", "extra", "state", "to install it")
        for name, found in self.extras.items():
            unmet = [finding for finding in found if not finding.fits]
            state = ", ".join(f"{finding.name} {finding.state}" for finding in unmet)
            added.add_row(name, state or "[green]complete[/]", _fix(found) or "")
        console.print(added)
        for problem in self.problems:
            console.print(problem, style="bold red", markup=False, highlight=False)


def diagnose(compile: bool = True) -> Diagnosis:
    """Find everything out.

    :param bool compile: whether to try the compiler, which takes some seconds.
    """
    problems = []
    try:
        core = findings(_DISTRIBUTION)
        added = {extra: findings(_DISTRIBUTION, extra) for extra in extras(_DISTRIBUTION)}
    except metadata.PackageNotFoundError:
        core, added = [], {}
        problems.append(
            f"{_DISTRIBUTION} is not installed, so nobody knows what it requires; in the checkout: "
            "python -m pip install --editable ."
        )
    devices = [Device("cpu", _processor(), _main_memory())]
    threads: dict[str, int | str | None] = {
        "processors": os.cpu_count(),
        "processors for this process": _usable_processors(),
        **{name: os.environ.get(name) for name in _THREAD_VARIABLES},
    }
    try:
        devices += _accelerators()
        threads |= _torch_threads()
    except (ImportError, OSError) as error:  # an installation that lacks a library
        problems.append(_without_home(f"torch cannot be imported: {error}"))
    return Diagnosis(
        system={
            _DISTRIBUTION: __version__,
            "Python": f"{platform.python_version()} ({platform.python_implementation()})",
            "platform": platform.platform(),
        },
        core=core,
        extras=added,
        devices=devices,
        compiler=try_compiler() if compile else Compiler(_compiler_name()),
        threads=threads,
        problems=problems,
    )


def try_compiler(timeout: float = _TIMEOUT) -> Compiler:
    """Compile a small function in a process of its own, as ``backend="compile"`` would.

    :param float timeout: seconds after which to give up.
    """
    name = _compiler_name()
    program = _PROGRAM.format(number=time.time_ns() % 1_000_000_007)
    try:
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Compiler(name, False, error=f"gave up after {timeout:.0f} s")
    if result.returncode:
        return Compiler(name, False, error=_without_home(_gist(result.stderr, result.returncode)))
    return Compiler(name, True, seconds=round(float(result.stdout), 1))


def _gist(stderr: str, returncode: int) -> str:
    """The line of a traceback that names the error: the last that is not indented or a hint."""
    lines = [line for line in stderr.splitlines() if line[:1].strip() and ": " in line]
    named = [line for line in lines if "Error: " in line]
    return (named or lines or [f"ended with status {returncode}"])[-1].strip()


def _compiler_name() -> str | None:
    """First line of what the compiler says of its version."""
    usual = "clang++" if sys.platform == "darwin" else "cl" if sys.platform == "win32" else "g++"
    path = shutil.which(os.environ.get("CXX", usual))
    if path is None:
        return None
    try:
        result = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return Path(path).name
    lines = result.stdout.splitlines()
    return _without_home(lines[0]) if lines else Path(path).name


def _accelerators() -> list[Device]:
    import torch

    found = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            found.append(Device(f"cuda:{number}", properties.name, properties.total_memory))
    if torch.backends.mps.is_available():
        found.append(Device("mps", "Apple GPU", torch.mps.recommended_max_memory()))
    return found


def _torch_threads() -> dict[str, int | str | None]:
    import torch

    return {
        "threads of an operation in torch": torch.get_num_threads(),
        "operations at once in torch": torch.get_num_interop_threads(),
    }


def _usable_processors() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _main_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on every system
        return None


def _finding_to_json(finding: Finding) -> dict[str, Any]:
    return asdict(finding) | {"state": finding.state}


def _fix(found: list[Finding]) -> str | None:
    unmet = [finding for finding in found if not finding.fits]
    return pip_line(unmet) if unmet else None


def _coloured(finding: Finding) -> str:
    colour = "green" if finding.fits else "bold red"
    return f"[{colour}]{finding.state}[/]"


def _works(compiler: Compiler) -> str:
    from rich.markup import escape

    if compiler.works is None:
        return "not tried"
    if compiler.works:
        return f"[green]yes[/], a small function in {compiler.seconds} s"
    return f"[bold red]no[/]: {escape(compiler.error or '')}"


def _without_home(text: str) -> str:
    """Text for others to read, without the name of the user's folder."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text
