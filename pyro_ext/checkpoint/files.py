"""Files of tensors that are written atomically and read only if they are intact.

A file is in the safetensors format, which contains numbers and strings and cannot execute code. A
digest of the whole file reveals whether it was truncated or changed.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import AcquireReturnProxy as Lock
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pyro_ext._lib import files
from pyro_ext._lib.files import UNFINISHED

_NUMBERS = re.compile(r"\[\s+([-+.,\w\s]*?)\s+\]")  # a list of numbers, which is put on a line

_DIGEST = "digest"
_CONTENT = "content"


class CheckpointError(RuntimeError):
    """Error for a checkpoint that cannot be read or continued; the message names file and cause."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> str:
    """Write tensors and plain values to a file, atomically."""
    plain, owners = {}, set()
    for name, value in tensors.items():
        value = _plain(value)
        # Safetensors refuses tensors that share memory, as fields of a state may.
        memory = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if memory in owners else value
        owners.add(memory)
    text = json.dumps(dict(content), sort_keys=True)
    digest = _digest(plain, text)
    write_bytes(path, save(plain, {_CONTENT: text, _DIGEST: digest}))
    return digest


def read_tensors(path: Path, *keys: str) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Read what :func:`write_tensors` wrote, plain values with these keys among it."""
    tensors, metadata = read_safetensors(path)
    text = metadata.get(_CONTENT, "")
    digest = _digest(tensors, text)
    if digest != metadata.get(_DIGEST):
        raise CheckpointError(f"{path} was changed after it was written: its digest does not fit")
    content = json_in(path, text)
    if missing := [key for key in keys if key not in content]:
        raise CheckpointError(f"{path} is a file of another kind: it has no {missing}")
    return tensors, content, digest


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file of safetensors, whoever wrote it."""
    try:
        with files.open_file(path), safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def json_in(path: Path, text: str) -> dict[str, Any]:
    """Parse an object of JSON that stands in a file."""
    try:
        return files.json_object(text)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values to a file that people can read, atomically."""
    text = json.dumps(dict(content), indent=2)
    text = _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read what :func:`write_json` wrote."""
    try:
        return files.read_json(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def check_folder_of(path: Path) -> None:
    """Check before work begins that a file can be written."""
    folder = path.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        reason = "cannot be written to" if folder.is_dir() else "is not there"
        raise CheckpointError(f"checkpoint {path} cannot be written: the folder {folder} {reason}")


def names_in(folder: Path) -> list[str]:
    """Return the names of the files in a run's folder; there are none if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error.strerror or error})") from error
    for entry in found:
        if entry.is_symlink():
            raise CheckpointError(
                f"{entry.path} is a symbolic link, which the folder of a run must not contain: "
                "writes to it would end up elsewhere. Replace it by the file itself"
            )
    return [entry.name for entry in found]


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    unfinished = path.with_name(path.name + UNFINISHED)
    if unfinished.is_symlink():
        raise CheckpointError(f"{unfinished} is a symbolic link, through which nothing is written")
    try:
        files.write_bytes(path, data)
    except OSError as error:
        gone = "" if path.parent.is_dir() else f"; {path.parent} is not there: was it moved?"
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror or error}){gone}; everything written "
            "before is intact, and the same program continues from there"
        ) from error


def lock_of(path: Path) -> Path:
    """The file that is locked while another one is written, time and again."""
    return path.with_name(path.name + ".lock")


@contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Check that a file can be written, and keep other processes from writing it."""
    if path is None:
        yield
        return
    check_folder_of(path)
    with take_lock(lock_of(path), path):
        yield


def take_lock(lock: Path, checkpoint: str | Path) -> "Lock[Any]":
    """Lock a file, or raise an error at once if another process has locked it."""
    named = f"checkpoint={str(checkpoint)!r}"
    try:
        if os.path.lexists(lock):
            files.open_file(lock, links=False).close()  # a link or a pipe must not be locked
        return FileLock(lock).acquire(timeout=0)
    except Timeout as error:
        raise CheckpointError(
            f"another process is writing to checkpoint={str(checkpoint)!r}"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{named} cannot be written to ({error.strerror or error}: {lock}). Make it writable, "
            "or continue in a copy of it"
        ) from error


def _plain(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, in rows; one of a single number may count as such with any stride."""
    tensor = tensor.detach().cpu()
    if tensor.is_contiguous() and (tensor.dim() == 0 or tensor.stride(-1) == 1):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, types, shapes and values of tensors."""
    return _digest({name: _plain(value) for name, value in tensors.items()}, "")


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
