"""Conditional and bootstrapping neural processes: deterministic, or with resampled contexts.

Numbers in brackets refer to the papers in the docstring of the package.
"""

import pyro
import torch
from pyro.distributions import Normal, Uniform
from torch import Tensor

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
    task_means,
)


class ConditionalProcess(NeuralProcess):
    r"""A conditional neural process made of an encoder and a decoder.

    The loss is the mean of :math:`-\log p(y_i \mid x_i, \text{context})` over points, including
    those of the context.

    :param SetEncoder encoder: encoder of the context.
    :param int width: width of the decoder.
    """

    def __init__(self, encoder: SetEncoder, width: int = 128) -> None:
        checks.instance("encoder", encoder, SetEncoder, "a SetEncoder")
        super().__init__(encoder.x_dim, encoder.y_dim)
        self.encoder = encoder
        self.decoder = Decoder(encoder.width, self.x_dim, self.y_dim, width)

    def loss(
        self, batch: Batch, num_samples: int = 1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Compute the mean negative log likelihood, see :meth:`NeuralProcess.loss`."""
        checks.integer("num_samples", num_samples, 1)
        checks.instance("batch", batch, Batch, "a Batch")
        points = batch.points
        prediction = self._condition(batch.context, points.inputs, None)
        return -task_means(points_log_prob(prediction, points), points.mask).mean()

    def _condition(self, context: Points, target_inputs: Tensor, drawn: Tensor | None) -> Normal:
        representation = self.encoder(context.inputs, context.outputs, target_inputs, context.mask)
        prediction: Normal = self.decoder(representation, target_inputs)
        return prediction


class CNP(ConditionalProcess):
    """A conditional neural process [1], with two pooling encoders, as in [4].

    It is deterministic: all functions that it predicts are the same.

    :param int x_dim: number of features of an input.
    :param int y_dim: number of features of an output.
    :param int width: width of all layers.

    Example::

        >>> process = CNP(x_dim=1, y_dim=1, width=16)
        >>> x, y = torch.randn(4, 3, 1), torch.randn(4, 3, 1)
        >>> process.predict(x, y, torch.randn(4, 9, 1), num_samples=5).mean.shape
        torch.Size([5, 4, 9, 1])
    """

    _encoder = staticmethod(pooling_encoder)

    def __init__(self, x_dim: int = 1, y_dim: int = 1, width: int = 128) -> None:
        super().__init__(self._encoder(x_dim, y_dim, width), width)


class CANP(CNP):
    """A conditional neural process with attention [3]: targets attend to the context.

    Arguments are as for :class:`CNP`, but ``width`` must be a multiple of the 8 heads.

    Example::

        >>> process = CANP(width=16)
        >>> x, y = torch.randn(4, 3, 1), torch.randn(4, 3, 1)
        >>> process.posterior_predictive(x, y, torch.randn(4, 9, 1)).batch_shape
        torch.Size([4, 9])
    """

    _encoder = staticmethod(attentive_encoder)


class BootstrapProcess(NeuralProcess):
    r"""A bootstrapping neural process made of an encoder and a decoder.

    Points of the context are drawn with replacement and encoded. Standardized residuals of the
    context under that encoding are drawn with replacement and centered. Predictions plus these
    residuals are new outputs :math:`y^*` at the context's own inputs. The loss is

    .. math:: -\frac1n \sum_i \log p(y_i \mid x_i, \text{context})
        -\frac1n \sum_i \log \frac1K \sum_{k=1}^{K} p(y_i \mid x_i, \text{context}, y^*_k).

    :param SetEncoder encoder: encoder of the context.
    :param int width: width of the decoder.
    """

    def __init__(self, encoder: SetEncoder, width: int = 128) -> None:
        checks.instance("encoder", encoder, SetEncoder, "a SetEncoder")
        super().__init__(encoder.x_dim, encoder.y_dim)
        self.encoder = encoder
        self.decoder = Decoder(encoder.width, self.x_dim, self.y_dim, width, with_addition=True)

    def loss(
        self, batch: Batch, num_samples: int = 4, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Compute the loss with and without bootstraps, see :meth:`NeuralProcess.loss`."""
        checks.integer("num_samples", num_samples, 1)
        context, points = batch.context, batch.points
        base = self._encode(context, context.outputs, points.inputs)
        outputs = self._draw(context, num_samples, generator)
        addition = self._encode(context, outputs, points.inputs)
        alone = points_log_prob(self.decoder(base, points.inputs), points)
        bootstrapped = points_log_prob(self.decoder(base, points.inputs, addition), points)
        # Padding has zeros for all draws, whose mean is zero again.
        total = alone + log_mean_exp(bootstrapped)
        return -task_means(total, points.mask).mean()

    def _draw(self, context: Points, num_samples: int, generator: torch.Generator | None) -> Tensor:
        presence = context.presence()
        uniform = [uniform_numbers(presence, num_samples, generator) for _ in range(2)]
        return self._bootstrapped(context, *uniform)

    def _sites(self, context: Points) -> Tensor:
        num_tasks, number = context.presence().shape
        zero = torch.zeros((), dtype=torch.float64, device=context.inputs.device)
        law = Uniform(zero, zero + 1.0).expand([num_tasks, 1, number]).to_event(1)
        one, other = (pyro.sample(f"{name}rows", law).squeeze(-2) for name in ("", "residual_"))
        flat = (uniform.reshape(-1, num_tasks, number) for uniform in (one, other))
        drawn = self._bootstrapped(context, *flat)
        return drawn.reshape(*one.shape, self.y_dim)

    @torch.no_grad()
    def _bootstrapped(self, context: Points, first: Tensor, second: Tensor) -> Tensor:
        """Outputs at the inputs of the context, of rows that uniform numbers stand for."""
        presence = context.presence()
        rows = rows_of(first, presence)
        inputs = taken_rows(context.inputs, rows)
        outputs = taken_rows(context.outputs, rows)
        representation = self.encoder(inputs, outputs, context.inputs, context.mask)
        prediction = self.decoder(representation, context.inputs)
        residuals = (context.outputs - prediction.mean) / prediction.stddev
        rows = rows_of(second, presence)
        residuals = centered(torch.gather(residuals, -2, _for_gather(rows, self.y_dim)), presence)
        bootstrapped: Tensor = prediction.mean + prediction.stddev * residuals
        return bootstrapped

    def _condition(self, context: Points, target_inputs: Tensor, drawn: Tensor | None) -> Normal:
        assert drawn is not None
        base = self._encode(context, context.outputs, target_inputs)
        addition = self._encode(context, drawn, target_inputs)
        prediction: Normal = self.decoder(base, target_inputs, addition)
        return prediction

    def _encode(self, context: Points, outputs: Tensor, target_inputs: Tensor) -> Tensor:
        inputs = context.inputs.expand(*outputs.shape[:-1], -1)
        representation: Tensor = self.encoder(inputs, outputs, target_inputs, context.mask)
        return representation


class BNP(BootstrapProcess):
    """A bootstrapping neural process [4].

    :param int x_dim: number of features of an input.
    :param int y_dim: number of features of an output.
    :param int width: width of all layers.

    Example::

        >>> process = BNP(width=16)
        >>> x, y = torch.randn(4, 3, 1), torch.randn(4, 3, 1)
        >>> process.predict(x, y, torch.randn(4, 9, 1), num_samples=5).mean.shape
        torch.Size([5, 4, 9, 1])
    """

    _encoder = staticmethod(pooling_encoder)

    def __init__(self, x_dim: int = 1, y_dim: int = 1, width: int = 128) -> None:
        super().__init__(self._encoder(x_dim, y_dim, width), width)


class BANP(BNP):
    """A bootstrapping neural process with attention [4].

    Arguments are as for :class:`BNP`, but ``width`` must be a multiple of the 8 heads.

    Example::

        >>> process = BANP(width=16)
        >>> x, y = torch.randn(4, 3, 1), torch.randn(4, 3, 1)
        >>> process.predict(x, y, torch.randn(4, 9, 1), num_samples=5).mean.shape
        torch.Size([5, 4, 9, 1])
    """

    _encoder = staticmethod(attentive_encoder)


def uniform_numbers(
    presence: Tensor, num_samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Uniform numbers for each row, ``(num_samples, num_tasks, n)``."""
    shape = (num_samples, *presence.shape)
    return torch.rand(shape, generator=generator, device=presence.device, dtype=torch.float64)


def rows_of(uniform: Tensor, presence: Tensor) -> Tensor:
    """Numbers of rows with replacement from those there, by uniform numbers."""
    number = presence.sum(-1, keepdim=True)
    positions = (uniform * number).long().minimum((number - 1).clamp(min=0))
    present_first = (~presence).to(torch.uint8).argsort(dim=-1, stable=True)
    rows: Tensor = present_first.expand(uniform.shape).gather(-1, positions)
    return rows


def taken_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Rows of values for each draw, ``(*rows.shape, size)``."""
    expanded = values.expand(len(rows), *values.shape)
    return expanded.gather(-2, _for_gather(rows, values.shape[-1]))


def centered(residuals: Tensor, presence: Tensor) -> Tensor:
    """Residuals less their mean over the rows that are there."""
    weights = presence[..., None]
    total = residuals.masked_fill(~weights, 0).sum(-2, keepdim=True)
    return residuals - total / weights.sum(-2, keepdim=True).clamp(min=1)


def _for_gather(rows: Tensor, size: int) -> Tensor:
    return rows[..., None].expand(*rows.shape, size)
