"""State of a kernel that its next step depends on, besides its parameters, as plain data.

For Pyro's HMC and NUTS it is read from their objects. A custom kernel either has the methods
``read_state`` and ``write_state``, or declares by the attribute ``keeps_no_state`` that it has no
state except plain numbers set by its warm-up, whose names are in the attribute ``adapted``. The
attribute ``has_known_state`` may tell whether all of that holds, ``adapts`` whether the kernel
needs a warm-up, ``most_warmup_steps`` and ``least_warmup_steps`` the longest and the shortest
warm-up that it needs, and ``usual_thinning`` how many of its steps a draw is worth.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pyro.infer import HMC
from torch import Tensor

State = tuple[dict[str, Tensor], dict[str, Any]]

_ADAPTATION = ("pyro.infer.mcmc.", "pyro.ops.")
_SKIP = object()


def has_known_state(kernel: object) -> bool:
    """Tell whether a chain can be stopped between two steps and go on elsewhere."""
    if isinstance(kernel, HMC):
        return True
    known = hasattr(kernel, "read_state") or getattr(kernel, "keeps_no_state", False)
    return bool(getattr(kernel, "has_known_state", known))


def check_state_is_known(option: str, kernel: object) -> None:
    """Raise where an option stops chains on their way and the kernel cannot go on from there."""
    if not has_known_state(kernel):
        raise ValueError(
            f"{option} takes a kernel whose state is known, one of pyro_ext or Pyro's HMC or "
            f"NUTS, or Gibbs with blocks of such kernels; got {type(kernel).__name__}"
        )


def adapts(kernel: object) -> bool:
    """Tell whether a kernel finds settings of its own in the warm-up."""
    return isinstance(kernel, HMC) or bool(getattr(kernel, "adapts", False))


def usual_warmup(kernel: object, num_samples: int) -> int:
    """Choose the steps of a warm-up: as many as samples, or as many as the kernel needs."""
    if not adapts(kernel):
        return 0
    num_steps = max(num_samples, getattr(kernel, "least_warmup_steps", 0))
    most = getattr(kernel, "most_warmup_steps", None)
    return num_steps if most is None else min(num_steps, most)


def usual_thinning(kernel: object) -> int:
    """Choose the steps between two draws: one, or as many as the kernel needs."""
    return int(getattr(kernel, "usual_thinning", 1))


def read_state(kernel: Any) -> State:
    """Collect what the next step of a kernel depends on."""
    if isinstance(kernel, HMC):
        return _read_numbers(kernel)
    if hasattr(kernel, "read_state"):
        state: State = kernel.read_state()
        return state
    return {}, {name: getattr(kernel, name) for name in getattr(kernel, "adapted", ())}


def write_state(kernel: Any, tensors: Mapping[str, Tensor], tree: Mapping[str, Any]) -> None:
    """Put back what :func:`read_state` collected into a kernel that has been set up alike."""
    if hasattr(kernel, "write_state"):
        kernel.write_state(tensors, tree)
    else:
        _write_numbers(kernel, tensors, tree)


def _read_numbers(kernel: object) -> State:
    """Return the numbers of a kernel and its adaptation, except models, which setup rebuilds."""
    tensors: dict[str, Tensor] = {}
    return tensors, _read_object(kernel, tensors)


def _write_numbers(kernel: object, tensors: Mapping[str, Tensor], tree: Mapping[str, Any]) -> None:
    """Put back numbers that were read."""
    for name, value in tree.items():
        current = getattr(kernel, name, None)
        setattr(kernel, name, _write(current, value, tensors))


def generator_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of the generators of PyTorch, NumPy and Python as tensors and plain values."""
    _, keys, index, has_gauss, gauss = np.random.get_state(legacy=True)
    version, values, next_gauss = random.getstate()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "random": torch.tensor(values, dtype=torch.int64),
    }
    if torch.cuda.is_initialized():
        states = torch.cuda.get_rng_state_all()
        tensors |= {f"cuda{number}": state for number, state in enumerate(states)}
    return tensors, {"numpy": [index, has_gauss, gauss], "random": [version, next_gauss]}


def restore_generators(tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Put back what :func:`generator_state` gave."""
    torch.set_rng_state(tensors["torch"])
    for number in range(torch.cuda.device_count()):
        if f"cuda{number}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda{number}"], number)
    index, has_gauss, gauss = content["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, index, has_gauss, gauss))
    version, next_gauss = content["random"]
    random.setstate((version, tuple(tensors["random"].tolist()), next_gauss))


def _read_object(owner: object, tensors: dict[str, Tensor]) -> dict[str, Any]:
    tree = {}
    for name, value in vars(owner).items():
        encoded = _read(value, tensors)
        if encoded is not _SKIP:
            tree[name] = encoded
    return tree


def _read(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().clone()
        return {"tensor": key}
    if type(value) in (list, tuple):
        items = [_read(item, tensors) for item in value]
        return _SKIP if _SKIP in items else {type(value).__name__: items}
    if isinstance(value, dict):
        pairs = [[_read(k, tensors), _read(v, tensors)] for k, v in value.items()]
        return _SKIP if any(_SKIP in pair for pair in pairs) else {"dict": pairs}
    if type(value).__module__.startswith(_ADAPTATION) and hasattr(value, "__dict__"):
        return {"object": _read_object(value, tensors)}
    return _SKIP


def _write(current: Any, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Decode a value; an object is changed in place, since others may hold it."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content].clone()
    if kind == "object":
        _write_numbers(current, tensors, content)
        return current
    if kind == "dict":
        known = current if isinstance(current, dict) else {}
        decoded = {}
        for key, item in content:
            plain = _write(None, key, tensors)
            decoded[plain] = _write(known.get(plain), item, tensors)
        return decoded
    items = [_write(None, item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
