"""Checkpoints of training: states as tensors and JSON, and what differs between two of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.checkpoint.files import CheckpointError, read_tensors, write_tensors
from pyro_ext.random import fresh_seed

_FORMAT = "training 1"


def write_training(path: Path, identity: Mapping[str, Any], state: Any) -> None:
    """Write what a training is of, and its state."""
    tensors, plain = split(state)
    write_tensors(path, tensors, {"format": _FORMAT, "identity": identity, "state": plain})


def read_training(path: Path) -> tuple[dict[str, Any], Any]:
    """Read what :func:`write_training` wrote."""
    tensors, content, _ = read_tensors(path)
    if content.get("format") != _FORMAT:
        raise CheckpointError(f"{path} holds no training")
    return content["identity"], joined(tensors, content["state"])


def seed_of(seed: int | None, checkpoint: str | Path | None) -> int:
    """Return the seed or, where it is ``None``, that of a checkpoint or else a fresh one.

    :param int seed: a non-negative integer or ``None``.
    :param checkpoint: a file, which need not exist, or ``None``.
    """
    if checkpoint is not None:
        checks.instance("checkpoint", checkpoint, (str, Path), "a path or None")
        if seed is None and Path(checkpoint).exists():
            seed = read_training(Path(checkpoint))[0]["seed"]
    return fresh_seed(seed)


def split(state: Any, path: str = "") -> tuple[dict[str, Tensor], Any]:
    """Split a nested state into tensors by path, and values that JSON can hold."""
    if isinstance(state, Tensor):
        # A copy: a file can't hold two tensors with the same memory, as tied weights are.
        return {path: state.detach().clone()}, {"tensor": path}
    if state is None or isinstance(state, bool | int | float | str):
        return {}, state
    if isinstance(state, Mapping):
        pairs = list(state.items())
    elif isinstance(state, list | tuple):
        pairs = list(enumerate(state))
    else:
        raise TypeError(f"a checkpoint cannot hold {path}, which is {state!r:.80}")
    tensors: dict[str, Tensor] = {}
    plain = []
    for key, value in pairs:
        found, rest = split(value, f"{path}.{key}" if path else str(key))
        tensors |= found
        plain.append([key, rest] if isinstance(state, Mapping) else rest)
    return tensors, {"dict" if isinstance(state, Mapping) else type(state).__name__: plain}


def joined(tensors: Mapping[str, Tensor], plain: Any) -> Any:
    """Put together what :func:`split` has split."""
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: joined(tensors, value) for key, value in content}
    values = [joined(tensors, value) for value in content]
    return tuple(values) if kind == "tuple" else values


def comparable(value: Any) -> Any:
    """Convert a description to the form it has after a round trip through JSON."""
    if isinstance(value, Mapping):
        return {str(key): comparable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [comparable(one) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return [str(value.dtype), value.tolist()]
    return getattr(value, "__qualname__", type(value).__qualname__)


def random_states() -> list[Tensor]:
    """States of PyTorch's global generators: of the CPU, and of the GPUs in use."""
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if in_use else [])]


def set_random_states(states: list[Tensor]) -> None:
    """Put PyTorch's global generators into states; those of GPUs that are not here are left."""
    torch.set_rng_state(states[0])
    for number, state in enumerate(states[1 : 1 + torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, number)
