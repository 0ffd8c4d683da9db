"""The Set Transformer and Deep Sets: from a set to one or several outputs.

Numbers in brackets refer to the papers in the docstring of the package.
"""

from functools import partial
from typing import Any, Literal, Unpack, get_args

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.nn import ISAB, MLP, PMA, SAB
from pyro_ext.nn.attention import AttentionOptions, check_heads

Encoder = Literal["isab", "sab", "rff"]
Pooling = Literal["mean", "sum", "max"]
AnyPooling = Literal["pma", "mean", "sum", "max"]


class SetTransformer(nn.Module):
    r"""Network from a set to one or several outputs, by attention between its elements [3].

    .. math:: \text{output} = W\, \mathrm{SAB}(\mathrm{SAB}(\mathrm{PMA}_k(
        \mathrm{ISAB}_m(\mathrm{ISAB}_m(X))))) + b

    The order of elements does not matter, and an empty set also has an output. Blocks are those of
    the code of [3]: with biases, without layer norms. ``encoder`` and ``pooling`` also provide the
    baselines of [3]: with ``"rff"`` and ``"mean"``, the network is a :class:`DeepSet`.

    :param int input_size: number of features of an element.
    :param int num_outputs: number of outputs of a set, :math:`k`.
    :param int output_size: number of features of an output.
    :param int hidden_size: width of all blocks, a multiple of ``num_heads``.
    :param int num_heads: number of heads of each attention.
    :param int num_inducing: number of inducing points of each ``"isab"`` block.
    :param str encoder: ``"isab"`` for attention through inducing points, in linear time; ``"sab"``
        for attention between all elements, in quadratic time; or ``"rff"`` for a network of each
        element alone.
    :param str pooling: ``"pma"`` for attention of learned seeds, ``"mean"``, ``"sum"`` or
        ``"max"``.
    :param int num_encoder_blocks: number of blocks before the pooling; without attention, each has
        two layers.
    :param int num_decoder_blocks: after ``"pma"``, the number of :class:`~pyro_ext.nn.SAB` blocks:
        by default 2, as in the code of [3], or none for a single output, which has no other output
        to attend to. After another pooling, half the number of layers, by default 4 layers.
    :param options: ``layer_norm``, ``bias``, ``dropout`` and other options of
        :class:`~pyro_ext.nn.MAB`.
    :raises ValueError: for arguments out of range.

    Example::

        >>> network = SetTransformer(2, num_outputs=4, output_size=5, hidden_size=16)
        >>> mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
        >>> network(torch.zeros(2, 7, 2), mask).shape
        torch.Size([2, 4, 5])
    """

    def __init__(
        self,
        input_size: int,
        num_outputs: int,
        output_size: int,
        hidden_size: int = 128,
        num_heads: int = 4,
        num_inducing: int = 32,
        encoder: Encoder = "isab",
        pooling: AnyPooling = "pma",
        *,
        num_encoder_blocks: int = 2,
        num_decoder_blocks: int | None = None,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__()
        self.input_size = checks.integer("input_size", input_size, 1)
        self.num_outputs = checks.integer("num_outputs", num_outputs, 1)
        self.output_size = checks.integer("output_size", output_size, 1)
        checks.integer("hidden_size", hidden_size, 1)
        checks.choice("encoder", encoder, get_args(Encoder))
        checks.choice("pooling", pooling, get_args(AnyPooling))
        check_heads("hidden_size", hidden_size, num_heads)
        checks.integer("num_inducing", num_inducing, 1)
        checks.integer("num_encoder_blocks", num_encoder_blocks, 1)
        checks.optional(checks.integer, "num_decoder_blocks", num_decoder_blocks, 0)
        options = AttentionOptions(layer_norm=False, bias=True) | options
        attend = partial(SAB, width=hidden_size, num_heads=num_heads, **options)
        sizes = [input_size] + [hidden_size] * (num_encoder_blocks - 1)
        blocks: list[nn.Module]
        if encoder == "isab":
            blocks = [ISAB(size, hidden_size, num_inducing, num_heads, **options) for size in sizes]
        elif encoder == "sab":
            blocks = [attend(size) for size in sizes]
        else:
            blocks = [_Rows(input_size, hidden_size, 2 * num_encoder_blocks)]
        decoder: list[nn.Module]
        if pooling == "pma":
            if num_decoder_blocks is None:
                num_decoder_blocks = 0 if num_outputs == 1 else 2
            self.pooling: Any = PMA(hidden_size, hidden_size, num_outputs, num_heads, **options)
            decoder = [attend(hidden_size) for _ in range(num_decoder_blocks)]
            decoder.append(nn.Linear(hidden_size, output_size))
        else:
            self.pooling = _Pool(pooling)
            num_layers = 4 if num_decoder_blocks is None else max(2 * num_decoder_blocks, 1)
            decoder = [_layers(hidden_size, hidden_size, num_outputs * output_size, num_layers)]
        self.encoder: Any = nn.ModuleList(blocks)
        self.decoder = nn.Sequential(*decoder)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map sets to outputs.

        :param Tensor x: the elements. **Shape:** ``(*batch, n, input_size)``.
        :param Tensor mask: booleans, true for elements and false for padding, which has no
            influence. **Shape:** ``(*batch, n)``.
        :returns: **Shape:** ``(*batch, num_outputs, output_size)``.
        :raises TypeError: for anything but a tensor, such as a list of sets of different sizes.
        :raises ValueError: for tensors of another shape, or elements that are not finite.
        """
        own = next(self.parameters())
        hidden = checks.as_tensor(
            "x", x, f"(*batch, n, {self.input_size})", allow_empty=True, like=own
        )
        if mask is not None:
            shape = str(tuple(hidden.shape[:-1]))
            mask = checks.as_tensor("mask", mask, shape, kind="booleans", allow_empty=True)
            mask = mask.to(own.device)
            hidden = hidden.masked_fill(~mask[..., None], 0)
        checks.all_finite("x", hidden)
        for block in self.encoder:
            hidden = block(hidden, mask)
        outputs: Tensor = self.decoder(self.pooling(hidden, mask))
        return outputs.reshape(*hidden.shape[:-2], self.num_outputs, self.output_size)


class DeepSet(SetTransformer):
    r"""Network from a set to one or several outputs, by pooling of its elements [4].

    .. math:: \text{output} = \rho\Bigl(\textstyle\sum_{x \in X} \phi(x)\Bigr)

    or with the mean or maximum instead of the sum; :math:`\phi` and :math:`\rho` have four layers
    each, as in the code of [3]. The pool of an empty set is zero.

    :param int input_size: number of features of an element.
    :param int num_outputs: number of outputs of a set.
    :param int output_size: number of features of an output.
    :param int hidden_size: width of all layers.
    :param str pooling: ``"mean"``, ``"sum"`` or ``"max"``.
    :raises ValueError: for arguments out of range.

    Example::

        >>> DeepSet(2, num_outputs=1, output_size=3, pooling="max")(torch.zeros(2, 7, 2)).shape
        torch.Size([2, 1, 3])
    """

    def __init__(
        self,
        input_size: int,
        num_outputs: int,
        output_size: int,
        hidden_size: int = 128,
        pooling: Pooling = "mean",
    ) -> None:
        checks.choice("pooling", pooling, get_args(Pooling))
        sizes = input_size, num_outputs, output_size, hidden_size
        super().__init__(*sizes, num_heads=1, encoder="rff", pooling=pooling)


class _Rows(nn.Module):
    """A network of each element alone."""

    def __init__(self, in_features: int, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = _layers(in_features, width, width, num_layers)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return outputs


class _Pool(nn.Module):
    """Mean, sum or maximum of the elements that are there, zero of none."""

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """As one row."""
        present = None if mask is None else mask[..., None]
        if self.pooling == "max":
            if present is not None:
                inputs = inputs.masked_fill(~present, -torch.inf)
            if not inputs.shape[-2]:
                return inputs.new_zeros(*inputs.shape[:-2], 1, inputs.shape[-1])
            largest = inputs.amax(-2, keepdim=True)
            return largest if present is None else largest.masked_fill(largest.isneginf(), 0)
        if self.pooling == "mean":
            number = inputs.shape[-2] if present is None else present.sum(-2, keepdim=True)
            weights = 1 / torch.as_tensor(number).clamp(min=1).to(inputs)
        else:
            weights = inputs.new_ones(())
        if present is not None:
            inputs = inputs.masked_fill(~present, 0)
        pooled: Tensor = (weights * inputs).sum(-2, keepdim=True)
        return pooled


def _layers(in_features: int, width: int, out_features: int, num_layers: int) -> MLP:
    return MLP(in_features, [width] * (num_layers - 1), out_features, nn.ReLU)
