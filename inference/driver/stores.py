"""Storage of draws and states, in memory or in a folder."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from pyro_ext.checkpoint.chains import ChainStatus, Chunk
from pyro_ext.checkpoint.folder import CheckpointWriter
from pyro_ext.inference.driver.segments import GroupState, Runner, Segment

_MORE = "more/"


@dataclass
class MemoryStore:
    """Keeps draws and states in memory."""

    _chunks: dict[range, list[Chunk]] = field(default_factory=dict)

    def append(self, segment: Segment) -> None:
        """Keep what a segment gave."""
        if segment.chunk is not None:
            self.add(segment.state.members, segment.chunk)

    def add(self, members: range, chunk: Chunk) -> None:
        """Keep draws of a group of chains."""
        self._chunks.setdefault(members, []).append(chunk)

    def chunks(self, members: range) -> Iterator[Chunk]:
        """Draws of a group of chains, in order."""
        yield from self._chunks.get(members, [])


class FolderStore:
    """Writes draws and states to a folder.

    :param CheckpointWriter writer: writes to the folder.
    :param Runner runner: knows how the state of its sampler is expressed.
    """

    def __init__(self, writer: CheckpointWriter, runner: Runner) -> None:
        self._writer = writer
        self._runner = runner
        self.more: dict[range, dict[str, Tensor]] = {}

    def state(self, members: range) -> GroupState | None:
        """State of a group from an earlier run, ``None`` where it has not begun."""
        found = self._writer.state(members)
        if found is None:
            return None
        tensors, content = found
        self.more[members] = {
            name.removeprefix(_MORE): value
            for name, value in tensors.items()
            if name.startswith(_MORE)
        }
        own = {name: value for name, value in tensors.items() if not name.startswith(_MORE)}
        sampler = self._runner.load(members, own, content["sampler"])
        chains = tuple(ChainStatus(**chain) for chain in content["chains"])
        return GroupState(members, content["step"], content["num_draws"], chains, sampler)

    def append(self, segment: Segment, more: dict[str, Tensor] | None = None) -> None:
        """Write what a segment gave."""
        state = segment.state
        if state.sampler is None:  # it was interrupted before its first step
            return
        tensors, sampler = self._runner.save(state)
        tensors = dict(tensors) | {_MORE + k: v for k, v in (more or {}).items()}
        content: dict[str, Any] = {
            "step": state.step,
            "num_draws": state.num_draws,
            "chains": [asdict(chain) for chain in state.chains],
            "stopped_at": [chain.stopped_at for chain in state.chains],
            "sampler": sampler,
        }
        self._writer.append(state.members, segment.chunk, tensors, content)

    def chunks(self, members: range) -> Iterator[Chunk]:
        """Draws of a group of chains, in order."""
        yield from self._writer.chunks(members)
