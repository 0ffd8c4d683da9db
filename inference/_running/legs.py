"""What a group of chains is between two legs of its run, and what runs a leg."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_ext.checkpoint.chains import ChainStatus, Chunk

__all__ = [
    "ROWS_PER_CALL",
    "GroupState",
    "Leg",
    "Quantities",
    "Report",
    "Runner",
    "silent",
    "with_quantities",
]

ROWS_PER_CALL = 64

Quantities = Mapping[str, Callable[[dict[str, Tensor]], Tensor]]


@dataclass(frozen=True)
class GroupState:
    """All that the rest of a group's run depends on, besides the settings of the run.

    :param range members: numbers of the chains.
    :param int step: number of steps taken.
    :param int num_draws: number of draws taken of each chain.
    :param tuple chains: how far each chain is.
    :param sampler: state of the sampler.
    """

    members: range
    step: int
    num_draws: int
    chains: tuple[ChainStatus, ...]
    sampler: Any

    @property
    def has_ended(self) -> bool:
        """Whether all chains have left the finite numbers."""
        return all(chain.stopped_at is not None for chain in self.chains)

    def is_done(self, until: int) -> bool:
        """Whether nothing is left to do for that many draws."""
        return self.num_draws >= until or self.has_ended


class Leg(NamedTuple):
    """What a leg gave.

    :param GroupState state: the state after it.
    :param Chunk chunk: draws made in it, ``None`` where there are none.
    :param bool interrupted: whether Ctrl-C ended it.
    :param Mapping line: diagnostics for a progress bar.
    """

    state: GroupState
    chunk: Chunk | None
    interrupted: bool
    line: Mapping[str, str]


class Report(Protocol):
    """Hears of progress."""

    def __call__(self, num_steps: int, line: Callable[[], Mapping[str, str] | None]) -> None:
        """Take note of steps just taken, and of what would make a line of diagnostics."""


def silent(num_steps: int, line: Callable[[], Mapping[str, str] | None]) -> None:
    """Hear of progress and say nothing."""


class Runner(Protocol):
    """Runs chains of one kernel, model and data; it may be sent to other processes."""

    @property
    def start(self) -> Mapping[str, Tensor] | None:
        """Initial parameters of all chains, where they were given."""

    def setup(self) -> None:
        """Prepare to run in this process."""

    def begin(self, members: range) -> GroupState:
        """State of a group of chains before its first step."""

    def leg(self, state: GroupState, until: int, seconds: float, report: Report) -> Leg:
        """Run on until there are so many draws, or the time is over."""

    def num_steps(self, num_draws: int) -> int:
        """Return the number of steps that so many draws take."""

    def save(self, state: GroupState) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Express the sampler's state as tensors and plain values."""

    def load(
        self, members: range, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
    ) -> Any:
        """Make the sampler's state of what :meth:`save` gave."""


def with_quantities(samples: dict[str, Tensor], quantities: Quantities) -> dict[str, Tensor]:
    """Add quantities of each draw.

    :param dict samples: draws in blocks of rows. **Shape:** ``(num_rows, *event)`` each, with a
        multiple of ``ROWS_PER_CALL`` rows.
    :param Mapping quantities: functions of one draw.
    :returns: samples and quantities.
    :raises ValueError: where a quantity has the name of a site, or is no tensor.
    """
    result = dict(samples)
    for name, function in quantities.items():
        if name in samples:
            raise ValueError(f"quantities[{name!r}] has the name of a site; give it another one")
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
