"""Minibatches of draws, as functions of their keys."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_ext.potential import WeightedLoss
from pyro_ext.random import uniform

__all__ = ["minibatches_of"]


def minibatches_of(loss: WeightedLoss, keys: Tensor) -> Callable[[Tensor], Tensor | None]:
    """Minibatches of each draw, which follow from its key and the number of the call.

    Elements are drawn with replacement.

    :param WeightedLoss loss: over the data.
    :param Tensor keys: of the draws' random streams. **Shape:** ``(num_draws, 2)``.
    :returns: a function of the numbers of draws, ``(rows,)``, that returns their next minibatches,
        ``(rows, subsample_size)``; ``None`` where the loss takes all of the data.
    """
    size, num_points = loss.subsample_size, loss.num_points
    if size is None:
        return lambda numbers: None
    step = 0

    def next_one(numbers: Tensor) -> Tensor:
        nonlocal step
        # In double precision, in which the product is not rounded up to the number of points.
        at = torch.tensor(step, device=numbers.device)
        part = uniform(keys[numbers], at, size, dtype=torch.float64)
        step += 1
        return (part * num_points).long()

    return next_one
