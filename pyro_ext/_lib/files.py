"""Files: read only where reading ends, and written whole or not at all, never through a link.

Nothing here needs PyTorch, which the commands of ``pyro-ext`` that show files do not wait for.
"""

import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

UNFINISHED = ".unfinished"
"""End of the name of a file that is being written."""

_DEEPEST = 200  # levels of what is read, of which the functions that go through it take several


def open_file(path: str | os.PathLike[str], mode: str = "rb", *, links: bool = True) -> IO[bytes]:
    """Open a file to read it, or to add to it; at a pipe or a device a process may wait forever.

    :param bool links: whether to follow a symbolic link.
    :raises OSError: where there is something else than a file.
    """

    def opener(name: str, flags: int) -> int:
        flags |= getattr(os, "O_NONBLOCK", 0) | (0 if links else getattr(os, "O_NOFOLLOW", 0))
        descriptor = os.open(name, flags, 0o666)
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            os.close(descriptor)
            number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise OSError(number, "it is no regular file", name)
        return descriptor

    return open(path, mode, opener=opener)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a whole file."""
    with open_file(path) as file:
        return file.read()


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an object of JSON; ``OSError`` or ``ValueError`` names a file that holds none."""
    try:
        return json_object(read_bytes(path))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} cannot be read: {error}") from error


def json_object(text: str | bytes) -> dict[str, Any]:
    """Parse an object of JSON that is not nested too deeply to go through."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"wanted an object of JSON, got {type(found).__name__}")
    level: Iterable[Any] = [found]
    for _ in range(_DEEPEST):
        if not level:
            return found
        level = [
            part
            for one in level
            if isinstance(one, dict | list)
            for part in (one.values() if isinstance(one, dict) else one)
        ]
    raise ValueError("its JSON is nested too deeply")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all; a link in its place is replaced, and not followed."""
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        # What a killed process left there goes; the new file is made, and no link followed.
        unfinished.unlink(missing_ok=True)
        with open(unfinished, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync_folder(path.parent)
    except OSError:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def save_picture(figure: Any, path: Path, **options: Any) -> None:
    """Have a figure save itself as a picture, and put that in its place in one step."""
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch, path.name)
        figure.savefig(drawn, **options)
        write_bytes(path, drawn.read_bytes())


def sync_folder(folder: Path) -> None:
    """Make the new name of a file outlive a loss of power, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
