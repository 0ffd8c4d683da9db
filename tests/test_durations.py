"""What tests may take, what they took, and the parts that CI divides them into."""

import gc
import json
import subprocess
import sys
from argparse import ArgumentTypeError
from types import SimpleNamespace

import numba
import numpy as np
import pytest

from tests import durations
from tests.durations import CPUSeconds, Recorder, choose, divide, part

pytest_plugins = ["pytester"]

# Tests that take what they say by a clock that only they move.
TESTS = """
import pytest, sys

def take(seconds):
    sys.modules["fake_clock"].now += seconds

@pytest.fixture(scope="module")
def prepared():
    take(2.4)

@pytest.fixture
def cleaned():
    yield
    take(9.0)

def test_short(cleaned):
    take(2.9)

def test_that_compiles():
    take(4.0)
    sys.modules["fake_clock"].excluded.total += 2.0

def test_long():
    take(3.2)

def test_that_prepares(prepared):
    take(1.0)

def test_that_finds_it_prepared(prepared):
    take(1.0)

@pytest.mark.slow
def test_slow():
    take(4.0)

@pytest.mark.short_page
def test_of_a_page():
    take(4.0)

def test_that_fails_anyway():
    take(4.0)
    assert False
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run the tests above with the plugins, and return which failed with which words."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setitem(sys.modules, "fake_clock", clock)
    monkeypatch.setattr(durations, "used", lambda: clock.now)
    monkeypatch.setattr(durations, "HEAVY", ())
    monkeypatch.setattr(durations, "slowness", lambda: 1.0)
    pytester.makeini("[pytest]\nmarkers =\n slow: a\n short_page: b")
    pytester.makepyfile(TESTS)

    def run(*plugins):
        prepare = CPUSeconds.prepare

        def prepare_and_show(plugin):
            prepare(plugin)
            clock.excluded = plugin.excluded

        monkeypatch.setattr(CPUSeconds, "prepare", prepare_and_show)
        result = pytester.inline_run("-p", "no:cacheprovider", plugins=plugins)
        return {
            report.nodeid.split("::")[1]: str(report.longrepr) for report in result.getfailures()
        }

    return run


def test_unmarked_tests_have_a_limit(run):
    failed = run(CPUSeconds(limited=True))
    assert set(failed) == {"test_long", "test_that_prepares", "test_that_fails_anyway"}
    assert failed["test_long"] == (
        "test_unmarked_tests_have_a_limit.py::test_long took 3.2 CPU seconds with its setup, of "
        "3.0 allowed: mark it slow, or make it shorter."
    )
    assert "CPU seconds" not in failed["test_that_fails_anyway"]


def test_a_machine_may_get_slower(run, monkeypatch):
    measured = iter([1.0, 1.02, 1.3])  # first, then at each test above the limit
    monkeypatch.setattr(durations, "slowness", lambda: next(measured))
    failed = run(CPUSeconds(limited=True))
    assert set(failed) == {"test_long", "test_that_fails_anyway"}
    assert "of 3.1 allowed" in failed["test_long"]


def test_slow_tests_are_recorded(run, monkeypatch, tmp_path):
    monkeypatch.setattr(durations, "FILE", tmp_path / "durations.json")
    durations.save("tests", {"old": 1.0, "test_slow_tests_are_recorded.py::test_slow": 7.0})
    durations.save("pages", {"a-page": 100.04})
    assert set(run(CPUSeconds(limited=False), Recorder())) == {"test_that_fails_anyway"}
    assert json.loads(durations.FILE.read_text()) == {
        "tests": {"old": 1.0, "test_slow_tests_are_recorded.py::test_slow": 4.0},
        "pages": {"a-page": 100.0},
    }


def test_processes_are_counted():
    before = durations.used()
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert 0.29 < durations.used() - before


@pytest.mark.parametrize(
    "work",
    [lambda: numba.njit(lambda x: x.sum())(np.ones(3)), gc.collect],  # noqa: TID251
    ids=["Numba", "garbage"],
)
def test_the_limit_is_not_on_compilation_and_garbage(monkeypatch, work):
    monkeypatch.setattr(durations, "HEAVY", ())
    plugin = CPUSeconds(limited=True)
    plugin.prepare()
    assert 1.0 <= plugin.slowness < 10.0
    before = durations.used()
    work()
    assert plugin.excluded.total > (durations.used() - before) / 2


def test_parts_take_as_long():
    """Of nine numbers that two parts can't share evenly, and in the order of their lengths."""
    seconds = dict(zip("abcdefghi", [3, 60, 7, 7, 20, 1, 30, 12, 5], strict=True))
    assert divide(seconds, 2) == [["b", "c", "i", "f"], ["g", "e", "h", "d", "a"]]
    parts = divide(seconds, 4)
    assert sorted(name for names in parts for name in names) == sorted(seconds)
    assert [sum(seconds[name] for name in names) for names in parts] == [60, 30, 28, 27]
    assert divide({}, 2) == [[], []]


def test_files_stay_whole_unless_they_take_long(monkeypatch):
    record = {
        **{"short::1": 30.0, "short::2": 20.0, "long::1": 40.0, "long::2": 50.0},
        **{"quick::1": 4.0, "gone::1": 9.0},
    }
    monkeypatch.setattr(durations, "load", lambda: {"tests": record, "pages": {}})
    names = ["short::1", "short::2", "quick::1", "long::1", "long::2", "new::1"]
    first, rest = ["short::1", "short::2", "long::1"], ["long::2", "new::1", "quick::1"]
    assert choose(names, 1, 2) == first and choose(names, 2, 2) == rest
    assert choose(names, 1, 1) == [*first[:2], "long::2", "long::1", *rest[1:]]


@pytest.mark.parametrize("text", ["0/3", "4/3", "2", "2/", "-1/3", "a/b", "1/2/3"])
def test_no_part(text):
    with pytest.raises(ArgumentTypeError, match="K/N with 1 <= K <= N expected"):
        part(text)
