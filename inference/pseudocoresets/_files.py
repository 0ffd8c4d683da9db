"""Coresets in files of safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_ext.checkpoint.files import CheckpointError, read_tensors, write_tensors

__all__ = ["read_coreset", "write_coreset"]

_FORMAT = "pseudocoreset 1"


def write_coreset(path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Write a coreset, atomically.

    :param Path path: the file.
    :param Mapping tensors: pseudo rows and weights by name.
    :param Mapping content: values that JSON can hold.
    """
    write_tensors(path, tensors, {"format": _FORMAT, **content})


def read_coreset(path: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a coreset.

    :param Path path: the file.
    :param Mapping like: tensors of the names, shapes and types that it must have.
    :returns: pseudo rows and weights by name.
    :raises CheckpointError: where the file is damaged, or of a coreset of another kind.
    """
    tensors, content, _ = read_tensors(path)
    wanted = {name: (tuple(value.shape), value.dtype) for name, value in like.items()}
    got = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    if content.get("format") != _FORMAT or got != wanted:
        raise CheckpointError(f"{path} holds no coreset of {wanted}, but {got}")
    return tensors
