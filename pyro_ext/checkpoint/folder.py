"""The folder of a checkpoint: what is where, and in which order it is written.

- ``run.json`` describes the run: model, kernel, data, versions, and which chains run side by side;
- ``chains-00000/`` belongs to a group of chains, named after its first one;
- ``chains-00000/draws-00000000.safetensors`` and so on hold its draws, each with the digest of the
  one before;
- ``chains-00000/state.safetensors`` holds the state after the last of these draws, and how many
  files of draws belong to it. It is written after them and replaced as a whole, so that a run
  killed at any moment has a state and all draws from before it. Draws after it are written anew.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_ext.checkpoint.chains import Chunk
from pyro_ext.checkpoint.files import CheckpointError, read_tensors, write_tensors
from pyro_ext.checkpoint.run_folder import RunFolder

__all__ = ["CheckpointWriter", "read_chunks", "state_file"]

_SAMPLES = "samples/"
_STATISTICS = "statistics/"


class CheckpointWriter(RunFolder):
    """Writes a checkpoint of chains; one process at a time.

    :param folder: the folder, made where there is none.
    :raises CheckpointError: where another process writes to it, or it holds something else.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._written: dict[range, tuple[int, str]] = {}

    def state(self, members: range) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """State of a group of chains, ``None`` where it has not begun.

        All of its draws are checked on the way.

        :param range members: numbers of the chains.
        :raises CheckpointError: where a file is missing, cut or changed.
        """
        path = state_file(self.folder, members)
        if not path.exists():
            self._written[members] = (0, "")
            return None
        tensors, content, _ = read_tensors(path)
        last = ""
        for number in range(content["num_files"]):
            last = _read_chunk(self.folder, members, number, last)[1]
        if last != content["last"]:
            raise CheckpointError(f"{path} does not belong to the draws beside it")
        self._written[members] = (content["num_files"], last)
        return tensors, content["state"]

    def append(
        self,
        members: range,
        chunk: Chunk | None,
        tensors: Mapping[str, Tensor],
        content: Mapping[str, Any],
    ) -> None:
        """Write draws of a group of chains, then the state after them.

        :param range members: numbers of the chains.
        :param Chunk chunk: the draws, ``None`` where there are none.
        :param Mapping tensors: tensors of the state.
        :param Mapping content: plain values of the state.
        :raises CheckpointError: where they cannot be written.
        """
        num_files, last = self._written[members]
        _group_folder(self.folder, members).mkdir(exist_ok=True)
        if chunk is not None and len(chunk):
            named = {_SAMPLES + name: value for name, value in chunk.samples.items()}
            named |= {_STATISTICS + name: value for name, value in chunk.statistics.items()}
            path = _chunk_file(self.folder, members, num_files)
            last = write_tensors(path, named, {"valid": chunk.valid, "previous": last})
            num_files += 1
        whole = {"state": dict(content), "num_files": num_files, "last": last}
        write_tensors(state_file(self.folder, members), tensors, whole)
        self._written[members] = (num_files, last)


def read_chunks(folder: Path, members: range) -> Iterator[Chunk]:
    """Draws of a group of chains, file by file.

    :raises CheckpointError: at the first file that is cut or changed.
    """
    number, last = 0, ""
    while _chunk_file(folder, members, number).exists():
        chunk, last = _read_chunk(folder, members, number, last)
        yield chunk
        number += 1


def state_file(folder: Path, members: range) -> Path:
    """File of the state of a group of chains."""
    return _group_folder(folder, members) / "state.safetensors"


def _read_chunk(folder: Path, members: range, number: int, previous: str) -> tuple[Chunk, str]:
    path = _chunk_file(folder, members, number)
    tensors, content, digest = read_tensors(path)
    if content["previous"] != previous:
        raise CheckpointError(f"{path} does not follow the file before it")
    groups: dict[str, dict[str, Tensor]] = {_SAMPLES: {}, _STATISTICS: {}}
    for name, value in tensors.items():
        prefix, _, rest = name.partition("/")
        groups[prefix + "/"][rest] = value
    return Chunk(groups[_SAMPLES], groups[_STATISTICS], content["valid"]), digest


def _group_folder(folder: Path, members: range) -> Path:
    return folder / f"chains-{members.start:05d}"


def _chunk_file(folder: Path, members: range, number: int) -> Path:
    return _group_folder(folder, members) / f"draws-{number:08d}.safetensors"
