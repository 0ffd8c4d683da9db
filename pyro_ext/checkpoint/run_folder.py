"""The folder of a run: what it is of, and that one process at a time writes to it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pyro_ext.checkpoint.files import UNFINISHED, CheckpointError, read_json, write_json

__all__ = ["RunFolder", "read_description"]

_FORMAT = 1


class RunFolder:
    """A folder that a run writes to.

    :param folder: the folder, made where there is none.
    :raises CheckpointError: where another process writes to it, or it holds something else.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"checkpoint={str(folder)!r} cannot be made: {error}") from error
        self._lock = FileLock(self.folder / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise CheckpointError(
                f"another process is writing to checkpoint={str(folder)!r}"
            ) from error

    def description(self) -> dict[str, Any] | None:
        """Description of the run that the folder holds, ``None`` where it is empty."""
        if not (self.folder / "run.json").exists():
            # A run that was killed at once leaves the second of these.
            known = {"lock", f"run.json{UNFINISHED}"}
            if others := sorted({path.name for path in self.folder.iterdir()} - known):
                raise CheckpointError(
                    f"checkpoint={str(self.folder)!r} holds {others[:3]}, but no run; "
                    "wanted a new or an empty folder, or that of an earlier run"
                )
            return None
        return read_description(self.folder)

    def describe(self, description: Mapping[str, Any]) -> None:
        """Write the description of the run."""
        write_json(self.folder / "run.json", {"format": _FORMAT, **description})

    def close(self) -> None:
        """Let other processes write."""
        self._lock.release()


def read_description(folder: Path) -> dict[str, Any]:
    """Description of the run in a folder.

    :raises CheckpointError: where there is none, or none that this version reads.
    """
    description = read_json(folder / "run.json")
    if description.get("format") != _FORMAT:
        raise CheckpointError(
            f"{folder / 'run.json'} has the format {description.get('format')!r}, this version of "
            f"pyro_ext reads {_FORMAT}"
        )
    return description
