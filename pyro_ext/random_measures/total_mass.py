"""Distributions of total masses that have no closed-form density."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._lib import checks
from pyro_ext.random_measures.finite import MeasureDistribution
from pyro_ext.random_measures.levy_measure import ArrivalFamily, LevyMeasure, check_measure
from pyro_ext.random_measures.series import poisson_points, series_method

_MOST_WEIGHTS = 10**8


class TotalMass(MeasureDistribution):
    r"""Distribution of the total mass of a completely random measure, with exact draws.

    .. math:: E\, e^{-tS} = e^{-\psi(t)} , \quad E S = \kappa(1, 0) , \quad
              \operatorname{Var} S = \kappa(2, 0) .

    ``log_prob`` is not available, and draws have no gradients.

    :param measure: a measure whose ``total_mass()`` is this distribution.
    """

    support: Any = constraints.nonnegative

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, without gradients."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            total = self._draw(self.measure.expand(shape)).to(self.measure.dtype)
        return total.clamp(max=torch.finfo(total.dtype).max)

    def _draw(self, measure: LevyMeasure) -> Tensor:
        return measure._sample_total_mass()

    @property
    def mean(self) -> Tensor:
        """Mean."""
        return self.measure.mean

    @property
    def variance(self) -> Tensor:
        """Variance."""
        return self.measure.variance


class ApproximateTotalMass(TotalMass):
    r"""Approximate total mass: the first weights of a series plus a gamma variable.

    The gamma variable stands for all later weights and has their mean and variance, so that the
    mean and variance of the sum are exact. The remaining error is of third order in small weights.

    :param measure: a completely random measure.
    :param int num_jumps: the length of the series.
    :param method: the method of the series.
    """

    def __init__(
        self,
        measure: LevyMeasure,
        num_jumps: int = 1000,
        method: str | ArrivalFamily = "size_biased",
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.num_jumps = checks.integer("num_jumps", num_jumps, 1)
        check_measure("measure", measure)
        series_method(measure, method)  # which raises where there is none of that name
        self.method = method
        super().__init__(measure, validate_args)

    def _draw(self, measure: LevyMeasure) -> Tensor:
        points = poisson_points(measure.batch_shape, self.num_jumps, measure)
        log_weights, _ = series_method(measure._unsqueezed(), self.method).sample(points)
        way = series_method(measure, self.method)
        log_mean, log_square = (way.log_later(points[..., -1], order) for order in (1.0, 2.0))
        rest = torch._standard_gamma((2.0 * log_mean - log_square).exp())
        return log_weights.exp().sum(-1) + rest * (log_square - log_mean).exp()


def compound_poisson(number: Tensor, draw: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Sums of given numbers of independent draws, given parameters of the shape of the numbers."""
    counts = number.reshape(-1).long()
    if int(counts.sum()) > _MOST_WEIGHTS:
        raise ValueError(
            f"the total masses have {number.sum().item():.3g} weights, but at most {_MOST_WEIGHTS} "
            "are drawn at once: use fewer draws or a smaller mass"
        )
    owner = torch.repeat_interleave(torch.arange(counts.numel(), device=counts.device), counts)
    total = torch.zeros(counts.shape, dtype=torch.float64, device=counts.device)
    own = [value.expand(number.shape).reshape(-1)[owner] for value in parameters]
    return total.index_add(0, owner, draw(*own)).view(number.shape)
