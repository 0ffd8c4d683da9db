"""Attention between and within sets, which depends on neither order nor padding."""

import math
from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_ext._lib import checks

_LEAST_WEIGHT = 1e-5  # of a key in the sum that weights over queries are divided by

Scaling = Literal["width", "head"]
Residual = Literal["projection", "input"]
Normalization = Literal["keys", "queries"]


class AttentionOptions(TypedDict, total=False):
    """Keyword arguments of all blocks; see :class:`MAB`."""

    scaling: Scaling
    layer_norm: bool
    bias: bool
    dropout: float
    residual: Residual
    normalize: Normalization


def check_heads(argument: str, width: int, num_heads: int) -> None:
    """Check that the number of heads divides the width of an attention block."""
    checks.integer(argument, width, 1)
    if width % checks.integer("num_heads", num_heads, 1):
        raise ValueError(f"{argument} must be a multiple of num_heads={num_heads}, got {width}")


class MAB(nn.Module):
    r"""Multihead attention block: elements of one set attend to those of another [1].

    With queries :math:`q`, keys :math:`k` and values :math:`v`, which are linear projections, split
    into heads of equal width,

    .. math::
        o &= \mathrm{LN}\bigl(q + \mathrm{softmax}(q k^\top / \sqrt{d})\, v\bigr), \\
        \text{output} &= \mathrm{LN}\bigl(o + \mathrm{relu}(W o + b)\bigr),

    as in the code of [1]. ``residual="input"`` follows the text of [1]: the input itself replaces
    its projection :math:`q` in the sum, the attention is projected once more, and there are two
    layers instead of the last one. The values of padding do not matter, even if they are NaN. If
    there are no keys or all are padding, the attention is zero and the output depends on the query
    alone.

    :param int query_features: number of features of a query.
    :param int key_features: number of features of a key.
    :param int width: number of features of an output, a multiple of ``num_heads``.
    :param int num_heads: number of heads.
    :param str scaling: whether :math:`d` is the full ``"width"``, as in [1], or the width of a
        ``"head"``, as in [2].
    :param bool layer_norm: whether to normalize; otherwise :math:`\mathrm{LN}` is the identity.
    :param bool bias: whether the projections have biases, as in the code of [1].
    :param float dropout: the probability of dropping an attention weight during training.
    :param str residual: what the attention is added to: the ``"projection"`` of the query, or the
        ``"input"`` itself, which must then have ``width`` features.
    :param str normalize: whether the softmax runs over ``"keys"`` or ``"queries"``. With
        ``"queries"``, they compete for keys, and the weights are then divided by their sum over
        keys, as in [3].

    [1] J. Lee, Y. Lee, J. Kim, A. R. Kosiorek, S. Choi, Y. W. Teh (2019),
    Set Transformer: a framework for attention-based permutation-invariant neural networks.

    [2] A. Vaswani, N. Shazeer, N. Parmar, J. Uszkoreit, L. Jones, A. N. Gomez, L. Kaiser,
    I. Polosukhin (2017), Attention is all you need.

    [3] F. Locatello, D. Weissenborn, T. Unterthiner, A. Mahendran, G. Heigold, J. Uszkoreit,
    A. Dosovitskiy, T. Kipf (2020), Object-centric learning with slot attention.

    Example::

        >>> block = MAB(query_features=3, key_features=2, width=16, num_heads=4)
        >>> block(torch.zeros(5, 4, 3), torch.zeros(5, 7, 2)).shape
        torch.Size([5, 4, 16])
    """

    def __init__(
        self,
        query_features: int,
        key_features: int,
        width: int,
        num_heads: int = 8,
        *,
        scaling: Scaling = "width",
        layer_norm: bool = True,
        bias: bool = False,
        dropout: float = 0.0,
        residual: Residual = "projection",
        normalize: Normalization = "keys",
    ) -> None:
        super().__init__()
        checks.integer("query_features", query_features, 1)
        checks.integer("key_features", key_features, 1)
        check_heads("width", width, num_heads)
        self.num_heads = num_heads
        checks.choice("scaling", scaling, get_args(Scaling))
        checks.boolean("bias", bias)
        self.scaling, self.residual, self.normalize = scaling, residual, normalize
        self.dropout = checks.number("dropout", dropout, least=0, below=1)
        checks.choice("residual", residual, get_args(Residual))
        checks.choice("normalize", normalize, get_args(Normalization))
        self.query = nn.Linear(query_features, width, bias)
        self.key = nn.Linear(key_features, width, bias)
        self.value = nn.Linear(key_features, width, bias)
        self.feedforward: nn.Module = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        if residual == "input":
            if query_features != width:
                raise ValueError(
                    f"query_features must be width={width} with residual='input', got "
                    f"{query_features}"
                )
            self.output = nn.Linear(width, width, bias)
            self.feedforward.append(nn.Linear(width, width))
        norm = nn.LayerNorm if checks.boolean("layer_norm", layer_norm) else nn.Identity
        self.attention_norm, self.output_norm = norm(width), norm(width)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor | None = None,
        key_mask: Tensor | None = None,
    ) -> Tensor:
        """Let queries attend to keys. Leading dimensions broadcast.

        :param Tensor queries: **Shape:** ``(*batch, num_queries, query_features)``.
        :param Tensor keys: **Shape:** ``(*batch, num_keys, key_features)``.
        :param Tensor values: the values. Default: the keys. **Shape:**
            ``(*batch, num_keys, key_features)``.
        :param Tensor key_mask: booleans, true for actual keys and false for padding.
            **Shape:** ``(*batch, num_keys)``.
        :returns: **Shape:** ``(*batch, num_queries, width)``.
        """
        values = keys if values is None else values
        self._check(queries, keys, values, key_mask)
        keys, values = _filled(keys, key_mask), _filled(values, key_mask)
        projected = self.query(queries)
        value = _filled(self.value(values), key_mask)  # biases, too
        attention = self._attention(projected, self.key(keys), value, key_mask)
        if self.residual == "input":
            hidden = self.attention_norm(queries + self.output(attention))
        else:
            hidden = self.attention_norm(projected + attention)
        outputs: Tensor = self.output_norm(hidden + self.feedforward(hidden))
        return outputs

    def weights(self, queries: Tensor, keys: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Return the attention weights of queries over keys, per head and without dropout.

        :param queries: as in :meth:`forward`, and so are the keys and their mask.
        :returns: the weights, zero for padding. They sum to one over the keys, if there are any.
            **Shape:** ``(*batch, num_heads, num_queries, num_keys)``.
        """
        self._check(queries, keys, None, key_mask)
        query, key = self.query(queries), self.key(_filled(keys, key_mask))
        batch_shape, mask = self._batch((query, key), key_mask)
        query, key = self._heads(query, batch_shape), self._heads(key, batch_shape)
        weights = self._weights(query, key, mask)
        return weights.reshape(*batch_shape, *weights.shape[1:])

    def extra_repr(self) -> str:
        """Return the settings for the module's ``repr``."""
        return f"num_heads={self.num_heads}, scaling={self.scaling!r}"

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        num_queries, width = query.shape[-2:]
        batch_shape, mask = self._batch((query, key, value), mask)
        query, key, value = (self._heads(part, batch_shape) for part in (query, key, value))
        dropout = self.dropout if self.training else 0.0
        if self.normalize == "queries":
            attended = functional.dropout(self._weights(query, key, mask), dropout) @ value
        else:
            if mask is not None:
                # A row of padding alone lets in all of its zeros; backends differ without keys.
                mask = mask | ~mask.any(-1, keepdim=True)
            attended = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=dropout, scale=self._scale
            )
        return attended.transpose(1, 2).reshape(*batch_shape, num_queries, width)

    def _weights(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """Weights of keys, zero for padding, as ``(batch, num_heads, num_queries, num_keys)``."""
        scores = self._scale * query @ key.transpose(-2, -1)
        present = scores.new_ones(()) if mask is None else mask.to(scores)
        if self.normalize == "queries":
            weights = scores.softmax(-2)
            total = ((weights + _LEAST_WEIGHT) * present).sum(-1, keepdim=True)
            return weights * present / total.clamp(min=_LEAST_WEIGHT)  # there may be no keys
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return scores.softmax(-1) * present

    @property
    def _scale(self) -> float:
        width = self.query.out_features
        return float((width if self.scaling == "width" else width // self.num_heads) ** -0.5)

    def _batch(
        self, parts: Sequence[Tensor], mask: Tensor | None
    ) -> tuple[torch.Size, Tensor | None]:
        """Shape of the batch, and the mask as ``(batch, 1 head, 1 query, num_keys)``."""
        shapes = [part.shape[:-2] for part in parts] + ([] if mask is None else [mask.shape[:-1]])
        shapes = [shape for shape in shapes if shape] or [torch.Size()]
        batch_shape = shapes[0]
        if any(shape != batch_shape for shape in shapes):  # to broadcast takes long, and is rare
            batch_shape = torch.broadcast_shapes(*shapes)
        if mask is not None:
            mask = mask.expand(*batch_shape, -1).reshape(math.prod(batch_shape), 1, 1, -1)
        return batch_shape, mask

    def _heads(self, part: Tensor, batch_shape: torch.Size) -> Tensor:
        """As ``(batch, num_heads, size, width of a head)``."""
        part = part.expand(*batch_shape, *part.shape[-2:])
        size, width = part.shape[-2:]
        flat = part.reshape(math.prod(batch_shape), size, self.num_heads, width // self.num_heads)
        return flat.transpose(1, 2)

    def _check(
        self, queries: Tensor, keys: Tensor, values: Tensor | None, mask: Tensor | None
    ) -> None:
        for argument, tensor, layer in (
            ("queries", queries, self.query),
            ("keys", keys, self.key),
            ("values", values, self.value),
        ):
            size = layer.in_features
            fits = isinstance(tensor, Tensor) and tensor.shape[1:][-1:] == (size,)
            if tensor is not None and (not fits or tensor.is_complex()):
                checks.as_tensor(argument, tensor, f"(*batch, size, {size})", allow_empty=True)
        if values is not None and values.shape[-2] != keys.shape[-2]:
            raise ValueError(
                f"values must be as many as the {keys.shape[-2]} keys, got {values.shape[-2]}"
            )
        if mask is not None and (mask.dtype != torch.bool or mask.shape[-1:] != keys.shape[-2:-1]):
            raise ValueError(
                f"key_mask must be a bool tensor of the shape (*batch, {keys.shape[-2]}), got "
                f"{mask.dtype} of the shape {tuple(mask.shape)}"
            )


class SAB(nn.Module):
    r"""Set attention block: elements of a set attend to each other, :math:`\mathrm{MAB}(X, X)` [1].

    :param int in_features: number of features of an element.
    :param int width: number of features of an output, a multiple of ``num_heads``.
    :param int num_heads: number of heads.
    :param options: ``scaling``, ``layer_norm``, ``bias``, ``dropout`` and the other options of
        :class:`MAB`.

    [1] See :class:`MAB`.

    Example::

        >>> SAB(3, 16, num_heads=4)(torch.zeros(5, 7, 3)).shape
        torch.Size([5, 7, 16])
    """

    def __init__(
        self, in_features: int, width: int, num_heads: int = 8, **options: Unpack[AttentionOptions]
    ) -> None:
        super().__init__()
        checks.integer("in_features", in_features, 1)
        self.block = MAB(in_features, in_features, width, num_heads, **options)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let the elements attend to each other.

        :param Tensor inputs: **Shape:** ``(*batch, size, in_features)``.
        :param Tensor mask: booleans, false for padding, whose outputs are meaningless. **Shape:**
            ``(*batch, size)``.
        :returns: **Shape:** ``(*batch, size, width)``.
        """
        inputs = _filled(inputs, mask)
        outputs: Tensor = self.block(inputs, inputs, key_mask=mask)
        return outputs


class InducedSetAttention(nn.Module):
    r"""Attention within a set through a second set, the inducing points [1].

    .. math:: H = \mathrm{MAB}(I, X), \qquad \text{output} = \mathrm{MAB}(X, H).

    Permuting the elements :math:`X` permutes the outputs; the order of the inducing points
    :math:`I` does not matter. :class:`ISAB` learns the inducing points. If they are data, this is a
    function of one set given another: it turns noise :math:`X` into exchangeable features given a
    context :math:`I`, as in the generator of :class:`~pyro_ext.models.neural_processes.MPNP` [2].

    :param int in_features: number of features of an element.
    :param int inducing_features: number of features of an inducing point.
    :param int width: number of features of an output, a multiple of ``num_heads``.
    :param int num_heads: number of heads.
    :param options: ``scaling``, ``layer_norm``, ``bias``, ``dropout`` and the other options of
        :class:`MAB`. With ``normalize="queries"``, only the inducing points compete.

    [1] See :class:`MAB`.

    [2] H. Lee, E. Yun, G. Nam, E. Fong, J. Lee (2023), Martingale posterior neural processes.

    Example::

        >>> attention = InducedSetAttention(3, 2, 16, num_heads=4)
        >>> noise, context = torch.randn(5, 10, 3), torch.zeros(5, 7, 2)
        >>> attention(noise, context).shape
        torch.Size([5, 10, 16])
    """

    def __init__(
        self,
        in_features: int,
        inducing_features: int,
        width: int,
        num_heads: int = 8,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__()
        checks.integer("in_features", in_features, 1)
        checks.integer("inducing_features", inducing_features, 1)
        self.gather = MAB(inducing_features, in_features, width, num_heads, **options)
        self.spread = MAB(
            in_features, width, width, num_heads, **(options | AttentionOptions(normalize="keys"))
        )

    def forward(
        self,
        inputs: Tensor,
        inducing_points: Tensor,
        mask: Tensor | None = None,
        inducing_mask: Tensor | None = None,
    ) -> Tensor:
        """Let the elements attend to each other through the inducing points.

        :param Tensor inputs: the elements. **Shape:** ``(*batch, size, in_features)``.
        :param Tensor inducing_points: **Shape:** ``(*batch, num_inducing, inducing_features)``.
        :param Tensor mask: booleans, false for padding among the elements, whose outputs are
            meaningless. **Shape:** ``(*batch, size)``.
        :param Tensor inducing_mask: booleans, false for padding among the inducing points.
            **Shape:** ``(*batch, num_inducing)``.
        :returns: **Shape:** ``(*batch, size, width)``.
        """
        inputs = _filled(inputs, mask)
        inducing_points = _filled(inducing_points, inducing_mask)
        gathered = self.gather(inducing_points, inputs, key_mask=mask)
        outputs: Tensor = self.spread(inputs, gathered, key_mask=inducing_mask)
        return outputs


class ISAB(nn.Module):
    r"""Induced set attention block: attention within a set in linear time [1].

    It is :class:`InducedSetAttention` with learned inducing points.

    :param int in_features: number of features of an element.
    :param int width: number of features of an output, a multiple of ``num_heads``.
    :param int num_inducing: number of inducing points.
    :param int num_heads: number of heads.
    :param options: ``scaling``, ``layer_norm``, ``bias``, ``dropout`` and the other options of
        :class:`MAB`.

    [1] See :class:`MAB`.

    Example::

        >>> ISAB(3, 16, num_inducing=4)(torch.zeros(5, 7, 3)).shape
        torch.Size([5, 7, 16])
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        num_inducing: int,
        num_heads: int = 8,
        **options: Unpack[AttentionOptions],
    ) -> None:
        checks.integer("width", width, 1)
        super().__init__()
        checks.integer("num_inducing", num_inducing, 1)
        self.attention = InducedSetAttention(in_features, width, width, num_heads, **options)
        self.inducing_points = _learned_points(num_inducing, width)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let the elements attend to each other; arguments and result are those of :class:`SAB`."""
        outputs: Tensor = self.attention(inputs, self.inducing_points, mask)
        return outputs


class PMA(nn.Module):
    r"""Pooling by attention of learned seeds to a set, :math:`\mathrm{MAB}(S, X)` [1].

    It does not include the row-wise network that [1] applies first; neither does their code.

    :param int in_features: number of features of an element.
    :param int width: number of features of an output, a multiple of ``num_heads``.
    :param int num_seeds: number of outputs.
    :param int num_heads: number of heads.
    :param options: ``scaling``, ``layer_norm``, ``bias``, ``dropout`` and the other options of
        :class:`MAB`.

    [1] See :class:`MAB`.

    Example::

        >>> PMA(3, 16, num_seeds=2)(torch.zeros(5, 7, 3)).shape
        torch.Size([5, 2, 16])
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        num_seeds: int = 1,
        num_heads: int = 8,
        **options: Unpack[AttentionOptions],
    ) -> None:
        checks.integer("width", width, 1)
        super().__init__()
        checks.integer("in_features", in_features, 1)
        checks.integer("num_seeds", num_seeds, 1)
        self.block = MAB(width, in_features, width, num_heads, **options)
        self.seeds = _learned_points(num_seeds, width)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool a set.

        :param Tensor inputs: **Shape:** ``(*batch, size, in_features)``.
        :param Tensor mask: booleans, false for padding. **Shape:** ``(*batch, size)``.
        :returns: **Shape:** ``(*batch, num_seeds, width)``.
        """
        outputs: Tensor = self.block(self.seeds, inputs, key_mask=mask)
        return outputs


def _learned_points(number: int, width: int) -> nn.Parameter:
    points = nn.Parameter(torch.empty(number, width))
    nn.init.xavier_uniform_(points)
    return points


def _filled(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros for padding, so that not even a NaN in it reaches a gradient."""
    return inputs if mask is None else inputs.masked_fill(~mask[..., None], 0)
