"""Tasks in workers: what travels, what is run again, what ends a run."""

import random
from collections import Counter, OrderedDict
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import cloudpickle
import pytest
import torch

from pyro_ext._lib import executors
from pyro_ext._lib.executors import ExecutorError, run_tasks


class Squares:
    """Squares numbers, and says with which default type and how many threads."""

    def __init__(self, shift=0):
        self.shift = shift
        self.is_ready = False

    def setup(self):
        self.is_ready = True

    def run(self, number):
        assert self.is_ready
        if number < 0:
            raise ArithmeticError(f"{number} is negative")
        return number**2 + self.shift, torch.get_default_dtype(), torch.get_num_threads()


class Cluster(Executor):
    """Runs what was submitted in turns of several pretended processes, once it is asked to.

    Like on a cluster, tasks are at the workers before the first of them has come back.
    """

    def __init__(self, num_workers=1, lose=lambda number: False, loss=ConnectionError):
        self.memories = [OrderedDict() for _ in range(num_workers)]
        self.order = random.Random(0)
        self.lose = lose
        self.loss = loss
        self.queue = []
        self.sent = []
        self.num_run = self.num_answers = self.most_waiting = 0

    def submit(self, function, /, *args):
        future = Future()
        self.queue.append((future, function, args))
        self.most_waiting = max(self.most_waiting, len(self.queue))
        self.sent.append(args)
        return future

    def work(self):
        """Each worker takes a task, in any order; those behind them may still be canceled."""
        order = self.order.sample(range(len(self.memories)), len(self.memories))
        queue = [task for task in self.queue if not task[0].cancelled()]
        taken, self.queue = queue[: len(order)], queue[len(order) :]
        for future, _, _ in taken:
            future.set_running_or_notify_cancel()
        for number, (future, function, args) in zip(order, taken, strict=False):
            self.num_run += 1
            try:
                result = self.run_in_process(number, function, args)
            except BaseException:  # it ends the process of a worker
                future.set_exception(self.loss("the worker has gone"))
                continue
            reply = cloudpickle.loads(result)
            self.num_answers += reply.known and reply.error is None
            if self.lose(self.num_run):
                future.set_exception(self.loss("the worker has gone"))
            else:
                future.set_result(result)

    def run_in_process(self, number, function, args):
        """Run a task with memory, threads and default type of a pretended process."""
        outside = torch.get_default_dtype(), torch.get_num_threads()
        inside = torch.float32, 2
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(executors, "_known", self.memories[number])
            patch.setattr(executors, "_imported", f"worker {number}")
            torch.set_default_dtype(inside[0])
            torch.set_num_threads(inside[1])
            try:
                result = function(*args)
                assert (torch.get_default_dtype(), torch.get_num_threads()) == inside
                return result
            finally:
                torch.set_default_dtype(outside[0])
                torch.set_num_threads(outside[1])


@pytest.fixture
def run(monkeypatch):
    """Run tasks on a cluster, whose workers get on while the driver waits."""

    def run(cluster, numbers, work=None, num_times=1, stop_after=None):
        results = {}
        left = Counter({number: num_times for number in numbers})

        def take(number, result):
            results[number] = result
            left[number] -= 1
            assert left[number] >= 0
            return number == stop_after

        round_ = executors._Round(
            cluster,
            work or Squares(),
            lambda number: (number,) if left[number] else None,
            take,
            "it failed",
        )
        get = round_._done.get

        def wait(timeout=None):
            while round_._done.empty() and cluster.queue:
                cluster.work()
            return get(timeout=timeout or 0)

        monkeypatch.setattr(round_._done, "get", wait)
        return round_.run(numbers), results

    return run


@pytest.mark.parametrize("num_workers", [1, 3])
def test_work_travels_about_once_to_each_worker(run, num_workers):
    """Though all tasks are with the workers before the first of them has come back."""
    cluster = Cluster(num_workers)
    interrupted, results = run(cluster, range(100))
    assert not interrupted
    assert {number: result[0] for number, result in results.items()} == {
        number: number**2 for number in range(100)
    }
    num_times = sum(args[1] is not None for args in cluster.sent)
    assert num_workers <= num_times < 2 * num_workers  # at worst another one takes it
    assert len(cluster.sent) < 100 + 8 + 4 * num_workers  # those that came too early go again
    assert cluster.most_waiting <= 8 + 2 * num_workers
    assert all(len(memory) == 1 for memory in cluster.memories)


def test_work_travels_to_a_worker_that_comes_later(run):
    cluster = Cluster(lose=lambda number: number == 20 and cluster.memories.append(OrderedDict()))
    _, results = run(cluster, range(200))
    assert len(results) == 200 and len(cluster.memories) == 2
    assert sum(args[1] is not None for args in cluster.sent) <= 3  # the first takes one in vain


def test_workers_keep_the_latest_work(run):
    cluster = Cluster(2)
    for shift in range(4):
        run(cluster, range(60), Squares(shift))
    for memory in cluster.memories:
        assert [work.shift for work in memory.values()] == [2, 3]


def test_equal_tasks_are_told_apart(run):
    """Dask takes calls with equal arguments for one call, and remembers that it failed."""
    cluster = Cluster(lose=lambda number: 6 < number < 10)
    run(cluster, range(6))
    assert len(set(cluster.sent)) == len(cluster.sent) > 6


def test_lost_tasks_are_run_again(run):
    lost = []
    cluster = Cluster(2, lose=lambda number: number % 3 == 0 and not lost.append(number))
    _, results = run(cluster, range(10))
    assert len(lost) > 2 and sorted(results) == list(range(10))


def test_losses_of_a_long_run_do_not_add_up(run):
    """A chain sends task after task for days, and some worker is lost on each of them."""
    lost = []
    cluster = Cluster(2, lose=lambda number: number % 3 == 0 and not lost.append(number))
    _, results = run(cluster, range(2), num_times=20)
    assert len(lost) > 10 and sorted(results) == [0, 1]


def test_a_task_that_is_lost_each_time_ends_the_run(run):
    with pytest.raises(ExecutorError, match="it failed") as caught:
        run(Cluster(lose=lambda number: True), range(3))
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_a_broken_pool_ends_the_run_at_once(run):
    cluster = Cluster(lose=lambda number: number == 7, loss=BrokenProcessPool)
    with pytest.raises(ExecutorError, match="it failed"):
        run(cluster, range(20))
    assert cluster.num_run == 7


def test_errors_of_the_work_are_raised_here(run):
    with pytest.raises(ArithmeticError, match="-2 is negative") as caught:
        run(Cluster(2), [1, -2, 3])
    assert "Raised in a worker" in "".join(caught.value.__notes__)


def test_an_error_that_cannot_be_sent_is_described():
    class Unsendable(Exception):
        def __reduce__(self):
            raise TypeError

    sent = executors.portable(Unsendable("first\nsecond"))
    assert type(sent) is RuntimeError and str(sent) == "Unsendable: first"


@pytest.mark.parametrize("last", [3, 4, 5])  # one of them comes back before others of its turn
@pytest.mark.parametrize("where", ["in a worker", "here"])
def test_an_interrupt_takes_what_is_on_its_way(run, where, last):
    cluster = Cluster(3)

    class Interrupting(Squares):
        def run(self, number):
            if number == last and where == "in a worker":
                raise KeyboardInterrupt
            return super().run(number)

    interrupted, results = run(cluster, range(50), Interrupting(), stop_after=last)
    assert interrupted and (last in results) == (where == "here")
    assert len(results) == cluster.num_answers < 50
    assert cluster.queue  # what no worker had begun was canceled


def test_workers_compute_with_one_thread_and_the_type_of_the_driver(run, float64):
    """And leave what their process had."""
    _, results = run(Cluster(2), range(3), Squares(1))
    assert results == {number: (number**2 + 1, torch.float64, 1) for number in range(3)}


def test_threads_share_a_process():
    results = {}
    with ThreadPoolExecutor(2) as executor:
        run_tasks(
            executor,
            Squares(1),
            range(3),
            lambda number: None if number in results else (number,),
            results.__setitem__,
            "it failed",
        )
    assert {number: result[0] for number, result in results.items()} == {0: 1, 1: 2, 2: 5}
