"""Arrival times of a measure's weights, and the weights given their times.

For every family there are the mean number of arrivals until a time and its inverse, the law of the
weight that arrives at a time, and the mass that arrives later. Everything is in logarithms and
float64, with gradients.
"""

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from pyro_ext.random_measures._levy_integrals import Factor
from pyro_ext.random_measures._roots import may_hold_everywhere, solve_monotone
from pyro_ext.random_measures.arrivals import (
    ArrivalFamily,
    DeterministicArrivals,
    ExponentialArrivals,
    GammaArrivals,
)
from pyro_ext.special.quadrature import integrate_log, panel_edges

if TYPE_CHECKING:
    from pyro_ext.random_measures._measure import CompletelyRandomMeasure

__all__ = ["ArrivalProcess", "arrival_process", "order_at_zero"]

_FALL = 45.0
_LARGEST_LOG = 5000.0
_EARLIEST = -600.0
_ROUNDING = 1e-6
_LEAST_SLOPE = torch.tensor(0.05, dtype=torch.float64)


class ArrivalProcess(Protocol):
    """The weights of a measure with the arrival times of a family."""

    def log_count(self, log_time: Tensor) -> Tensor:
        r"""Mean number of arrivals until a time, :math:`\\log \\xi(t)`."""

    def log_time(self, log_count: Tensor) -> Tensor:
        """Time until which there is a mean number of arrivals, with gradients."""

    def sample_weight(self, log_time: Tensor) -> Tensor:
        """Draws of the weight that arrives at a time."""

    def log_later(self, log_time: Tensor, order: float) -> Tensor:
        """Moment of the weights that arrive after a time: with order 1, their expected mass."""


def arrival_process(measure: "CompletelyRandomMeasure", family: ArrivalFamily) -> ArrivalProcess:
    """Return the arrivals of a family for a measure that has no closed forms of its own.

    :raises ValueError: for a family with infinitely many arrivals until any time.
    """
    order = order_at_zero(family)
    # Indices are less than one, by however little.
    is_finite = order > 1.0 - _ROUNDING or may_hold_everywhere(
        measure.index_at_zero < order - _ROUNDING
    )
    if not is_finite:
        raise ValueError(
            "family must have a distribution function that falls at zero with a power greater than "
            f"the discount, or infinitely many weights arrive at once; got {family!r}, with the "
            f"power {order:g}"
        )
    if isinstance(family, DeterministicArrivals):
        return LargestFirst(measure)
    if isinstance(family, ExponentialArrivals):
        return SizeBiased(measure)
    # Integrals over time of moments that are integrals themselves would take too long.
    if isinstance(family, GammaArrivals) and measure._is_closed:
        return GammaTimes(measure, family.concentration)
    return QuadratureArrivals(measure, family)


def order_at_zero(family: ArrivalFamily) -> float:
    """Power with which the distribution function of a family falls at zero, by its slope there."""
    places = torch.tensor([_EARLIEST - 1.0, _EARLIEST], dtype=torch.float64)
    first, second = family.log_cdf(places).tolist()
    return math.inf if first == -math.inf else second - first


class LargestFirst:
    """Weights in falling order."""

    def __init__(self, measure: "CompletelyRandomMeasure") -> None:
        self._measure = measure

    def log_count(self, log_time: Tensor) -> Tensor:
        """Mean number of weights above the inverse of a time."""
        return self._measure._log_tail(-log_time)

    def log_time(self, log_count: Tensor) -> Tensor:
        """Inverse of the size above which there is a mean number of weights."""
        return -self._measure._inverse_tail(log_count)

    def sample_weight(self, log_time: Tensor) -> Tensor:
        """The weight, which the time decides."""
        return -log_time

    def log_later(self, log_time: Tensor, order: float) -> Tensor:
        """Moment of the smaller weights."""
        return self._measure._log_partial_moment(-log_time, order)


class SizeBiased:
    """Exponential times, whose formulas are those of the total mass."""

    def __init__(self, measure: "CompletelyRandomMeasure") -> None:
        self._measure = measure

    def log_count(self, log_time: Tensor) -> Tensor:
        """Laplace exponent."""
        return self._measure._log_exponent(log_time)

    def log_time(self, log_count: Tensor) -> Tensor:
        """Inverse of the Laplace exponent."""
        return self._measure._inverse_exponent(log_count)

    def sample_weight(self, log_time: Tensor) -> Tensor:
        """Size-biased weight of the tilted measure."""
        return self._measure._sample_jump(torch.ones_like(log_time), log_time)

    def log_later(self, log_time: Tensor, order: float) -> Tensor:
        """Moment of the tilted measure."""
        return self._measure._log_moment(torch.full_like(log_time, order), log_time)


class _Timed(ABC):
    """What processes share whose number of arrivals has no inverse in closed form."""

    _measure: "CompletelyRandomMeasure"

    @abstractmethod
    def log_count(self, log_time: Tensor) -> Tensor:
        """Mean number of arrivals until a time."""

    @abstractmethod
    def _log_rate(self, log_time: Tensor) -> Tensor:
        """Logarithm of the rate of arrivals over logarithms of time."""

    def log_time(self, log_count: Tensor) -> Tensor:
        """Time until which there is a mean number of arrivals."""
        reach = torch.full_like(log_count, _LARGEST_LOG)
        return solve_monotone(
            self.log_count,
            lambda place, value: (self._log_rate(place) - value).exp(),
            log_count,
            -reach,
            reach,
        )


class GammaTimes(_Timed):
    r"""Gamma times, by integrals of :math:`\kappa` over time.

    The rate of arrivals is :math:`\xi'(t) = t^{a-1} \kappa(a, t) / \Gamma(a)`, the weight has
    density proportional to :math:`w^a e^{-tw} \rho(w)`.
    """

    def __init__(self, measure: "CompletelyRandomMeasure", concentration: float) -> None:
        self._measure, self._concentration = measure, concentration

    def _order(self, log_time: Tensor) -> Tensor:
        return torch.full_like(log_time, self._concentration)

    def _log_rate(self, log_time: Tensor) -> Tensor:
        shape = self._order(log_time)
        moment = self._measure._log_moment(shape, log_time)
        return shape * log_time + moment - shape.lgamma()

    def _corners(self) -> list[Tensor]:
        return [-corner for corner in self._measure._log_corners()]

    def log_count(self, log_time: Tensor) -> Tensor:
        """Mean number of arrivals until a time."""
        log_time, *corners = torch.broadcast_tensors(log_time, *self._corners())
        shape, index = self._order(log_time), self._measure.index_at_infinity.double()
        start = torch.stack([log_time, *corners], -1).min(-1).values
        low = start - _FALL / torch.minimum(shape, index)
        unsqueezed = GammaTimes(self._measure._unsqueezed(), self._concentration)
        edges = panel_edges(unsqueezed._log_rate, low, log_time, torch.stack(corners, -1), log_time)
        end = log_time[..., None]
        return integrate_log(unsqueezed._log_rate, torch.where(edges >= end, end, edges))

    def sample_weight(self, log_time: Tensor) -> Tensor:
        """The weight that arrives at a time."""
        return self._measure._sample_jump(self._order(log_time), log_time)

    def log_later(self, log_time: Tensor, order: float) -> Tensor:
        """Moment of the weights that arrive after a time."""
        log_time, *corners = torch.broadcast_tensors(log_time, *self._corners())
        end = torch.stack([log_time, *corners], -1).max(-1).values
        high = end + _FALL / (1.0 - self._measure.index_at_zero.double()) + 5.0
        unsqueezed = self._measure._unsqueezed()

        def log_rate(place: Tensor) -> Tensor:
            shape = self._order(place)
            moment = unsqueezed._log_moment(shape + order, place)
            return shape * place + moment - shape.lgamma()

        edges = panel_edges(log_rate, log_time, high, torch.stack(corners, -1))
        start = log_time[..., None]
        return integrate_log(log_rate, torch.where(edges <= start, start, edges))


class QuadratureArrivals(_Timed):
    """Any family, by integrals over the sizes of weights."""

    def __init__(self, measure: "CompletelyRandomMeasure", family: ArrivalFamily) -> None:
        self._measure, self._family = measure, family
        self._order = order_at_zero(family)

    def log_count(self, log_time: Tensor) -> Tensor:
        """Mean number of arrivals until a time."""
        time = log_time[..., None]
        return self._measure._integrate(
            Factor(
                lambda size: self._family.log_cdf(time + size),
                [-log_time],
                torch.zeros_like(log_time),
                order_at_zero=self._order,
            )
        )

    def _log_rate(self, log_time: Tensor) -> Tensor:
        time = log_time[..., None]
        return self._measure._integrate(
            Factor(
                lambda size: self._family.log_density(time + size),
                [-log_time],
                torch.zeros_like(log_time),
                order_at_zero=self._order,
            )
        )

    def sample_weight(self, log_time: Tensor) -> Tensor:
        """The weight that arrives at a time."""
        time = log_time[..., None]
        return self._measure._sample_size(
            Factor(
                lambda size: self._family.log_density(time + size),
                [-log_time],
                torch.zeros_like(log_time),
                order_at_zero=self._order,
            )
        )

    def log_later(self, log_time: Tensor, order: float) -> Tensor:
        """Moment of the weights that arrive after a time."""
        time = log_time[..., None]
        return self._measure._integrate(
            Factor(
                lambda size: self._family.log_survival(time + size) + order * size,
                [-log_time],
                # Where the moment is infinite, the probability to arrive later makes up for it.
                torch.full_like(log_time, order).minimum(
                    self._measure._slope_at_infinity(_LEAST_SLOPE)
                ),
            )
        )
