r"""Many networks in one: members share a weight, and each has two vectors of factors.

[1] Y. Wen, D. Tran, J. Ba (2020),
BatchEnsemble: an alternative approach to efficient ensemble and lifelong learning.

[2] G. Nam, H. Lee, B. Heo, J. Lee (2022),
Improving ensemble distillation with weight averaging and diversifying perturbation.
"""

from copy import deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyro_ext._lib import checks


class _BatchEnsembleLayer(nn.Module):
    """Factors of inputs and outputs around an ordinary layer, which comes next among the bases."""

    weight: Tensor
    bias: Any
    in_factors: nn.Parameter
    out_factors: nn.Parameter
    _ordinary: type[nn.Module]
    _channel_dim: int

    @classmethod
    def _convert_(cls, layer: Any, num_members: int) -> None:
        """Make an ordinary layer one of this class, in place."""
        # PyTorch's parametrizations change a layer's class, too: its hooks, its mode and the names
        # by which others know it stay.
        layer.__class__ = cls
        layer._add_factors(num_members)

    def _add_factors(self, num_members: int) -> None:
        num_outputs, num_inputs = self.weight.shape[:2]
        num_inputs *= getattr(self, "groups", 1)
        self.in_factors = nn.Parameter(self.weight.new_ones(num_members, num_inputs))
        self.out_factors = nn.Parameter(self.weight.new_ones(num_members, num_outputs))

    @property
    def num_members(self) -> int:
        """Number of members."""
        return len(self.in_factors)

    def forward(self, inputs: Tensor) -> Tensor:
        """Run each member on its own rows.

        :param Tensor inputs: inputs of the ordinary layer: first all rows of the first member, then
            all of the second, and so on. **Shape:** ``(num_members * n, ...)``.
        :returns: outputs in the same order.
        """
        if inputs.dim() < 2 or len(inputs) % self.num_members:
            raise ValueError(
                f"inputs must have as many rows for each of num_members = {self.num_members}, got "
                f"the shape {tuple(inputs.shape)}"
            )
        outputs: Tensor = super().forward(self._scale(inputs, self.in_factors))
        return self._scale(outputs, self.out_factors)

    def _scale(self, rows: Tensor, factors: Tensor) -> Tensor:
        shape = [len(factors), *[1] * rows.dim()]
        shape[self._channel_dim] = -1
        blocks = rows.unflatten(0, (len(factors), len(rows) // len(factors)))
        scaled: Tensor = (blocks * factors.view(shape)).flatten(0, 1)
        return scaled

    def merge(self) -> Any:
        r"""Return an ordinary layer with the averaged factors, of weight
        :math:`\operatorname{diag}(\bar s) W \operatorname{diag}(\bar r)` and bias :math:`\bar s
        \circ b`.

        :returns: a new layer of the ordinary class.
        """  # noqa: D205
        return deepcopy(self)._merge_()

    @torch.no_grad()
    def _merge_(self) -> Self:
        """Make this an ordinary layer, in place."""
        scale, groups = self.out_factors.mean(0), getattr(self, "groups", 1)
        # A group of outputs sees inputs of its own.
        in_scale = self.in_factors.mean(0).view(groups, -1)
        in_scale = in_scale.repeat_interleave(len(scale) // groups, 0)
        rank_one = (scale[:, None] * in_scale).view(
            *self.weight.shape[:2], *[1] * (self.weight.dim() - 2)
        )
        # What shares the weight, as an embedding may, keeps it as it is.
        self.weight = nn.Parameter(rank_one * self.weight, self.weight.requires_grad)
        if self.bias is not None:
            self.bias = nn.Parameter(scale * self.bias, self.bias.requires_grad)
        del self.in_factors, self.out_factors
        self.__class__ = self._ordinary  # type: ignore[assignment]
        return self

    def extra_repr(self) -> str:
        """Return the settings for the module's ``repr``."""
        return f"{super().extra_repr()}, num_members={self.num_members}"


class BatchEnsembleLinear(_BatchEnsembleLayer, nn.Linear):
    r"""A linear layer for each member of an ensemble [1], :math:`s_m \circ (W (r_m \circ x) + b)`.

    Members share :math:`W` and :math:`b`. Each has factors of its own, ``in_factors`` :math:`r_m`
    and ``out_factors`` :math:`s_m`, and so the weight :math:`W \circ s_m r_m^\top`. All factors
    start at one: members are equal at first, and the averages of their factors are meaningful [2],
    which they would not be for random signs.

    :param int in_features: number of features of an input.
    :param int out_features: number of outputs.
    :param int num_members: number of members.
    :param options: the other arguments of :class:`torch.nn.Linear`, by name. The output factors
        apply to the bias as well.

    Example::

        >>> layer = BatchEnsembleLinear(3, 2, num_members=4)
        >>> layer(torch.randn(4 * 5, 3)).shape  # five rows for each member
        torch.Size([20, 2])
        >>> layer.merge()
        Linear(in_features=3, out_features=2, bias=True)
    """

    _ordinary, _channel_dim = nn.Linear, -1

    def __init__(
        self, in_features: int, out_features: int, num_members: int, **options: Any
    ) -> None:
        checks.integer("in_features", in_features, 1)
        checks.integer("out_features", out_features, 1)
        num_members = checks.integer("num_members", num_members, 1)
        nn.Linear.__init__(self, in_features, out_features, **options)
        self._add_factors(num_members)


class BatchEnsembleConv2d(_BatchEnsembleLayer, nn.Conv2d):
    r"""A convolution for each member of an ensemble, :math:`s_m \circ (W * (r_m \circ x) + b)` [1].

    It works like :class:`BatchEnsembleLinear`, with a factor for each channel.

    :param int in_channels: number of channels of an image.
    :param int out_channels: number of channels of an output.
    :param kernel_size: as in :class:`torch.nn.Conv2d`.
    :param int num_members: number of members.
    :param options: the other arguments of :class:`torch.nn.Conv2d`, by name.

    Example::

        >>> layer = BatchEnsembleConv2d(3, 2, 3, num_members=4, padding=1)
        >>> layer(torch.randn(4 * 5, 3, 8, 8)).shape
        torch.Size([20, 2, 8, 8])
        >>> layer.merge()
        Conv2d(3, 2, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """

    _ordinary, _channel_dim = nn.Conv2d, 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        num_members: int,
        **options: Any,
    ) -> None:
        checks.integer("in_channels", in_channels, 1)
        checks.integer("out_channels", out_channels, 1)
        num_members = checks.integer("num_members", num_members, 1)
        sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        height, width, *others = checks.sequence("kernel_size", sizes, "an integer or two", 2)
        if others:
            raise ValueError(f"kernel_size must be an integer or two, got {kernel_size}")
        height, width = (checks.integer("kernel_size", size, 1) for size in (height, width))
        nn.Conv2d.__init__(self, in_channels, out_channels, (height, width), **options)
        self._add_factors(num_members)


_LAYERS: dict[type[nn.Module], type[_BatchEnsembleLayer]] = {
    nn.Linear: BatchEnsembleLinear,
    nn.Conv2d: BatchEnsembleConv2d,
}


class BatchEnsemble(nn.Module):
    """An ensemble made from one network by adding factors to its linear layers and convolutions.

    In a copy of the network, layers of class :class:`torch.nn.Linear` or
    :class:`torch.nn.Conv2d`, but not of subclasses, become :class:`BatchEnsembleLinear` or
    :class:`BatchEnsembleConv2d`. The members share all other layers, such as norms; batch
    normalization sees the rows of all members. Nothing else may mix rows.

    All factors start at one, so that members are equal, and they stay equal if they see the same
    rows and labels. :class:`~pyro_ext.models.ensembles.BatchEnsembleDistiller` makes them differ.
    To train an ensemble on labels, first set :meth:`factors` to other values, such as random signs.

    :param torch.nn.Module network: a network that maps rows to rows, with at least one linear layer
        or convolution. It is not changed; the ensemble starts from its weights.
    :param int num_members: number of members.
    :raises ValueError: if the network has no such layers, or has factors already.

    Example::

        >>> from pyro_ext.nn import MLP
        >>> ensemble = BatchEnsemble(MLP(3, [8], 2), num_members=4)
        >>> ensemble(torch.randn(5, 3)).shape
        torch.Size([4, 5, 2])
        >>> ensemble.merge()
        MLP(
          (0): Linear(in_features=3, out_features=8, bias=True)
          (1): SiLU()
          (2): Linear(in_features=8, out_features=2, bias=True)
        )
    """

    def __init__(self, network: nn.Module, num_members: int) -> None:
        super().__init__()
        checks.instance("network", network, nn.Module, "a torch.nn.Module")
        self.num_members = checks.integer("num_members", num_members, 1)
        if any(isinstance(layer, _BatchEnsembleLayer) for layer in network.modules()):
            raise ValueError(
                "network must be an ordinary network, got one with layers of a batch ensemble"
            )
        layers = [layer for layer in network.modules() if type(layer) in _LAYERS]
        if not layers:
            raise ValueError(
                "network must have a torch.nn.Linear or torch.nn.Conv2d, of these classes and not "
                f"of subclasses; got {network!r:.80}"
            )
        for layer in layers:
            if "weight" not in layer._parameters:
                raise ValueError(
                    f"network must have layers whose weight is a parameter, got {layer!r} with the "
                    f"parameters {sorted(layer._parameters)}"
                )
        self.network = deepcopy(network)
        for layer in self.network.modules():
            if type(layer) in _LAYERS:
                _LAYERS[type(layer)]._convert_(layer, self.num_members)

    def forward(self, *inputs: Tensor, members: Any = None) -> Tensor:
        """Run members on the same inputs.

        :param Tensor inputs: arguments of the network. **Shape:** ``(n, ...)`` each.
        :param members: indices of the members to run. Default: all.
        :returns: **Shape:** ``(num_members, n, ...)``.
        """
        state, count = {}, self.num_members
        if members is not None:
            chosen = checks.sequence("members", members, "a list of numbers of members", kind=int)
            if not all(0 <= number < count for number in chosen):
                raise ValueError(f"members must lie in 0 .. {count - 1}, got {chosen}")
            state = {name: factor[chosen] for name, factor in self.factors().items()}
            count = len(chosen)
        rows = tuple(x.repeat(count, *[1] * (x.dim() - 1)) for x in inputs)
        # Tied weights would stay replaced where a layer has two names (PyTorch 2.13).
        outputs = functional_call(self.network, state, rows, tie_weights=False)
        if not isinstance(outputs, Tensor) or len(outputs) != len(rows[0]):
            raise ValueError(
                "network must return a tensor with a row for each row of its inputs, got "
                f"{tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs)} of "
                f"{len(rows[0])} rows"
            )
        return outputs.reshape(count, len(outputs) // count, *outputs.shape[1:])

    def factors(self) -> dict[str, nn.Parameter]:
        """Return all factors by their names in the network.

        :returns: **Shape:** ``(num_members, channels)`` each.
        """
        ends = ("in_factors", "out_factors")
        return {n: p for n, p in self.network.named_parameters() if n.rpartition(".")[2] in ends}

    def merge(self) -> Any:
        """Return a single network with the averaged factors, as cheap as the original one.

        It averages the factors, not the members' outputs or weights [2].

        :returns: a network of the original class with ordinary layers.
        """
        merged = deepcopy(self.network)
        for layer in list(merged.modules()):
            if isinstance(layer, _BatchEnsembleLayer):
                layer._merge_()
        return merged
