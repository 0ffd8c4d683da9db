"""Normalization without statistics of the batch, so that the likelihood of a point is its own."""

import torch
from torch import Tensor, nn

from pyro_ext._checks import check_integer, check_number

__all__ = ["FilterResponseNorm"]


class FilterResponseNorm(nn.Module):
    r"""Filter response normalization [1], without its thresholded linear unit.

    .. math:: y = w \, \frac{x}{\sqrt{\nu^2 + \epsilon}} + b, \qquad \nu^2 = \text{mean of } x^2

    over the places of each channel of each sample. No sample sees another, as they do in batch
    normalization, under which a minibatch has no likelihood.

    :param int num_channels: number of channels.
    :param float epsilon: :math:`\epsilon`.
    :raises ValueError: for arguments out of range, or an input of another shape.

    [1] S. Singh, S. Krishnan (2020),
    Filter response normalization layer: eliminating batch dependence in the training of deep neural
    networks.

    Example::

        >>> FilterResponseNorm(1)(torch.tensor([[[3.0, -3.0]]]))
        tensor([[[ 1.0000, -1.0000]]], grad_fn=<AddBackward0>)
    """

    def __init__(self, num_channels: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.num_channels = check_integer("num_channels", num_channels, 1)
        self.epsilon = check_number("epsilon", epsilon, above=0.0)
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalize.

        :param Tensor inputs: **Shape:** ``(batch, channels, *spatial)``.
        :returns: **Shape:** as the inputs.
        """
        if inputs.dim() < 3 or inputs.shape[1] != self.num_channels:
            raise ValueError(
                f"inputs must have the shape (batch, {self.num_channels}, *spatial), got "
                f"{tuple(inputs.shape)}"
            )
        spatial = tuple(range(2, inputs.dim()))
        mean_square = inputs.square().mean(spatial, keepdim=True)
        shape = (-1, *[1] * len(spatial))
        normalized = inputs * torch.rsqrt(mean_square + self.epsilon)
        return self.weight.reshape(shape) * normalized + self.bias.reshape(shape)

    def extra_repr(self) -> str:
        """What the module shows of itself."""
        return f"{self.num_channels}, epsilon={self.epsilon:g}"
