"""Iterations inside one compiled graph, so that no Python runs between two of them."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_ext.potential import capture_abstract, compile_graph, warn_fallback

Carried = TypeVar("Carried")
Inputs = TypeVar("Inputs")


class CompiledLoop(Generic[Carried, Inputs]):
    """A loop as machine code, of named tuples like those that it was recorded with.

    :param code: takes and returns the tensors of what iterations carry, in order.
    :param tuple like: what they carry.
    """

    def __init__(self, code: Callable[..., Any], like: Carried) -> None:
        self.code = code
        self._structure = pytree.tree_structure(like)

    def __call__(self, carried: Carried, inputs: Inputs) -> Carried:
        """Iterate to the end."""
        with torch.no_grad():
            leaves = self.code(*arguments_of(carried, inputs))
        result: Carried = pytree.tree_unflatten(leaves, self._structure)
        return result


def compiled_loop(
    name: str,
    proceed: Callable[[Carried, Inputs], Tensor],
    body: Callable[[Carried, Inputs], Carried],
    carried: Carried,
    inputs: Inputs,
    is_right: Callable[[CompiledLoop[Carried, Inputs]], bool],
) -> CompiledLoop[Carried, Inputs] | None:
    """Record and compile a loop, ``None`` with a warning where that fails.

    :param str name: what iterates, for the warning.
    :param proceed: tells whether to go on, a pure function of what is carried and of the inputs.
    :param body: a pure iteration.
    :param tuple carried: tensors in any structure, as an iteration receives and returns them.
    :param tuple inputs: tensors in any structure, the same for all iterations.
    :param is_right: tells whether a loop does what iterations in Python do.
    """
    arguments = arguments_of(carried, inputs)
    try:
        recorded = capture_abstract(_while_loop(proceed, body, carried, inputs), *arguments)
        loop: CompiledLoop[Carried, Inputs] = CompiledLoop(
            compile_graph(recorded, *arguments), carried
        )
        agrees = is_right(loop)
    except Exception as error:  # whatever a compiler may raise
        warn_fallback(f"the {name} cannot be compiled", "running them through the graph", error)
        return None
    if not agrees:
        warn_fallback(f"the compiled {name} disagree", "using the graph", "other numbers")
        return None
    return loop


def arguments_of(carried: Any, inputs: Any) -> list[Tensor]:
    """Tensors of a call: carried ones may be no other's memory, nor have strides of their own."""
    leaves = pytree.tree_leaves(carried)
    copies = [leaf.clone(memory_format=torch.contiguous_format) for leaf in leaves]
    return [*copies, *pytree.tree_leaves(inputs)]


def _while_loop(
    proceed: Callable[..., Tensor], body: Callable[..., Any], *like: Any
) -> Callable[..., Any]:
    """Loop as a function of tensors, which can be recorded."""
    structure = pytree.tree_structure(like)
    number = len(pytree.tree_leaves(like[0]))

    def run(*tensors: Tensor) -> Any:
        # The function of the same name in torch would trace all once more.
        loop = torch.ops.higher_order.while_loop
        return loop(
            lambda *others: proceed(*pytree.tree_unflatten(others, structure)),
            lambda *others: _separate(body(*pytree.tree_unflatten(others, structure)), others),
            tensors[:number],
            tensors[number:],
        )

    return run


def _separate(carried: Any, before: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tensors of what is carried, copied only where they are the memory of others."""
    used = {tensor.untyped_storage()._cdata for tensor in before}
    results = []
    for leaf in pytree.tree_leaves(carried):
        memory = leaf.untyped_storage()._cdata
        is_own = memory not in used and leaf.is_contiguous()
        used.add(memory)
        results.append(leaf if is_own else leaf.clone(memory_format=torch.contiguous_format))
    return tuple(results)
