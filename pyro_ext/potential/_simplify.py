"""Simplification of recorded graphs: an interpreter pays for each node, and a compiler reads it."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

__all__ = ["constants_of", "drop_identities", "fold_constants"]

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
    """Whether a tensor is multiplied with, divided by or raised to the number one."""
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
