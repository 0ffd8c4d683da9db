"""The user's cache folder, for what is slow to make and can be made again."""

import os
from pathlib import Path


def cache_path(name: str) -> Path | None:
    """Path of a file or folder in the user's cache by the XDG rules; ``None`` without a home."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(configured):  # a relative path is invalid there and to be ignored
        return Path(configured) / "pyro_ext" / name
    try:
        return Path.home() / ".cache" / "pyro_ext" / name
    except RuntimeError:
        return None
