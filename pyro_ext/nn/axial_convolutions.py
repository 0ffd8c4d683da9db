"""Convolutions of axial blocks, each with a norm over channels and an activation."""

from collections.abc import Callable
from typing import Literal, TypedDict, get_args

from torch import Tensor, nn

from pyro_ext._lib import checks

PaddingMode = Literal["zeros", "circular"]


class ConvOptions(TypedDict, total=False):
    """Keyword arguments of the convolutions; see :class:`AxialConv`."""

    stride: int
    activation: Callable[[], nn.Module] | None
    padding_mode: PaddingMode
    transposed: bool
    depth: int


class _Conv(nn.Sequential):
    """Convolutions over all axes but the first, each with a norm over channels and an activation.

    The first takes an axis of size ``d`` to ``d // stride``, or to ``stride * d`` if transposed.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        num_axes: int,
        *,
        stride: int = 1,
        activation: Callable[[], nn.Module] | None = nn.ReLU,
        padding_mode: PaddingMode = "zeros",
        transposed: bool = False,
        depth: int = 1,
    ) -> None:
        checks.integer("in_channels", in_channels, 1)
        checks.integer("out_channels", out_channels, 1)
        checks.integer("stride", stride, 1)
        if checks.integer("kernel_size", kernel_size, stride) % 2 != stride % 2:
            raise ValueError(
                f"kernel_size must be stride={stride} plus an even number, got {kernel_size}"
            )
        checks.optional(checks.function, "activation", activation, "a class of modules or None")
        checks.choice("padding_mode", padding_mode, get_args(PaddingMode))
        if checks.boolean("transposed", transposed) and padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros' if transposed, got {padding_mode!r}")
        layers: list[nn.Module] = []
        first, least = stride, 1 if transposed else stride
        for _ in range(checks.integer("depth", depth, 1)):
            conv = getattr(nn, f"Conv{'Transpose' * transposed}{num_axes}d")
            sizes = (in_channels, out_channels, kernel_size, stride, (kernel_size - stride) // 2)
            layers.append(conv(*sizes, padding_mode=padding_mode))
            if padding_mode == "circular":  # at most once around, in cells before the stride
                least = max(least, sizes[-1] * (first if len(layers) > 1 else 1))
            if activation is not None:
                layers.append(nn.Sequential(_ChannelNorm(out_channels), _made(activation)))
            in_channels, kernel_size, stride = out_channels, kernel_size - 1 + kernel_size % 2, 1
        super().__init__(*layers)
        self.least_size = least

    def forward(self, inputs: Tensor) -> Tensor:
        values = inputs.movedim(-1, 1)
        for layer in self:
            values = layer(values)
        return values.movedim(1, -1)


def _made(activation: Callable[[], nn.Module]) -> nn.Module:
    """A layer by a class or a function."""
    wanted = "a class of modules, or a function that makes one, or None"
    try:
        layer = activation()
    except TypeError as error:
        raise TypeError(f"activation must be {wanted}, got {checks.shown(activation)}") from error
    checks.instance("activation", layer, nn.Module, wanted)
    return layer


class _ChannelNorm(nn.LayerNorm):
    """A layer norm over the second dimension."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.movedim(1, -1)).movedim(-1, 1)
