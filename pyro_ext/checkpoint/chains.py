"""Draws of groups of chains, chunk by chunk, and their selection for a posterior."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_ext.checkpoint.files import CheckpointError


@dataclass(frozen=True)
class Chunk:
    """Successive draws of a group of chains."""

    samples: dict[str, Tensor]  # constrained draws by site, (num_draws, num_chains, *event)
    statistics: dict[str, Tensor]  # statistics of each draw, (num_draws, num_chains, *event)
    valid: list[int]  # for each chain, how many of the draws it made before it stopped

    def __len__(self) -> int:
        """Return the number of draws."""
        return len(next(iter(self.samples.values()))) if self.samples else 0


@dataclass
class ChainStatus:
    """Progress of a chain."""

    num_draws: int = 0
    stopped_at: int | None = None  # step by which it ended too early, zero where it did not begin
    diagnostics: Mapping[str, object] = field(default_factory=dict)  # of the whole chain
    error: str = ""  # that ended it; empty if its values were not finite

    @property
    def reason(self) -> str:
        """Why it stopped."""
        if not self.error:
            return f"diverged by step {self.stopped_at}"
        step = f"in step {self.stopped_at}" if self.stopped_at else "before its first step"
        return f"raised {self.error} {step}"


Reader = Callable[[], Iterator[Chunk]]


def complete_chains(statuses: Sequence[ChainStatus], limit: int) -> tuple[list[int], int]:
    """Choose chains and a number of draws that all of them have, so that most draws are kept."""
    lengths = [
        0 if status.stopped_at is not None else min(status.num_draws, limit) for status in statuses
    ]
    best = max(lengths, key=lambda length: length * sum(other >= length for other in lengths))
    return [number for number, length in enumerate(lengths) if best and length >= best], best


def gather_chains(
    groups: Iterable[tuple[range, Reader]], numbers: Sequence[int], length: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Join the chunks of the chosen chains."""
    samples: dict[str, Tensor] = {}
    statistics: dict[str, Tensor] = {}
    rows = {number: row for row, number in enumerate(numbers)}
    for members, read in groups:
        columns = [column for column, number in enumerate(members) if number in rows]
        indices = [rows[members[column]] for column in columns]
        if not columns:
            continue
        first = 0
        for chunk in read():
            count = min(len(chunk), length - first)
            for target, source in ((samples, chunk.samples), (statistics, chunk.statistics)):
                for name, value in source.items():
                    if name not in target:
                        shape = (len(numbers), length, *value.shape[2:])
                        target[name] = value.new_empty(shape)
                    part = value[:count, columns].transpose(0, 1)
                    target[name][indices, first : first + count] = part
            first += count
            if first >= length:
                break
        if first < length:
            raise CheckpointError(
                f"chains {members.start} to {members.stop - 1} have {first} draws, but the run "
                f"made {length}: some of their files are missing"
            )
    return samples, statistics


def gather_chain(read: Reader, column: int) -> dict[str, Tensor]:
    """All draws that one chain of a group made before it stopped."""
    parts: dict[str, list[Tensor]] = {}
    for chunk in read():
        if chunk.valid[column]:
            for name, value in chunk.samples.items():
                parts.setdefault(name, []).append(value[: chunk.valid[column], column])
    return {name: torch.cat(pieces) for name, pieces in parts.items()}


def thinned(
    groups: Iterable[tuple[range, Reader]], chosen: Tensor, names: Collection[str]
) -> list[tuple[range, Reader]]:
    """Read some of the draws, a chunk at a time, for ``gather_chains``."""

    def reader(read: Reader) -> Reader:
        def chunks() -> Iterator[Chunk]:
            first = 0
            for chunk in read():
                rows = chosen[(chosen >= first) & (chosen < first + len(chunk))] - first
                first += len(chunk)
                yield Chunk(
                    {name: value[rows] for name, value in chunk.samples.items() if name in names},
                    {},
                    chunk.valid,
                )

        return chunks

    return [(members, reader(read)) for members, read in groups]
