"""What generators of tasks share: sizes that are drawn, and points cut into context and target."""

import numpy as np
from torch import Tensor

from pyro_ext._checks import check_number
from pyro_ext.models.neural_processes.batch import Batch

__all__ = ["check_range", "number_between", "split_batch"]


def check_range(argument: str, bounds: object, above: float | None = None) -> None:
    """Check a pair of numbers, the first not above the second.

    Example::

        >>> check_range("period", (0.5, 0.1))
        Traceback (most recent call last):
        ValueError: period must be two numbers, the first not above the second, got (0.5, 0.1)
    """
    if isinstance(bounds, list | tuple) and len(bounds) == 2:
        low = check_number(f"{argument}[0]", bounds[0], above=above)
        high = check_number(f"{argument}[1]", bounds[1])
        if low <= high:
            return
    raise ValueError(
        f"{argument} must be two numbers, the first not above the second, got {bounds!r:.80}"
    )


def number_between(generator: np.random.Generator, low: int, high: int) -> int:
    """Draw a number uniformly, both ends included; ``low`` where there is none."""
    return int(generator.integers(low, max(low, high), endpoint=True))


def split_batch(inputs: Tensor, outputs: Tensor, num_context: int) -> Batch:
    """Give the first points and ask for the others.

    :param Tensor inputs: **Shape:** ``(num_tasks, n, x_dim)``.
    :param Tensor outputs: **Shape:** ``(num_tasks, n, y_dim)``.
    :param int num_context: number of points that are given.
    """
    return Batch(
        inputs[:, :num_context],
        outputs[:, :num_context],
        inputs[:, num_context:],
        outputs[:, num_context:],
    )
