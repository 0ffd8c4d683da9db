"""Fault-tolerant execution of tasks in other processes or on other machines."""

import hashlib
import os
import queue
import threading
import time
import traceback
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import cloudpickle
import torch

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")
ResultOf = TypeVar("ResultOf", covariant=True)

_MAX_KNOWN = 2
_MAX_LOSSES = 3
_GRACE = 60.0
_NUM_SPARE = 8

_lock = threading.Lock()
_known: OrderedDict[str, "Work[Any]"] = OrderedDict()
_imported = uuid.uuid4().hex


class ExecutorError(RuntimeError):
    """An executor failed to run its tasks; earlier draws are kept."""


class Work(Protocol[ResultOf]):
    """Work of the workers: it is sent to each of them once, by value, and called for each task."""

    def setup(self) -> None:
        """Prepare to run in this process."""

    @property
    def run(self) -> Callable[..., ResultOf]:
        """Run a task, a method of any arguments."""


def run_tasks(
    executor: Executor,
    work: Work[Result],
    keys: Iterable[Key],
    arguments_of: Callable[[Key], tuple[Any, ...] | None],
    take: Callable[[Key, Result], bool | None],
    failed: str,
) -> bool:
    """Run tasks through an executor, side by side.

    If a worker dies during a task, another one runs the task again, up to three times. A worker
    computes on one thread, with the default dtype of this process.

    :param Executor executor: a pool of processes, that of a Dask client or of MPI.
    :param Work work: the work of the workers.
    :param keys: names of tasks.
    :param arguments_of: returns the arguments of the next task of a name, or ``None`` if there are
        no more tasks.
    :param take: receives the result of a task, and returns whether it was interrupted.
    :param str failed: error message for a failure of the executor.
    :returns: whether Ctrl-C ended it.
    :raises ExecutorError: if the executor fails.
    """
    return _Round(executor, work, arguments_of, take, failed).run(keys)


class _Reply(NamedTuple):
    """Reply of a worker, with its process and whether it knew the work."""

    process: str
    known: bool
    result: Any = None
    error: BaseException | None = None


class _Round(Generic[Key, Result]):
    def __init__(
        self,
        executor: Executor,
        work: Work[Result],
        arguments_of: Callable[[Key], tuple[Any, ...] | None],
        take: Callable[[Key, Result], bool | None],
        failed: str,
    ) -> None:
        self._executor = executor
        self._work = cloudpickle.dumps(work)
        self._digest = hashlib.sha256(self._work).hexdigest()
        self._arguments_of = arguments_of
        self._take = take
        self._failed = failed
        self._done: queue.Queue[Future[bytes]] = queue.Queue()
        self._pending: dict[Future[bytes], Key] = {}
        # Processes without the work, tasks that take it along, and those that came back for it.
        self._lacking: set[str] = set()
        self._equipping: set[Future[bytes]] = set()
        self._held: list[Key] = []
        self._processes: set[str] = set()
        self._backlog: deque[Key] = deque()
        self._losses: Counter[Key] = Counter()
        # Dask takes tasks with equal arguments for one task, whose failure it remembers.
        self._ticket = uuid.uuid4().hex
        self._num_submitted = 0
        self._interrupted = False

    def run(self, keys: Iterable[Key]) -> bool:
        """Run tasks until none is left; whether Ctrl-C ended it."""
        try:
            self._backlog.extend(keys)
            self._fill()
            while self._pending and not self._interrupted:
                self._collect(self._done.get())
                if not self._interrupted:
                    self._fill()
        except KeyboardInterrupt:
            self._interrupted = True
        except BaseException:
            self._wind_up()
            raise
        if self._interrupted:
            self._wind_up()
        return self._interrupted

    def _fill(self) -> None:
        """Submit as many tasks as keep the workers at work, and some that may find new ones.

        Of more, all would be with workers before the work is, and come back for it; and neither
        the scheduler of a cluster nor its client has to hold them.
        """
        while self._held and len(self._equipping) < len(self._lacking):
            self._submit(self._held.pop(), with_work=True)
        most = 2 * len(self._processes) + _NUM_SPARE
        while self._backlog and len(self._pending) + len(self._held) < most:
            self._submit(self._backlog.popleft())

    def _submit(self, key: Key, with_work: bool = False) -> None:
        """Submit the next task of a name."""
        arguments = self._arguments_of(key)
        if arguments is None:
            return
        self._num_submitted += 1
        try:
            future = self._executor.submit(
                _run_elsewhere,
                self._digest,
                self._work if with_work else None,
                cloudpickle.dumps((arguments, torch.get_default_dtype())),
                f"{self._ticket} {self._num_submitted}",
            )
        except (BrokenExecutor, RuntimeError) as error:  # the latter where it was shut down
            raise ExecutorError(self._failed) from error
        self._pending[future] = key
        if with_work:
            self._equipping.add(future)
        future.add_done_callback(self._done.put)

    def _collect(self, future: Future[bytes]) -> None:
        key = self._pending.pop(future)
        took_work = future in self._equipping
        self._equipping.discard(future)
        reply, error = _outcome(future)
        if reply is None:
            if not isinstance(error, Exception):
                assert error is not None
                raise error
            self._losses[key] += 1
            if isinstance(error, BrokenExecutor) or self._losses[key] > _MAX_LOSSES:
                raise ExecutorError(self._failed) from error
            self._backlog.appendleft(key)
            return
        self._processes.add(reply.process)
        if not reply.known:
            self._lacking.add(reply.process)
            self._held.append(key)
            return
        if reply.process in self._lacking:
            self._lacking.remove(reply.process)
        elif took_work and self._lacking:
            self._lacking.pop()  # it may be gone, and will come back for the work if it is not
        if reply.error is not None:
            raise reply.error
        del self._losses[key]
        self._interrupted |= bool(self._take(key, reply.result))
        self._backlog.extendleft(self._held)
        self._held.clear()
        self._backlog.append(key)

    def _wind_up(self) -> None:
        """Take what the tasks on their way give; a second Ctrl-C does not wait for them."""
        for future in list(self._pending):
            future.cancel()
        deadline = time.monotonic() + _GRACE
        try:
            while self._pending:
                future = self._done.get(timeout=max(deadline - time.monotonic(), 0.0))
                key = self._pending.pop(future)
                reply, _ = _outcome(future)
                if reply is not None and reply.known and reply.error is None:
                    self._take(key, reply.result)
        except (KeyboardInterrupt, queue.Empty):
            pass
        self._pending.clear()


def _outcome(future: Future[bytes]) -> tuple[_Reply | None, BaseException | None]:
    """Return a worker's reply, or the error that prevented it."""
    error = CancelledError() if future.cancelled() else future.exception()
    if error is not None:
        return None, error
    reply: _Reply = cloudpickle.loads(future.result())
    return reply, None


def _run_elsewhere(digest: str, work: bytes | None, arguments: bytes, ticket: str) -> bytes:
    """Run a task in a worker."""
    # Neither models nor potentials may run in two threads at once.
    with _lock:
        process = f"{_imported} {os.getpid()}"  # forked ones share what was imported before
        threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
        torch.set_num_threads(1)
        try:
            values, own_dtype = cloudpickle.loads(arguments)
            torch.set_default_dtype(own_dtype)
            known = _known_work(digest, work)
            reply = _Reply(process, known is not None)
            if known is not None:
                reply = reply._replace(result=known.run(*values))
        except KeyboardInterrupt as error:
            reply = _Reply(process, True, error=error)
        except Exception as error:
            reply = _Reply(process, True, error=portable(error))
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)
    pickled: bytes = cloudpickle.dumps(reply)
    return pickled


def portable(error: Exception) -> Exception:
    """The error with its traceback as a note; a plain one where it cannot be sent."""
    note = "Raised in a worker:\n" + "".join(traceback.format_exception(error))
    try:
        sent: Exception = cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:
        sent = RuntimeError(describe_error(error))
    sent.add_note(note)
    return sent


def describe_error(error: Exception) -> str:
    """Type of an error and the first line of its message."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first:.200}" if first else type(error).__name__


def _known_work(digest: str, payload: bytes | None) -> Work[Any] | None:
    """The work of this digest in this process, made of the payload where it is not there yet."""
    if digest not in _known:
        if payload is None:
            return None
        work: Work[Any] = cloudpickle.loads(payload)
        work.setup()
        _known[digest] = work
        while len(_known) > _MAX_KNOWN:
            _known.popitem(last=False)
    return _known[digest]
