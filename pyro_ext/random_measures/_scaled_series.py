"""Series whose weights are those of another measure, divided by independent variables."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_ext.random_measures._logarithms import survives

if TYPE_CHECKING:
    from pyro_ext.random_measures._mixed_tilts import MixedTilts
    from pyro_ext.random_measures.generalized_gamma import GeneralizedGammaProcess

__all__ = ["ScaledSeries"]


class ScaledSeries:
    """Size-biased weights of a generalized gamma process, each divided by a variable of its own.

    Where the measure is tilted, a weight is kept with the probability that the tilt leaves it.
    """

    def __init__(
        self,
        measure: "MixedTilts",
        base: "GeneralizedGammaProcess",
        log_divisor: Callable[[torch.Size], Tensor],
    ) -> None:
        self._measure, self._base, self._log_divisor = measure, base, log_divisor

    def sample(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Weights, zero where rejected, and the arrival times in the other measure."""
        log_time = self._base._inverse_exponent(points.log())
        log_weight = self._base._sample_jump(torch.ones_like(log_time), log_time)
        log_weight = log_weight - self._log_divisor(log_weight.shape)
        keep = survives(log_weight.exp(), self._measure._double.tilt)
        return torch.where(keep, log_weight, -torch.inf), log_time

    def log_later(self, point: Tensor, order: float) -> Tensor:
        """Moment of the later weights, those that would be rejected included."""
        log_time = self._base._inverse_exponent(point.log())
        later = self._base._log_moment(torch.full_like(log_time, order), log_time)
        is_finite = self._measure._double.tail_index > order
        return torch.where(is_finite, later + self._measure._log_divisor_moment(order), torch.inf)
