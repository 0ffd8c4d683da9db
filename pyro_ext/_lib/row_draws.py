"""Random draws at many rows of values at once, each row with numbers of its own."""

import math
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Draw = Callable[[Tensor], dict[str, Tensor]]


def drawn_over_rows(draw: Draw, rows: Tensor, chunk_size: int) -> dict[str, Tensor]:
    """Draw at each row, some rows at a time.

    :param Callable draw: draws at one row, with numbers of PyTorch's generator.
    :param Tensor rows: **Shape:** ``(num_rows, size)``.
    :param int chunk_size: number of rows at a time.
    :returns: what is drawn, with a leading dimension of rows.
    :raises Exception: where the function cannot be vectorized.
    """
    with _NewMemory(), warnings.catch_warnings():
        # Gammas clamp what they have drawn, row by row, which takes little.
        warnings.filterwarnings("ignore", "There is a performance drop")
        over_rows = torch.func.vmap(draw, randomness="different", chunk_size=chunk_size)
        result: dict[str, Tensor] = over_rows(rows)
    return result


class _NewMemory(TorchFunctionMode):
    """Lets distributions draw into new memory, where they fill some that no row has of its own."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        drawing = _DRAWING.get(function)
        # Of others it is not known that they use what comes back, and not the memory that they own.
        if drawing is not None and _is_of_a_distribution(sys._getframe(1)):
            return drawing(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _is_of_a_distribution(frame: Any) -> bool:
    name = frame.f_globals.get("__name__", "")
    return str(name).startswith(("torch.distributions", "pyro.distributions.torch"))


def _uniform(like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.rand_like(like) * (high - low) + low


def _normal(like: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return torch.randn_like(like) * std + mean


def _exponential(like: Tensor, rate: float = 1.0) -> Tensor:
    uniform = torch.rand_like(like).clamp(min=torch.finfo(like.dtype).tiny)  # below one, above zero
    return -uniform.log() / rate


def _cauchy(like: Tensor, median: float = 0.0, sigma: float = 1.0) -> Tensor:
    return median + sigma * torch.tan(math.pi * (torch.rand_like(like) - 0.5))


_DRAWING: dict[Any, Callable[..., Tensor]] = {
    Tensor.uniform_: _uniform,
    Tensor.normal_: _normal,
    Tensor.exponential_: _exponential,
    Tensor.cauchy_: _cauchy,
}
