"""A folder of independent draws, batch by batch: those that are there need not be made again."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pyro_ext.checkpoint.files import read_tensors, write_tensors
from pyro_ext.checkpoint.run_folder import RunFolder

__all__ = ["DrawFolder"]


class DrawFolder(RunFolder):
    """Holds batches of draws, each in a file that is written whole or not at all.

    :param folder: the folder, made where there is none.
    :raises CheckpointError: where another process writes to it, or it holds something else.
    """

    def load(self, members: range) -> dict[str, Tensor] | None:
        """Draws with these numbers, ``None`` where they are yet to be made.

        :param range members: the numbers.
        :raises CheckpointError: where their file was cut or changed.
        """
        path = self._path(members)
        return read_tensors(path)[0] if path.exists() else None

    def save(self, members: range, tensors: Mapping[str, Tensor]) -> None:
        """Keep draws.

        :param range members: their numbers.
        :param Mapping tensors: what belongs to them.
        :raises CheckpointError: where they cannot be written.
        """
        write_tensors(self._path(members), tensors, {"draws": [members.start, members.stop]})

    def _path(self, members: range) -> Path:
        return self.folder / f"draws-{members.start:08d}-{members.stop:08d}.safetensors"
