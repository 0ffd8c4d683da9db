"""Latent neural processes: a normal latent variable for each function.

Numbers in brackets refer to the papers in the docstring of the package.
"""

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import pyro_method
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.models.neural_processes.batch import Batch, Points
from pyro_ext.models.neural_processes.networks import (
    CrossAttentionEncoder,
    Decoder,
    PoolingEncoder,
    SetEncoder,
    side_by_side,
)
from pyro_ext.models.neural_processes.process import (
    NeuralProcess,
    log_mean_exp,
    points_log_prob,
    standard_normal,
)

_LEAST_SCALE = 0.1


class LatentProcess(NeuralProcess):
    r"""A latent neural process made of two encoders and a decoder.

    The second encoder gives the distribution of the latent variable, :math:`q(z \mid \cdot) =
    \mathcal{N}(\mu, \sigma^2)` with :math:`\sigma = 0.1 + 0.9\, \mathrm{sigmoid}(s)`. Given the
    context it is the prior, and given all points the posterior. The loss is the importance-weighted
    bound

    .. math:: -\frac{1}{n} \log \frac{1}{K} \sum_{k=1}^{K}
        \frac{p(y \mid x, z_k)\, q(z_k \mid \text{context})}{q(z_k \mid \text{all})}, \qquad
        z_k \sim q(\cdot \mid \text{all}).

    With one draw, its mean is the usual bound with the divergence between the two distributions.

    :param SetEncoder encoder: encoder of the context.
    :param PoolingEncoder latent_encoder: encoder of the context and of all points; its
        representation is :math:`(\mu, s)`.
    :param int width: width of the decoder.
    """

    def __init__(
        self, encoder: SetEncoder, latent_encoder: PoolingEncoder, width: int = 128
    ) -> None:
        checks.instance("encoder", encoder, SetEncoder, "a SetEncoder")
        checks.instance("latent_encoder", latent_encoder, SetEncoder, "a SetEncoder")
        super().__init__(encoder.x_dim, encoder.y_dim)
        self.latent_features = latent_encoder.width // 2
        self.encoder = encoder
        self.latent_encoder = latent_encoder
        features = encoder.width + self.latent_features
        self.decoder = Decoder(features, self.x_dim, self.y_dim, width)

    @pyro_method
    def guide(
        self,
        context_inputs: Tensor,
        context_outputs: Tensor,
        target_inputs: Tensor,
        target_outputs: Tensor | None = None,
        *,
        context_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Tensor:
        """The guide for the Pyro model: the site ``"z"``, given all points.

        Arguments are as for :meth:`NeuralProcess.forward`. Without target outputs, it is given only
        the context, which makes it the prior.

        :returns: values of ``"z"``. **Shape:** ``(num_tasks, 1, latent_features)``.
        """
        points = self._points("context", context_inputs, context_outputs, context_mask)
        if target_outputs is not None:
            points = points + self._points("target", target_inputs, target_outputs, target_mask)
        with pyro.plate("task", len(context_inputs), dim=-2):
            return self._sites(points)

    def loss(
        self, batch: Batch, num_samples: int = 4, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Compute the importance-weighted bound, see :meth:`NeuralProcess.loss`."""
        checks.integer("num_samples", num_samples, 1)
        points = batch.points
        prior, posterior = self._latent(batch.context), self._latent(points)
        latents = _drawn(posterior, num_samples, generator)
        prediction = self._condition(batch.context, points.inputs, latents)
        log_weights = points_log_prob(prediction, points).sum(-1)
        difference = prior.log_prob(latents) - posterior.log_prob(latents)
        log_weights = log_weights + difference.sum((-2, -1))
        return -(log_mean_exp(log_weights) / points.presence().sum(-1).clamp(min=1)).mean()

    def _condition(self, context: Points, target_inputs: Tensor, drawn: Tensor | None) -> Normal:
        assert drawn is not None
        representation = self.encoder(context.inputs, context.outputs, target_inputs, context.mask)
        prediction: Normal = self.decoder(side_by_side([representation, drawn]), target_inputs)
        return prediction

    def _draw(self, context: Points, num_samples: int, generator: torch.Generator | None) -> Tensor:
        return _drawn(self._latent(context), num_samples, generator)

    def _sites(self, context: Points) -> Tensor:
        latents: Tensor = pyro.sample("z", self._latent(context).to_event(1))
        return latents

    def _latent(self, points: Points) -> Normal:
        """**Shape:** ``(num_tasks, 1, latent_features)``."""
        raw = self.latent_encoder(points.inputs, points.outputs, points.inputs, points.mask)
        mean, scale = raw.chunk(2, -1)
        scale = _LEAST_SCALE + (1 - _LEAST_SCALE) * torch.sigmoid(scale)
        return Normal(mean, scale, validate_args=False)


class NP(LatentProcess):
    """A neural process with a latent variable [2], and a deterministic path, as in [4].

    :param int x_dim: number of features of an input.
    :param int y_dim: number of features of an output.
    :param int width: width of all layers, and size of the latent variable.

    Example::

        >>> process = NP(width=16)
        >>> x, y = torch.randn(4, 3, 1), torch.randn(4, 3, 1)
        >>> process.predict(x, y, torch.randn(4, 9, 1), num_samples=5).mean.shape
        torch.Size([5, 4, 9, 1])
    """

    _has_attention = False

    def __init__(self, x_dim: int = 1, y_dim: int = 1, width: int = 128) -> None:
        encoder = CrossAttentionEncoder if self._has_attention else PoolingEncoder
        sizes = x_dim, y_dim, checks.integer("width", width, 1)
        super().__init__(
            encoder(*sizes),
            PoolingEncoder(*sizes, out_features=2 * width, self_attention=self._has_attention),
            width,
        )


class ANP(NP):
    """A neural process with a latent variable and attention [3].

    :param int x_dim: number of features of an input.
    :param int y_dim: number of features of an output.
    :param int width: width of all layers, a multiple of the 8 heads, and size of the latent
        variable.

    Example::

        >>> process = ANP(width=16)
        >>> x, y = torch.randn(4, 3, 1), torch.randn(4, 3, 1)
        >>> process.predict(x, y, torch.randn(4, 9, 1), num_samples=5).mean.shape
        torch.Size([5, 4, 9, 1])
    """

    _has_attention = True


def _drawn(distribution: Normal, num_samples: int, generator: torch.Generator | None) -> Tensor:
    mean = distribution.mean
    noise = standard_normal(mean, num_samples, *mean.shape, generator=generator)
    return mean + distribution.stddev * noise
