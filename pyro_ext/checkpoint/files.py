"""Files of tensors that are written whole or not at all, and read only when they are intact.

A file is in the format of safetensors, which holds numbers and strings and can execute nothing. A
digest over all of it tells a file that was cut or changed from one that was written here.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = [
    "UNFINISHED",
    "CheckpointError",
    "check_folder_of",
    "names_in",
    "read_json",
    "read_tensors",
    "write_bytes",
    "write_json",
    "write_tensors",
]

UNFINISHED = ".unfinished"
"""End of the name of a file that is being written."""

_NUMBERS = re.compile(r"\[\s+([-+.,\w\s]*?)\s+\]")  # a list of numbers, which is put on a line

_DIGEST = "digest"
_CONTENT = "content"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or continued; the message says which file, and why."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> str:
    """Write tensors and plain values to a file, atomically."""
    plain = {name: _plain(value) for name, value in tensors.items()}
    text = json.dumps(dict(content), sort_keys=True)
    digest = _digest(plain, text)
    write_bytes(path, save(plain, {_CONTENT: text, _DIGEST: digest}))
    return digest


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Read what :func:`write_tensors` wrote."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    text = metadata.get(_CONTENT, "")
    digest = _digest(tensors, text)
    if digest != metadata.get(_DIGEST):
        raise CheckpointError(f"{path} was changed after it was written: its digest does not fit")
    return tensors, json.loads(text), digest


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values to a file that people can read, atomically."""
    text = json.dumps(dict(content), indent=2)
    text = _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read what :func:`write_json` wrote."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no description of a run")
    return content


def check_folder_of(path: Path) -> None:
    """Check before work begins that a file can be written."""
    folder = path.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        reason = "cannot be written to" if folder.is_dir() else "is not there"
        raise CheckpointError(f"checkpoint {path} cannot be written: the folder {folder} {reason}")


def names_in(folder: Path) -> list[str]:
    """Names of what a folder of a run holds, none where there is no folder."""
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
                f"{entry.path} is a symbolic link, which the folder of a run must not hold: what "
                "is written there would end up elsewhere. Put the file itself in its place"
            )
    return [entry.name for entry in found]


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    unfinished = path.with_name(path.name + UNFINISHED)
    if unfinished.is_symlink():
        raise CheckpointError(f"{unfinished} is a symbolic link, to which nothing is written")
    try:
        # What a killed process left there goes; the new file is made, and no link followed.
        unfinished.unlink(missing_ok=True)
        with open(unfinished, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        gone = "" if path.parent.is_dir() else f"; {path.parent} is not there: was it moved?"
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror or error}){gone}; what was written before "
            "is intact, and the same program continues from there"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make the new name of a file outlive a loss of power, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
