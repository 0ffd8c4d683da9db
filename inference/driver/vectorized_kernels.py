"""Segments of kernels that run many chains side by side."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib.executors import describe_error
from pyro_ext.checkpoint.chains import Chunk
from pyro_ext.inference.driver.segments import (
    ROWS_PER_CALL,
    GroupState,
    KeptSteps,
    Plan,
    Report,
    Runner,
    Segment,
)
from pyro_ext.inference.vectorized import Chains, Draws, VectorizedKernel
from pyro_ext.inference.vectorized.chains import joined

_MOST_STEPS_PER_CALL = 1 << 12
_SECONDS_PER_CALL = 0.1
_BYTES_PER_SEGMENT = 1 << 26


class VectorizedRunner(Runner):
    """Runs chains of a vectorized kernel.

    ``start`` may be set to unconstrained initial parameters of all chains, and ``backend`` to what
    an earlier part of the run took.

    :param VectorizedKernel kernel: the kernel.
    :param Plan plan: what the run is of.
    :param Mapping first_values: values that one chain starts at, where they are known beforehand.
    """

    kernel: VectorizedKernel

    def __init__(
        self, kernel: VectorizedKernel, plan: Plan, first_values: Mapping[str, Tensor] | None
    ) -> None:
        super().__init__(kernel, plan)
        self.first_values = first_values
        self._kept = KeptSteps(plan.warmup_steps, plan.thinning, kernel)

    def setup(self) -> None:
        """Build the potential in this process."""
        self.kernel.first_values = self.first_values
        self.kernel.setup(self.plan.warmup_steps, *self.plan.args, **self.plan.kwargs)
        num_steps = self.num_steps(self.plan.num_samples)
        self.backend = self.kernel.choose_backend(num_steps, self.backend)
        self.note = self.kernel.note

    def _begin(self, members: range) -> Chains:
        """Chains before their first step."""
        start = None
        if self.start is not None:
            start = {k: v[members.start : members.stop] for k, v in self.start.items()}
        chains = self.kernel.begin(members, self.plan.seed, start)
        if unknown := set(self.plan.extra_fields) - set(chains.state._fields):
            raise ValueError(
                f"extra_fields must be among {list(chains.state._fields)}, the state of "
                f"{type(self.kernel).__name__}; got {sorted(unknown)}"
            )
        # Quantities that fail must do so before any step.
        self._samples(chains.position[None])
        return chains

    def num_steps(self, num_draws: int) -> int:
        """Return the number of steps that a number of draws takes."""
        return self._kept(num_draws - 1)

    def segment(self, state: GroupState, until: int, seconds: float, report: Report) -> Segment:
        """Continue until ``until`` draws have been made, or the time is up.

        A chain that diverges, or whose model raises, keeps the draws from before; the others go on.
        Where they all take one step together in a graph, an error in it ends all of them.
        """
        if state.sampler is None:
            try:
                state = replace(state, sampler=self._begin(state.members))
            except Exception as error:
                statuses = tuple(
                    replace(status, stopped_at=0, error=describe_error(error))
                    for status in state.chains
                )
                return Segment(replace(state, chains=statuses), None, False, {}, error)
        chains: Chains = state.sampler
        alive = torch.tensor([status.stopped_at is None for status in state.chains], device="cpu")
        deadline = time.monotonic() + seconds
        reach = 1
        bytes_per_draw = sum(leaf.nbytes for leaf in chains.state if isinstance(leaf, Tensor))
        until = min(until, state.num_draws + max(1, _BYTES_PER_SEGMENT // bytes_per_draw))
        num_draws, parts = state.num_draws, []
        interrupted = False
        errors = self.kernel.catch_errors()
        try:
            # A segment takes a step at least.
            while num_draws < until and (chains is state.sampler or time.monotonic() < deadline):
                before, called = chains.step, time.monotonic()
                steps = self._kept_within(num_draws, until, before + reach)
                if steps:
                    after, draws = self.kernel.record(chains, steps)
                    # In this order, so that Ctrl-C between the two leaves a draw too many at most.
                    parts.append(draws)
                    num_draws += len(steps)
                else:
                    after = self.kernel.advance(chains, reach)
                chains = after
                # Ctrl-C and the deadline are heard between calls, and a call costs some.
                in_time = time.monotonic() - called < _SECONDS_PER_CALL
                reach = min(2 * reach, _MOST_STEPS_PER_CALL) if in_time else max(reach // 2, 1)
                report(chains.step - before, partial(self.kernel.describe, chains))
                if not (_is_finite(chains.position) & alive).any():
                    break
        except KeyboardInterrupt:
            interrupted = True
        except Exception as error:
            errors.update({c: error for c in range(len(state.chains)) if c not in errors})
        try:
            return self._segment(state, chains, parts, errors, interrupted)
        except KeyboardInterrupt:
            return self._segment(state, chains, parts, errors, True)

    def _kept_within(self, num_draws: int, until: int, step: int) -> list[int]:
        """Steps of the next draws, up to a step."""
        kept = (self._kept(draw) for draw in range(num_draws, until))
        return list(takewhile(lambda number: number <= step, kept))

    def _segment(
        self,
        state: GroupState,
        chains: Chains,
        parts: Sequence[Draws],
        errors: Mapping[int, Exception],
        interrupted: bool,
    ) -> Segment:
        draws = joined([part for part in parts if part.steps[-1] <= chains.step])
        chunk, counts, num_draws = None, [0] * len(state.members), 0
        # An error that others survived has made a chain not finite.
        stops = [
            chains.step + finite if column in errors else None if finite else chains.step
            for column, finite in enumerate(_is_finite(chains.position).tolist())
        ]
        if draws is not None:
            num_draws = len(draws.steps)
            finite = _is_finite(draws.position) & torch.isfinite(draws.potential_energy).cpu()
            for column, status in enumerate(state.chains):
                bad = (~finite[:, column]).nonzero()
                if status.stopped_at is None:
                    counts[column] = int(bad[0]) if len(bad) else num_draws
                if len(bad):
                    stops[column] = int(draws.steps[int(bad[0])])
            fields = {name: getattr(draws.state, name) for name in self.plan.extra_fields}
            chunk = Chunk(
                self._samples(draws.position), {**self.kernel.statistics(draws), **fields}, counts
            )
        after = GroupState(
            state.members,
            chains.step,
            state.num_draws + num_draws,
            tuple(
                replace(
                    status,
                    num_draws=status.num_draws + count,
                    stopped_at=stop,
                    error=describe_error(errors[column]) if column in errors else "",
                )
                if status.stopped_at is None
                else status
                for column, (status, count, stop) in enumerate(
                    zip(state.chains, counts, stops, strict=True)
                )
            ),
            chains,
        )
        error = next(iter(errors.values()), None)
        return Segment(after, chunk, interrupted, self.kernel.describe(chains), error)

    def _samples(self, positions: Tensor) -> dict[str, Tensor]:
        """Constrained draws, deterministic sites and quantities.

        Rows are padded to whole blocks: a draw is the same number to the last bit however many were
        made in the same segment.
        """
        num_draws, num_chains, size = positions.shape
        flat = positions.reshape(-1, size)
        lacking = -len(flat) % ROWS_PER_CALL
        flat = torch.cat([flat, flat[:1].expand(lacking, -1)])
        samples = self.recorded(self.kernel.samples(flat))
        return {
            name: value[: num_draws * num_chains]
            .reshape(num_draws, num_chains, *value.shape[1:])
            .clone()
            for name, value in samples.items()
        }

    def save(self, state: GroupState) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Express the sampler's state as tensors and plain values."""
        return self.kernel.saved(state.sampler)

    def load(
        self, members: range, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
    ) -> Chains:
        """Restore the sampler's state from the output of :meth:`save`."""
        return self.kernel.restored(members, self.plan.seed, tensors, content)


def _is_finite(positions: Tensor) -> Tensor:
    """Return a mask of the positions whose elements are all finite."""
    return torch.isfinite(positions).all(-1).cpu()
