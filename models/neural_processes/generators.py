"""Generators of pseudo contexts: what a network thinks the unseen points could be."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pyro_ext._checks import check_instance, check_integer, check_number
from pyro_ext.models.neural_processes.encoders import SetEncoder
from pyro_ext.nn import MLP, InducedSetAttention

__all__ = ["InputGenerator", "PseudoContextGenerator", "RepresentationGenerator"]


class PseudoContextGenerator(nn.Module, ABC):
    r"""Maps noise and the features of a context to the features of pseudo points.

    The pseudo points are exchangeable given the context: permuted noise gives permuted points, and
    the order of the context does not matter.

    :param int noise_features: number of features of a row of noise.
    """

    def __init__(self, noise_features: int) -> None:
        super().__init__()
        self.noise_features = check_integer("noise_features", noise_features, 1)

    @abstractmethod
    def forward(
        self, noise: Tensor, features: Tensor, encoder: SetEncoder, mask: Tensor | None = None
    ) -> Tensor:
        """Generate.

        :param Tensor noise: standard normal. **Shape:** ``(*batch, num_pseudo, noise_features)``.
        :param Tensor features: of the context. **Shape:** ``(*batch, n, num_features)``.
        :param SetEncoder encoder: that they come from.
        :param Tensor mask: bool, false for padding of the context. **Shape:** ``(*batch, n)``.
        :returns: **Shape:** ``(*batch, num_pseudo, num_features)``.
        """


class RepresentationGenerator(PseudoContextGenerator):
    r"""Generates the features of pseudo points directly [1].

    Noise :math:`E` attends to itself by way of the features :math:`R` of the context,

    .. math:: H = \mathrm{MAB}(R, E), \qquad R' = \mathrm{MAB}(E, H),

    which is :class:`~pyro_ext.nn.InducedSetAttention`. All features of a point come from the same
    attention, so that keys and values of an encoder that attends go together.

    :param SetEncoder encoder: whose features are generated.
    :param int num_heads: heads of the attention.
    :param bool layer_norm: whether its blocks normalize. At first normalized rows are large beside
        those of a context, and networks then learn to ignore what they cannot rely on.

    [1] H. Lee, E. Yun, G. Nam, E. Fong, J. Lee (2023), Martingale posterior neural processes.

    Example::

        >>> from pyro_ext.models.neural_processes import PoolingEncoder
        >>> encoder = PoolingEncoder(1, 1, width=16)
        >>> generator = RepresentationGenerator(encoder)
        >>> features = encoder.features(torch.zeros(5, 7, 1), torch.zeros(5, 7, 1))
        >>> generator(torch.randn(5, 10, 16), features, encoder).shape
        torch.Size([5, 10, 16])
    """

    def __init__(
        self, encoder: SetEncoder, num_heads: int = 8, *, layer_norm: bool = False
    ) -> None:
        check_instance("encoder", encoder, SetEncoder, "a SetEncoder")
        size = encoder.num_features
        super().__init__(size)
        self.attention = InducedSetAttention(size, size, size, num_heads, layer_norm=layer_norm)

    def forward(
        self, noise: Tensor, features: Tensor, encoder: SetEncoder, mask: Tensor | None = None
    ) -> Tensor:
        """Generate, as :meth:`PseudoContextGenerator.forward`."""
        generated: Tensor = self.attention(noise, features, inducing_mask=mask)
        return generated


class InputGenerator(PseudoContextGenerator):
    r"""Generates pairs of inputs and outputs, and encodes them as the context is encoded [1].

    Noise attends to itself by way of the context, as in :class:`RepresentationGenerator`. An input
    is a linear map of its row of noise, squashed to the range of inputs; the output is a network of
    that input and of what the row has become.

    :param SetEncoder encoder: whose features are generated.
    :param float low: the lowest input.
    :param float high: the highest input.
    :param int num_heads: heads of the attention.
    :param bool layer_norm: whether its blocks normalize. At first normalized rows are large beside
        those of a context, and networks then learn to ignore what they cannot rely on.
    :raises ValueError: where the range is empty.

    [1] H. Lee, E. Yun, G. Nam, E. Fong, J. Lee (2023), Martingale posterior neural processes.

    Example::

        >>> from pyro_ext.models.neural_processes import PoolingEncoder
        >>> encoder = PoolingEncoder(1, 1, width=16)
        >>> generator = InputGenerator(encoder, low=0.0, high=1.0)
        >>> features = encoder.features(torch.zeros(5, 7, 1), torch.zeros(5, 7, 1))
        >>> generator(torch.randn(5, 10, 16), features, encoder).shape
        torch.Size([5, 10, 16])
    """

    def __init__(
        self,
        encoder: SetEncoder,
        low: float = -2.0,
        high: float = 2.0,
        num_heads: int = 8,
        *,
        layer_norm: bool = False,
    ) -> None:
        check_instance("encoder", encoder, SetEncoder, "a SetEncoder")
        size = encoder.num_features
        super().__init__(size)
        self.low = check_number("low", low)
        self.high = check_number("high", high, above=low)
        self.attention = InducedSetAttention(size, size, size, num_heads, layer_norm=layer_norm)
        self.to_inputs = nn.Linear(size, encoder.x_dim)
        self.to_outputs = MLP(size + encoder.x_dim, [size], encoder.y_dim, nn.ReLU)

    def forward(
        self, noise: Tensor, features: Tensor, encoder: SetEncoder, mask: Tensor | None = None
    ) -> Tensor:
        """Generate, as :meth:`PseudoContextGenerator.forward`."""
        return encoder.features(*self.pairs(noise, features, mask))

    def pairs(
        self, noise: Tensor, features: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Inputs and outputs of pseudo points.

        :param Tensor noise: standard normal. **Shape:** ``(*batch, num_pseudo, noise_features)``.
        :param Tensor features: of the context. **Shape:** ``(*batch, n, num_features)``.
        :param Tensor mask: bool, false for padding of the context. **Shape:** ``(*batch, n)``.
        :returns: **Shape:** ``(*batch, num_pseudo, x_dim)`` and ``(*batch, num_pseudo, y_dim)``.
        """
        attended = self.attention(noise, features, inducing_mask=mask)
        middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        inputs = middle + half * torch.tanh(self.to_inputs(noise))
        outputs: Tensor = self.to_outputs(torch.cat([attended, inputs], -1))
        return inputs, outputs
