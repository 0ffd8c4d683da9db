"""Convolutional networks of a fixed number of axes, which axial networks are compared with."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

DEPTH = 8  # of the cube around an image: enough that none of 3 layers sees both of its sides


class ConvNetwork(nn.Module):
    """Convolutions over all axes, each with a layer norm over channels and a ReLU.

    It ends as axial networks do: with a linear layer on the maximum over all positions, or at each
    position if ``is_field``. A network of volumes takes images as the first slice of a cube that is
    zero elsewhere.
    """

    def __init__(
        self,
        num_axes: int,
        in_channels: int = 1,
        num_outputs: int = 1,
        channels: int = 32,
        num_layers: int = 3,
        padding_mode: Literal["zeros", "circular"] = "zeros",
        is_field: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * num_layers
        conv: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if num_axes == 2 else nn.Conv3d
        self.convs = nn.ModuleList(
            conv(width, channels, 3, padding=1, padding_mode=padding_mode) for width in widths[:-1]
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in widths[1:])
        self.head = nn.Linear(channels, num_outputs)
        self.num_axes, self.is_field = num_axes, is_field

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs of fields ``(batch, *spatial, in_channels)``."""
        if inputs.dim() < self.num_axes + 2:
            return self._of_images(inputs)
        for index in range(len(self.convs)):
            inputs = self._layer(index, inputs)
        if not self.is_field:
            inputs = inputs.flatten(1, -2).amax(1)
        outputs: Tensor = self.head(inputs)
        return outputs

    def _layer(self, index: int, inputs: Tensor) -> Tensor:
        found: Tensor = self.norms[index](self.convs[index](inputs.movedim(-1, 1)).movedim(1, -1))
        return found.relu()

    def _of_images(self, images: Tensor) -> Tensor:
        """Apply the padded cube, of which layer ``l`` sees the image in ``l + 1`` slices.

        All other slices are those of an empty cube, which is run once for the whole batch.
        """
        empty = pad(torch.zeros_like(images[:1])[:, None], [0] * 7 + [DEPTH - 1])
        seen = images[:, None]
        for index in range(len(self.convs)):
            rest = empty[:, index + 1 : index + 3].expand(len(images), -1, -1, -1, -1)
            near = pad(torch.cat([seen, rest], 1), [0] * 6 + [1, 0])
            conv = self.convs[index]
            assert isinstance(conv, nn.Conv3d)
            found = torch.conv3d(near.movedim(-1, 1), conv.weight, conv.bias, padding=(0, 1, 1))
            seen = self.norms[index](found.movedim(1, -1)).relu()
            empty = self._layer(index, empty)
        rest = empty[:, len(self.convs) + 1 :].flatten(1, -2).amax(1)
        outputs: Tensor = self.head(torch.maximum(seen.flatten(1, -2).amax(1), rest))
        return outputs


class ConvSolver(nn.Module):
    """The next state of a periodic field: the last one, and what a network makes of all of them."""

    def __init__(self, num_axes: int, num_steps: int, channels: int = 32) -> None:
        super().__init__()
        self.network = ConvNetwork(
            num_axes, num_steps, 1, channels, padding_mode="circular", is_field=True
        )
        self.arguments = num_steps, channels

    def forward(self, history: Tensor) -> Tensor:
        """Predict from states ``(batch, num_steps, *spatial, 1)``."""
        change: Tensor = self.network(history.movedim(1, -2).flatten(-2))
        return history[:, -1] + change


def inflated(solver: ConvSolver) -> ConvSolver:
    """A solver in three dimensions: kernels are repeated along a new axis and divided by its size.

    Where a field is constant along the new axis it gives what the solver gave.
    """
    made = ConvSolver(3, *solver.arguments)
    state = solver.state_dict()
    for name, value in state.items():
        if value.dim() == 4:
            state[name] = value[:, :, None].expand(-1, -1, 3, -1, -1) / 3
    made.load_state_dict(state)
    return made
