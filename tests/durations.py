"""CPU seconds of tests: measured, limited, recorded, and what CI divides the slow tests by."""

import gc
import json
import os
import re
import time
import warnings
from argparse import ArgumentTypeError
from collections.abc import Generator, Hashable, Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import pytest

Name = TypeVar("Name", bound=Hashable)

FILE = Path(__file__).with_name("durations.json")
UNKNOWN_TEST, UNKNOWN_PAGE = 5.0, 240.0  # CPU seconds of what has no record yet
TOGETHER = 60.0  # tests of a file share fixtures, so a file that takes no longer stays whole

LIMIT = 2.0  # CPU seconds of a test without one of these marks
TOLERANCE = 1.5  # times the limit before a test fails, since the same test varies as much
LONGER = ("slow", "page", "short_page")
UNIT = 0.027  # CPU seconds of the loop in slowness() where the marks were set
# What takes long to import is imported before the first test, which would be charged with it.
HEAVY = (
    "arviz",
    "ase.md.verlet",
    "diffusers.pipelines.stable_diffusion",
    "gpytorch",
    "hypothesis.extra.numpy",
    "matplotlib.pyplot",
    "numba",
    "peft",
    "scipy.stats",
    "sklearn.datasets",
    "tblite.ase",
    "torch._dynamo",
)


def load() -> dict[str, dict[str, float]]:
    """Read the record: CPU seconds of tests by their ids, and of pages by their slugs."""
    return json.loads(FILE.read_text("utf-8")) if FILE.exists() else {"pages": {}, "tests": {}}


def save(kind: str, seconds: Mapping[str, float]) -> None:
    """Add to the record of tests or pages."""
    record = load()
    record[kind] |= {name: round(value, 1) for name, value in seconds.items()}
    FILE.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")


def part(text: str) -> tuple[int, int]:
    """Read K/N, the K-th of N parts: a type of options."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ArgumentTypeError(f"K/N with 1 <= K <= N expected, got {text!r}")
    return int(match[1]), int(match[2])


def divide(seconds: Mapping[Name, float], num_parts: int) -> list[list[Name]]:
    """Parts of about the same length: the longest first, each to the part that has least."""
    parts: list[list[Name]] = [[] for _ in range(num_parts)]
    totals = [0.0] * num_parts
    for name in sorted(seconds, key=seconds.__getitem__, reverse=True):
        least = totals.index(min(totals))
        parts[least].append(name)
        totals[least] += seconds[name]
    return parts


def choose(tests: Iterable[str], number: int, num_parts: int) -> list[str]:
    """Ids of the tests of a part, those first that take longest."""
    record = load()["tests"]
    units: dict[tuple[str, ...], float] = {}
    for _, file in groupby(tests, key=lambda test: test.partition("::")[0]):
        seconds = {test: record.get(test, UNKNOWN_TEST) for test in file}
        if (total := sum(seconds.values())) <= TOGETHER:
            units[tuple(seconds)] = total
        else:
            units |= {(test,): value for test, value in seconds.items()}
    return [test for unit in divide(units, num_parts)[number - 1] for test in unit]


class CPUSeconds:
    """Measure what tests take, note it in their reports, and fail unmarked ones above a limit.

    A test pays for its setup, fixtures of its module included if it is the first to ask for them,
    and for processes that end before it does. The limit is neither on what Numba compiles nor on
    the collection of garbage, which others left.

    :param bool limited: whether there is a limit.
    """

    def __init__(self, limited: bool) -> None:
        self.limited = limited
        self.excluded: Any = None
        self.slowness, self.start = 1.0, 0.0

    def prepare(self) -> None:
        """Before the first test, in the process that runs it."""
        with warnings.catch_warnings(action="ignore"):
            for name in HEAVY:
                if find_spec(name.partition(".")[0]):
                    import_module(name)
        from numba.core import event

        class Excluded(event.Listener):
            """CPU seconds between starts and ends of what is no test's own."""

            total = start = depth = 0

            def on_start(self, _: Any) -> None:
                if not self.depth:
                    self.start = time.process_time()
                self.depth += 1

            def on_end(self, _: Any) -> None:
                self.depth -= 1
                if not self.depth:
                    self.total += time.process_time() - self.start

            def on_collection(self, phase: str, info: Any) -> None:
                (self.on_start if phase == "start" else self.on_end)(info)

        self.excluded = Excluded()
        event.register("numba:compiler_lock", self.excluded)  # held to compile and to read caches
        gc.callbacks.append(self.excluded.on_collection)
        self.slowness = slowness()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        if self.excluded is None:
            self.prepare()
        self.start, self.excluded.total = used(), 0.0
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        seconds = used() - self.start
        own = seconds - self.excluded.total
        unmarked = not any(map(item.get_closest_marker, LONGER))
        if report.when == "teardown":
            report.user_properties.append(("cpu_seconds", seconds))
        elif self.limited and report.when == "call" and report.passed and unmarked:
            limit = LIMIT * TOLERANCE * self.slowness
            if own > limit:
                limit = LIMIT * TOLERANCE * max(self.slowness, slowness())
            if own > limit:
                report.outcome = "failed"
                report.longrepr = (
                    f"{item.nodeid} took {own:.1f} CPU seconds with its setup, of "
                    f"{limit:.1f} allowed: mark it slow, or make it shorter."
                )
        return report


class Recorder:
    """Write down CPU seconds of slow tests, where the session was started and not in workers."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown" and "slow" in report.keywords:
            self.seconds[report.nodeid] = dict(report.user_properties)["cpu_seconds"]

    def pytest_sessionfinish(self) -> None:
        save("tests", self.seconds)


def used() -> float:
    """CPU seconds of this process, and of children that have ended."""
    return time.process_time() + sum(os.times()[2:4])


def slowness() -> float:
    """How much slower this machine is now than the one where the marks were set; at least one."""
    times = []
    for _ in range(5):
        start = time.process_time()
        sum(i * i for i in range(1_000_000))
        times.append(time.process_time() - start)
    return max(1.0, sorted(times)[2] / UNIT)
