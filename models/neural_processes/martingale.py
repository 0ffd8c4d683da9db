"""Martingale posterior neural processes: functions are as uncertain as the unseen points.

Numbers in brackets refer to the papers in the docstring of the package.
"""

from collections.abc import Callable, Sequence

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.models.neural_processes.batch import Batch, Points
from pyro_ext.models.neural_processes.networks import (
    Decoder,
    SetEncoder,
    attentive_encoder,
    pooling_encoder,
)
from pyro_ext.models.neural_processes.process import (
    NeuralProcess,
    log_mean_exp,
    points_log_prob,
    standard_normal,
)
from pyro_ext.nn import InducedSetAttention


class RepresentationGenerator(nn.Module):
    r"""Generates the features of pseudo points directly [5].

    Noise :math:`E` attends to itself through the features :math:`R` of the context,

    .. math:: H = \mathrm{MAB}(R, E), \qquad R' = \mathrm{MAB}(E, H),

    which is :class:`~pyro_ext.nn.InducedSetAttention`. All features of a point come from the same
    attention, so that keys and values for an attentive encoder match. The blocks do not normalize:
    normalized rows are initially large compared to those of a context, and networks then learn to
    ignore them.

    :param SetEncoder encoder: the encoder whose features are generated.
    :param int num_heads: number of attention heads.

    Example::

        >>> from pyro_ext.models.neural_processes import PoolingEncoder
        >>> encoder = PoolingEncoder(1, 1, width=16)
        >>> generator = RepresentationGenerator(encoder)
        >>> features = encoder.features(torch.zeros(5, 7, 1), torch.zeros(5, 7, 1))
        >>> generator(torch.randn(5, 10, 16), features).shape
        torch.Size([5, 10, 16])
    """

    def __init__(self, encoder: SetEncoder, num_heads: int = 8) -> None:
        checks.instance("encoder", encoder, SetEncoder, "a SetEncoder")
        super().__init__()
        size = encoder.num_features
        self.attention = InducedSetAttention(size, size, size, num_heads, layer_norm=False)

    def forward(self, noise: Tensor, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Generate features of pseudo points.

        The pseudo points are exchangeable given the context: permuted noise gives permuted points,
        and the order of the context does not matter.

        :param Tensor noise: standard normal. **Shape:** ``(*batch, num_pseudo, num_features)``.
        :param Tensor features: features of the context. **Shape:** ``(*batch, n, num_features)``.
        :param Tensor mask: booleans, false for padding of the context. **Shape:** ``(*batch, n)``.
        :returns: **Shape:** as the noise.
        """
        generated: Tensor = self.attention(noise, features, inducing_mask=mask)
        return generated


class MartingalePosteriorProcess(NeuralProcess):
    r"""A martingale posterior neural process made of an encoder, a decoder and a generator.

    Given the context :math:`Z_c`, the generator turns noise into the features of :math:`N'` pseudo
    points. Together with the features of the context, they are encoded to
    :math:`\theta(Z_c \cup Z')`, one function for each draw of noise. The loss is the mean over
    tasks of :math:`w_1 L_\text{marg} + w_2 L_\text{amort} + w_3 L_\text{pseudo}`, with

    .. math::
        L_\text{marg} &= -\tfrac1n \log \tfrac1K \textstyle\sum_k
            \prod_i p(y_i \mid x_i, \theta(Z_c \cup Z'_k)), \\
        L_\text{amort} &= -\tfrac1n \textstyle\sum_i \log p(y_i \mid x_i, \theta(Z_c)), \\
        L_\text{pseudo} &= -\tfrac1{nK} \textstyle\sum_k \sum_i
            \log p(y_i \mid x_i, \theta(Z'_k)),

    over all points, including those of the context. Without pseudo points there is no
    :math:`L_\text{pseudo}`.

    :param SetEncoder encoder: encoder of the context.
    :param int width: width of the decoder.
    :param int num_pseudo: :math:`N'`; use the same number for training and predictions.
    :param Sequence weights: :math:`w_1, w_2, w_3`.
    :param Callable generator: makes the generator from the encoder.
    """

    def __init__(
        self,
        encoder: SetEncoder,
        width: int = 128,
        *,
        num_pseudo: int = 10,
        weights: Sequence[float] = (1.0, 1.0, 1.0),
        generator: Callable[[SetEncoder], RepresentationGenerator] = RepresentationGenerator,
    ) -> None:
        checks.instance("encoder", encoder, SetEncoder, "a SetEncoder")
        super().__init__(encoder.x_dim, encoder.y_dim)
        self.num_pseudo = checks.integer("num_pseudo", num_pseudo, 0)
        checks.function("generator", generator, "a class of generators or a function of an encoder")
        weights = checks.sequence("weights", weights, "three numbers")
        if len(weights) != 3:
            raise ValueError(f"weights must be three numbers, got {weights!r:.80}")
        self.weights = tuple(
            checks.number(f"weights[{i}]", weight, least=0) for i, weight in enumerate(weights)
        )
        self.encoder = encoder
        self.decoder = Decoder(encoder.width, self.x_dim, self.y_dim, width)
        self.generator = generator(encoder)

    def loss(
        self, batch: Batch, num_samples: int = 5, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Compute the weighted sum of the three losses, see :meth:`NeuralProcess.loss`."""
        parts = self.losses(batch, num_samples, generator=generator)
        terms = [weight * part for weight, part in zip(self.weights, parts, strict=True) if weight]
        return torch.stack(terms).sum(0) if terms else torch.zeros_like(parts[0])

    def losses(
        self, batch: Batch, num_samples: int = 5, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""Compute the losses one by one; those of weight zero are zero.

        :param Batch batch: the tasks.
        :param int num_samples: :math:`K`.
        :param torch.Generator generator: generator for the noise; by default PyTorch's own.
        :returns: :math:`L_\text{marg}`, :math:`L_\text{amort}` and :math:`L_\text{pseudo}`,
            scalars.
        """
        checks.integer("num_samples", num_samples, 1)
        context, points = batch.context, batch.points
        number = points.presence().sum(-1).clamp(min=1)
        features = self.encoder.features(*context)
        noise = self._draw(context, num_samples, generator)
        pseudo = self._generate(noise, features, context.mask)

        def joint(features: Tensor, mask: Tensor | None) -> Tensor:
            """Log likelihood of all points of a task together."""
            prediction = self._decode(features, points.inputs, mask)
            return points_log_prob(prediction, points).sum(-1)

        marginal_weight, context_weight, pseudo_weight = self.weights
        marginal = amortized = alone = features.new_zeros(())
        if marginal_weight:
            together = joint(*_union(features, pseudo, context.mask))
            marginal = -(log_mean_exp(together) / number).mean()
        if context_weight:
            amortized = -(joint(features, context.mask) / number).mean()
        if pseudo_weight and self.num_pseudo:
            alone = -(joint(pseudo, None) / number).mean()
        return marginal, amortized, alone

    def _condition(self, context: Points, target_inputs: Tensor, drawn: Tensor | None) -> Normal:
        assert drawn is not None
        features = self.encoder.features(*context)
        pseudo = self._generate(drawn, features, context.mask)
        union, mask = _union(features, pseudo, context.mask)
        return self._decode(union, target_inputs, mask)

    def _draw(self, context: Points, num_samples: int, generator: torch.Generator | None) -> Tensor:
        shape = num_samples, len(context.inputs), *self._noise_shape
        return standard_normal(context.inputs, *shape, generator=generator)

    def _sites(self, context: Points) -> Tensor:
        zero = context.inputs.new_zeros(())
        distribution = Normal(zero, zero + 1).expand((len(context.inputs), 1, *self._noise_shape))
        noise: Tensor = pyro.sample("noise", distribution.to_event(2))
        return noise.squeeze(-3)

    @property
    def _noise_shape(self) -> tuple[int, int]:
        return self.num_pseudo, self.encoder.num_features

    def _generate(self, noise: Tensor, features: Tensor, mask: Tensor | None) -> Tensor:
        pseudo: Tensor = self.generator(noise, features, mask)
        return pseudo

    def _decode(self, features: Tensor, target_inputs: Tensor, mask: Tensor | None) -> Normal:
        representation = self.encoder.summarize(features, target_inputs, mask)
        prediction: Normal = self.decoder(representation, target_inputs)
        return prediction


class MPNP(MartingalePosteriorProcess):
    """A martingale posterior neural process [5], with the encoders of :class:`CNP`.

    :param int x_dim: number of features of an input.
    :param int y_dim: number of features of an output.
    :param int width: width of all layers, a multiple of 4, because 8 heads share the features of
        two encoders.
    :param int num_pseudo: number of pseudo points; use the same number for training and
        predictions.
    :param Sequence weights: weights of the three losses, see :class:`MartingalePosteriorProcess`.
        For short training, ``(1, 0.1, 0.1)`` is better.

    Example::

        >>> process = MPNP(width=16, num_pseudo=5)
        >>> x, y = torch.randn(4, 10, 1), torch.randn(4, 10, 1)
        >>> batch = Batch(x[:, :3], y[:, :3], x[:, 3:], y[:, 3:])
        >>> process.loss(batch, num_samples=5).shape
        torch.Size([])
        >>> process.predict(x[:, :3], y[:, :3], x, num_samples=50).mean.shape
        torch.Size([50, 4, 10, 1])
    """

    _encoder = staticmethod(pooling_encoder)

    def __init__(
        self,
        x_dim: int = 1,
        y_dim: int = 1,
        width: int = 128,
        *,
        num_pseudo: int = 10,
        weights: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        encoder = self._encoder(x_dim, y_dim, width)
        super().__init__(encoder, width, num_pseudo=num_pseudo, weights=weights)


class MPANP(MPNP):
    """A martingale posterior neural process with attention [5], with the encoders of :class:`CANP`.

    Pseudo points have keys and values for the targets' attention, and features that are pooled.

    Arguments are as for :class:`MPNP`, but ``width`` must be a multiple of the 8 heads.

    Example::

        >>> process = MPANP(width=16)
        >>> x, y = torch.randn(4, 3, 1), torch.randn(4, 3, 1)
        >>> process.predict(x, y, torch.randn(4, 9, 1), num_samples=5).mean.shape
        torch.Size([5, 4, 9, 1])
    """

    _encoder = staticmethod(attentive_encoder)


def _union(features: Tensor, pseudo: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Features of context and pseudo points, and the mask of both."""
    expanded = features.expand(*pseudo.shape[:-2], *features.shape[-2:])
    if mask is not None:
        present = mask.new_ones(*mask.shape[:-1], pseudo.shape[-2])
        mask = torch.cat([mask, present], -1)
    return torch.cat([expanded, pseudo], -2), mask
