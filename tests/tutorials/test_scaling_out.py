"""The page on scaling out: a short run of it, and the arithmetic of its thousand machines."""

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
    """The page checks by itself that draws, ranks and fits are those of one process."""
    assert names["same"] == {"chains": True, "simulations": True, "bootstrap": True}


def test_a_worker_is_lost_and_another_one_comes(names):
    for found in (names["chains"], names["simulations"], names["fits"]):
        sent, back = found.executor.num_sent, found.executor.num_returned
        assert sent >= back >= len({task.key for task in found.tasks}) > 0
        assert found.executor.bytes_sent > found.executor.largest > 1000
        assert found.num_lost >= 0 and any(task.stop > found.killed_at for task in found.tasks)


def test_needs_of_machines(names, monkeypatch):
    """Hand-made costs: a task takes 2 ms of the scheduler and 5 of the client."""
    needs = names["needs"]
    costs = {"scheduler": 0.002, "this process": 0.005, "workers": 0.0}
    values = {"per_task": costs, "payload": 10**6, "back_per_chain": 3000.0, "draw_bytes": 2000.0}
    for name, value in values.items():
        monkeypatch.setitem(needs.__globals__, name, value)
    monkeypatch.setitem(needs.__globals__, "GROUP_SIZE", 25)
    few, many = needs(1, 30.0), needs(1000, 30.0)
    assert (few["workers"], few["segment, s"]) == (16, 30.0)
    assert (many["workers"], many["segment, s"]) == (16_000, 160.0)
    assert many["tasks, 1/s"] == 100.0
    assert many["scheduler, cores"] == pytest.approx(0.2)
    assert many["client, cores"] == pytest.approx(0.5)
    assert many["through both, MB/s"] == pytest.approx(100 * 25 * 4000 / 1e6)
    assert many["model and data at the start, GB"] == pytest.approx(16.0)
    assert many["all draws, GB"] == pytest.approx(16_000 * 25 * 1000 * 500 / 1e9)
    assert many["failures, 1/h"] == 1.0
    assert many["lost work, %"] == pytest.approx(100 * 80 / 3600 / 1000)


def test_bytes_are_counted():
    with ThreadPoolExecutor(1) as executor:
        counted = Counted(executor)
        futures = [counted.submit(lambda one, other: one + one, b"abc", 4) for _ in range(3)]
        failed = counted.submit(lambda one: 1 / 0, b"abcdef")
        assert [future.result() for future in futures] == 3 * [b"abcabc"]
        assert isinstance(failed.exception(), ZeroDivisionError)
    assert (counted.num_sent, counted.num_returned) == (4, 3)
    assert (counted.bytes_sent, counted.bytes_returned, counted.largest) == (15, 18, 6)
