"""Segments of all groups of chains, in this process or through an executor."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from pyro_ext._lib.executors import ExecutorError, portable, run_tasks
from pyro_ext.inference.driver.segments import GroupState, Report, Runner, Segment, silent

__all__ = ["ExecutorError", "Pace", "run_elsewhere", "run_here"]

Keep = Callable[[Segment], None]

_FAILED = (
    "chain_method={} failed; draws made before are kept: get_samples() has them, and with "
    "checkpoint=... the same program continues from there"
)

# What a segment from a worker may cost this process, which as many workers as groups of chains are
# not to keep from its other work.
_SECONDS_PER_REPLY = 0.01


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

    def arguments_of(members: range) -> tuple[GroupState, int, float] | None:
        state = states.get(members) or GroupState.new(members)
        seconds = max(pace(), _SECONDS_PER_REPLY * len(groups))
        return None if state.is_done(until) else (state, until, seconds)

    def take(members: range, segment: Segment) -> bool:
        before = states[members].step if members in states else 0
        keep(segment)
        states[members] = segment.state
        report(segment.state.step - before, lambda: segment.line)
        return segment.interrupted

    work = _Segments(runner)
    return run_tasks(executor, work, groups, arguments_of, take, _FAILED.format(executor))


class _Segments:
    """Runs segments in a worker."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def setup(self) -> None:
        self._runner.setup()

    def run(self, state: GroupState, until: int, seconds: float) -> Segment:
        segment = self._runner.segment(state, until, seconds, silent)
        error = segment.error
        return segment if error is None else segment._replace(error=portable(error))
