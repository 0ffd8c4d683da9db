"""A device for machines without any: the processor under another name, which mixes with nothing.

Its tensors hold their numbers in memory and say that they are elsewhere. As on a GPU, an operation
on tensors of both kinds is an error, but for indices and scalars, so is a generator of the
processor, and so is ``numpy()`` without ``cpu()``. It is made of a hook of PyTorch for devices that
are written in Python, and of a mode, which sees each operation. What runs there has to be eager:
a graph recorded from such tensors is not that of their numbers.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "simulated"

_aten = torch.ops.aten
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._unsafe_index.Tensor,
    _aten._index_put_impl_.default,
}


class _Module(_DummyBackendModule):
    """What PyTorch asks of a device; random numbers are those of the processor."""

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8, device="cpu")

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass


_setup_privateuseone_for_python_backend(NAME, _Module())


class SimulatedTensor(Tensor):
    """A tensor that says it is on the device.

    :param Tensor inner: its numbers.
    """

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "SimulatedTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{NAME}({self.inner})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Simulation(TorchDispatchMode):
    """Within it, tensors can be made on the device."""

    def __enter__(self) -> "Simulation":
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) copies visibly
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        torch._C._set_only_lift_cpu_tensors(False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    ours = [x for x in tensors if isinstance(x, SimulatedTensor)]
    others = [x for x in tensors if not isinstance(x, SimulatedTensor) and x.dim()]
    if ours and others and not _may_mix(func, args):
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but {[*map(_shape, ours)]} "
            f"are on {NAME}:0 and {[*map(_shape, others)]} on cpu"
        )
    is_here = bool(ours)
    if (device := kwargs.get("device")) is not None:
        is_here = torch.device(device).type == NAME
        kwargs = kwargs | {"device": torch.device("cpu")}
    if is_here and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: expected a generator of {NAME}, found one of cpu")
    by_inner = {id(x.inner): x for x in ours}

    def wrapped(x: Tensor) -> Tensor:
        if isinstance(x, SimulatedTensor):
            return x
        known = by_inner.get(id(x))  # written to in place
        return SimulatedTensor(x) if known is None else known

    args, kwargs = pytree.tree_map_only(SimulatedTensor, lambda x: x.inner, (args, kwargs))
    result = func(*args, **kwargs)
    return pytree.tree_map_only(Tensor, wrapped, result) if is_here else result


def _may_mix(func: Any, args: Any) -> bool:
    """Whether what is copied comes from elsewhere, or indices of a tensor of the device do."""
    if func is _aten.copy_.default:
        return True
    return func in _INDEXING and isinstance(args[0], SimulatedTensor)


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
