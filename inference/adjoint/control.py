"""A network that controls a diffusion."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.nn import MLP

_NUM_FREQUENCIES = 4


class ControlNetwork(nn.Module):
    """A multilayer perceptron of state and time whose output starts at zero.

    Its inputs are sines and cosines of the time, and all numbers of the state.

    :param event_shape: shape of a state, such as ``(num_modes, dim)``; a number stands for a
        vector of that size.
    :param hidden_features: widths of the hidden layers.
    :param scale: a function of the times that multiplies the output, such as
        ``schedule.scale``. **Shape:** ``(num_states,)`` to ``(num_states,)``.

    Example::

        >>> from pyro_ext.inference.adjoint import ControlNetwork
        >>> control = ControlNetwork((8, 1), hidden_features=(16,))
        >>> control(torch.rand(5), torch.randn(5, 8, 1)).abs().max()
        tensor(0., grad_fn=<MaxBackward1>)
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        hidden_features: Sequence[int] = (128, 128),
        scale: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = state_shape(event_shape)
        self.scale = checks.optional(checks.function, "scale", scale)
        size = self.event_shape.numel()
        self.network = MLP(size + 2 * _NUM_FREQUENCIES, hidden_features, size)
        last: Any = self.network[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Compute the control at states.

        :param Tensor t: times in ``[0, 1]``. **Shape:** ``(num_states,)``.
        :param Tensor x: **Shape:** ``(num_states, *event_shape)``.
        :returns: **Shape:** ``(num_states, *event_shape)``.
        """
        angles = math.pi * t[:, None] * torch.arange(1, _NUM_FREQUENCIES + 1).to(t)
        features = torch.cat([x.flatten(1), angles.sin(), angles.cos()], -1)
        output: Tensor = self.network(features)
        if self.scale is not None:
            output = self.scale(t)[:, None] * output
        return output.reshape(x.shape)


def state_shape(event_shape: Any) -> torch.Size:
    """Shape of a state, of which a number stands for a vector."""
    if isinstance(event_shape, int):
        event_shape = (checks.integer("event_shape", event_shape, 1),)
    shape = checks.as_size("event_shape", event_shape)
    if not shape.numel() or not shape:
        raise ValueError(f"event_shape must have a dimension and no zeros, got {event_shape!r}")
    return shape
