r"""Control variates: stochastic gradients whose noise vanishes near a mode.

.. math:: \hat g(z) = g_B(z) - g_B(z^*) + g(z^*)

with the gradient :math:`g_B` of a minibatch, that of all of the data, :math:`g`, and an anchor
:math:`z^*`. It is unbiased, since the mean of :math:`g_B(z^*)` over minibatches is :math:`g(z^*)`,
and its noise shrinks with the distance to the anchor, which should lie near a mode. A step takes
two gradients of its minibatch.

J. Baker, P. Fearnhead, E. B. Fox, C. Nemeth (2019),
Control variates for stochastic gradient MCMC.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext.potential import FunctionPotential, Potential, outputs_agree

__all__ = ["Anchor", "anchor_at", "control", "is_anchor_of"]

BatchedGradient = Callable[..., tuple[Tensor, Tensor]]
"""Maps positions ``(num_chains, size)`` and minibatches ``(num_chains, subsample_size)`` to
potentials ``(num_chains,)`` and gradients ``(num_chains, size)``."""


class Anchor(NamedTuple):
    """A point, with potential and gradient of all of the data there.

    :param Tensor position: **Shape:** ``(size,)``.
    :param Tensor potential_energy: a scalar.
    :param Tensor gradient: **Shape:** ``(size,)``.
    """

    position: Tensor
    potential_energy: Tensor
    gradient: Tensor


def control(gradient: BatchedGradient, anchor: Anchor) -> BatchedGradient:
    """Control the noise of a stochastic potential and its gradient by an anchor.

    Returns a function of the same arguments, with the same mean over minibatches.

    Example::

        >>> def gradient(position, index):
        ...     return index.sum(-1) * position.sum(-1), index.sum(-1, keepdim=True) * position
        >>> anchor = Anchor(torch.ones(2), torch.tensor(7.0), torch.tensor([3.0, 4.0]))
        >>> control(gradient, anchor)(torch.ones(1, 2), torch.tensor([[5]]))
        (tensor([7.]), tensor([[3., 4.]]))
    """

    def controlled(position: Tensor, *indices: Tensor) -> tuple[Tensor, Tensor]:
        # One call for twice as many chains costs less than two calls.
        points = torch.cat([position, anchor.position.expand_as(position)])
        values, slopes = gradient(points, *(torch.cat([index, index]) for index in indices))
        value, value_there = values.chunk(2)
        slope, slope_there = slopes.chunk(2)
        return (
            value - value_there + anchor.potential_energy,
            slope - slope_there + anchor.gradient,
        )

    return controlled


def anchor_at(potential: Potential | FunctionPotential, position: Tensor) -> Anchor:
    """Make a point an anchor, which takes a pass over the data.

    Shapes: position (size,).
    """
    return Anchor(position, *_whole(potential, position))


def is_anchor_of(potential: Potential | FunctionPotential, anchor: Anchor) -> bool:
    """Tell whether an anchor belongs to this potential's model and data, up to rounding."""
    layout, position = potential.layout, anchor.position
    if (len(position), position.dtype) != (layout.size, layout.dtype):
        return False
    return outputs_agree(_whole(potential, position), anchor[1:])


def _whole(potential: Potential | FunctionPotential, position: Tensor) -> tuple[Tensor, Tensor]:
    layout = potential.layout
    value, gradient = potential.full_value_and_grad(layout.unflatten(position[None]))
    return value[0], layout.flatten(gradient)[0]
