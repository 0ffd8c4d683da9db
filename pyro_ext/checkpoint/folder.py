"""The folder of a checkpoint: what is where, and in which order it is written.

- ``run.json`` describes the run: model, kernel, data, versions, and which chains run side by side;
- ``chains-00000/`` belongs to a group of chains, named after its first one;
- ``chains-00000/draws-00000000.safetensors`` and so on hold its draws, each with the digest of the
  one before;
- ``chains-00000/state.safetensors`` holds the state after the last of these draws, and names and
  digests of all files of draws that belong to it. It is written after them and replaced as a whole,
  so that a run killed at any moment has a state and all draws from before it. Draws after it are
  written anew.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_ext.checkpoint.chains import Chunk
from pyro_ext.checkpoint.draw_files import DrawFiles, Found
from pyro_ext.checkpoint.files import CheckpointError, names_in
from pyro_ext.checkpoint.run_folder import RunFolder

__all__ = ["CheckpointWriter", "check_groups", "chunk_of", "files_of_group"]

_SAMPLES = "samples/"
_STATISTICS = "statistics/"


class CheckpointWriter(RunFolder):
    """Writes a checkpoint of chains; one process at a time.

    :param folder: the folder, made where there is none.
    :raises CheckpointError: where another process writes to it, or it holds something else.
    """

    kind = "chains"

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._files: dict[range, DrawFiles] = {}

    def describe(self, description: Mapping[str, Any]) -> None:
        """Write the description of the run, which names its groups of chains."""
        check_groups(self.folder, [range(*bounds) for bounds in description["groups"]])
        super().describe(description)

    def state(self, members: range) -> Found | None:
        """State of a group of chains, ``None`` where it has not begun.

        All of its draws are checked on the way.
        """
        files = self._files[members] = files_of_group(self.folder, members, self.run)
        state = files.open()
        for name in files.names:
            files.read(name)
        return state

    def append(
        self,
        members: range,
        chunk: Chunk | None,
        tensors: Mapping[str, Tensor],
        content: Mapping[str, Any],
    ) -> None:
        """Write draws of a group of chains, then the state after them."""
        files = self._files[members]
        draws = None
        if chunk is not None and len(chunk):
            named = {_SAMPLES + name: value for name, value in chunk.samples.items()}
            named |= {_STATISTICS + name: value for name, value in chunk.statistics.items()}
            name = f"draws-{len(files.names):08d}.safetensors"
            draws = (name, named, {"valid": chunk.valid})
        files.append(draws, tensors, content)

    def chunks(self, members: range) -> Iterator[Chunk]:
        """Draws of a group of chains, file by file."""
        if not self.folder.is_dir():
            raise CheckpointError(
                f"checkpoint={str(self.folder)!r} is not there any more. If it was moved, "
                "Checkpoint(folder) opens it where it is now"
            )
        files = self._files[members]
        written = files.names
        files.open()
        if lost := [name for name in written if name not in files.names]:
            raise CheckpointError(
                f"{files.folder / lost[0]} was written by this run, and the state beside it does "
                "not name it any more"
            )
        for name in files.names:
            yield chunk_of(files.read(name))


def files_of_group(folder: Path, members: range, run: str) -> DrawFiles:
    """Files of the draws of a group of chains."""
    owner = f"{run} chains {members.start} to {members.stop - 1}"
    return DrawFiles(folder / _group_name(members), owner)


def chunk_of(found: Found) -> Chunk:
    """Make a chunk of what a file of draws holds."""
    tensors, content = found
    groups: dict[str, dict[str, Tensor]] = {_SAMPLES: {}, _STATISTICS: {}}
    for name, value in tensors.items():
        prefix, _, rest = name.partition("/")
        groups[prefix + "/"][rest] = value
    return Chunk(groups[_SAMPLES], groups[_STATISTICS], content["valid"])


def check_groups(folder: Path, groups: Iterable[range]) -> None:
    """Raise where the folder of a run holds draws of other chains than its own."""
    known = {_group_name(members) for members in groups}
    for name in names_in(folder):
        if name.startswith(("chains-", "draws-")) and name not in known:
            raise CheckpointError(f"{folder / name} is none of the run's own; take it away")


def _group_name(members: range) -> str:
    return f"chains-{members.start:05d}"
