r"""Networks on fields with any number of axes, which commute with permutations of the axes [1].

A field is a tensor of shape ``(batch, *spatial, channels)`` with :math:`K \ge 1` axes in
``spatial``, of any sizes. The axes are treated like the elements of a set or the nodes of a graph:
an operation on one axis, or on a pair of axes, is applied to each, and the results are aggregated.
No parameter depends on :math:`K`, so a network trained on images also accepts volumes.

The graph-based blocks have one feature field for each axis. They are stored in one tensor of shape
``(batch, K, *spatial, channels)``, in the order of the axes of the field.

If a block changes the size of an axis, the other axes are resized by average pooling, or by
repetition if they grow.

[1] H. Kim, J. Park, J. Bruna, H. Yang, J. Lee (2025),
Axial neural networks for dimension-free foundation models. arXiv 2510.13665.
"""

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any, Literal, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_ext._lib import checks
from pyro_ext.nn.axial_convolutions import ConvOptions, _Conv
from pyro_ext.random import seeded

__all__ = [
    "GXCNN",
    "SXCNN",
    "AxialConv",
    "AxialGraphConv",
    "AxialLift",
    "AxialPool",
    "AxialSelfAttention",
    "check_axis_equivariance",
]

Aggregation = Literal["max", "mean", "sum"]


class _SetMap(nn.Module):
    """Maps lines ``(n, size, in_channels)`` along each axis, and aggregates over axes."""

    def __init__(self, operator: nn.Module, in_channels: int, agg: Aggregation) -> None:
        super().__init__()
        checks.choice("agg", agg, get_args(Aggregation))
        self.operator, self.in_channels, self.agg = operator, in_channels, agg

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply along each axis and aggregate.

        :param Tensor inputs: a field. **Shape:** ``(batch, *spatial, in_channels)``.
        :returns: **Shape:** ``(batch, *new_spatial, out_channels)``.
        """
        _check("inputs", inputs, self.in_channels, self.operator)
        inputs = inputs.to(next(self.parameters(), inputs))
        found = [_along(self.operator, inputs, [axis]) for axis in range(1, inputs.dim() - 1)]
        sizes = [one.shape[axis] for axis, one in enumerate(found, 1)]
        return _aggregate([_resize(one, sizes) for one in found], self.agg)


class AxialConv(_SetMap):
    r"""The same convolution along each axis, aggregated over axes: the set-based layer.

    .. math:: y = \bigoplus_i \Pi_i^{-1}\, \mathrm{Pool}(\mathrm{Conv}(\Pi_i x))

    where :math:`\Pi_i` moves axis :math:`i` to the end.

    :param int in_channels: number of channels of an input.
    :param int out_channels: number of channels of an output.
    :param int kernel_size: size of the kernel, ``stride`` plus an even number.
    :param str agg: how axes are aggregated: ``"max"``, ``"mean"`` or ``"sum"``. A sum grows with
        the number of axes, and does not transfer to another number of axes.
    :param int stride: the factor that divides sizes, or multiplies them if ``transposed``.
    :param activation: a class or function that creates the activation. It is applied before
        aggregation, after a layer norm over channels. With ``None`` there is neither.
    :param str padding_mode: ``"zeros"``, or ``"circular"`` for periodic fields.
    :param bool transposed: whether to use a transposed convolution.
    :param int depth: the number of successive convolutions; the first has the stride.
    :raises ValueError: if numbers are out of range.

    Example::

        >>> block = AxialConv(1, 8)
        >>> block(torch.randn(2, 5, 1)).shape, block(torch.randn(2, 5, 7, 6, 1)).shape
        (torch.Size([2, 5, 8]), torch.Size([2, 5, 7, 6, 8]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        agg: Aggregation = "max",
        **options: Unpack[ConvOptions],
    ) -> None:
        conv = _Conv(in_channels, out_channels, kernel_size, 1, **options)
        super().__init__(conv, in_channels, agg)


class AxialSelfAttention(_SetMap):
    r"""Self-attention along each axis, aggregated over axes.

    Its cost per position is :math:`\sum_i d_i`, compared with :math:`\prod_i d_i` for attention
    between all positions. On a field with one axis, it is ordinary self-attention.

    :param int channels: number of channels.
    :param int num_heads: number of heads, which divides ``channels``.
    :param str agg: how axes are aggregated: ``"max"``, ``"mean"`` or ``"sum"``.
    :param int max_distance: each head learns a bias for each relative position up to this distance;
        beyond it, all positions count as equally far. With ``None``, positions do not matter.
    :raises ValueError: if numbers are out of range.

    Example::

        >>> AxialSelfAttention(8, num_heads=2)(torch.randn(2, 5, 6, 8)).shape
        torch.Size([2, 5, 6, 8])
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 4,
        agg: Aggregation = "mean",
        max_distance: int | None = None,
    ) -> None:
        checks.integer("num_heads", num_heads, 1)
        if checks.integer("channels", channels, 1) % num_heads:
            raise ValueError(f"num_heads must divide channels={channels}, got {num_heads}")
        checks.optional(checks.integer, "max_distance", max_distance, 1)
        super().__init__(_Attention(channels, num_heads, max_distance), channels, agg)


class _Attention(nn.Module):
    """Self-attention of lines of positions."""

    def __init__(self, channels: int, num_heads: int, max_distance: int | None) -> None:
        super().__init__()
        self.num_heads, self.max_distance = num_heads, max_distance
        self.project, self.output = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        if max_distance is not None:
            self.bias = nn.Parameter(torch.zeros(num_heads, 2 * max_distance + 1))

    def forward(self, inputs: Tensor) -> Tensor:
        heads = self.project(inputs).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mask = None
        if self.max_distance is not None:
            place, far = torch.arange(inputs.shape[1], device=inputs.device), self.max_distance
            mask = self.bias[:, (place - place[:, None]).clamp(-far, far) + far]
        found = functional.scaled_dot_product_attention(query, key, value, mask)
        result: Tensor = self.output(found.transpose(1, 2).flatten(-2))
        return result


class AxialLift(nn.Module):
    r"""Turn a field into one feature field for each axis, by a convolution over pairs of axes.

    .. math:: h_i = \bigoplus_{j \ne i} \mathrm{Pool}(\mathrm{Conv2d}(x \text{ on } (j, i)))

    All :math:`K (K - 1)` ordered pairs share the same convolution. Unlike a set-based layer, it
    distinguishes an axis from its neighbors. A field with one axis is repeated along a new axis,
    which is averaged out afterward.

    :param int in_channels: number of channels of an input.
    :param int out_channels: number of channels of a feature.
    :param int kernel_size: size of the kernel, ``stride`` plus an even number.
    :param str agg: how neighbors are aggregated: ``"max"``, ``"mean"`` or ``"sum"``.
    :param options: keyword arguments of :class:`AxialConv`.
    :raises ValueError: for numbers out of range.

    Example::

        >>> AxialLift(1, 8)(torch.randn(2, 5, 6, 7, 1)).shape
        torch.Size([2, 3, 5, 6, 7, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        agg: Aggregation = "max",
        **options: Unpack[ConvOptions],
    ) -> None:
        super().__init__()
        self.operator = _Conv(in_channels, out_channels, kernel_size, 2, **options)
        checks.choice("agg", agg, get_args(Aggregation))
        self.in_channels, self.kernel_size, self.agg = in_channels, kernel_size, agg

    def forward(self, inputs: Tensor) -> Tensor:
        """Lift.

        :param Tensor inputs: a field. **Shape:** ``(batch, *spatial, in_channels)``.
        :returns: **Shape:** ``(batch, K, *new_spatial, out_channels)``.
        """
        _check("inputs", inputs, self.in_channels, self.operator)
        inputs = inputs.to(next(self.parameters()))
        axes = range(1, inputs.dim() - 1)
        if len(axes) == 1:
            wide = inputs[:, None].expand(-1, self.kernel_size, -1, -1)
            alone: Tensor = self.operator(wide)
            return alone.mean(1, keepdim=True)
        found = [{j: _along(self.operator, inputs, [j, i]) for j in axes if j != i} for i in axes]
        sizes = [next(iter(of.values())).shape[i] for i, of in enumerate(found, 1)]
        features = [
            _aggregate([_resize(one, sizes) for one in of.values()], self.agg) for of in found
        ]
        return torch.stack(features, 1)


class AxialGraphConv(nn.Module):
    r"""Pass messages between the feature fields of the axes, by two convolutions.

    .. math:: h_i' = \mathrm{Node}(h_i) \oplus \bigoplus_{j \ne i} \mathrm{Nhbr}(h_j)

    This is the graph-based layer. Each convolution runs along the axis of the feature field that it
    is applied to.

    :param int in_channels: number of channels of a feature.
    :param int out_channels: number of channels of a new feature.
    :param int kernel_size: size of both kernels, ``stride`` plus an even number.
    :param str agg: how messages are aggregated: ``"max"``, ``"mean"`` or ``"sum"``.
    :param options: keyword arguments of :class:`AxialConv`.
    :raises ValueError: for numbers out of range.

    Example::

        >>> AxialGraphConv(3, 8)(torch.randn(2, 2, 5, 6, 3)).shape
        torch.Size([2, 2, 5, 6, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        agg: Aggregation = "max",
        **options: Unpack[ConvOptions],
    ) -> None:
        super().__init__()
        self.node = _Conv(in_channels, out_channels, kernel_size, 1, **options)
        self.neighbor = _Conv(in_channels, out_channels, kernel_size, 1, **options)
        checks.choice("agg", agg, get_args(Aggregation))
        self.in_channels, self.agg = in_channels, agg

    def forward(self, features: Tensor) -> Tensor:
        """Pass messages.

        :param Tensor features: **Shape:** ``(batch, K, *spatial, in_channels)``.
        :returns: **Shape:** ``(batch, K, *new_spatial, out_channels)``.
        """
        _check("features", features, self.in_channels, self.node)
        features = features.to(next(self.parameters()))
        each = list(enumerate(features.unbind(1), 1))
        own = [_along(self.node, feature, [axis]) for axis, feature in each]
        sizes = [feature.shape[axis] for axis, feature in enumerate(own, 1)]
        own = [_resize(feature, sizes) for feature in own]
        if len(own) == 1:
            return own[0][:, None]
        sent = [_resize(_along(self.neighbor, feature, [axis]), sizes) for axis, feature in each]
        found = [
            _aggregate([node, *sent[:i], *sent[i + 1 :]], self.agg) for i, node in enumerate(own)
        ]
        return torch.stack(found, 1)


class AxialPool(nn.Module):
    """Turn one feature field for each axis into a single field, by aggregating over axes.

    :param str agg: ``"max"``, ``"mean"`` or ``"sum"``.

    Example::

        >>> AxialPool()(torch.randn(2, 2, 5, 6, 3)).shape
        torch.Size([2, 5, 6, 3])
    """

    def __init__(self, agg: Aggregation = "max") -> None:
        super().__init__()
        checks.choice("agg", agg, get_args(Aggregation))
        self.agg = agg

    def forward(self, features: Tensor) -> Tensor:
        """Aggregate.

        :param Tensor features: **Shape:** ``(batch, K, *spatial, channels)``.
        :returns: a field. **Shape:** ``(batch, *spatial, channels)``.
        """
        _check("features", features, None)
        return _aggregate(list(features.unbind(1)), self.agg)


class _AxialNetwork(nn.Module):
    """Axial layers, and a linear head on the maximum over all positions where one is wanted."""

    _first: Callable[..., nn.Module] = AxialConv
    _later: Callable[..., nn.Module] = AxialConv
    _channels = 64

    def __init__(
        self,
        in_channels: int,
        num_outputs: int | None = None,
        channels: int | None = None,
        num_layers: int = 5,
        kernel_size: int = 3,
        agg: Aggregation = "max",
        **options: Unpack[ConvOptions],
    ) -> None:
        super().__init__()
        channels = self._channels if channels is None else checks.integer("channels", channels, 1)
        checks.integer("num_layers", num_layers, 1)
        checks.optional(checks.integer, "num_outputs", num_outputs, 1)
        layers: list[nn.Module] = []
        for width in [in_channels] + [channels] * (num_layers - 1):
            layer = self._later if layers else self._first
            layers.append(layer(width, channels, kernel_size, agg, **options))
        self.in_channels, self.backbone = in_channels, nn.Sequential(*layers)
        if self._later is AxialGraphConv:
            self.backbone.append(AxialPool(agg))
        self.head = None if num_outputs is None else nn.Linear(channels, num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs of each field.

        :param Tensor inputs: **Shape:** ``(batch, *spatial, in_channels)``.
        :returns: **Shape:** ``(batch, num_outputs)``, or that of a field with ``channels``.
        """
        _check("inputs", inputs, self.in_channels)
        checks.all_finite("inputs", inputs)
        inputs = inputs.to(next(self.parameters()))
        field: Tensor = self.backbone(inputs)
        return field if self.head is None else self.head(field.flatten(1, -2).amax(1))


class SXCNN(_AxialNetwork):
    """Set-based network for fields with any number of axes: convolutions along each axis.

    The layers are :class:`AxialConv`: the same convolution, norm over channels and ReLU for each
    axis, then the maximum over axes. A classifier ends with the maximum over all positions and a
    linear layer. It is a plain module, so it works with :class:`~pyro_ext.nn.BayesianModule` and
    guides.

    :param int in_channels: number of channels of a field.
    :param int num_outputs: number of outputs, such as classes; with ``None``, the output is a
        field.
    :param int channels: width of all layers. Default: 64.
    :param int num_layers: number of layers.
    :param int kernel_size: an odd number.
    :param str agg: how axes are aggregated: ``"max"``, ``"mean"`` or ``"sum"``.
    :param options: keyword arguments of :class:`AxialConv`.
    :raises ValueError: for numbers out of range.

    Example::

        >>> network = SXCNN(1, 10)
        >>> network(torch.randn(2, 8, 8, 1)).shape, network(torch.randn(2, 4, 5, 6, 1)).shape
        (torch.Size([2, 10]), torch.Size([2, 10]))
    """


class GXCNN(_AxialNetwork):
    """Graph-based network for fields with any number of axes: a lift and messages between axes.

    An :class:`AxialLift` computes a feature field for each axis from pairs of axes. The other
    layers are :class:`AxialGraphConv`, and the network ends like :class:`SXCNN`. A field with one
    axis has no pairs, so a network trained on images needs some tuning for it.

    :param int in_channels: number of channels of a field.
    :param int num_outputs: number of outputs, such as classes; with ``None``, the output is a
        field.
    :param int channels: width of all layers. Default: 32.
    :param int num_layers: number of layers, including the lift; the paper's public code has 3.
    :param int kernel_size: an odd number.
    :param str agg: how axes are aggregated: ``"max"``, ``"mean"`` or ``"sum"``.
    :param options: keyword arguments of :class:`AxialConv`.
    :raises ValueError: for numbers out of range.

    Example::

        >>> network = GXCNN(1, 10)
        >>> network(torch.randn(2, 8, 8, 1)).shape, network(torch.randn(2, 4, 5, 6, 1)).shape
        (torch.Size([2, 10]), torch.Size([2, 10]))
    """

    _first, _later, _channels = AxialLift, AxialGraphConv, 32


def check_axis_equivariance(
    module: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    *,
    tolerance: float = 1e-5,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> float:
    r"""Compare the outputs of a module on a field under every order of the field's axes.

    Outputs that are fields must satisfy :math:`f(\Pi x) = \Pi f(x)`; outputs without axes must not
    depend on the order. Use axes of different sizes, or a wrong order may go unnoticed.

    :param module: a function from a field to a field, or to outputs of shape ``(batch, size)``.
    :param shape: the shape of the field, ``(batch, *spatial, channels)``.
    :param float tolerance: the allowed difference, relative to the largest output if that is above
        one.
    :param torch.dtype dtype: the type of the field.
    :param int seed: the seed of the field, which is standard normal.
    :returns: the largest difference.
    :raises AssertionError: if the difference exceeds ``tolerance``.

    Example::

        >>> check_axis_equivariance(GXCNN(3, channels=4), (2, 4, 5, 6, 3)) < 1e-5
        True
    """
    checks.function("module", module, "a module or a function of a field", or_class=False)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(
            f"dtype must be a type of floating-point numbers, got {checks.shown(dtype)}"
        )
    size = checks.as_size("shape", shape)
    if len(size) < 3 or not size.numel():
        raise ValueError(f"shape must be (batch, *spatial, channels), got {tuple(size)}")
    checks.number("tolerance", tolerance, above=0)
    with seeded(checks.integer("seed", seed, 0)):
        field = torch.randn(size, dtype=dtype)
    if isinstance(module, nn.Module):
        field = field.to(next((one.device for one in module.parameters()), None))
    worst = 0.0
    with torch.no_grad():
        outputs = module(field)
        is_tensor = isinstance(outputs, Tensor) and outputs.is_floating_point()
        if not is_tensor or outputs.dim() not in (2, len(size)) or len(outputs) != len(field):
            raise ValueError(
                f"module must map a field to a field or to (batch, size), "
                f"got {checks.shown(outputs)}"
            )
        for order in permutations(range(1, len(size) - 1)):
            order = (0, *order, len(size) - 1)
            expected = outputs.permute(order) if outputs.dim() == len(size) else outputs
            found = module(field.permute(order))
            is_other = found.shape != expected.shape
            error = torch.inf if is_other else float((found - expected).abs().max())
            worst = error if not error <= worst else worst  # a NaN counts as a large difference
            allowed = tolerance * max(1.0, float(expected.abs().max()))
            if not error <= allowed:
                raise AssertionError(
                    f"outputs with the axes in the order {order[1:-1]} differ by {error:.3g}, "
                    f"more than {allowed:.3g}: shapes {tuple(found.shape)} and "
                    f"{tuple(expected.shape)}"
                )
    return worst


def _along(operator: nn.Module, inputs: Tensor, axes: list[int]) -> Tensor:
    """Apply along some axes, with all others as a batch, and put the axes back."""
    places = list(range(-1 - len(axes), -1))
    moved = inputs.movedim(axes, places)
    others = moved.shape[: -1 - len(axes)]
    found: Tensor = operator(moved.flatten(0, len(others) - 1)).unflatten(0, others)
    return found.movedim(places, axes)


def _resize(field: Tensor, sizes: list[int]) -> Tensor:
    """Bring axes to new sizes, by averages where they shrink and by repetition where they grow."""
    for axis, size in enumerate(sizes, 1):
        if field.shape[axis] != size:
            lines = field.movedim(axis, -1)
            new = functional.adaptive_avg_pool1d(lines.flatten(0, -3), size)
            field = new.unflatten(0, lines.shape[:-2]).movedim(-1, axis)
    return field


def _aggregate(parts: list[Tensor], agg: Aggregation) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    together = torch.stack(parts)
    if agg == "max":
        return together.amax(0)
    return together.mean(0) if agg == "mean" else together.sum(0)


def _check(
    argument: str, value: Any, channels: int | None, operator: nn.Module | None = None
) -> None:
    """Check the shape of a field, or of the feature fields of all its axes."""
    checks.instance(argument, value, Tensor, "a tensor")
    is_field, shape = argument == "inputs", value.shape
    is_right = len(shape) >= 3 if is_field else len(shape) >= 4 and shape[1] == len(shape) - 3
    if not is_right or 0 in shape[1:] or channels not in (None, shape[-1]):
        axes = "*spatial" if is_field else "K, *spatial"
        raise ValueError(
            f"{argument} must have the shape (batch, {axes}, {channels or 'channels'}) with K >= 1 "
            f"axes in spatial, got {tuple(shape)}"
        )
    least = operator.least_size if isinstance(operator, _Conv) else 1
    if min(shape[1 if is_field else 2 : -1]) < least:
        raise ValueError(
            f"{argument} must have axes of size at least {least} for the kernel, got {tuple(shape)}"
        )
    if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
        raise TypeError(f"{argument} must be floating-point numbers, got {checks.shown(value)}")
