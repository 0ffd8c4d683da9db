"""Rewrites of recorded graphs: all nodes have a vectorized form, and none of them raises."""

import math
import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

__all__ = ["mutates", "rewrite", "uses_strides"]

_STRIDED = {torch.ops.aten.as_strided.default, torch.ops.aten.as_strided_scatter.default}
_VIEW = torch.ops.aten.view.default
_FILL = torch.ops.aten.fill.Scalar
_PUT = torch.ops.aten.index_put.default
_COPY = torch.ops.aten.copy.default
_SCATTER = torch.ops.aten.slice_scatter.default
_CHECK_FACTORIZATION = torch.ops.aten._linalg_check_errors.default


def mutates(graph: GraphModule) -> bool:
    """Whether an operation of a graph changes a tensor in place."""
    return any(
        isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        for node in graph.graph.nodes
        if node.op == "call_function"
    )


def uses_strides(graph: GraphModule) -> bool:
    """Whether a graph depends on how tensors lie in memory."""
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
