"""Computing in double precision whatever comes in."""

from collections.abc import Callable
from functools import reduce, wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

__all__ = ["in_double"]

P = ParamSpec("P")
R = TypeVar("R")


def in_double(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function of tensors compute in float64 and return the type of its arguments.

    :param function: takes tensors, and other things that are passed on as they are;
        returns a tensor.
    :returns: the function. Where the tensors have several types, their promoted type is returned.

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
