"""What tests took, and the parts that CI divides them into."""

import json
import subprocess
import sys
from argparse import ArgumentTypeError
from types import SimpleNamespace

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
    take(0.5)

def test_short(cleaned):
    take(2.4)

def test_that_takes_a_minute():
    take(60.0)

def test_that_prepares(prepared):
    take(1.0)

def test_that_finds_it_prepared(prepared):
    take(1.0)

@pytest.mark.slow
def test_slow():
    take(4.0)

@pytest.mark.slow
def test_too_slow():
    take(61.0)

def test_that_fails():
    take(0.1)
    assert False
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run the tests above with the plugins, and return what was printed."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setitem(sys.modules, "fake_clock", clock)
    monkeypatch.setattr(durations, "used", lambda: clock.now)
    pytester.makeini("[pytest]\nmarkers =\n slow: a")
    pytester.makepyfile(TESTS)

    def run(*plugins):
        result = pytester.inline_run("-p", "no:cacheprovider", plugins=plugins)
        result.assertoutcome(passed=6, failed=1)

    return run


def test_long_tests_are_shown_and_do_not_fail(run, monkeypatch, capsys):
    monkeypatch.setattr(durations, "NUM_SHOWN", 4)
    run(CPUSeconds())
    _, _, table = capsys.readouterr().out.partition("CPU seconds of the longest tests")
    file = "test_long_tests_are_shown_and_do_not_fail.py"
    assert table.splitlines()[1:6] == [
        f"  61.0 * {file}::test_too_slow",
        f"  60.0 * {file}::test_that_takes_a_minute",
        f"   4.0   {file}::test_slow",
        f"   3.4 * {file}::test_that_prepares",
        "3 of 7 tests are longer than their tier (*): 3 seconds without a mark, 60 if slow. If "
        "that is so with warm caches, too, mark them slow or make them shorter.",
    ]


def test_slow_tests_are_recorded(run, monkeypatch, tmp_path):
    monkeypatch.setattr(durations, "FILE", tmp_path / "durations.json")
    durations.save("tests", {"old": 1.0, "test_slow_tests_are_recorded.py::test_slow": 7.0})
    durations.save("pages", {"a-page": 100.04})
    run(CPUSeconds(), Recorder())
    assert json.loads(durations.FILE.read_text()) == {
        "tests": {
            "old": 1.0,
            "test_slow_tests_are_recorded.py::test_slow": 4.0,
            "test_slow_tests_are_recorded.py::test_too_slow": 61.0,
        },
        "pages": {"a-page": 100.0},
    }


def test_processes_are_counted():
    before = durations.used()
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert 0.29 < durations.used() - before


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
