"""What libraries do in Python and a recorder cannot follow, done in tensors while it records."""

import copy
import math
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from pyro.distributions import stable
from pyro.infer.reparam import stable as stable_reparam
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot

__all__ = ["recordable"]

_is_tracing = torch._C._get_tracing_state
_deepcopy = Tensor.__deepcopy__
_torch_equal = torch.equal


@contextmanager
def recordable() -> Iterator[None]:
    """Let models run as they do under Pyro's jit, in this thread: without branches on values."""
    thread = threading.get_ident()

    def tracing_state() -> Any:
        # PyTorch asks for the sake of its own recorder, which is another one.
        asks = sys._getframe(1).f_globals.get("__name__", "")
        is_asked_for = threading.get_ident() == thread and not asks.startswith("torch.")
        return True if is_asked_for else _is_tracing()

    with ExitStack() as stack:
        for owner, name, replacement in (
            (torch._C, "_get_tracing_state", tracing_state),
            (Tensor, "__deepcopy__", _copied),
            (stable, "_standard_stable", _standard_stable),
            (stable_reparam, "_standard_stable", _standard_stable),
            (stable_reparam, "_safe_shift", _shift),
            (torch, "equal", _equal),
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        if "gpytorch" in sys.modules:
            settings = sys.modules["gpytorch"].settings
            cholesky = sys.modules["linear_operator.utils.cholesky"]
            for context in (
                settings.debug(False),  # its checks of arguments compare tensors
                settings.trace_mode(True),
                mock.patch.object(cholesky, "_psd_safe_cholesky", _cholesky),
            ):
                stack.enter_context(context)
        yield


def _cholesky(matrix: Tensor, **options: Any) -> Tensor:
    """GPyTorch's factorization without a second try, which is a branch."""
    factor: Tensor = torch.linalg.cholesky(matrix)
    return factor


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal at all points, where their shapes or computations tell."""
    if one.shape != other.shape:
        return False
    nodes = _node(one), _node(other)
    if None not in nodes and _is_same(*nodes):
        return True
    return bool(_torch_equal(one, other))


def _node(tensor: Tensor) -> Any:
    """Where a tensor stands in the record, if it does."""
    mode = get_proxy_mode()
    slot = None if mode is None else get_proxy_slot(tensor, mode.tracer, None)
    return None if slot is None else slot.proxy.node


def _is_same(one: Any, other: Any) -> bool:
    """Whether two nodes, or what they are made of, are the same operations on the same."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if not isinstance(one, Node) or not isinstance(other, Node):
        return type(one) is type(other) and bool(one == other)
    if one is other:
        return True
    is_call = one.op == other.op == "call_function" and one.target is other.target
    return is_call and one.kwargs == other.kwargs and _is_same(one.args, other.args)


def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """A deep copy by operations on tensors; that of PyTorch goes to the memory beneath them."""
    if type(tensor) is not Tensor or not tensor.is_leaf or tensor.layout != torch.strided:
        result: Tensor = _deepcopy(tensor, memo)  # type: ignore[no-untyped-call]
        return result
    if id(tensor) not in memo:
        result = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        memo[id(tensor)] = result
        result.__dict__ = copy.deepcopy(tensor.__dict__, memo)
    known: Tensor = memo[id(tensor)]
    return known


# Stable distributions have a hole at stability one. Near it Pyro interpolates between points on
# either side, and takes gradients as though these moved with the stability; elsewhere it does not.
# The functions below do so everywhere, with weights that leave alone what is not near the hole.


def _around_hole(stability: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Two points in place of each stability, and their weights."""
    with torch.no_grad():
        is_near = ((stability - 1.0).abs() <= radius).unsqueeze(-1)
        ends = torch.tensor([1.0 - radius, 1.0 + radius]).to(stability)
        offsets = torch.where(is_near, ends - stability.unsqueeze(-1), 0.0)
        weights = torch.where(is_near, 1.0 - offsets.abs() / (2.0 * radius), 0.5)
    return stability.unsqueeze(-1) + offsets, weights


def _shift(stability: Tensor, skew: Tensor, scale: Tensor, skew_abs: Tensor) -> Tensor:
    """Shift of a decomposed stable distribution."""
    around, weights = _around_hole(stability, 0.005)
    scales = skew_abs.unsqueeze(-1).pow(around.reciprocal())
    pairs = stable_reparam._unsafe_shift(around, skew.unsqueeze(-1), scales)
    result: Tensor = (pairs * weights).sum(-1)
    return result


def _standard_stable(
    stability: Tensor, skew: Tensor, uniform: Tensor, exponential: Tensor, coords: str
) -> Tensor:
    """Standard stable variable of a uniform and an exponential one."""
    if coords == "S":
        value = _standard_stable(stability, skew, uniform, exponential, "S0")
        return torch.where(
            stability == 1.0, value, value + skew * (0.5 * math.pi * stability).tan()
        )
    around, weights = _around_hole(stability, stable.RADIUS)
    pairs = stable._unsafe_standard_stable(
        around, skew.unsqueeze(-1), uniform.unsqueeze(-1), exponential.unsqueeze(-1), coords
    )
    result: Tensor = (pairs * weights).sum(-1)
    return result
