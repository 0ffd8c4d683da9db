"""A Dask cluster of processes on this machine, and what it costs: for the page on scaling out."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple, Self

import psutil
from distributed import Client, Scheduler, SchedulerPlugin
from matplotlib.axes import Axes

Popen = subprocess.Popen[bytes]


class Task(NamedTuple):
    """A task that a worker has computed: its address, start and stop by the clock, and its name."""

    worker: str
    start: float
    stop: float
    key: str


class Recorder(SchedulerPlugin):
    """Lives in the scheduler and takes note of tasks that have been computed, and of lost ones."""

    name = "recorder"

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.lost: list[str] = []

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Take note of a task that has been computed."""
        if start == "processing" and finish == "memory":
            for part in kwargs["startstops"]:
                if part["action"] == "compute":
                    self.tasks.append(Task(kwargs["worker"], part["start"], part["stop"], str(key)))

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Take note of the tasks that a worker took along, which others will compute."""
        for _, event in scheduler.get_events("all"):
            if event["action"] == "remove-worker" and event["worker"] == worker:
                self.lost += map(str, (*event["processing-tasks"], *event["lost-computed-tasks"]))


class Counted(Executor):
    """Hands tasks on to another executor, and counts them."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.num_sent = self.num_returned = 0

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send a task."""
        self.num_sent += 1
        future = self._executor.submit(function, *args, **kwargs)
        future.add_done_callback(self._count)
        return future

    def _count(self, future: Future[Any]) -> None:
        if not future.cancelled() and future.exception() is None:
            self.num_returned += 1


class Disturbed(NamedTuple):
    """Outcome of a computation on a cluster that lost a worker and got one."""

    result: Any
    executor: Counted
    tasks: list[Task]
    num_lost: int
    killed_at: float


@dataclass
class Usage:
    """Seconds that a stretch of time took: by the clock, and by the processors for each part."""

    seconds: float = 0.0
    cpu_seconds: Counter[str] = field(default_factory=Counter)


class Cluster:
    """A scheduler, workers of one thread each, and a client in this process.

    On a real cluster the first two run elsewhere, and all of this is the line that makes a client.

    :param Path folder: for the file by which the parts find each other, and for what they print.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "scheduler.json"
        self.workers: list[Popen] = []

    def __enter__(self) -> Self:
        self._file.unlink(missing_ok=True)
        self._scheduler = self._launch("scheduler", "--port", "0", "--idle-timeout", "10m")
        self.client = Client(scheduler_file=str(self._file), timeout=120)
        self.client.register_plugin(Recorder())
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        for process in (*self.workers, self._scheduler):
            process.kill()
            process.wait()

    def _launch(self, command: str, *options: str) -> Popen:
        module = f"distributed.cli.dask_{command}"
        where = ["--scheduler-file", str(self._file), "--no-dashboard"]
        with (self._folder / "cluster.txt").open("ab") as printed:
            return subprocess.Popen(
                [sys.executable, "-m", module, *where, *options], stderr=printed, cwd=self._folder
            )

    def add(self, number: int, wait: bool = True) -> None:
        """Start workers."""
        for _ in range(number):
            self.workers.append(
                self._launch("worker", "--nthreads", "1", "--no-nanny", "--death-timeout", "60")
            )
        if wait:
            self.client.wait_for_workers(len(self.workers), timeout=300)

    def kill(self) -> None:
        """Kill the worker that was started first, as a machine that fails would."""
        worker = self.workers.pop(0)
        worker.kill()
        worker.wait()
        while self._num_known() > len(self.workers):
            time.sleep(0.02)

    def renew(self, number: int) -> None:
        """Go on with new workers alone."""
        while self.workers:
            self.kill()
        self.add(number)

    def _num_known(self) -> int:
        def number(dask_scheduler: Scheduler) -> int:
            return len(dask_scheduler.workers)

        return int(self.client.run_on_scheduler(number))

    def disturbed(self, run: Callable[[Executor], Any], num_returned: int) -> Disturbed:
        """Run something; a worker is killed and another started once so many tasks are back."""
        executor, before = self.executor(), self.recorded()
        times: list[float] = []
        has_ended = Event()

        def disturb() -> None:
            while executor.num_returned < num_returned:
                if has_ended.wait(0.02):
                    return
            times.append(time.time())
            self.kill()
            self.add(1, wait=False)

        thread = Thread(target=disturb, daemon=True)
        thread.start()
        try:
            result = run(executor)
        finally:
            has_ended.set()
            thread.join()
        if not times:
            raise RuntimeError(f"it ended after {executor.num_returned} tasks, before the kill")
        after = self.recorded()
        tasks, num_lost = after.tasks[len(before.tasks) :], len(after.lost) - len(before.lost)
        self.client.wait_for_workers(len(self.workers), timeout=300)
        return Disturbed(result, executor, tasks, num_lost, times[0])

    def executor(self) -> Counted:
        """The executor of the client, which counts tasks."""
        return Counted(self.client.get_executor())

    def recorded(self) -> Recorder:
        """Return the record of the scheduler so far."""

        def recorder(dask_scheduler: Scheduler) -> tuple[list[Task], list[str]]:
            plugin: Any = dask_scheduler.plugins[Recorder.name]
            return plugin.tasks, plugin.lost

        found = Recorder()
        found.tasks, found.lost = self.client.run_on_scheduler(recorder)
        return found

    def _cpu_seconds(self) -> Counter[str]:
        parts = {os.getpid(): "this process", self._scheduler.pid: "scheduler"}
        spent: Counter[str] = Counter()
        for pid, part in (parts | {worker.pid: "workers" for worker in self.workers}).items():
            times = psutil.Process(pid).cpu_times()
            spent[part] += times.user + times.system
        return spent

    @contextmanager
    def measured(self) -> Iterator[Usage]:
        """Measure what is done within, with workers that are there at its beginning and end."""
        usage = Usage()
        before, started = self._cpu_seconds(), time.perf_counter()
        yield usage
        usage.seconds = time.perf_counter() - started
        usage.cpu_seconds = self._cpu_seconds() - before


def plot_tasks(axes: Axes, found: Disturbed) -> None:
    """Draw which worker computed when, and when one was killed."""
    first = min(task.start for task in found.tasks)
    workers = list(dict.fromkeys(task.worker for task in found.tasks))
    for task in found.tasks:
        span = (task.start - first, task.stop - task.start)
        place = (workers.index(task.worker) - 0.35, 0.7)
        axes.broken_barh([span], place, color="#2a6f97", edgecolor="white")
    axes.axvline(found.killed_at - first, color="#d1495b", ls="--", lw=1, label="killed")
    axes.set(xlabel="seconds", ylim=(len(workers) - 0.4, -0.6))
    axes.set_yticks(range(len(workers)), [f"worker {n + 1}" for n in range(len(workers))])
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0))
