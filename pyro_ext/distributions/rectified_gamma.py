r"""The rectified gamma distribution, a guide for weights with a hard upper end.

[1] J. Lee, C. Heaukulani, Z. Ghahramani, L. F. James, S. Choi (2017),
Bayesian inference on random simple graphs with power law degree distributions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.distributions._base import UnivariateDistribution, positive_exp
from pyro_ext.distributions._bfry import rsample_log_gamma
from pyro_ext.distributions._supports import interval_with_atom
from pyro_ext.special import in_double, log_lower_gamma, log_upper_gamma

__all__ = ["RectifiedGamma"]

_LARGEST = 1e300


class RectifiedGamma(UnivariateDistribution):
    r"""Law of :math:`\min(V, C)`, where :math:`V` has a gamma distribution [1].

    With shape :math:`a` and rate :math:`b`, it has the gamma density below :math:`C` and an atom
    there,

    .. math:: f(x) = \frac{b^a}{\Gamma(a)} x^{a-1} e^{-bx} \;(0 < x < C) , \quad
              P(X = C) = \frac{\Gamma(a, bC)}{\Gamma(a)} ,

    whose logarithm is that of a density with respect to the sum of length and a unit mass at
    :math:`C`. As a guide of a law with a density it gives the bound of [1], which counts the latter
    at the atom as if it were of the same kind.

    Draws have gradients in all parameters; at the atom those in shape and rate are zero.

    :param concentration: :math:`a > 0`.
    :param rate: :math:`b > 0`.
    :param high: :math:`C > 0`.
    :raises ValueError: where a parameter is out of range.

    Example::

        >>> law = RectifiedGamma(2.0, 1.0, 3.0)
        >>> law.log_prob(torch.tensor([1.0, 3.0])), law.mean
        (tensor([-1.0000, -1.6137]), tensor(1.7511))
    """

    concentration: Tensor
    rate: Tensor
    high: Tensor
    arg_constraints = {
        "concentration": constraints.positive,
        "rate": constraints.positive,
        "high": constraints.positive,
    }
    has_rsample = True

    def __init__(
        self, concentration: Any, rate: Any, high: Any, *, validate_args: bool | None = None
    ) -> None:
        parameters = {"concentration": concentration, "rate": rate, "high": high}
        super().__init__(parameters, validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        """The interval from zero to ``high``."""
        return interval_with_atom(0.0, self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, and at ``high`` the logarithm of its probability.

        :param Tensor value: positive numbers up to ``high``.
        """
        if self._validate_args:
            self._validate_sample(value)
        return _log_prob(value, self.concentration, self.rate, self.high)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients in the parameters.

        :param torch.Size sample_shape: how many.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        log_gamma = rsample_log_gamma(self.concentration.expand(shape))
        value = positive_exp(log_gamma - self.rate.log())
        return torch.where(value < self.high, value, self.high)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function, with a jump at ``high``.

        :param Tensor value: positive numbers up to ``high``.
        """
        if self._validate_args:
            self._validate_sample(value)
        below = _gamma_cdf(value, self.concentration, self.rate, 0.0)
        return torch.where(value < self.high, below, 1.0)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles, by bisection.

        :param Tensor value: probabilities in (0, 1).
        """
        quantile = super().icdf(value)
        is_below = value < _gamma_cdf(self.high, self.concentration, self.rate, 0.0)
        return torch.where(is_below, quantile, self.high)

    @property
    def mean(self) -> Tensor:
        """Mean."""
        return _moment(self.concentration, self.rate, self.high, 1)

    @property
    def variance(self) -> Tensor:
        """Variance."""
        second = _moment(self.concentration, self.rate, self.high, 2)
        return (second - self.mean.square()).clamp(min=0.0)


@in_double
def _log_prob(value: Tensor, concentration: Tensor, rate: Tensor, high: Tensor) -> Tensor:
    scaled = rate * value
    log_gamma = concentration.lgamma()
    density = concentration * scaled.log() - scaled - log_gamma - value.log()
    log_atom = log_upper_gamma(concentration, _scaled(rate, high)) - log_gamma
    return torch.where(value < high, density, log_atom.clamp(max=0.0))


@in_double
def _gamma_cdf(value: Tensor, concentration: Tensor, rate: Tensor, more: float) -> Tensor:
    shape = concentration + more
    return (log_lower_gamma(shape, _scaled(rate, value)) - shape.lgamma()).clamp(max=0.0).exp()


@in_double
def _moment(concentration: Tensor, rate: Tensor, high: Tensor, order: int) -> Tensor:
    below = _gamma_cdf(high, concentration, rate, float(order))
    for less in range(order):
        below = below * (concentration + less) / rate
    log_atom = log_upper_gamma(concentration, _scaled(rate, high)) - concentration.lgamma()
    moment: Tensor = below + high**order * log_atom.clamp(max=0.0).exp()
    return moment


def _scaled(rate: Tensor, value: Tensor) -> Tensor:
    return (rate * value).clamp(max=_LARGEST)
