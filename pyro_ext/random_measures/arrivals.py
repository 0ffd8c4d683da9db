r"""Families of arrival times, which order the weights of a measure into a series [1].

The weight :math:`w` arrives at the time :math:`T = Y / w`, where :math:`Y` is independent of it and
has the distribution of the family. So large weights tend to arrive early, and finitely many arrive
by any given time. The weights that arrive by a level form a finite approximation; a truncated
series loses those that arrive later. For every family, this module computes the mean number of
arrivals by a time and its inverse, draws the weight that arrives at a time, and computes the mass
that arrives later, as logarithms in float64, with gradients.

[1] J. Lee, X. Miscouridou, F. Caron (2019), A unified construction for series representations and
finite approximations of completely random measures.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.random_measures._numerics import solve_monotone
from pyro_ext.random_measures.levy_measure import ArrivalFamily, ArrivalProcess, Factor, LevyMeasure
from pyro_ext.special import log1mexp, log1mexp_at_log, log_lower_gamma_at_log, log_upper_gamma
from pyro_ext.special.operations import may_hold_everywhere
from pyro_ext.special.quadrature import LogIntegrand, integrate_log, panel_edges

_MOST_LOG = 700.0
_TINY_LOG = -36.0
_AT_ONE = 1e-9
_FALL = 45.0
_LARGEST_LOG = 5000.0
_EARLIEST = -600.0
_ROUNDING = 1e-6
_LEAST_SLOPE = torch.tensor(0.05, dtype=torch.float64)


@dataclass(frozen=True)
class DeterministicArrivals:
    """Arrival at the inverse of the weight, so that the largest weights come first.

    This gives the series of Ferguson and Klass, which inverts the tail of the Lévy density. No
    other series loses less mass.

    Example::

        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> measure = GeneralizedGammaProcess(2.0, 0.4, 1.5)
        >>> weights, _, _ = measure.series(3, DeterministicArrivals(), seed=0)
        >>> bool((weights.diff() < 0).all())
        True
    """

    def log_density(self, log_value: Tensor) -> Tensor:
        """Raise an error, since the number is always one and has no density."""
        raise NotImplementedError("deterministic arrival times have no density")

    def log_cdf(self, log_value: Tensor) -> Tensor:
        """Logarithm of the distribution function, a step at one."""
        return torch.where(log_value >= -_AT_ONE, 0.0, -torch.inf)

    def log_survival(self, log_value: Tensor) -> Tensor:
        """Logarithm of the probability of a larger number."""
        return torch.where(log_value >= -_AT_ONE, -torch.inf, 0.0)


@dataclass(frozen=True)
class _OfConcentration:
    """Families with one parameter."""

    concentration: float

    def __post_init__(self) -> None:
        checks.number("concentration", self.concentration, above=0)


@dataclass(frozen=True)
class GammaArrivals(_OfConcentration):
    r"""Gamma arrival times, :math:`T | w \sim \text{Gamma}(a, w)`.

    With :math:`a = 1`, the series is size-biased. As :math:`a` grows, it approaches the series of
    the weights in decreasing order.

    :param float concentration: :math:`a > 0`.

    Example::

        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> measure = GeneralizedGammaProcess(2.0, 0.4, 1.5)
        >>> [round(float(measure.lost_mass(20, GammaArrivals(a))), 4) for a in (1.0, 3.0, 10.0)]
        [0.1698, 0.1181, 0.1085]
    """

    def log_density(self, log_value: Tensor) -> Tensor:
        """Log density of the logarithm of the number."""
        shape = torch.full_like(log_value, self.concentration)
        return shape * log_value - log_value.exp() - shape.lgamma()

    def log_cdf(self, log_value: Tensor) -> Tensor:
        """Logarithm of the distribution function."""
        shape = torch.full_like(log_value, self.concentration)
        return log_lower_gamma_at_log(shape, log_value) - shape.lgamma()

    def log_survival(self, log_value: Tensor) -> Tensor:
        """Logarithm of the probability of a larger number."""
        shape = torch.full_like(log_value, self.concentration)
        inside = log_value.clamp(min=-_MOST_LOG, max=_MOST_LOG)
        return log_upper_gamma(shape, inside.exp()) - shape.lgamma()


@dataclass(frozen=True)
class ExponentialArrivals(GammaArrivals):
    r"""Exponential arrival times with rate :math:`w`, which give the size-biased series.

    A weight arrives with the first point of its Poisson process, which has this rate. So weights
    arrive in the order in which samples from the normalized measure discover them.
    """

    concentration: float = 1.0

    def log_cdf(self, log_value: Tensor) -> Tensor:
        """Logarithm of the distribution function."""
        return log1mexp_at_log(log_value)

    def log_survival(self, log_value: Tensor) -> Tensor:
        """Logarithm of the probability of a larger number."""
        return -log_value.exp()


@dataclass(frozen=True)
class InverseGammaArrivals(_OfConcentration):
    r"""Inverse gamma arrival times, :math:`1 / T \,|\, w \sim \text{Gamma}(a, 1 / w)`.

    :param float concentration: :math:`a > 0`.
    """

    def log_density(self, log_value: Tensor) -> Tensor:
        """Log density of the logarithm of the number."""
        return GammaArrivals(self.concentration).log_density(-log_value)

    def log_cdf(self, log_value: Tensor) -> Tensor:
        """Logarithm of the distribution function."""
        return GammaArrivals(self.concentration).log_survival(-log_value)

    def log_survival(self, log_value: Tensor) -> Tensor:
        """Logarithm of the probability of a larger number."""
        return GammaArrivals(self.concentration).log_cdf(-log_value)


@dataclass(frozen=True)
class LomaxArrivals(_OfConcentration):
    r"""Lomax arrival times, :math:`P(T > t \,|\, w) = (1 + t w)^{-a}`.

    For a stable beta process with concentration :math:`a`, everything has a closed form.

    :param float concentration: :math:`a > 0`.
    """

    def log_density(self, log_value: Tensor) -> Tensor:
        """Log density of the logarithm of the number."""
        shape = torch.full_like(log_value, self.concentration)
        growth = torch.logaddexp(log_value, torch.zeros_like(log_value))
        return shape.log() + log_value - (shape + 1.0) * growth

    def log_cdf(self, log_value: Tensor) -> Tensor:
        """Logarithm of the distribution function."""
        is_tiny = log_value < _TINY_LOG
        growth = torch.logaddexp(log_value, torch.zeros_like(log_value))
        safe = torch.where(is_tiny, 1.0, self.concentration * growth)
        first = torch.full_like(log_value, self.concentration).log() + log_value
        return torch.where(is_tiny, first, log1mexp(safe))

    def log_survival(self, log_value: Tensor) -> Tensor:
        """Logarithm of the probability of a larger number."""
        return -self.concentration * torch.logaddexp(log_value, torch.zeros_like(log_value))


def arrival_process(measure: LevyMeasure, family: ArrivalFamily) -> ArrivalProcess:
    """Return the weights of a measure with the arrival times of a family."""
    own = measure._own_arrivals(family)
    if own is not None:
        return own
    order = order_at_zero(family)
    # Indices are less than one, by however little.
    is_finite = order > 1.0 - _ROUNDING or may_hold_everywhere(
        measure.index_at_zero < order - _ROUNDING
    )
    if not is_finite:
        raise ValueError(
            "family must have a distribution function that vanishes at zero as a power greater "
            "than the discount, or else infinitely many weights arrive by any time; "
            f"got {family!r}, with power {order:g}"
        )
    if isinstance(family, DeterministicArrivals):
        return _LargestFirst(measure)
    if isinstance(family, ExponentialArrivals):
        return _SizeBiased(measure)
    # Integrals over time of moments that are integrals themselves would take too long.
    if isinstance(family, GammaArrivals) and measure._is_closed:
        return _GammaTimes(measure, family.concentration)
    return _QuadratureArrivals(measure, family)


def order_at_zero(family: ArrivalFamily) -> float:
    """Power with which the distribution function of a family falls at zero, by its slope there."""
    points = torch.tensor([_EARLIEST - 1.0, _EARLIEST], dtype=torch.float64)
    first, second = family.log_cdf(points).tolist()
    return math.inf if first == -math.inf else second - first


class _LargestFirst:
    """Weights in falling order."""

    def __init__(self, measure: LevyMeasure) -> None:
        self._measure = measure

    def log_count(self, log_time: Tensor) -> Tensor:
        return self._measure._log_tail(-log_time)

    def log_time(self, log_count: Tensor) -> Tensor:
        return -self._measure._inverse_tail(log_count)

    def sample_weight(self, log_time: Tensor) -> Tensor:
        return -log_time

    def log_later(self, log_time: Tensor, order: float) -> Tensor:
        return self._measure._log_partial_moment(-log_time, order)


class _SizeBiased:
    """Exponential times, whose formulas are those of the total mass."""

    def __init__(self, measure: LevyMeasure) -> None:
        self._measure = measure

    def log_count(self, log_time: Tensor) -> Tensor:
        return self._measure._log_exponent(log_time)

    def log_time(self, log_count: Tensor) -> Tensor:
        return self._measure._inverse_exponent(log_count)

    def sample_weight(self, log_time: Tensor) -> Tensor:
        return self._measure._sample_jump(torch.ones_like(log_time), log_time)

    def log_later(self, log_time: Tensor, order: float) -> Tensor:
        return self._measure._log_moment(torch.full_like(log_time, order), log_time)


class _Timed(ABC):
    """Base of the processes whose number of arrivals has no inverse in closed form."""

    _measure: LevyMeasure

    @abstractmethod
    def log_count(self, log_time: Tensor) -> Tensor: ...

    @abstractmethod
    def _log_rate(self, log_time: Tensor) -> Tensor:
        """Logarithm of the rate of arrivals over logarithms of time."""

    def log_time(self, log_count: Tensor) -> Tensor:
        reach = torch.full_like(log_count, _LARGEST_LOG)
        return solve_monotone(
            self.log_count,
            lambda x, value: (self._log_rate(x) - value).exp(),
            log_count,
            -reach,
            reach,
        )


class _GammaTimes(_Timed):
    r"""Gamma times, by integrals of :math:`\kappa` over time."""

    def __init__(self, measure: LevyMeasure, concentration: float) -> None:
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
        log_time, *corners = torch.broadcast_tensors(log_time, *self._corners())
        shape, index = self._order(log_time), self._measure.index_at_infinity.double()
        start = torch.stack([log_time, *corners], -1).min(-1).values
        low = start - _FALL / torch.minimum(shape, index)
        unsqueezed = _GammaTimes(self._measure._unsqueezed(), self._concentration)
        edges = panel_edges(unsqueezed._log_rate, low, log_time, torch.stack(corners, -1), log_time)
        end = log_time[..., None]
        return integrate_log(unsqueezed._log_rate, torch.where(edges >= end, end, edges))

    def sample_weight(self, log_time: Tensor) -> Tensor:
        return self._measure._sample_jump(self._order(log_time), log_time)

    def log_later(self, log_time: Tensor, order: float) -> Tensor:
        log_time, *corners = torch.broadcast_tensors(log_time, *self._corners())
        end = torch.stack([log_time, *corners], -1).max(-1).values
        high = end + _FALL / (1.0 - self._measure.index_at_zero.double()) + 5.0
        unsqueezed = self._measure._unsqueezed()

        def log_rate(x: Tensor) -> Tensor:
            shape = self._order(x)
            moment = unsqueezed._log_moment(shape + order, x)
            return shape * x + moment - shape.lgamma()

        edges = panel_edges(log_rate, log_time, high, torch.stack(corners, -1))
        start = log_time[..., None]
        return integrate_log(log_rate, torch.where(edges <= start, start, edges))


class _QuadratureArrivals(_Timed):
    """Any family, by integrals over the sizes of weights."""

    def __init__(self, measure: LevyMeasure, family: ArrivalFamily) -> None:
        self._measure, self._family = measure, family
        self._order = order_at_zero(family)

    def _factor(self, log_value: LogIntegrand, log_time: Tensor) -> Factor:
        """A function of sizes over time, which are independent of the weight."""
        time, none = log_time[..., None], torch.zeros_like(log_time)
        return Factor(
            lambda size: log_value(time + size), [-log_time], none, order_at_zero=self._order
        )

    def log_count(self, log_time: Tensor) -> Tensor:
        return self._measure._integrate(self._factor(self._family.log_cdf, log_time))

    def _log_rate(self, log_time: Tensor) -> Tensor:
        return self._measure._integrate(self._factor(self._family.log_density, log_time))

    def sample_weight(self, log_time: Tensor) -> Tensor:
        return self._measure._sample_size(self._factor(self._family.log_density, log_time))

    def log_later(self, log_time: Tensor, order: float) -> Tensor:
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


def check_family(argument: str, value: object) -> None:
    """Check that a value has the methods of a family of arrival times."""
    methods = ("log_density", "log_cdf", "log_survival")
    if isinstance(value, type) or not all(hasattr(value, name) for name in methods):
        raise TypeError(
            f"{argument} must be a family of arrival times, such as GammaArrivals(2.0), got "
            f"{checks.shown(value)}"
        )
