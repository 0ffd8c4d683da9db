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

    :param function: takes tensors by position, and other things that are passed on as they are;
        returns a tensor.
    :returns: the function. Where the tensors have several types, their promoted type is returned.

    Example::

        >>> in_double(lambda x: torch.expm1(x) - x)(torch.tensor(1e-3))
        tensor(5.0017e-07)
    """

    @wraps(function)
    def compute(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
        doubled: Any = (arg.double() if isinstance(arg, Tensor) else arg for arg in args)
        result = function(*doubled, **kwargs)
        return cast(R, cast(Tensor, result).to(dtype))

    return compute
