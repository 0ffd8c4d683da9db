"""Segments of a run: which steps are kept, what a group of chains is between two, what runs one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_ext.checkpoint.chains import ChainStatus, Chunk
from pyro_ext.inference.vectorized import VectorizedKernel
from pyro_ext.posterior.identity import Quantities

ROWS_PER_CALL = 64


@dataclass(frozen=True)
class Plan:
    """Settings of a run besides its kernel.

    :param int warmup_steps: steps before the first kept ones.
    :param int thinning: steps between two kept draws.
    :param int num_samples: number of draws that the run is to keep.
    :param int seed: a non-negative integer.
    :param Mapping quantities: further functions of a draw to record.
    :param Collection save_params: names of the sites to record, ``None`` for all.
    :param Sequence extra_fields: fields of the sampler's state to record.
    :param tuple args: arguments of the model.
    :param Mapping kwargs: keyword arguments of the model.
    """

    warmup_steps: int
    thinning: int
    num_samples: int
    seed: int
    quantities: Quantities
    save_params: Collection[str] | None
    extra_fields: Sequence[str]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class KeptSteps:
    """Numbers of steps after which a draw is kept.

    A draw is kept every ``thinning`` steps after the warm-up, where its step samples.

    :param int warmup_steps: steps before the first kept ones.
    :param int thinning: steps between two kept draws.
    :param VectorizedKernel kernel: the kernel, which knows the steps that sample.
    :raises ValueError: if no such step ever samples.
    """

    def __init__(self, warmup_steps: int, thinning: int, kernel: VectorizedKernel) -> None:
        # Whether the candidates sample repeats itself after a period's worth of them.
        candidates = warmup_steps + thinning * np.arange(1, kernel.period + 1)
        sampling = kernel.is_sampling(candidates - 1)
        if not sampling.any():
            raise ValueError(
                f"no draw would be kept: after {warmup_steps} warm-up steps, every "
                f"{thinning}th step explores in a cycle of {kernel.period} steps; choose "
                "warmup_steps and thinning so that some of these steps fall into the sampling stage"
            )
        self._first = [int(step) for step in candidates[sampling]]
        self._shift = thinning * kernel.period

    def __call__(self, draw: int) -> int:
        """Return the number of steps after which a draw, counted from zero, is kept."""
        periods, index = divmod(draw, len(self._first))
        return self._first[index] + periods * self._shift


@dataclass(frozen=True)
class GroupState:
    """All that the rest of a group's run depends on, besides the settings of the run.

    :param range members: numbers of the chains.
    :param int step: number of steps taken.
    :param int num_draws: number of draws taken of each chain.
    :param tuple chains: how far each chain is.
    :param sampler: state of the sampler, ``None`` before the first step.
    """

    members: range
    step: int
    num_draws: int
    chains: tuple[ChainStatus, ...]
    sampler: Any

    @classmethod
    def new(cls, members: range) -> Self:
        """State of a group of chains before its first step."""
        return cls(members, 0, 0, (ChainStatus(),) * len(members), None)

    @property
    def has_ended(self) -> bool:
        """Tell whether all chains have stopped."""
        return all(chain.stopped_at is not None for chain in self.chains)

    def is_done(self, until: int) -> bool:
        """Tell whether ``until`` draws have been made or all chains have stopped."""
        return self.num_draws >= until or self.has_ended


class Segment(NamedTuple):
    """Result of a segment.

    :param GroupState state: the state after it.
    :param Chunk chunk: draws made in it, or ``None`` if it made no draws.
    :param bool interrupted: whether Ctrl-C ended it.
    :param Mapping line: diagnostics for a progress bar.
    :param Exception error: what ended a chain, if an error did.
    """

    state: GroupState
    chunk: Chunk | None
    interrupted: bool
    line: Mapping[str, str]
    error: Exception | None = None


class Report(Protocol):
    """Hears of progress."""

    def __call__(self, num_steps: int, line: Callable[[], Mapping[str, str] | None]) -> None:
        """Take note of steps just taken, and of what would make a line of diagnostics."""


def silent(num_steps: int, line: Callable[[], Mapping[str, str] | None]) -> None:
    """Hear of progress and say nothing."""


class Runner(ABC):
    """Runs chains of one kernel, model and data; it may be sent to other processes.

    :param kernel: the kernel.
    :param Plan plan: what the run is of.
    :ivar Mapping start: initial parameters of all chains, where they were given.
    :ivar str backend: what runs the steps, if there is a choice.
    :ivar str note: text of the progress bar before the first step.
    """

    def __init__(self, kernel: MCMCKernel, plan: Plan) -> None:
        self.kernel: Any = kernel
        self.plan = plan
        self.start: Mapping[str, Tensor] | None = None
        self.backend: Any = None
        self.note = ""

    @abstractmethod
    def setup(self) -> None:
        """Prepare to run in this process."""

    @abstractmethod
    def segment(self, state: GroupState, until: int, seconds: float, report: Report) -> Segment:
        """Continue until ``until`` draws have been made, or the time is up.

        An error in a chain ends this chain, which keeps the draws from before.
        """

    @abstractmethod
    def num_steps(self, num_draws: int) -> int:
        """Return the number of steps that a number of draws takes."""

    @abstractmethod
    def save(self, state: GroupState) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Express the sampler's state as tensors and plain values."""

    @abstractmethod
    def load(
        self, members: range, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
    ) -> Any:
        """Make the sampler's state of what :meth:`save` gave."""

    def recorded(self, samples: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add quantities of each draw, and leave out sites that are not to be kept.

        Shapes: samples (num_rows, *event) each, with a multiple of ROWS_PER_CALL rows.
        """
        kept = samples if self.plan.save_params is None else self.plan.save_params
        if unknown := set(kept) - set(samples):
            raise ValueError(
                f"save_params must be among the sites {sorted(samples)}, got {sorted(unknown)}"
            )
        result = {name: samples[name] for name in samples if name in kept}
        for name, function in self.plan.quantities.items():
            if name in samples:
                raise ValueError(
                    f"quantities[{name!r}] has the name of a site; give it another one"
                )
            try:
                with torch.no_grad():
                    result[name] = torch.func.vmap(function, chunk_size=ROWS_PER_CALL)(samples)
            except Exception as error:
                error.add_note(
                    f"Raised for quantities[{name!r}], which must map one draw, a dict of tensors "
                    "without dimensions for chains or draws, to a tensor"
                )
                raise
        return result
