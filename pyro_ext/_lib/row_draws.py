"""Random draws at many rows of values at once, each row with numbers of its own."""

import math
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Draw = Callable[[Tensor], dict[str, Tensor]]

_FEWEST_ROWS, _ELEMENTS_AT_ONCE = 64, 1 << 18


def rows_at_once(num_elements: int) -> int:
    """Number of rows to compute at once, of which each takes tensors of so many elements."""
    return max(_FEWEST_ROWS, _ELEMENTS_AT_ONCE // max(num_elements, 1))


def drawn_over_rows(draw: Draw, rows: Tensor) -> dict[str, Tensor]:
    """Draw at each row, as many rows at a time as take little memory.

    :param Callable draw: draws at one row, with numbers of PyTorch's generator.
    :param Tensor rows: **Shape:** ``(num_rows, size)``.
    :returns: what is drawn, with a leading dimension of rows.
    :raises Exception: where the function cannot be vectorized.
    """
    mode = _NewMemory()
    with mode, warnings.catch_warnings():
        # Gammas clamp what they have drawn, row by row, which takes little.
        warnings.filterwarnings("ignore", "There is a performance drop")
        over_rows = partial(torch.func.vmap, draw, randomness="different")
        first: dict[str, Tensor] = over_rows()(rows[:_FEWEST_ROWS])
        if len(rows) <= _FEWEST_ROWS:
            return first
        rest = over_rows(chunk_size=rows_at_once(mode.most_elements))(rows[_FEWEST_ROWS:])
    return {name: torch.cat([value, rest[name]]) for name, value in first.items()}


class _NewMemory(TorchFunctionMode):
    """Lets distributions draw into new memory, where they fill some that no row has of its own.

    :ivar int most_elements: number of elements of the largest tensor of a row.
    """

    most_elements = 0

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        drawing = _DRAWING.get(function)
        # Of others it is not known that they use what comes back, and not the memory that they own.
        if drawing is not None and _is_of_a_distribution(sys._getframe(1)):
            function = drawing
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.most_elements = max(self.most_elements, result.numel())
        return result


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
