"""The page on scaling out: a short run of it, and how it counts tasks."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from pyro_ext.tutorials._processes import Counted

PAGE = "scaling-out"
pytestmark = [
    pytest.mark.slow,
    # Of chains that are short on purpose.
    pytest.mark.filterwarnings("ignore:the (chains|draws)"),
]


def test_draws_are_those_of_one_process(names):
    """The page checks by itself that draws and fits are those of one process."""
    assert names["same"] == {"chains": True, "bootstrap": True}


def test_a_worker_is_lost_and_another_one_comes(names):
    for found in (names["chains"], names["fits"]):
        sent, back = found.executor.num_sent, found.executor.num_returned
        assert sent >= back >= len({task.key for task in found.tasks}) > 0
        assert found.num_lost >= 0 and any(task.stop > found.killed_at for task in found.tasks)


def test_tasks_are_counted():
    with ThreadPoolExecutor(1) as executor:
        counted = Counted(executor)
        futures = [counted.submit(lambda one, other: one + one, b"abc", 4) for _ in range(3)]
        failed = counted.submit(lambda one: 1 / 0, b"abcdef")
        assert [future.result() for future in futures] == 3 * [b"abcabc"]
        assert isinstance(failed.exception(), ZeroDivisionError)
    assert (counted.num_sent, counted.num_returned) == (4, 3)
