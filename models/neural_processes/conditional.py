"""Conditional neural processes: one function for each context, without anything random."""

import torch
from pyro.distributions import Normal
from torch import Tensor

from pyro_ext._checks import check_instance, check_integer
from pyro_ext.models.neural_processes.batch import Batch, Points
from pyro_ext.models.neural_processes.decoder import Decoder
from pyro_ext.models.neural_processes.encoders import (
    SetEncoder,
    attentive_encoder,
    pooling_encoder,
)
from pyro_ext.models.neural_processes.process import NeuralProcess, points_log_prob, task_means

__all__ = ["CANP", "CNP", "ConditionalProcess"]


class ConditionalProcess(NeuralProcess):
    r"""A conditional neural process of an encoder and a decoder.

    The loss is the mean over points of :math:`-\log p(y_i \mid x_i, \text{context})`, over those of
    the context too.

    :param SetEncoder encoder: of the context.
    :param int width: width of the decoder.
    """

    def __init__(self, encoder: SetEncoder, width: int = 128) -> None:
        check_instance("encoder", encoder, SetEncoder, "a SetEncoder")
        super().__init__(encoder.x_dim, encoder.y_dim)
        self.encoder = encoder
        self.decoder = Decoder(encoder.width, self.x_dim, self.y_dim, width)

    def loss(
        self,
        batch: Batch,
        num_samples: int = 1,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean negative log likelihood, as :meth:`NeuralProcess.loss`; nothing is random."""
        check_integer("num_samples", num_samples, 1)
        check_instance("batch", batch, Batch, "a Batch")
        points = batch.points
        prediction = self._condition(batch.context, points.inputs, None)
        return -task_means(points_log_prob(prediction, points), points.mask).mean()

    def _condition(self, context: Points, target_inputs: Tensor, drawn: Tensor | None) -> Normal:
        representation = self.encoder(context.inputs, context.outputs, target_inputs, context.mask)
        prediction: Normal = self.decoder(representation, target_inputs)
        return prediction


class CNP(ConditionalProcess):
    """A conditional neural process [1], with two encoders that pool, as in [2].

    All functions that it predicts are the same.

    :param int x_dim: number of features of an input.
    :param int y_dim: number of features of an output.
    :param int width: width of all layers.
    :raises ValueError: for sizes that are no integers of at least one.

    [1] M. Garnelo, D. Rosenbaum, C. J. Maddison, T. Ramalho, D. Saxton, M. Shanahan, Y. W. Teh,
    D. J. Rezende, S. M. A. Eslami (2018), Conditional neural processes.

    [2] J. Lee, Y. Lee, J. Kim, E. Yang, S. J. Hwang, Y. W. Teh (2020),
    Bootstrapping neural processes.

    Example::

        >>> process = CNP(x_dim=1, y_dim=1, width=16)
        >>> x, y = torch.randn(4, 3, 1), torch.randn(4, 3, 1)
        >>> process.predict(x, y, torch.randn(4, 9, 1), num_samples=5).mean.shape
        torch.Size([5, 4, 9, 1])
    """

    def __init__(self, x_dim: int = 1, y_dim: int = 1, width: int = 128) -> None:
        super().__init__(pooling_encoder(x_dim, y_dim, width), width)


class CANP(ConditionalProcess):
    """A conditional neural process with attention [1]: targets look at the context.

    :param int x_dim: number of features of an input.
    :param int y_dim: number of features of an output.
    :param int width: width of all layers, a multiple of the 8 heads.
    :raises ValueError: for sizes that are no integers of at least one, or no such multiple.

    [1] H. Kim, A. Mnih, J. Schwarz, M. Garnelo, S. M. A. Eslami, D. Rosenbaum, O. Vinyals,
    Y. W. Teh (2019), Attentive neural processes.

    Example::

        >>> process = CANP(width=16)
        >>> x, y = torch.randn(4, 3, 1), torch.randn(4, 3, 1)
        >>> process.posterior_predictive(x, y, torch.randn(4, 9, 1)).batch_shape
        torch.Size([4, 9])
    """

    def __init__(self, x_dim: int = 1, y_dim: int = 1, width: int = 128) -> None:
        super().__init__(attentive_encoder(x_dim, y_dim, width), width)
