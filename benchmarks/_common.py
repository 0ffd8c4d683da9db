"""Shared parts of the benchmarks: options, alternating runs, medians and ratios, lines of JSON."""

import argparse
import inspect
import json
import math
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

__all__ = [
    "OURS",
    "Case",
    "Chains",
    "Options",
    "Timings",
    "available",
    "cpu_seconds",
    "first_call_seconds",
    "in_turn",
    "main",
    "step_times",
    "wall_seconds",
]

OURS = "pyro_ext"

Array = npt.NDArray[Any]
Made = TypeVar("Made")


class Chains(Protocol):
    """Chains of a sampler, ours or a peer's: what a benchmark has to do with them."""

    def advance(self, num_steps: int) -> None:
        """Take steps, and wait until they are done."""

    def params(self) -> dict[str, Array]:
        """Return the current parameters of the chains. **Shape:** ``(num_chains, *event)`` each."""


@dataclass(frozen=True)
class Options:
    """Options of a benchmark.

    :param int rounds: how often each side is measured.
    :param bool smoke: small sizes that run in seconds, too short to measure anything.
    :param bool full: whether to go through all sizes, and not those of the table alone.
    :param torch.device device: where both sides compute.
    """

    rounds: int
    smoke: bool = False
    full: bool = False
    device: torch.device = torch.device("cpu")

    def seconds(self, run: Callable[[], object]) -> float:
        """CPU time of a call; on another device time by the clock, until the device is done."""
        if self.device.type == "cpu":
            return cpu_seconds(run)

        def whole() -> None:
            run()
            torch.accelerator.synchronize()

        torch.accelerator.synchronize()
        return wall_seconds(whole)


@dataclass(frozen=True)
class Timings:
    """Measured times of each side, round by round.

    :param Mapping rounds: by side.
    :param Mapping missing: why a side was not measured.
    """

    rounds: Mapping[str, Sequence[float]]
    missing: Mapping[str, str] = field(default_factory=dict)

    def medians(self) -> dict[str, float]:
        """Median over rounds of each side."""
        return {side: statistics.median(times) for side, times in self.rounds.items()}

    def ratios(self) -> dict[str, float]:
        """Median of each peer over ours: above one, we are faster."""
        medians = self.medians()
        ours = medians.pop(OURS, math.nan)
        return {side: median / ours for side, median in medians.items()}

    def spans(self) -> dict[str, tuple[float, float]]:
        """Least and largest ratio of a round to ours."""
        spans = {}
        for side, times in self.rounds.items():
            if side != OURS:
                by_round = [a / b for a, b in zip(times, self.rounds[OURS], strict=True)]
                spans[side] = min(by_round), max(by_round)
        return spans


@dataclass(frozen=True)
class Case:
    """Comparison in one setting.

    :param str name: what is compared.
    :param Timings timings: of each side. Ours is called ``OURS``, other samplers of ours begin with
        it and a comma; a peer's name may go on with a comma and how it is used.
    :param Mapping first_call: CPU seconds of the first call of each side, compilation included.
    :param Mapping quality: by side, numbers that say how good its draws are.
    :param str unit: of the medians, where it is not that of the benchmark.
    """

    name: str
    timings: Timings
    first_call: Mapping[str, float] = field(default_factory=dict)
    quality: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    unit: str = ""

    def as_json(self) -> dict[str, object]:
        """The case in numbers of four digits."""
        parts: dict[str, Mapping[str, Any]] = {
            "median": self.timings.medians(),
            "ratio": self.timings.ratios(),
            "span": self.timings.spans(),
            "first_call_s": self.first_call,
            "quality": self.quality,
        }
        return {
            "case": self.name,
            **({"unit": self.unit} if self.unit else {}),
            **{key: _rounded(part) for key, part in parts.items() if part},
            **({"missing": self.timings.missing} if self.timings.missing else {}),
        }


def main(
    cases: Callable[[Options], Iterator[Case]],
    unit: str,
    *,
    rounds: int,
    packages: Sequence[str] = (),
    on_devices: bool = False,
) -> None:
    """Read the command line, measure, and print a line of JSON for each case as it is done.

    :param Callable cases: measures one case after the other; its module's docstring is the help.
    :param str unit: of the medians.
    :param int rounds: how often each side is measured, by default.
    :param Sequence packages: distributions of the peers, whose versions are printed.
    :param bool on_devices: whether the benchmark runs on other devices than the processor.
    """
    description = inspect.getmodule(cases).__doc__ or ""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds (default: %(default)s)")
    parser.add_argument(
        "--quick", action="store_const", const=1, dest="rounds", help="measure each side once"
    )
    parser.add_argument("--smoke", action="store_true", help="run once over tiny sizes")
    parser.add_argument("--full", action="store_true", help="run over more sizes than the table's")
    if on_devices:
        parser.add_argument("--device", default="cpu", help="such as cuda (default: %(default)s)")
    given = vars(parser.parse_args())
    if given["rounds"] < 1:
        parser.error(f"--rounds must be at least 1, got {given['rounds']}")
    device = torch.device(given.pop("device", "cpu"))
    if device.type != "cpu" and not torch.get_device_module(device).is_available():
        parser.error(f"--device {device} is not available on this machine")
    options = Options(**given | ({"rounds": 1} if given["smoke"] else {}), device=device)
    _single_thread(device)
    names = ("pyro-ext", "torch", "pyro-ppl", *packages)
    head = {
        "benchmark": os.path.basename(sys.argv[0]).removesuffix(".py"),
        "unit": f"CPU {unit}" if device.type == "cpu" else unit,
        "device": _name(device),
    }
    versions = {name: number for name in names if (number := _version(name))}
    versions["python"] = platform.python_version()
    for case in cases(options):
        print(json.dumps({**head, **case.as_json(), "versions": versions}), flush=True)


def available(makers: Mapping[str, Callable[[], Made]]) -> tuple[dict[str, Made], dict[str, str]]:
    """Make each side, and say why a peer could not be made.

    :param Mapping makers: functions that make a side, such as one that imports a peer.
    :returns: the sides, and reasons by side.
    """
    sides, missing = {}, {}
    for side, make in makers.items():
        try:
            with warnings.catch_warnings():
                if side != OURS:
                    warnings.simplefilter("ignore")  # a peer's own affair
                sides[side] = make()
        except Exception as error:
            if side == OURS:
                raise
            missing[side] = _reason(error)
    return sides, missing


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU time of a call, over all threads of this process."""
    start = time.process_time()
    run()
    return time.process_time() - start


def first_call_seconds(run: Callable[[], object]) -> float:
    """CPU time of a call, that of compilers included, to a hundredth of a second."""
    before = sum(os.times()[:4])
    run()
    return sum(os.times()[:4]) - before


def wall_seconds(run: Callable[[], object]) -> float:
    """Time of a call by the clock."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turn(
    sides: Mapping[str, Callable[[], float]], rounds: int, missing: Mapping[str, str] | None = None
) -> Timings:
    """Measure each side once a round, so that a busy machine slows all of them down alike.

    A peer that raises is left out, with the reason.

    :param Mapping sides: functions that return what they measured.
    :param int rounds: how often.
    :param Mapping missing: reasons for sides that are missing already.
    """
    measured: dict[str, list[float]] = {side: [] for side in sides}
    reasons = dict(missing or {})
    for _ in range(rounds):
        for side in list(measured):
            try:
                measured[side].append(sides[side]())
            except Exception as error:
                if side == OURS:
                    raise
                reasons[side] = _reason(error)
                del measured[side]
    return Timings(measured, reasons)


def step_times(
    makers: Mapping[str, Callable[[], Chains]],
    num_steps: Mapping[str, int],
    num_chains: int,
    options: Options,
) -> tuple[Timings, dict[str, float]]:
    """Microseconds per chain and step of each side.

    :param Mapping makers: functions that start chains, by side.
    :param Mapping num_steps: steps of a round, by side; as many are taken first, unmeasured but
        for the seconds they take.
    :param int num_chains: number of chains.
    :param Options options: how often each side is measured, and where.
    :returns: the times, and the CPU seconds of each side's first call.
    """
    first_call = {}

    def begun(side: str, make: Callable[[], Chains]) -> Callable[[], float]:
        made: list[Chains] = []

        def first() -> None:
            made.append(make())
            made[0].advance(num_steps[side])

        first_call[side] = first_call_seconds(first)
        per_chain_step = 1e6 / (num_steps[side] * num_chains)
        return lambda: options.seconds(lambda: made[0].advance(num_steps[side])) * per_chain_step

    sides, missing = available(
        {side: lambda side=side, make=make: begun(side, make) for side, make in makers.items()}
    )
    return in_turn(sides, options.rounds, missing), first_call


def _single_thread(device: torch.device) -> None:
    """Give each side one thread, and make every first call compile.

    To be called before the first computation: JAX reads its flags only then.
    """
    if device.type == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    torch.set_num_threads(1)
    torch.set_default_device(device)  # for what models make
    torch._inductor.config.force_disable_caches = True
    warnings.filterwarnings("ignore", "dynamo_pgo force disabled")  # as was asked for


def _name(device: torch.device) -> str:
    if device.type == "cpu":
        return "cpu"
    return str(torch.get_device_module(device).get_device_name(device))


def _reason(error: Exception) -> str:
    if isinstance(error, ImportError) and error.name:
        return f"{error.name} is not installed"
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}"[:200]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _rounded(part: Any) -> Any:
    if isinstance(part, Mapping):
        return {key: _rounded(value) for key, value in part.items()}
    if isinstance(part, tuple):
        return [_rounded(value) for value in part]
    return float(np.format_float_positional(part, 4, unique=False, fractional=False, trim="-"))
