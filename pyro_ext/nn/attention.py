"""Attention of one set to another, which sees neither the order of keys nor padding."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_ext._checks import check_integer

__all__ = ["MAB", "Scaling"]

Scaling = Literal["width", "head"]


class MAB(nn.Module):
    r"""Multihead attention block: elements of one set look at those of another [1].

    With queries :math:`q`, keys :math:`k` and values :math:`v`, which are projections without
    biases, cut into heads of equal width,

    .. math::
        o &= \mathrm{LN}\bigl(q + \mathrm{softmax}(q k^\top / \sqrt{d})\, v\bigr), \\
        \text{output} &= \mathrm{LN}\bigl(o + \mathrm{relu}(W o + b)\bigr).

    Padding has no influence, whatever is in it: neither a number nor a NaN. Where a set of keys is
    empty or all padding, the attention is zero and the output is that of the query alone.

    :param int query_features: number of features of a query.
    :param int key_features: number of features of a key.
    :param int width: number of features of an output, a multiple of ``num_heads``.
    :param int num_heads: number of heads.
    :param int value_features: number of features of a value; by default that of a key.
    :param str scaling: whether :math:`d` is the full ``"width"``, as in [1], or that of a
        ``"head"``, as in [2].
    :param bool layer_norm: whether to normalize; otherwise :math:`\mathrm{LN}` is the identity.
    :raises ValueError: for arguments out of range.

    [1] J. Lee, Y. Lee, J. Kim, A. R. Kosiorek, S. Choi, Y. W. Teh (2019),
    Set Transformer: a framework for attention-based permutation-invariant neural networks.

    [2] A. Vaswani, N. Shazeer, N. Parmar, J. Uszkoreit, L. Jones, A. N. Gomez, L. Kaiser,
    I. Polosukhin (2017), Attention is all you need.

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
        value_features: int | None = None,
        scaling: Scaling = "width",
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        check_integer("query_features", query_features, 1)
        check_integer("key_features", key_features, 1)
        if value_features is None:
            value_features = key_features
        check_integer("value_features", value_features, 1)
        check_integer("width", width, 1)
        self.num_heads = check_integer("num_heads", num_heads, 1)
        if width % num_heads:
            raise ValueError(f"width must be a multiple of num_heads={num_heads}, got {width}")
        if scaling not in get_args(Scaling):
            raise ValueError(f"scaling must be one of {get_args(Scaling)}, got {scaling!r:.80}")
        self.scaling = scaling
        self.query = nn.Linear(query_features, width, bias=False)
        self.key = nn.Linear(key_features, width, bias=False)
        self.value = nn.Linear(value_features, width, bias=False)
        self.feedforward = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width) if layer_norm else nn.Identity()
        self.output_norm = nn.LayerNorm(width) if layer_norm else nn.Identity()

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor | None = None,
        key_mask: Tensor | None = None,
    ) -> Tensor:
        """Let queries look at keys. Leading dimensions broadcast.

        :param Tensor queries: **Shape:** ``(*batch, num_queries, query_features)``.
        :param Tensor keys: **Shape:** ``(*batch, num_keys, key_features)``.
        :param Tensor values: by default the keys. **Shape:**
            ``(*batch, num_keys, value_features)``.
        :param Tensor key_mask: bool, true for keys that are there and false for padding.
            **Shape:** ``(*batch, num_keys)``.
        :returns: **Shape:** ``(*batch, num_queries, width)``.
        """
        if values is None:
            values = keys
        self._check(queries, keys, values, key_mask)
        if key_mask is not None:
            keys = keys.masked_fill(~key_mask[..., None], 0)
            values = values.masked_fill(~key_mask[..., None], 0)
        projected = self.query(queries)
        attention = self._attention(projected, self.key(keys), self.value(values), key_mask)
        hidden = self.attention_norm(projected + attention)
        outputs: Tensor = self.output_norm(hidden + functional.relu(self.feedforward(hidden)))
        return outputs

    def extra_repr(self) -> str:
        """What the module shows of itself."""
        return f"num_heads={self.num_heads}, scaling={self.scaling!r}"

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        num_queries, width = query.shape[-2:]
        shapes = [query.shape[:-2], key.shape[:-2], value.shape[:-2]]
        shapes += [] if mask is None else [mask.shape[:-1]]
        batch_shape = torch.broadcast_shapes(*shapes)
        query, key, value = (self._heads(part, batch_shape) for part in (query, key, value))
        attended = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else _for_every_query(mask, batch_shape),
            scale=(width if self.scaling == "width" else width // self.num_heads) ** -0.5,
        )
        return attended.transpose(1, 2).reshape(*batch_shape, num_queries, width)

    def _heads(self, part: Tensor, batch_shape: torch.Size) -> Tensor:
        """As ``(batch, num_heads, size, width of a head)``."""
        part = part.expand(*batch_shape, *part.shape[-2:])
        size, width = part.shape[-2:]
        flat = part.reshape(math.prod(batch_shape), size, self.num_heads, width // self.num_heads)
        return flat.transpose(1, 2)

    def _check(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> None:
        for argument, tensor, layer in (
            ("queries", queries, self.query),
            ("keys", keys, self.key),
            ("values", values, self.value),
        ):
            if tensor.dim() < 2 or tensor.shape[-1] != layer.in_features:
                raise ValueError(
                    f"{argument} must have the shape (*batch, size, {layer.in_features}), got "
                    f"{tuple(tensor.shape)}"
                )
        if values.shape[-2] != keys.shape[-2]:
            raise ValueError(
                f"values must be as many as the {keys.shape[-2]} keys, got {values.shape[-2]}"
            )
        if mask is not None and (mask.dtype != torch.bool or mask.shape[-1:] != keys.shape[-2:-1]):
            raise ValueError(
                f"key_mask must be a bool tensor of the shape (*batch, {keys.shape[-2]}), got "
                f"{mask.dtype} of the shape {tuple(mask.shape)}"
            )


def _for_every_query(mask: Tensor, batch_shape: torch.Size) -> Tensor:
    """As ``(batch, 1 head, 1 query, num_keys)``.

    A row of padding alone lets all of it in, whose values are zeros; what it would get if it let
    nothing in is up to the backend.
    """
    allowed = mask | ~mask.any(-1, keepdim=True)
    return allowed.expand(*batch_shape, -1).reshape(math.prod(batch_shape), 1, 1, -1)
