"""The law of a weight that is known to have been met."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_ext.distributions.bases import clamp_positive
from pyro_ext.random_measures._arguments import check_measure
from pyro_ext.random_measures._logarithms import as_double
from pyro_ext.random_measures._measure_law import MeasureLaw

if TYPE_CHECKING:
    from pyro_ext.random_measures._measure import CompletelyRandomMeasure

__all__ = ["JumpLaw"]


class JumpLaw(MeasureLaw):
    r"""Law of a weight of a measure given that it was met, a tilted moment for a constant.

    .. math:: f(w) = \frac{w^n e^{-uw} \rho(w)}{\kappa(n, u)} .

    It is that of the weight that arrives at the time :math:`u` of a size-biased series, with
    :math:`n = 1`, and that of the weight of a cluster of :math:`n` samples of the normalized
    measure. Draws have the gradients that the measure's own have.

    :param measure: a completely random measure.
    :param order: :math:`n > 0`.
    :param tilt: :math:`u \geq 0`.

    Example::

        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> JumpLaw(GeneralizedGammaProcess(2.0, 0.4, 1.5), 1.0, 0.5).mean
        tensor(0.3000)
    """

    has_rsample = True
    _tensors = ("_order", "_log_tilt")

    def __init__(
        self,
        measure: "CompletelyRandomMeasure",
        order: Any,
        tilt: Any,
        *,
        validate_args: bool | None = None,
    ) -> None:
        check_measure("measure", measure)
        order, tilt = torch.broadcast_tensors(as_double(order, "order"), as_double(tilt, "tilt"))
        shape = torch.broadcast_shapes(order.shape, measure.batch_shape)
        self._order, self._log_tilt = order.expand(shape), tilt.expand(shape).log()
        super().__init__(measure.expand(shape), validate_args)
        if self._validate_args and not bool((order > 0).all()):
            raise ValueError(f"order must be > 0, got {order.min():g}")
        if self._validate_args and not bool((tilt >= 0).all()):
            raise ValueError(f"tilt must be >= 0, got {tilt.min():g}")

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density.

        :param Tensor value: sizes of weights.
        """
        if self._validate_args:
            self._validate_sample(value)
        log_size = value.double().log()
        log_weight = self._order * log_size - (self._log_tilt + log_size).exp()
        log_density = self.measure._log_density(log_size) + log_weight
        constant = self.measure._log_moment(self._order, self._log_tilt)
        return self.measure._result(log_density - constant, value)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws.

        :param torch.Size sample_shape: how many.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        measure = self.measure.expand(shape)
        log_size = measure._sample_jump(self._order.expand(shape), self._log_tilt.expand(shape))
        return clamp_positive(self.measure._result(log_size.exp()))

    @property
    def mean(self) -> Tensor:
        """Mean."""
        return self._moment(1.0)

    @property
    def variance(self) -> Tensor:
        """Variance."""
        return self._moment(2.0) - self.mean.square()

    def _moment(self, order: float) -> Tensor:
        log_moment = self.measure._log_moment(self._order + order, self._log_tilt)
        constant = self.measure._log_moment(self._order, self._log_tilt)
        return self.measure._result((log_moment - constant).exp())
