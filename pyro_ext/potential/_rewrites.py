"""Rewrites of recorded graphs: fewer nodes, all with a vectorized form, and no raising inside."""

import math
import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

__all__ = ["drop_aliases", "mutates", "rewrite", "uses_strides"]

_ALIASES = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}
_STRIDED = {torch.ops.aten.as_strided.default, torch.ops.aten.as_strided_scatter.default}
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
    _finish(graph)


def drop_aliases(graph: GraphModule) -> None:
    """Drop nodes that change no number: an interpreter pays for each of them."""
    for node in list(graph.graph.nodes):
        if node.target in _ALIASES:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    _finish(graph)


def _finish(graph: GraphModule) -> None:
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
