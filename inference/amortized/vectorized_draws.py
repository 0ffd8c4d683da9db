"""Draws of a model for many inputs at once, by :func:`torch.vmap` where that works."""

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MAKE_MEMORY = (torch.empty, torch.empty_like, Tensor.new, Tensor.new_empty)


class OwnMemory(TorchFunctionMode):
    """Gives each row its own memory for draws in place, which :func:`torch.vmap` asks for."""

    def __init__(self, row: Tensor) -> None:
        super().__init__()
        self.zero = torch.zeros_like(row).sum()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in _MAKE_MEMORY and result.is_floating_point():
            return result + self.zero.to(result)
        return result


def can_be_vectorized(draw: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Check that a model can draw for all rows at once."""
    try:
        return len(vectorized(draw, x)) == len(x)
    except (RuntimeError, TypeError, NotImplementedError):
        return False


def vectorized(draw: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Draws of a model for all rows."""
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        values: Tensor = torch.vmap(draw, randomness="different")(x)
    return values
