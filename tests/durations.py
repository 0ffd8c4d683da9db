"""CPU seconds of tests: measured, shown, recorded, and what CI divides the slow tests by."""

import json
import os
import re
import time
from argparse import ArgumentTypeError
from collections.abc import Generator, Hashable, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import pytest

Name = TypeVar("Name", bound=Hashable)

FILE = Path(__file__).with_name("durations.json")
UNKNOWN_TEST, UNKNOWN_PAGE = 5.0, 240.0  # CPU seconds of what has no record yet
TOGETHER = 60.0  # tests of a file share fixtures, so a file that takes no longer stays whole

FAST = 3.0  # CPU seconds that a test without a mark should not exceed
TIERS = {"slow": 60.0, "short_page": 60.0, "page": 60.0}
NUM_SHOWN, LEAST_SHOWN = 15, 1.0


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
    """Note in the report of each test what it took, and print at the end which took longest.

    A test pays for its setup, fixtures of its module included if it is the first to ask for them,
    and for processes that end before it does. No test fails because of it.
    """

    def __init__(self) -> None:
        self.start = 0.0
        self.seconds: dict[str, tuple[float, float]] = {}  # of a test, and most of its tier

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        self.start = used()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.when == "teardown":
            report.user_properties.append(("cpu_seconds", used() - self.start))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            most = next((TIERS[mark] for mark in TIERS if mark in report.keywords), FAST)
            self.seconds[report.nodeid] = dict(report.user_properties)["cpu_seconds"], most

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        shown = [(test, taken) for test, taken in self.seconds.items() if taken[0] >= LEAST_SHOWN]
        longest = sorted(shown, key=lambda item: item[1], reverse=True)
        if not longest:
            return
        terminalreporter.section("CPU seconds of the longest tests, with their setup")
        for test, (seconds, most) in longest[:NUM_SHOWN]:
            mark = "*" if seconds > most else " "
            terminalreporter.write_line(f"{seconds:6.1f} {mark} {test}")
        if number := sum(seconds > most for _, (seconds, most) in longest):
            terminalreporter.write_line(
                f"{number} of {len(self.seconds)} tests are longer than their tier (*): {FAST:g} "
                f"seconds without a mark, {TIERS['slow']:g} if slow. If that is so with warm "
                "caches, too, mark them slow or make them shorter."
            )


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
