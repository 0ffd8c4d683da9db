"""Tensors that are slow to compute: made once on each machine, then read from the user's cache."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from filelock import FileLock
from torch import Tensor

from pyro_ext._lib.cache import cache_path
from pyro_ext.checkpoint.files import CheckpointError, read_tensors, write_tensors


def cached_tensors(
    name: str, key: Iterable[bytes | str], make: Callable[[], Mapping[str, Tensor]]
) -> Mapping[str, Tensor]:
    """Read tensors from the user's cache, or make them and store them there.

    :param str name: name of the folder under ``pyro_ext/`` in the cache.
    :param key: everything that the tensors depend on: settings, versions, data, code.
    :param make: a function that makes them. If several processes need them, one makes them and the
        others wait.
    """
    digest = hashlib.sha256()
    for part in key:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    path = cache_path(f"{name}/{digest.hexdigest()}.safetensors")
    if path is None:
        return make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return make()
    with FileLock(path.with_suffix(".lock")):
        with suppress(CheckpointError):
            return read_tensors(path)[0]
        tensors = make()
        with suppress(CheckpointError):
            write_tensors(path, tensors, {})
    return tensors
