r"""Solvers of partial differential equations in any number of dimensions, by axial networks [1].

They are small versions of the two networks that [1] converts: X-MPP, the axial form of multiple
physics pretraining, and X-CViT, the axial form of a vision transformer that is queried at any
point.

[1] H. Kim, J. Park, J. Bruna, H. Yang, J. Lee (2025),
Axial neural networks for dimension-free foundation models. arXiv 2510.13665.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.nn.axial import (
    Aggregation,
    AxialGraphConv,
    AxialLift,
    AxialPool,
    AxialSelfAttention,
)
from pyro_ext.nn.axial_convolutions import PaddingMode

_FREQUENCIES = 4  # of a coordinate, along the unit torus


class XMPP(nn.Module):
    r"""The next state of a field from its last ones, in any number of dimensions: a small X-MPP.

    An :class:`~pyro_ext.nn.axial.AxialLift` of three convolutions cuts pairs of axes into patches,
    which gives a feature for each axis. Blocks attend over time, then along each axis of each
    feature, and end with a perceptron. An :class:`~pyro_ext.nn.axial.AxialGraphConv` undoes the
    patches. Histories are standardized, and the output is added to the last state.

    Unlike in [1], nothing breaks the equivariance: the bias for distances is the same for each
    axis.

    :param int in_channels: number of channels of a state.
    :param int channels: width of all layers.
    :param int num_blocks: number of blocks.
    :param int num_heads: number of attention heads; it must divide ``channels``.
    :param int patch_size: size of a patch; it must divide the size of each axis.
    :param int max_distance: as for :class:`~pyro_ext.nn.axial.AxialSelfAttention`, in patches.
    :param str padding_mode: ``"zeros"``, or ``"circular"`` for periodic fields.
    :raises ValueError: for numbers out of range.

    [1] H. Kim, J. Park, J. Bruna, H. Yang, J. Lee (2025),
    Axial neural networks for dimension-free foundation models.

    Example::

        >>> network = XMPP(in_channels=2)
        >>> network(torch.randn(3, 4, 8, 6, 2)).shape, network(torch.randn(3, 4, 4, 4, 4, 2)).shape
        (torch.Size([3, 8, 6, 2]), torch.Size([3, 4, 4, 4, 2]))
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 32,
        num_blocks: int = 2,
        num_heads: int = 4,
        patch_size: int = 2,
        max_distance: int | None = 4,
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        super().__init__()
        self.lift = _patches(in_channels, channels, patch_size, "max", padding_mode, depth=3)
        self.blocks = _blocks(num_blocks, channels, num_heads, "mean", max_distance, True)
        self.unlift = nn.Sequential(
            AxialGraphConv(
                channels,
                channels,
                2 * patch_size + patch_size % 2,
                stride=patch_size,
                activation=nn.GELU,
                transposed=True,
            ),
            AxialPool("max"),
            nn.Linear(channels, in_channels),
        )
        self.in_channels, self.patch_size = in_channels, patch_size

    def forward(self, history: Tensor) -> Tensor:
        """Predict the next state.

        :param Tensor history: the last states. **Shape:** ``(batch, time, *spatial, in_channels)``.
        :returns: **Shape:** ``(batch, *spatial, in_channels)``.
        """
        _check_history(history, self.in_channels, self.patch_size)
        history = history.to(next(self.parameters()))
        positions = list(range(1, history.dim() - 1))
        loc = history.mean(positions, keepdim=True)
        scale = ((history - loc).square().mean(positions, keepdim=True) + 1e-12).sqrt()
        features = self.lift(((history - loc) / scale).flatten(0, 1)).unflatten(
            0, history.shape[:2]
        )
        for block in self.blocks:
            features = block(features)
        change: Tensor = self.unlift(features[:, -1])
        return history[:, -1] + scale[:, 0] * change


class XCViT(nn.Module):
    r"""A field at any points, from its last states on a grid: a small X-CViT.

    The states are channels of one field, which is lifted to features of patches as in :class:`XMPP`
    (with the mean over pairs of axes). Blocks attend along each axis of each feature, and the
    features of the axes are averaged. A point is decoded by attention along each axis in turn, with
    keys that contain the position and the mean of the features there.

    In [1], a point attends along each axis separately, and the maximum over all lines is taken, so
    that the positions of the lines are lost. Here the weights of the axes are multiplied, which
    does not depend on their order either.

    :param int num_steps: number of states.
    :param int in_channels: number of channels of a state.
    :param int channels: width of all layers.
    :param int num_blocks: number of blocks.
    :param int num_heads: number of attention heads; it must divide ``channels``.
    :param int patch_size: size of a patch; it must divide the size of each axis.
    :param int max_distance: as for :class:`~pyro_ext.nn.axial.AxialSelfAttention`, in patches.
    :param str agg: how attention is aggregated over axes. [1] uses ``"sum"``, which grows with the
        number of axes.
    :param str padding_mode: ``"zeros"``, or ``"circular"`` for periodic fields.
    :raises ValueError: for numbers out of range.

    [1] H. Kim, J. Park, J. Bruna, H. Yang, J. Lee (2025),
    Axial neural networks for dimension-free foundation models.

    Example::

        >>> network = XCViT(num_steps=2)
        >>> network(torch.randn(3, 2, 8, 6, 1), torch.rand(5, 2)).shape
        torch.Size([3, 5, 1])
    """

    def __init__(
        self,
        num_steps: int = 2,
        in_channels: int = 1,
        channels: int = 32,
        num_blocks: int = 2,
        num_heads: int = 4,
        patch_size: int = 2,
        max_distance: int | None = 4,
        agg: Aggregation = "mean",
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        super().__init__()
        self.num_steps = checks.integer("num_steps", num_steps, 1)
        size = num_steps * checks.integer("in_channels", in_channels, 1)
        self.lift = _patches(size, channels, patch_size, "mean", padding_mode)
        self.blocks = _blocks(num_blocks, channels, num_heads, agg, max_distance, False)
        self.own, self.others = (nn.Linear(2 * _FREQUENCIES, channels) for _ in range(2))
        self.place, self.content = (
            nn.Linear(2 * _FREQUENCIES, channels),
            nn.Linear(channels, channels),
        )
        self.value = nn.Linear(channels, channels)
        self.output = nn.Sequential(
            nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, in_channels)
        )
        self.in_channels, self.patch_size, self.num_heads = in_channels, patch_size, num_heads
        self.period = 1.0 if padding_mode == "circular" else 2.0  # the ends of an axis are apart

    def forward(self, history: Tensor, points: Tensor) -> Tensor:
        """Predict the next state at some points.

        :param Tensor history: the last states.
            **Shape:** ``(batch, num_steps, *spatial, in_channels)``.
        :param Tensor points: coordinates. 0 and 1 are the ends of each axis, and the middle of cell
            :math:`i` of :math:`n` is :math:`(i + 1/2) / n`. **Shape:** ``(num_points, K)``.
        :returns: **Shape:** ``(batch, num_points, in_channels)``.
        """
        _check_history(history, self.in_channels, self.patch_size, self.num_steps)
        history = history.to(next(self.parameters()))
        num_axes = history.dim() - 3
        points = checks.as_tensor(
            "points", points, f"(num_points, {num_axes})", like=history, finite=True
        ).to(history)
        features = self.lift(history.movedim(1, -2).flatten(-2))[:, None]
        for block in self.blocks:
            features = block(features)
        field = features[:, 0].mean(1)
        coordinates = _waves(points / self.period)
        query = self.own(coordinates) + self.others(coordinates).amax(1, keepdim=True)
        found = self._heads(self.value(field)).unsqueeze(1)  # (batch, 1, *spatial, heads, width)
        for axis in range(num_axes):
            size = field.shape[1 + axis]
            middle = (torch.arange(size, device=field.device).to(field) + 0.5) / size
            lines = field.movedim(1 + axis, 1).flatten(2, -2).mean(2) if num_axes > 1 else field
            key = self._heads(self.place(_waves(middle / self.period)) + self.content(lines))
            scores = torch.einsum("nhc,bdhc->bhnd", self._heads(query[:, axis]), key)
            weights = (scores / math.sqrt(key.shape[-1])).softmax(-1)
            found = torch.einsum(
                "bhnd,bnd...hc->bn...hc", weights, found.expand(-1, len(points), *found.shape[2:])
            )
        result: Tensor = self.output(found.flatten(-2))
        return result

    def _heads(self, values: Tensor) -> Tensor:
        return torch.unflatten(values, -1, (self.num_heads, -1))


class _Block(nn.Module):
    """Attention over time where there is one, along each axis of each feature, and a perceptron."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        agg: Aggregation,
        max_distance: int | None,
        in_time: bool,
    ) -> None:
        super().__init__()
        self.along_time = None
        if in_time:
            self.along_time = AxialSelfAttention(channels, num_heads, "mean", max_distance)
        self.along_axes = AxialSelfAttention(channels, num_heads, agg, max_distance)
        self.perceptron = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(batch, time, K, *spatial, channels)``."""
        before = features.shape[1:-1]
        if self.along_time is not None:
            lines = self.norms[0](features).flatten(2, -2).transpose(1, 2)
            seen = self.along_time(lines.flatten(0, 1)).unflatten(0, lines.shape[:2])
            features = features + seen.transpose(1, 2).unflatten(2, before[1:])
        seen = self.along_axes(self.norms[1](features).flatten(0, 2))
        features = features + seen.unflatten(0, features.shape[:3])
        result: Tensor = features + self.perceptron(self.norms[2](features))
        return result


def _blocks(num_blocks: int, *arguments: Any) -> nn.ModuleList:
    checks.integer("num_blocks", num_blocks, 0)
    return nn.ModuleList(_Block(*arguments) for _ in range(num_blocks))


def _patches(
    in_channels: int,
    channels: int,
    patch_size: int,
    agg: Aggregation,
    padding: PaddingMode,
    depth: int = 1,
) -> nn.Module:
    """A lift to features of patches that overlap, with a norm."""
    checks.integer("channels", channels, 1)
    size = 2 + checks.integer("patch_size", patch_size, 1)
    lift = AxialLift(
        in_channels,
        channels,
        size,
        agg,
        stride=patch_size,
        activation=nn.GELU,
        padding_mode=padding,
        depth=depth,
    )
    return nn.Sequential(lift, nn.LayerNorm(channels))


def _waves(coordinates: Tensor) -> Tensor:
    """Waves of whole numbers of periods, ``(*coordinates.shape, 2 * _FREQUENCIES)``."""
    number = torch.arange(1, _FREQUENCIES + 1, device=coordinates.device)
    angle = 2 * math.pi * coordinates[..., None] * number
    return torch.cat([angle.sin(), angle.cos()], -1)


def _check_history(
    history: Any, channels: int, patch_size: int, num_steps: int | None = None
) -> None:
    checks.instance("history", history, Tensor, "a tensor")
    is_right = history.dim() >= 4 and history.shape[-1] == channels and 0 not in history.shape
    if not is_right or num_steps not in (None, history.shape[1]):
        raise ValueError(
            f"history must have the shape (batch, {num_steps or 'time'}, *spatial, {channels}), "
            f"got {tuple(history.shape)}"
        )
    if not history.is_floating_point() or history.layout != torch.strided or history.is_meta:
        raise TypeError(f"history must be floating-point numbers, got {checks.shown(history)}")
    if any(size % patch_size for size in history.shape[2:-1]):
        raise ValueError(
            f"history must have axes of sizes that patch_size={patch_size} divides, got "
            f"{tuple(history.shape)}"
        )
