"""Segments of all groups of chains, in this process or through an executor."""

import hashlib
import threading
import time
import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    wait,
)

import cloudpickle
import torch

from pyro_ext.inference._running.segments import (
    GroupState,
    Report,
    Runner,
    Segment,
    describe_error,
    silent,
)

__all__ = ["ExecutorError", "Pace", "run_elsewhere", "run_here"]

Keep = Callable[[Segment], None]

_MAX_RUNNERS = 2
_MAX_LOSSES = 3
_GRACE = 60.0
_FAILED = (
    "chain_method={} failed; draws made before are kept: get_samples() has them, and with "
    "checkpoint=... the same program continues from there"
)

_lock = threading.Lock()
_runners: OrderedDict[str, Runner] = OrderedDict()


class ExecutorError(RuntimeError):
    """An executor could not run chains; what had been drawn before is kept."""


class Pace:
    """Length of segments: short enough to lose little, long enough to spend little between them."""

    shortest = 2.0
    longest = 30.0
    fraction = 0.01

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self) -> float:
        """Return the seconds that the next segment may take."""
        elapsed = time.monotonic() - self._start
        return min(max(self.fraction * elapsed, self.shortest), self.longest)


def run_here(
    runner: Runner,
    groups: Sequence[range],
    states: dict[range, GroupState],
    until: int,
    keep: Keep,
    pace: Pace,
    report: Report,
) -> bool:
    """Run groups of chains in this process, one after the other."""
    try:
        for members in groups:
            state = states.get(members) or GroupState.new(members)
            while not state.is_done(until):
                segment = runner.segment(state, until, pace(), report)
                keep(segment)
                states[members] = state = segment.state
                if segment.interrupted:
                    return True
    except KeyboardInterrupt:
        return True
    return False


def run_elsewhere(
    executor: Executor,
    runner: Runner,
    groups: Sequence[range],
    states: dict[range, GroupState],
    until: int,
    keep: Keep,
    pace: Pace,
    report: Report,
) -> bool:
    """Run groups of chains through an executor, side by side; arguments as for :func:`run_here`.

    The state travels to a worker and back with each segment, so that any worker can run any
    segment, and the loss of one costs a segment.
    """
    return _Round(executor, cloudpickle.dumps(runner), states, until, keep, pace, report).run(
        groups
    )


class _Round:
    def __init__(
        self,
        executor: Executor,
        runner: bytes,
        states: dict[range, GroupState],
        until: int,
        keep: Keep,
        pace: Pace,
        report: Report,
    ) -> None:
        self._executor = executor
        self._runner = runner
        self._key = hashlib.sha256(runner).hexdigest()
        self._states = states
        self._until = until
        self._keep = keep
        self._pace = pace
        self._report = report
        self._pending: dict[Future[bytes], range] = {}
        self._losses: Counter[range] = Counter()
        self._interrupted = False

    def run(self, groups: Sequence[range]) -> bool:
        try:
            for members in groups:
                if not self._is_done(members):
                    self._submit(members)
            while self._pending and not self._interrupted:
                self._collect(wait(self._pending, return_when=FIRST_COMPLETED).done)
        except KeyboardInterrupt:
            self._interrupted = True
        except BaseException:
            self._wind_up()
            raise
        if self._interrupted:
            self._wind_up()
        return self._interrupted

    def _is_done(self, members: range) -> bool:
        return members in self._states and self._states[members].is_done(self._until)

    def _submit(self, members: range, with_runner: bool = False) -> None:
        # Model and data travel only to workers that say that they have not got them.
        runner = self._runner if with_runner else None
        state = cloudpickle.dumps(self._states.get(members) or GroupState.new(members))
        try:
            future = self._executor.submit(
                _segment_elsewhere, self._key, runner, state, self._until, self._pace()
            )
        except (BrokenExecutor, RuntimeError) as error:  # the latter where it was shut down
            raise ExecutorError(_FAILED.format(self._executor)) from error
        self._pending[future] = members

    def _collect(self, done: Iterable[Future[bytes]], resubmit: bool = True) -> None:
        for future in done:
            members = self._pending.pop(future)
            lacks_runner = False
            try:
                reply = cloudpickle.loads(future.result())
            except (Exception, CancelledError) as error:
                if not resubmit:
                    continue
                self._losses[members] += 1
                if isinstance(error, BrokenExecutor) or self._losses[members] > _MAX_LOSSES:
                    raise ExecutorError(_FAILED.format(self._executor)) from error
            else:
                if isinstance(reply, Segment):
                    self._take(members, reply)
                elif isinstance(reply, BaseException):
                    raise reply
                else:
                    lacks_runner = True
            if resubmit and not self._interrupted and not self._is_done(members):
                self._submit(members, lacks_runner)

    def _take(self, members: range, segment: Segment) -> None:
        before = self._states[members].step if members in self._states else 0
        self._keep(segment)
        self._states[members] = segment.state
        self._interrupted |= segment.interrupted
        self._report(segment.state.step - before, lambda: segment.line)

    def _wind_up(self) -> None:
        """Take what the segments on their way give; a second Ctrl-C does not wait for them."""
        for future in self._pending:
            future.cancel()
        try:
            self._collect(wait(self._pending, timeout=_GRACE).done, resubmit=False)
        except KeyboardInterrupt:
            pass
        self._pending.clear()


def _segment_elsewhere(
    key: str, runner: bytes | None, state: bytes, until: int, seconds: float
) -> bytes:
    """Run a segment in a worker."""
    reply: Segment | BaseException | None
    # Neither models nor potentials may run in two threads at once.
    with _lock:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            known = _known_runner(key, runner)
            reply = None
            if known is not None:
                reply = known.segment(cloudpickle.loads(state), until, seconds, silent)
                if reply.error is not None:
                    reply = reply._replace(error=_portable(reply.error))
        except KeyboardInterrupt as error:
            reply = error
        except Exception as error:
            reply = _portable(error)
        finally:
            torch.set_num_threads(threads)
    pickled: bytes = cloudpickle.dumps(reply)
    return pickled


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note; a plain one where it cannot be sent."""
    note = "Raised in a worker:\n" + "".join(traceback.format_exception(error))
    try:
        sent: Exception = cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:
        sent = RuntimeError(describe_error(error))
    sent.add_note(note)
    return sent


def _known_runner(key: str, payload: bytes | None) -> Runner | None:
    """The runner of this key in this process, made of the payload where it is not there yet."""
    if key not in _runners:
        if payload is None:
            return None
        runner: Runner = cloudpickle.loads(payload)
        runner.setup()
        _runners[key] = runner
        while len(_runners) > _MAX_RUNNERS:
            _runners.popitem(last=False)
    return _runners[key]
