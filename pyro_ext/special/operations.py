"""Operations that are single nodes of a recorded graph, and functions that compute in float64."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import reduce, wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

_NAMESPACE = "pyro_ext"
TensorFunction = Callable[..., Tensor]
P = ParamSpec("P")
R = TypeVar("R")


def opaque(name: str, *sizes: int) -> Callable[[TensorFunction], TensorFunction]:
    r"""Turn a function of tensors into one PyTorch operation, for searches and other long loops.

    Graph recorders, compilers and :func:`torch.func.vmap` do not look inside the operation, so that
    a loop is one node of a graph, however many steps it takes. **The result has no gradient.**

    :param str name: name of the operation, unique in this package.
    :param int sizes: sizes of the axes that the function appends to the broadcast shape of its
        arguments.
    :returns: a decorator. The decorated function takes one or more tensors of the same type as
        positional arguments, treats each element of their common shape independently, and returns a
        new tensor of that type.

    Example::

        >>> @opaque("example_of_powers", 3)
        ... def powers(x, y):
        ...     return torch.stack([x + y, (x + y) ** 2, (x + y) ** 3], -1)
        >>> powers(torch.tensor([1.0, 2.0]), torch.tensor(0.0))
        tensor([[1., 1., 1.],
                [2., 4., 8.]])
    """

    def decorate(function: TensorFunction) -> TensorFunction:
        qualified = f"{_NAMESPACE}::{name}"
        arguments = ", ".join(
            f"Tensor {argument}" for argument in inspect.signature(function).parameters
        )
        torch.library.define(
            qualified, f"({arguments}) -> Tensor", tags=torch.Tag.pt2_compliant_tag
        )
        torch.library.impl(qualified, "CompositeExplicitAutograd", function)
        operation: TensorFunction = getattr(getattr(torch.ops, _NAMESPACE), name).default

        def fake(*tensors: Tensor) -> Tensor:
            shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
            return tensors[0].new_empty((*shape, *sizes))

        def batched(
            _: object, in_dims: tuple[int | None, ...], *tensors: Tensor
        ) -> tuple[Tensor, int]:
            return operation(*_align(tensors, in_dims)), 0

        torch.library.register_fake(qualified, fake)
        torch.library.register_vmap(qualified, batched)

        @wraps(function)
        def call(*tensors: Tensor) -> Tensor:
            with torch.no_grad():
                return operation(*(tensor.detach() for tensor in tensors))

        return call

    return decorate


def where_needed(
    condition: Tensor,
    if_true: TensorFunction,
    if_false: TensorFunction,
    arguments: Sequence[Tensor],
    safe_true: Sequence[float],
    safe_false: Sequence[float],
) -> Tensor:
    """:func:`torch.where` for two functions, each called only for the elements that need it.

    If the values of the elements are unknown, as while a graph is recorded, both functions are
    called for all elements, with safe arguments wherever their result is not used.

    :param Tensor condition: true for elements that take the first function. **Shape:** that to
        which the arguments broadcast.
    :param if_true: the first function; it takes the arguments and returns a tensor of their shape,
        element by element.
    :param if_false: the second function, likewise.
    :param arguments: tensors.
    :param safe_true: numbers at which the first function has a gradient.
    :param safe_false: numbers at which the second function has a gradient.

    Example::

        >>> x = torch.tensor([-1.0, 4.0])
        >>> where_needed(x > 0, torch.sqrt, torch.neg, [x], [1.0], [0.0])
        tensor([1., 2.])
    """
    condition, *arguments = torch.broadcast_tensors(condition, *arguments)
    mask = _known(condition)
    if mask is None:
        first = if_true(*_masked(condition, arguments, safe_true))
        return torch.where(condition, first, if_false(*_masked(~condition, arguments, safe_false)))
    flat = [argument.reshape(-1) for argument in arguments]
    result = flat[0].new_empty(mask.numel())
    for part, function in ((mask, if_true), (~mask, if_false)):
        index = part.reshape(-1).nonzero().squeeze(-1)
        if len(index) == mask.numel():
            return function(*arguments)
        if len(index):
            values = function(*(argument[index] for argument in flat))
            result = result.index_put((index,), values)
    return result.view(condition.shape)


def _known(condition: Tensor) -> Tensor | None:
    """The condition if its values are known, as they are not while a graph is recorded."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return None
    try:
        bool(condition.any())
    except RuntimeError:
        return None
    return condition


def _masked(
    condition: Tensor, arguments: Sequence[Tensor], safe: Sequence[float]
) -> Iterator[Tensor]:
    pairs = zip(arguments, safe, strict=True)
    return (torch.where(condition, argument, number) for argument, number in pairs)


def holds_everywhere(condition: Tensor) -> bool:
    """Tell whether a condition is known to hold; while a graph is recorded it is not known."""
    try:
        return bool(condition.all())
    except RuntimeError:
        return False


def may_hold_everywhere(condition: Tensor) -> bool:
    """Tell whether a condition holds, or is not known to fail."""
    try:
        return bool(condition.all())
    except RuntimeError:
        return True


def _align(tensors: tuple[Tensor, ...], in_dims: tuple[int | None, ...]) -> list[Tensor]:
    """Move the mapped axes to the front, and fill with ones where an argument has fewer axes."""
    pairs = list(zip(tensors, in_dims, strict=True))
    rank = max(tensor.dim() - (dim is not None) for tensor, dim in pairs)
    aligned = []
    for tensor, dim in pairs:
        if dim is not None:
            tensor = tensor.movedim(dim, 0)
            missing = rank + 1 - tensor.dim()
            tensor = tensor.reshape(tensor.shape[0], *[1] * missing, *tensor.shape[1:])
        aligned.append(tensor)
    return aligned


def in_double(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function of tensors compute in float64 and return the type of its arguments.

    :param function: a function that takes tensors, and other arguments, which are passed on
        unchanged, and returns a tensor.
    :returns: the function. If the tensors have several types, it returns their promoted type.

    Example::

        >>> in_double(lambda x: torch.expm1(x) - x)(torch.tensor(1e-3))
        tensor(5.0017e-07)
    """

    @wraps(function)
    def compute(*args: P.args, **kwargs: P.kwargs) -> R:
        given = (*args, *kwargs.values())
        dtypes = [arg.dtype for arg in given if isinstance(arg, Tensor)]
        dtype = reduce(torch.promote_types, dtypes, torch.bool)
        doubled: Any = (_double(arg) for arg in args)
        named: Any = {name: _double(arg) for name, arg in kwargs.items()}
        result = function(*doubled, **named)
        return cast(R, cast(Tensor, result).to(dtype))

    return compute


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and not value.is_complex() else value
