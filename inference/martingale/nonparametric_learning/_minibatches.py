"""Minibatches of draws, as functions of their keys."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_ext.random import uniform

__all__ = ["minibatches_of"]


def minibatches_of(keys: Tensor, size: int, num_points: int) -> Callable[[Tensor], Tensor]:
    """Minibatches of each draw, which follow from its key and the number of the call.

    Elements are drawn with replacement.

    :param Tensor keys: of the draws' random streams. **Shape:** ``(num_draws, 2)``.
    :param int size: of a minibatch.
    :param int num_points: how many points there are to choose from.
    :returns: a function of the numbers of draws, ``(rows,)``, that returns their next minibatches,
        ``(rows, size)``.
    """
    step = 0

    def next_one(numbers: Tensor) -> Tensor:
        nonlocal step
        # In double precision, in which the product is not rounded up to the number of points.
        at = torch.tensor(step, device=numbers.device)
        part = uniform(keys[numbers], at, size, dtype=torch.float64)
        step += 1
        return (part * num_points).long()

    return next_one
