"""What benchmarks share: one thread, turns between peers, medians and ratios, one line of JSON."""

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

__all__ = [
    "OURS",
    "Case",
    "Chains",
    "Timings",
    "arguments",
    "cpu_seconds",
    "in_turn",
    "peer_module",
    "report",
    "single_thread",
    "step_times",
    "wall_seconds",
]

OURS = "pyro_ext"

Array = npt.NDArray[Any]


class Chains(Protocol):
    """Chains of a sampler, ours or a peer's: what a benchmark has to do with them."""

    def advance(self, num_steps: int) -> None:
        """Take steps, and wait until they are done."""

    def params(self) -> dict[str, Array]:
        """Where the chains are. **Shape:** ``(num_chains, *event)`` each."""


@dataclass(frozen=True)
class Timings:
    """Measured times of each side, round by round.

    :param Mapping rounds: by side.
    """

    rounds: Mapping[str, Sequence[float]]

    def medians(self) -> dict[str, float]:
        """Median over rounds of each side."""
        return {side: statistics.median(times) for side, times in self.rounds.items()}

    def ratios(self) -> dict[str, float]:
        """Median of each peer over ours: above one, we are faster."""
        medians = self.medians()
        ours = medians.pop(OURS)
        return {side: median / ours for side, median in medians.items()}


@dataclass(frozen=True)
class Case:
    """One line of a benchmark's table.

    :param str name: what is compared.
    :param Timings timings: of each side.
    :param Mapping first_call: seconds of the first call of each side, compilation included.
    :param Mapping quality: by side, numbers that say how good its draws are.
    """

    name: str
    timings: Timings
    first_call: Mapping[str, float] = field(default_factory=dict)
    quality: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """The case in numbers of four digits."""
        parts = {
            "median": self.timings.medians(),
            "ratio": self.timings.ratios(),
            "first_call_s": self.first_call,
            "quality": self.quality,
        }
        return {"case": self.name, **{key: _rounded(part) for key, part in parts.items() if part}}


def arguments(description: str | None, rounds: int) -> argparse.Namespace:
    """Command line that every benchmark has.

    :param str description: docstring of the script; its first line is shown as help.
    :param int rounds: how often each side is measured, by default.
    :returns: ``rounds`` and ``smoke``, which asks for sizes that take seconds and measure nothing.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="run once over tiny sizes")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    if options.smoke:
        options.rounds = 1
    return options


def single_thread() -> None:
    """Give each side one thread, and make every first call compile.

    To be called before the first computation: JAX reads its flags only then.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    torch.set_num_threads(1)
    torch._inductor.config.force_disable_caches = True
    warnings.filterwarnings("ignore", "dynamo_pgo force disabled")  # as was asked for


def peer_module(module: str) -> ModuleType:
    """Import a peer, or end the script with a word on how to install it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a peer's own affair
            return importlib.import_module(module)
    except ImportError as error:
        sys.exit(
            f"{module} could not be imported ({error}); install the peers with: "
            "pip install 'pyro-ext[bench]', or run: make bench"
        )


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU time of a call, over all threads of this process."""
    start = time.process_time()
    run()
    return time.process_time() - start


def wall_seconds(run: Callable[[], object]) -> float:
    """Time of a call by the clock."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turn(sides: Mapping[str, Callable[[], float]], rounds: int) -> Timings:
    """Measure each side once a round, so that a busy machine slows all of them down alike.

    :param Mapping sides: functions that return what they measured.
    :param int rounds: how often.
    """
    measured: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, measure in sides.items():
            measured[side].append(measure())
    return Timings(measured)


def step_times(
    makers: Mapping[str, Callable[[], Chains]],
    num_steps: Mapping[str, int],
    num_chains: int,
    rounds: int,
) -> tuple[Timings, dict[str, float]]:
    """CPU microseconds per chain and step of each side.

    :param Mapping makers: functions that start chains, by side.
    :param Mapping num_steps: steps of a round, by side; as many are taken first, unmeasured but
        for the seconds they take.
    :param int num_chains: number of chains.
    :param int rounds: how often each side is measured.
    :returns: the times, and the seconds of each side's first call.
    """
    first_call, sides = {}, {}
    for side, make in makers.items():
        start = time.perf_counter()
        chains = make()
        chains.advance(num_steps[side])
        first_call[side] = time.perf_counter() - start
        sides[side] = _measurement(chains, num_steps[side], num_chains)
    return in_turn(sides, rounds), first_call


def report(
    benchmark: str,
    unit: str,
    cases: Sequence[Case],
    packages: Sequence[str] = (),
    **facts: object,
) -> None:
    """Print one line of JSON.

    :param str benchmark: name of the script.
    :param str unit: of the medians.
    :param Sequence cases: what was measured.
    :param Sequence packages: distributions of the peers, whose versions are printed.
    :param facts: whatever else belongs to the result.
    """
    versions = {name: version(name) for name in ("pyro-ext", "torch", "pyro-ppl", *packages)}
    versions["python"] = platform.python_version()
    line = {
        "benchmark": benchmark,
        "unit": unit,
        **facts,
        "results": [case.as_json() for case in cases],
        "versions": versions,
    }
    print(json.dumps(line))


def _measurement(chains: Chains, num_steps: int, num_chains: int) -> Callable[[], float]:
    per_chain_step = 1e6 / (num_steps * num_chains)
    return lambda: cpu_seconds(lambda: chains.advance(num_steps)) * per_chain_step


def _rounded(part: Any) -> Any:
    if isinstance(part, Mapping):
        return {key: _rounded(value) for key, value in part.items()}
    return float(np.format_float_positional(part, 4, unique=False, fractional=False, trim="-"))
