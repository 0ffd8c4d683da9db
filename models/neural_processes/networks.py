"""Encoders of contexts, and the decoder that turns a representation into a normal distribution.

Numbers in brackets refer to the papers in the docstring of the package.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import Normal
from torch import Tensor, nn
from torch.nn import functional

from pyro_ext._lib import checks
from pyro_ext.nn import MAB, MLP, SAB


class SetEncoder(nn.Module, ABC):
    """Base class of encoders in two parts; pseudo points can join a context between them.

    :param int x_dim: number of features of an input.
    :param int y_dim: number of features of an output.
    :param int num_features: number of features of a point.
    :param int width: number of features of a representation.
    """

    def __init__(self, x_dim: int, y_dim: int, num_features: int, width: int) -> None:
        checks.integer("width", width, 1)
        super().__init__()
        self.x_dim = checks.integer("x_dim", x_dim, 1)
        self.y_dim = checks.integer("y_dim", y_dim, 1)
        self.num_features = num_features
        self.width = width

    @abstractmethod
    def features(self, inputs: Tensor, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute features of each point.

        :param Tensor inputs: **Shape:** ``(*batch, n, x_dim)``.
        :param Tensor outputs: **Shape:** ``(*batch, n, y_dim)``.
        :param Tensor mask: booleans, false for padding. **Shape:** ``(*batch, n)``.
        :returns: **Shape:** ``(*batch, n, num_features)``.
        """

    @abstractmethod
    def summarize(
        self, features: Tensor, target_inputs: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Summarize points with these features for the decoder.

        :param Tensor features: **Shape:** ``(*batch, n, num_features)``.
        :param Tensor target_inputs: where to predict. **Shape:** ``(*batch, num_target, x_dim)``.
        :param Tensor mask: booleans, false for padding. **Shape:** ``(*batch, n)``.
        :returns: **Shape:** ``(*batch, num_target, width)``, or one row instead of ``num_target``
            if it is the same for all.
        """

    def forward(
        self, inputs: Tensor, outputs: Tensor, target_inputs: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Apply :meth:`features` and then :meth:`summarize`, with their shapes."""
        return self.summarize(self.features(inputs, outputs, mask), target_inputs, mask)


class PoolingEncoder(SetEncoder):
    r"""A network for each point, the mean over points, and a network applied to the mean [1].

    The mean of no points is zero.

    :param int x_dim: number of features of an input.
    :param int y_dim: number of features of an output.
    :param int width: width of all layers.
    :param int out_features: number of features of the representation; by default ``width``.
    :param bool self_attention: whether self-attention between points replaces the last two of the
        first network's four layers.
    :param int num_heads: number of heads of that attention.

    Example::

        >>> encoder = PoolingEncoder(1, 1, width=16)
        >>> encoder(torch.zeros(5, 7, 1), torch.zeros(5, 7, 1), torch.zeros(5, 9, 1)).shape
        torch.Size([5, 1, 16])
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        width: int = 128,
        *,
        out_features: int | None = None,
        self_attention: bool = False,
        num_heads: int = 8,
    ) -> None:
        checks.integer("width", width, 1)
        checks.integer("num_heads", num_heads, 1)
        checks.optional(checks.integer, "out_features", out_features, 1)
        super().__init__(x_dim, y_dim, width, width if out_features is None else out_features)
        self.before = _network(x_dim + y_dim, width, width, 2 if self_attention else 4)
        self.attention = SAB(width, width, num_heads) if self_attention else None
        self.after = _network(width, width, self.width, 2)

    def features(self, inputs: Tensor, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute features of each point, see :meth:`SetEncoder.features`."""
        found: Tensor = self.before(torch.cat([inputs, outputs], -1))
        return found if self.attention is None else self.attention(found, mask)

    def summarize(
        self, features: Tensor, target_inputs: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Compute one row for all targets, see :meth:`SetEncoder.summarize`."""
        summary: Tensor = self.after(_mean(features, mask))
        return summary


class CrossAttentionEncoder(SetEncoder):
    r"""Attention of targets to points; keys depend on inputs, values also on outputs [3].

    Values attend to each other. The features of a point are its key followed by its value.

    :param int x_dim: number of features of an input.
    :param int y_dim: number of features of an output.
    :param int width: width of all layers.
    :param int num_heads: number of attention heads.

    Example::

        >>> encoder = CrossAttentionEncoder(1, 1, width=16)
        >>> encoder(torch.zeros(5, 7, 1), torch.zeros(5, 7, 1), torch.zeros(5, 9, 1)).shape
        torch.Size([5, 9, 16])
    """

    def __init__(self, x_dim: int, y_dim: int, width: int = 128, *, num_heads: int = 8) -> None:
        checks.integer("width", width, 1)
        super().__init__(x_dim, y_dim, 2 * width, width)
        self.values = _network(x_dim + y_dim, width, width, 2)
        self.self_attention = SAB(width, width, num_heads)
        self.keys = _network(x_dim, width, width, 2)
        self.cross_attention = MAB(width, width, width, num_heads)

    def features(self, inputs: Tensor, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute key and value of each point, see :meth:`SetEncoder.features`."""
        values = self.self_attention(self.values(torch.cat([inputs, outputs], -1)), mask)
        return torch.cat([self.keys(inputs), values], -1)

    def summarize(
        self, features: Tensor, target_inputs: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Compute a row for each target, see :meth:`SetEncoder.summarize`."""
        keys, values = features.chunk(2, -1)
        summary: Tensor = self.cross_attention(self.keys(target_inputs), keys, values, mask)
        return summary


class JointEncoder(SetEncoder):
    """Several encoders side by side, whose features and representations are concatenated.

    :param Sequence encoders: encoders of the same inputs and outputs.

    Example::

        >>> encoder = JointEncoder([PoolingEncoder(1, 1, 16), CrossAttentionEncoder(1, 1, 16)])
        >>> encoder(torch.zeros(5, 7, 1), torch.zeros(5, 7, 1), torch.zeros(5, 9, 1)).shape
        torch.Size([5, 9, 32])
    """

    def __init__(self, encoders: Sequence[SetEncoder]) -> None:
        encoders = checks.sequence("encoders", encoders, "a list of encoders", kind=SetEncoder)
        kinds = {(encoder.x_dim, encoder.y_dim) for encoder in encoders}
        if len(kinds) != 1:
            raise ValueError(f"encoders must have the same x_dim and y_dim, got {sorted(kinds)}")
        sizes = [encoder.num_features for encoder in encoders]
        super().__init__(*kinds.pop(), sum(sizes), sum(encoder.width for encoder in encoders))
        self.parts: Any = nn.ModuleList(encoders)
        self._sizes = sizes

    def features(self, inputs: Tensor, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute features of each point, see :meth:`SetEncoder.features`."""
        return torch.cat([part.features(inputs, outputs, mask) for part in self.parts], -1)

    def summarize(
        self, features: Tensor, target_inputs: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Concatenate the rows of all encoders, see :meth:`SetEncoder.summarize`."""
        pairs = zip(self.parts, features.split(self._sizes, -1), strict=True)
        return side_by_side([part.summarize(own, target_inputs, mask) for part, own in pairs])


def pooling_encoder(x_dim: int, y_dim: int, width: int) -> SetEncoder:
    """The encoder of processes without attention: two that pool."""
    return JointEncoder([PoolingEncoder(x_dim, y_dim, width) for _ in range(2)])


def attentive_encoder(x_dim: int, y_dim: int, width: int) -> SetEncoder:
    """The encoder of processes with attention: one that attends and one that pools."""
    return JointEncoder(
        [
            CrossAttentionEncoder(x_dim, y_dim, width),
            PoolingEncoder(x_dim, y_dim, width, self_attention=True),
        ]
    )


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Features next to each other; all other dimensions broadcast."""
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, -1) for part in parts], -1)


def _network(in_features: int, width: int, out_features: int, num_layers: int) -> MLP:
    return MLP(in_features, [width] * (num_layers - 1), out_features, nn.ReLU)


def _mean(features: Tensor, mask: Tensor | None) -> Tensor:
    """Average over the rows that the mask keeps, as one row; zero if it keeps none."""
    if mask is None:
        return features.sum(-2, keepdim=True) / max(features.shape[-2], 1)
    total = features.masked_fill(~mask[..., None], 0).sum(-2, keepdim=True)
    return total / mask.sum(-1).clamp(min=1)[..., None, None]


_LEAST_SCALE = 0.1


class Decoder(nn.Module):
    r"""A network of three layers from representation and input to a normal distribution.

    With outputs :math:`(\mu, s)` of the network, it has mean :math:`\mu` and standard
    deviation :math:`\sigma = 0.1 + 0.9\, \mathrm{softplus}(s)`.

    :param int representation_features: number of features of a representation.
    :param int x_dim: number of features of an input.
    :param int y_dim: number of features of an output.
    :param int width: width of the hidden layers.
    :param bool with_addition: whether there is a second representation, which enters the first
        layer without a bias, such as the bootstrapped one of
        :class:`~pyro_ext.models.neural_processes.BNP`.

    Example::

        >>> decoder = Decoder(16, 1, 2)
        >>> decoder(torch.zeros(5, 1, 16), torch.zeros(5, 9, 1)).mean.shape
        torch.Size([5, 9, 2])
    """

    def __init__(
        self,
        representation_features: int,
        x_dim: int,
        y_dim: int,
        width: int = 128,
        *,
        with_addition: bool = False,
    ) -> None:
        checks.integer("x_dim", x_dim, 1)
        checks.integer("width", width, 1)
        super().__init__()
        checks.integer("representation_features", representation_features, 1)
        self.representation_features = representation_features
        self.y_dim = checks.integer("y_dim", y_dim, 1)
        self.first = nn.Linear(representation_features + x_dim, width)
        self.addition: nn.Linear | None = None
        if with_addition:
            self.addition = nn.Linear(representation_features, width, bias=False)
        self.rest = MLP(width, [width], 2 * y_dim, nn.ReLU)

    def forward(
        self, representation: Tensor, inputs: Tensor, addition: Tensor | None = None
    ) -> Normal:
        """Predict at inputs. Leading dimensions broadcast.

        :param Tensor representation: **Shape:** ``(*batch, n, representation_features)``, or one
            row instead of ``n`` if it is the same for all.
        :param Tensor inputs: **Shape:** ``(*batch, n, x_dim)``.
        :param Tensor addition: the second representation. **Shape:** as the first.
        :returns: **Shape:** ``(*batch, n, y_dim)``.
        """
        # Representation and input apart: much less work where all targets share the former.
        of_representation = self.first.weight[:, : self.representation_features]
        of_inputs = self.first.weight[:, self.representation_features :]
        hidden = functional.linear(representation, of_representation, self.first.bias)
        if addition is not None:
            assert self.addition is not None
            hidden = hidden + self.addition(addition)
        hidden = hidden + functional.linear(inputs, of_inputs)
        mean, raw = self.rest(functional.relu(hidden)).chunk(2, -1)
        scale = _LEAST_SCALE + (1 - _LEAST_SCALE) * functional.softplus(raw)
        return Normal(mean, scale, validate_args=False)
