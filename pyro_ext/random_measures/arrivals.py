r"""Families of arrival times, which order the weights of a measure into a series [1].

The weight :math:`w` arrives at the time :math:`T = Y / w`, where :math:`Y` is independent of it and
has the law of the family. So large weights come early, and finitely many come until any time. The
weights until a level make a finite approximation; those after a time are what a truncated series
loses.

[1] J. Lee, X. Miscouridou, F. Caron (2019), A unified construction for series representations and
finite approximations of completely random measures.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyro_ext._checks import check_number
from pyro_ext.special import log1mexp, log1mexp_at_log, log_lower_gamma_at_log, log_upper_gamma

__all__ = [
    "ArrivalFamily",
    "DeterministicArrivals",
    "ExponentialArrivals",
    "GammaArrivals",
    "InverseGammaArrivals",
    "LomaxArrivals",
]

_LARGEST_LOG = 700.0
_TINY_LOG = -36.0
_ROUNDING = 1e-9


class ArrivalFamily(Protocol):
    """Law of the positive number that is divided by a weight to give its arrival time.

    Anything with these methods is a family. They take and return logarithms in float64 and are
    differentiable.
    """

    def log_density(self, log_value: Tensor) -> Tensor:
        """Log density of the logarithm of the number."""

    def log_cdf(self, log_value: Tensor) -> Tensor:
        """Logarithm of the distribution function."""

    def log_survival(self, log_value: Tensor) -> Tensor:
        """Logarithm of the probability of a larger number."""


@dataclass(frozen=True)
class DeterministicArrivals:
    """Arrival at the inverse of the weight, so that the largest weights come first.

    The series is that of Ferguson and Klass, which inverts the tail of the Lévy density. No other
    series loses less mass.

    Example::

        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> measure = GeneralizedGammaProcess(2.0, 0.4, 1.5)
        >>> weights, _, _ = measure.series(3, DeterministicArrivals(), seed=0)
        >>> bool((weights.diff() < 0).all())
        True
    """

    def log_density(self, log_value: Tensor) -> Tensor:
        """Refuse, since the number is one and has no density."""
        raise NotImplementedError("deterministic arrival times have no density")

    def log_cdf(self, log_value: Tensor) -> Tensor:
        """Logarithm of the distribution function, a step at one."""
        return torch.where(log_value >= -_ROUNDING, 0.0, -torch.inf)

    def log_survival(self, log_value: Tensor) -> Tensor:
        """Logarithm of the probability of a larger number."""
        return torch.where(log_value >= -_ROUNDING, -torch.inf, 0.0)


@dataclass(frozen=True)
class GammaArrivals:
    r"""Gamma arrival times, :math:`T | w \sim \text{Gamma}(a, w)`.

    With :math:`a = 1` the series is size-biased; the larger :math:`a`, the more it is like that of
    the largest weights.

    :param float concentration: :math:`a > 0`.

    Example::

        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> measure = GeneralizedGammaProcess(2.0, 0.4, 1.5)
        >>> [round(float(measure.lost_mass(20, GammaArrivals(a))), 4) for a in (1.0, 3.0, 10.0)]
        [0.1698, 0.1181, 0.1085]
    """

    concentration: float

    def __post_init__(self) -> None:
        check_number("concentration", self.concentration, above=0)

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
        return log_upper_gamma(shape, _within(log_value).exp()) - shape.lgamma()


@dataclass(frozen=True)
class ExponentialArrivals(GammaArrivals):
    r"""Exponential arrival times of rate :math:`w`, which give the size-biased series.

    The time of a weight is that of its first point in a Poisson process of this rate, so that the
    weights come in the order in which samples of the normalized measure meet them.
    """

    concentration: float = 1.0

    def log_cdf(self, log_value: Tensor) -> Tensor:
        """Logarithm of the distribution function."""
        return log1mexp_at_log(log_value)

    def log_survival(self, log_value: Tensor) -> Tensor:
        """Logarithm of the probability of a larger number."""
        return -log_value.exp()


@dataclass(frozen=True)
class InverseGammaArrivals:
    r"""Inverse gamma arrival times, :math:`1 / T \,|\, w \sim \text{Gamma}(a, 1 / w)`.

    :param float concentration: :math:`a > 0`.
    """

    concentration: float

    def __post_init__(self) -> None:
        check_number("concentration", self.concentration, above=0)

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
class LomaxArrivals:
    r"""Lomax arrival times, :math:`P(T > t \,|\, w) = (1 + t w)^{-a}`.

    For a stable beta process of concentration :math:`a` everything is in closed form.

    :param float concentration: :math:`a > 0`.
    """

    concentration: float

    def __post_init__(self) -> None:
        check_number("concentration", self.concentration, above=0)

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


def _within(log_value: Tensor) -> Tensor:
    return log_value.clamp(min=-_LARGEST_LOG, max=_LARGEST_LOG)
