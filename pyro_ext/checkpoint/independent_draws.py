"""A folder of independent draws, batch by batch: those that are there need not be made again."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pyro_ext.checkpoint.draw_files import DrawFiles
from pyro_ext.checkpoint.run_folder import RunFolder

__all__ = ["DrawFolder"]


class DrawFolder(RunFolder):
    """Holds batches of draws, each in a file that is written whole or not at all.

    :param folder: the folder, made where there is none.
    :raises CheckpointError: where another process writes to it, or it holds something else.
    """

    kind = "independent draws"

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._files = DrawFiles(self.folder, "")

    def open(self) -> None:
        """Find the batches that are there, once the run is described."""
        self._files = DrawFiles(self.folder, self.run)
        self._files.open()
        self._files.discard_unnamed()

    def load(self, members: range) -> dict[str, Tensor] | None:
        """Draws with these numbers, ``None`` where they are yet to be made."""
        name = _name(members)
        return self._files.read(name)[0] if name in self._files.names else None

    def save(self, members: range, tensors: Mapping[str, Tensor]) -> None:
        """Keep draws."""
        self._files.append((_name(members), tensors, {}), {}, {})


def _name(members: range) -> str:
    return f"draws-{members.start:08d}-{members.stop:08d}.safetensors"
