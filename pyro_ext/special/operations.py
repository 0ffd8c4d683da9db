"""Functions of tensors that a recorded graph holds as one operation."""

import inspect
from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

__all__ = ["holds_everywhere", "may_hold_everywhere", "opaque"]

_NAMESPACE = "pyro_ext"

TensorFunction = Callable[..., Tensor]


def opaque(name: str, *sizes: int) -> Callable[[TensorFunction], TensorFunction]:
    r"""Make a function of tensors one operation of PyTorch, for searches and other long loops.

    A recorder, a compiler and :func:`torch.func.vmap` see the operation and nothing inside of it,
    so that a loop is one node of a graph, however many steps it takes. **The result has no
    gradient.**

    :param str name: of the operation, unique in this package.
    :param int sizes: of the axes that the function appends to the shape its arguments broadcast to.
    :returns: a decorator. What it decorates takes one or more tensors of one type by position,
        treats each element of their common shape alone, and returns a new tensor of that type.

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


def holds_everywhere(condition: Tensor) -> bool:
    """Whether a condition is known to hold: a graph that is recorded knows no values."""
    try:
        return bool(condition.all())
    except RuntimeError:
        return False


def may_hold_everywhere(condition: Tensor) -> bool:
    """Whether a condition holds, or is not known to fail."""
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
