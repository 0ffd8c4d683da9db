"""The user's cache folder, for what is slow to make and can be made again."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from pyro_ext._lib.files import read_bytes, write_bytes

_MOST_FILES = 500


def cache_path(name: str) -> Path | None:
    """Path of a file or folder in the user's cache by the XDG rules; ``None`` without a home."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(configured):  # a relative path is invalid there and to be ignored
        return Path(configured) / "pyro_ext" / name
    try:
        return Path.home() / ".cache" / "pyro_ext" / name
    except RuntimeError:
        return None


class CodeFolder:
    """Machine code by the key of what it was made from, in a folder of the user's cache.

    Code is executed as it is loaded. So the folder is only used where nobody but the user can write
    to it, and a file only where it has the digest that is the end of its name.

    :param path: path to the folder, which is created; ``None`` for no folder.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path if path is not None and _is_private(path) else None

    def find(self, key: str) -> tuple[Path, bytes] | None:
        """The file of a key, and what it holds, whole as it was written."""
        for path in [] if self.path is None else self.path.glob(f"{key}-*"):
            with suppress(OSError):
                code = read_bytes(path)
                if path.stem == f"{key}-{_digest(code)}":
                    os.utime(path)
                    return path, code
        return None

    def keep(self, key: str, suffix: str, code: bytes) -> None:
        """Write a file, if that is possible, and drop those that were not used for longest."""
        if self.path is not None:
            with suppress(OSError):
                write_bytes(self.path / f"{key}-{_digest(code)}{suffix}", code)
                files = [path for path in self.path.iterdir() if path.is_file()]
                by_use = sorted(files, key=lambda path: path.stat().st_mtime)
                for old in by_use[:-_MOST_FILES]:
                    old.unlink(missing_ok=True)


def _is_private(folder: Path) -> bool:
    """Tell whether only the user can write to a folder, which is created if it is missing."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return False
    return not hasattr(os, "getuid") or (
        status.st_uid == os.getuid() and not status.st_mode & 0o022
    )


def _digest(code: bytes) -> str:
    return hashlib.sha256(code).hexdigest()
