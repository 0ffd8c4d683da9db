"""Passes that make recorded graphs vectorizable and short, and limits of the recorder."""

import copy
import math
import operator
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
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.fx.node import map_arg

_STRIDED = {torch.ops.aten.as_strided.default, torch.ops.aten.as_strided_scatter.default}
_VIEW = torch.ops.aten.view.default
_FILL = torch.ops.aten.fill.Scalar
_PUT = torch.ops.aten.index_put.default
_COPY = torch.ops.aten.copy.default
_SCATTER = torch.ops.aten.slice_scatter.default
_CHECK_FACTORIZATION = torch.ops.aten._linalg_check_errors.default


def mutates(graph: GraphModule) -> bool:
    """Tell whether a graph has an in-place operation."""
    return any(
        isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        for node in graph.graph.nodes
        if node.op == "call_function"
    )


def uses_strides(graph: GraphModule) -> bool:
    """Tell whether a graph depends on the strides of tensors."""
    return any(node.target in _STRIDED for node in graph.graph.nodes)


def rewrite(graph: GraphModule) -> None:
    """Replace nodes that cannot be vectorized or that raise; the graph may be differentiated."""
    for node in list(graph.graph.nodes):
        if node.target is _CHECK_FACTORIZATION:
            _mark_failures(graph, node)
        elif node.target is _SCATTER:
            _count_from_the_left(node)
        elif node.target is _COPY:
            _expand_instead(graph, node)
        elif node.target is _VIEW:  # strides may differ where the graph runs over chains
            node.target = torch.ops.aten.reshape.default
        elif node.target is _FILL:
            node.target = torch.ops.aten.full_like.default
        elif node.target is _PUT:
            _fill_where_masked(graph, node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _count_from_the_left(scatter: Node) -> None:
    """Make bounds positive: the vectorized form takes no negative ones."""
    whole, part, *rest = scatter.args
    assert isinstance(whole, Node)
    settings: list[Any] = [*rest, *(0, None, None, 1)[len(rest) :]]
    bounds = slice(*settings[1:]).indices(whole.meta["tensor_meta"].shape[settings[0]])
    scatter.args = (whole, part, settings[0], *bounds)


def _expand_instead(graph: GraphModule, copy: Node) -> None:
    """Write a copy of one tensor into another's shape and type as just that."""
    target, value = copy.args[:2]
    assert isinstance(target, Node) and isinstance(value, Node)
    meta, own = target.meta["tensor_meta"], value.meta["tensor_meta"]
    with graph.graph.inserting_before(copy):
        if own.dtype != meta.dtype:
            value = graph.graph.call_function(
                torch.ops.aten._to_copy.default, (value,), {"dtype": meta.dtype}
            )
        if own.shape != meta.shape:
            value = graph.graph.call_function(
                torch.ops.aten.expand.default, (value, list(meta.shape))
            )
    copy.replace_all_uses_with(value)
    graph.graph.erase_node(copy)


def _fill_where_masked(graph: GraphModule, put: Node) -> None:
    """Write ``x[mask] = number`` without asking where the mask, of leading dimensions, is true."""
    whole, indices, value, *rest = put.args
    if not isinstance(indices, list | tuple) or len(indices) != 1 or True in rest:
        return
    (mask,) = indices
    nodes = (whole, mask, value)
    if not all(isinstance(node, Node) and "tensor_meta" in node.meta for node in nodes):
        return
    shapes = [node.meta["tensor_meta"].shape for node in nodes if isinstance(node, Node)]
    is_mask = isinstance(mask, Node) and mask.meta["tensor_meta"].dtype == torch.bool
    if is_mask and shapes[1] == shapes[0][: len(shapes[1])] and shapes[2] == torch.Size():
        with graph.graph.inserting_before(put):
            for _ in range(len(shapes[0]) - len(shapes[1])):
                mask = graph.graph.call_function(torch.ops.aten.unsqueeze.default, (mask, -1))
            filled = graph.graph.call_function(torch.ops.aten.where.self, (mask, value, whole))
        filled.meta = dict(put.meta)
        put.replace_all_uses_with(filled)
        graph.graph.erase_node(put)


def _mark_failures(graph: GraphModule, check: Node) -> None:
    """Make a failed factorization NaN instead of an error: one chain must not stop the others."""
    info = check.args[0]
    assert isinstance(info, Node) and isinstance(info.args[0], Node)
    for result in list(info.args[0].users):
        if result.target is not operator.getitem or result.args[1] != 0:
            continue
        users = list(result.users)
        missing = len(result.meta["tensor_meta"].shape) - len(info.meta["tensor_meta"].shape)
        with graph.graph.inserting_before(result.next):
            status = graph.graph.call_function(operator.getitem, info.args)
            failed = graph.graph.call_function(torch.ops.aten.ne.Scalar, (status, 0))
            for _ in range(missing):
                failed = graph.graph.call_function(torch.ops.aten.unsqueeze.default, (failed, -1))
            marked = graph.graph.call_function(
                torch.ops.aten.masked_fill.Scalar, (result, failed, math.nan)
            )
        for user in users:
            user.replace_input_with(result, marked)
    graph.graph.erase_node(check)


_MAX_CONSTANT_BYTES = 1 << 26

_aten = torch.ops.aten
_ALIASES = {_aten.detach.default, _aten.alias.default}
_RESHAPES = {_aten.reshape.default, _aten._unsafe_view.default, _aten.expand.default}
_BY_NUMBER = {  # derivatives are full of first powers and of products with one
    _aten.mul.Scalar,
    _aten.mul.Tensor,
    _aten.div.Scalar,
    _aten.div.Tensor,
    _aten.pow.Tensor_Scalar,
}
_FROM_SHAPE = {
    _aten.empty_like.default,
    _aten.full_like.default,
    _aten.new_empty.default,
    _aten.new_full.default,
    _aten.new_ones.default,
    _aten.new_zeros.default,
    _aten.ones_like.default,
    _aten.zeros_like.default,
}


def drop_identities(graph: GraphModule) -> None:
    """Drop nodes that change no number and no shape."""
    for node in list(graph.graph.nodes):
        if (
            node.target in _ALIASES
            or (node.target in _RESHAPES and _keeps_shape(node))
            or (node.target in _BY_NUMBER and _is_by_one(node))
        ):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def join_products(graph: GraphModule) -> None:
    """Multiply a matrix that all chains have in common with those of all chains at once.

    As a product for each chain it would be copied for each of them, and take several times as long.
    Products of many rows and few columns are slow, too: they are taken of transposed factors.
    """
    call = graph.graph.call_function
    differ: set[Node] = set()  # by chain
    for node in list(graph.graph.nodes):
        if node.op == "placeholder" or not differ.isdisjoint(node.all_input_nodes):
            differ.add(node)
        with graph.graph.inserting_before(node):
            if (
                node.target is _aten.mm.default
                and node.args[0] not in differ
                and _is_turned(node.args[1])
            ):
                left, right = node.args  # the product with a vector of each chain
                turned = call(_aten.permute.default, (left, [1, 0]))
                product = call(_aten.mm.default, (right.args[0], turned))
                joined = call(_aten.permute.default, (product, [1, 0]))
            elif node.target is _aten.bmm.default:
                left, right = node.args
                number, num_rows, num_columns = node.meta["tensor_meta"].shape
                if (common := _in_common(graph, left)) is not None:
                    turned = call(_aten.permute.default, (right, [0, 2, 1]))
                    flat = call(_aten.reshape.default, (turned, [number * num_columns, -1]))
                    turned = call(_aten.permute.default, (common, [1, 0]))
                    product = call(_aten.mm.default, (flat, turned))
                    parts = call(_aten.reshape.default, (product, [number, num_columns, num_rows]))
                    joined = call(_aten.permute.default, (parts, [0, 2, 1]))
                elif (common := _in_common(graph, right)) is not None:
                    flat = call(_aten.reshape.default, (left, [number * num_rows, -1]))
                    product = call(_aten.mm.default, (flat, common))
                    joined = call(_aten.reshape.default, (product, [number, num_rows, num_columns]))
                elif num_rows > num_columns:
                    factors = [call(_aten.permute.default, (f, [0, 2, 1])) for f in (right, left)]
                    product = call(_aten.bmm.default, tuple(factors))
                    joined = call(_aten.permute.default, (product, [0, 2, 1]))
                else:
                    continue
            else:
                continue
        joined.meta = dict(node.meta)
        differ.add(joined)
        node.replace_all_uses_with(joined)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _is_turned(factor: Any) -> bool:
    """Tell whether a factor is the transpose of another node's matrix."""
    is_permuted = isinstance(factor, Node) and factor.target is _aten.permute.default
    return is_permuted and factor.args[1] == [1, 0]


def _in_common(graph: GraphModule, factor: Any) -> Node | None:
    """The matrix that a batch of matrices repeats."""
    if not isinstance(factor, Node) or factor.target is not _aten.expand.default:
        return None
    base = factor.args[0]
    if not isinstance(base, Node):
        return None
    shape = _attribute(graph, base).shape if base.op == "get_attr" else _shape(base)
    return base if shape is not None and len(shape) == 2 else None


def fold_constants(graph: GraphModule) -> None:
    """Compute what depends on no argument, or on the shapes of arguments alone, once and for all.

    :param GraphModule graph: a graph that changes no tensor in place; it is changed itself.
    """
    values = _constants(graph)
    number = 0
    for node, value in values.items():
        is_used = any(user not in values for user in node.users)
        if node.op == "call_function" and isinstance(value, Tensor) and is_used:
            name = f"_folded_constant{number}"
            number += 1
            graph.register_buffer(name, value, persistent=False)
            with graph.graph.inserting_before(node):
                constant = graph.graph.get_attr(name)
            constant.meta = dict(node.meta)
            node.replace_all_uses_with(constant)
    graph.graph.eliminate_dead_code()
    _separate_constants(graph)
    graph.recompile()


def _separate_constants(graph: GraphModule) -> None:
    """Copy constants that share memory with others: a compiled loop takes none that overlap."""
    names: dict[int, str] = {}
    for node in graph.graph.nodes:
        value = _attribute(graph, node) if node.op == "get_attr" else None
        if not isinstance(value, Tensor):
            continue
        name = str(node.target)
        if names.setdefault(value.untyped_storage().data_ptr(), name) != name:
            separate = f"_separate_{name.replace('.', '_')}"
            graph.register_buffer(separate, value.clone(), persistent=False)
            node.target = separate


def constants_of(graph: GraphModule) -> list[Tensor]:
    """Tensors frozen in a graph."""
    values = (_attribute(graph, node) for node in graph.graph.nodes if node.op == "get_attr")
    return [value for value in values if isinstance(value, Tensor)]


def _attribute(graph: GraphModule, node: Node) -> Any:
    return getattr(graph, str(node.target), None)


def _keeps_shape(node: Node) -> bool:
    shape = _shape(node)
    return shape is not None and shape == _shape(node.args[0])


def _is_by_one(node: Node) -> bool:
    """Tell whether a node multiplies by, divides by or raises to the power one."""
    whole, number = node.args[:2]
    if isinstance(number, Node) or number != 1 or not isinstance(whole, Node):
        return False
    own, result = (each.meta.get("tensor_meta") for each in (whole, node))
    return own is not None and result is not None and own.dtype == result.dtype


def _shape(node: Any) -> torch.Size | None:
    meta = node.meta.get("tensor_meta") if isinstance(node, Node) else None
    return getattr(meta, "shape", None)


def _constants(graph: GraphModule) -> dict[Node, Any]:
    values: dict[Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr" and isinstance(_attribute(graph, node), Tensor):
            values[node] = _attribute(graph, node)
        elif node.op == "call_function" and _is_constant(node, values):
            value = _compute(node, values)
            if _bytes_of(value) <= _MAX_CONSTANT_BYTES:
                values[node] = value
    return values


def _is_constant(node: Node, values: dict[Node, Any]) -> bool:
    tags: list[torch.Tag] = getattr(node.target, "tags", [])
    if torch.Tag.nondeterministic_seeded in tags:
        return False
    inputs = set(node.all_input_nodes)
    like = node.args[0] if node.target in _FROM_SHAPE else None
    if isinstance(like, Node) and isinstance(like.meta.get("val"), Tensor):
        inputs -= {like}
    return inputs <= values.keys()


def _compute(node: Node, values: dict[Node, Any]) -> Any:
    def known(argument: Node) -> Any:
        if argument in values:
            return values[argument]
        like: Tensor = argument.meta["val"]
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)

    function: Any = node.target
    with torch.no_grad():
        return function(*map_arg(node.args, known), **map_arg(node.kwargs, known))


def _bytes_of(value: Any) -> int:
    return value.untyped_storage().nbytes() if isinstance(value, Tensor) else 0


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
    """Tell whether two tensors are equal at all points, as far as shapes or computations show."""
    if one.shape != other.shape:
        return False
    nodes = _node(one), _node(other)
    if None not in nodes and _is_same(*nodes):
        return True
    return bool(_torch_equal(one, other))


def _node(tensor: Tensor) -> Any:
    """Return the node of a tensor in the recorded graph, or ``None``."""
    mode = get_proxy_mode()
    slot = None if mode is None else get_proxy_slot(tensor, mode.tracer, None)
    return None if slot is None else slot.proxy.node


def data_behind(tensor: Tensor) -> list[Tensor | None]:
    """Tensors that one is made of in the record; ``None`` stands for arguments and draws."""
    node, mode = _node(tensor), get_proxy_mode()
    if node is None or mode is None:
        return [tensor]
    frozen: Any = mode.tracer
    roots: list[Tensor | None] = []
    seen, ahead = {node}, [node]
    while ahead:
        node = ahead.pop()
        tags = getattr(node.target, "tags", ())
        if node.op == "get_attr":
            roots.append(getattr(frozen.root, node.target))
        elif node.op != "call_function" or torch.Tag.nondeterministic_seeded in tags:
            return [None]
        new = [each for each in node.all_input_nodes if each not in seen]
        seen.update(new)
        ahead += new
    return roots


def _is_same(one: Any, other: Any) -> bool:
    """Tell whether two nodes, or their arguments, apply the same operations to the same inputs."""
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
        ends = torch.tensor(
            [1.0 - radius, 1.0 + radius], dtype=stability.dtype, device=stability.device
        )
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
