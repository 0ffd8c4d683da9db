"""What the pure functions of all samplers share."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

__all__ = ["Info", "ValueAndGradient", "noise_scale"]

ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps positions ``(..., size)`` to potentials ``(...)`` and gradients ``(..., size)``."""


class Info(NamedTuple):
    """What a step saw on its way.

    :param Tensor potential_energy: the stochastic potential at the position it started from.
    """

    potential_energy: Tensor


def noise_scale(variance: Tensor) -> Tensor:
    """Standard deviation of the noise to inject.

    The variance is what the gradient's own noise leaves to inject; at temperature zero that is
    less than nothing, and none is injected.
    """
    return variance.clamp(min=0.0).sqrt()
