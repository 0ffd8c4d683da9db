"""The folder of a run: what it is of, and that one process at a time writes to it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout

from pyro_ext._version import __version__
from pyro_ext.checkpoint.files import (
    UNFINISHED,
    CheckpointError,
    names_in,
    read_json,
    write_json,
)

__all__ = ["RunFolder", "digest_of", "read_description"]

_FORMAT = 2
_FILE = "run.json"


class RunFolder:
    """A folder that a run writes to.

    A subclass says of what ``kind`` its draws are.

    :param folder: the folder, made where there is none.
    :raises CheckpointError: where another process writes to it, or it cannot be written to.
    """

    kind: ClassVar[str]

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.run = ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"checkpoint={str(folder)!r} cannot be made: {error}") from error
        names_in(self.folder)
        self._lock = FileLock(self.folder / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise CheckpointError(
                f"another process is writing to checkpoint={str(folder)!r}"
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"checkpoint={str(folder)!r} cannot be written to ({error.strerror or error}). "
                "Make it writable, or go on in a copy of it"
            ) from error

    def description(self) -> dict[str, Any] | None:
        """Description of the run that the folder holds, ``None`` where it is empty."""
        names = names_in(self.folder)
        if _FILE not in names:
            # A run that was killed at once leaves the second of these.
            known = {"lock", f"{_FILE}{UNFINISHED}"}
            if others := [name for name in names if name not in known]:
                raise CheckpointError(
                    f"checkpoint={str(self.folder)!r} holds {others[:3]}, but no run; "
                    "wanted a new or an empty folder, or that of an earlier run"
                )
            return None
        return read_description(self.folder, self.kind)

    def describe(self, description: Mapping[str, Any]) -> None:
        """Write the description of the run."""
        whole = {"format": _FORMAT, "kind": self.kind, **description}
        self.run = digest_of(description["identity"])
        write_json(self.folder / _FILE, whole | {"digest": digest_of(whole)})

    def close(self) -> None:
        """Let other processes write."""
        self._lock.release()


def read_description(folder: Path, kind: str) -> dict[str, Any]:
    """Description of the run in a folder."""
    path = folder / _FILE
    if _FILE not in names_in(folder):
        reason = f"it has no {_FILE}" if folder.is_dir() else "it is not there"
        raise CheckpointError(f"{folder} cannot be read as the folder of a run: {reason}")
    description = read_json(path)
    if description.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} has the format {description.get('format')!r}, written by pyro_ext "
            f"{_version_in(description)}; this is {__version__}, which reads format {_FORMAT}. Use "
            "that version to read or continue the run, or name another folder"
        )
    digest = description.pop("digest", None)
    if digest != digest_of(description):
        raise CheckpointError(
            f"{path} was changed after it was written: its digest does not fit. Put back what the "
            "run wrote, or name another folder"
        )
    if description["kind"] != kind:
        writer = description["identity"]["driver"]
        raise CheckpointError(
            f"{folder} holds {description['kind']} of a {writer}, wanted {kind}; {writer} with "
            "checkpoint=... reads them, or name another folder"
        )
    return description


def digest_of(content: Mapping[str, Any]) -> str:
    """Digest of plain values, the same after they went through JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _version_in(description: Any) -> str:
    """Version that wrote a description of another format, as far as it says."""
    for key in ("identity", "versions", "pyro_ext"):
        description = description.get(key) if isinstance(description, Mapping) else None
    return str(description or "of another version")
