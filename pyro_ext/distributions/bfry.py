r"""The BFRY distribution, named after Bertoin, Fujita, Roynette and Yor, tilted and truncated.

Their densities are proportional to :math:`x^{-1-\sigma} e^{-\tau x} (1 - e^{-t x})`. They are the
distributions of the atoms in finite approximations of stable and generalized gamma processes. Such
a variable is :math:`G / Y`, where :math:`G \sim \text{Gamma}(1 - \sigma, 1)` and :math:`Y` are
independent and :math:`Y` has a density proportional to :math:`y^{\sigma - 1}` on
:math:`[\tau, \tau + t]`. The rectified gamma distribution serves as a guide for the truncated BFRY
distribution.

Numbers in brackets refer to the papers listed in the docstring of the package.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.distributions import _bfry
from pyro_ext.distributions.bases import (
    LevelDistribution,
    UnivariateDistribution,
    attach_gradient,
    discount_constraint,
    positive_exp,
    rsample_log_gamma,
)
from pyro_ext.distributions.supports import interval_with_atom, open_interval, positive
from pyro_ext.special import in_double, log_lower_gamma, log_upper_gamma
from pyro_ext.special.operations import holds_everywhere

_LARGEST = 1e300


class TiltedBFRY(LevelDistribution):
    r"""BFRY distribution of level :math:`t`, tilted by :math:`e^{-\tau x}` [2].

    .. math:: f(x) = \frac{\sigma}{\Gamma(1 - \sigma) D} x^{-1-\sigma} e^{-\tau x} (1 - e^{-t x}) ,
              \quad D = (t + \tau)^\sigma - \tau^\sigma , \quad
              E\, e^{-sX} = \frac{(s + t + \tau)^\sigma - (s + \tau)^\sigma}{D} .

    It is the distribution of one atom in a finite approximation of a generalized gamma process [2].
    At :math:`\sigma = 0` it is the limit, in which :math:`\log(1 + t/\tau)` replaces
    :math:`D / \sigma`. Draws have gradients with respect to all parameters except a tilt of zero.
    With a tilt of zero, the mean is infinite.

    :param discount: :math:`\sigma`, in [0, 1).
    :param level: :math:`t > 0`. If it overflows the floating-point type, pass ``log_level``.
    :param tilt: :math:`\tau \geq 0`; it must be positive if the discount is zero.
    :param log_level: :math:`\log t`, instead of ``level``.

    Example::

        >>> TiltedBFRY(0.4, 30.0, 1.2).log_prob(torch.tensor(0.1))
        tensor(0.6788)
    """

    discount: Tensor
    tilt: Tensor
    arg_constraints = {
        "discount": discount_constraint,
        "level": constraints.positive,
        "tilt": constraints.nonnegative,
    }
    support = positive

    def __init__(
        self,
        discount: Any,
        level: Any = None,
        tilt: Any = 0.0,
        *,
        log_level: Any = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__({"discount": discount, "tilt": tilt}, level, log_level, validate_args)
        has_limit = (self.discount > 0) | (self.tilt > 0)
        self._check_parameter("discount", has_limit, "> 0 where there is no tilt")

    def _log_prob(self, value: Tensor) -> Tensor:
        return _bfry.log_density(value, self.discount, self.log_level, self.tilt)

    def _rsample(self, shape: torch.Size) -> Tensor:
        discount = self.discount.expand(shape)
        log_gamma = rsample_log_gamma(1.0 - discount)
        uniform = torch.rand(shape, dtype=discount.dtype, device=discount.device)
        log_rate = _bfry.log_rate(uniform, discount, self.log_level, self.tilt)
        return positive_exp(log_gamma - log_rate)

    def _cdf(self, value: Tensor) -> Tensor:
        return _bfry.log_cdf(value, self.discount, self.log_level, self.tilt).exp()

    def _moment(self, order: int) -> Tensor:
        return _bfry.log_moment(self.discount, self.log_level, self.tilt, order).exp()


class BFRY(TiltedBFRY):
    r"""BFRY distribution, with a power-law tail and a density in closed form [1].

    .. math:: f(x) = \frac{\sigma}{\Gamma(1 - \sigma)} x^{-1-\sigma} (1 - e^{-x}) , \quad
              E\, e^{-sX} = (1 + s)^\sigma - s^\sigma , \quad
              P(X > x) \sim \frac{x^{-\sigma}}{\Gamma(1 - \sigma)} \;(x \to \infty) .

    :param discount: :math:`\sigma`, in (0, 1). Moments of this order and higher are infinite.

    Example::

        >>> BFRY(0.5).log_prob(torch.tensor([1e-12, 1.0, 1e12]))
        tensor([ 12.5500,  -1.7242, -42.7120])
    """

    arg_constraints = {"discount": discount_constraint}

    def __init__(self, discount: Any, *, validate_args: bool | None = None) -> None:
        super().__init__(discount, log_level=0.0, validate_args=validate_args)


class TruncatedBFRY(UnivariateDistribution):
    r"""BFRY distribution restricted to :math:`(0, C]` [3].

    .. math:: f(x) = \frac{x^{-1-\sigma} (1 - e^{-x})}{Z} , \quad
              Z = \int_0^C w^{-1-\sigma} (1 - e^{-w}) dw .

    Draws have gradients with respect to both parameters.

    :param discount: :math:`\sigma`, in (0, 1).
    :param high: :math:`C > 0`.

    Example::

        >>> distribution = TruncatedBFRY(0.3, 100.0)
        >>> distribution.log_prob(torch.tensor(5.0)), distribution.mean
        (tensor(-3.3488), tensor(9.9113))
    """

    discount: Tensor
    high: Tensor
    arg_constraints = {"discount": discount_constraint, "high": constraints.positive}

    def __init__(self, discount: Any, high: Any, *, validate_args: bool | None = None) -> None:
        super().__init__({"discount": discount, "high": high}, validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        """The interval from zero to ``high``."""
        return open_interval(0.0, self.high)

    @property
    def log_normalizer(self) -> Tensor:
        r""":math:`\log Z`."""
        # A graph that is recorded knows no values, and holds the general form.
        if holds_everywhere((self.high > _bfry.FAR) & (self.discount > _bfry.SHALLOW)):
            return _bfry.log_far_integral(self.high.log(), self.discount)
        return _bfry.log_partial_integral(self.high.log(), -self.discount)

    def _log_prob(self, value: Tensor) -> Tensor:
        return _bfry.log_kernel(value, self.discount) - self.log_normalizer

    def _cdf(self, value: Tensor) -> Tensor:
        return (_bfry.log_partial_integral(value.log(), -self.discount) - self.log_normalizer).exp()

    def _rsample(self, shape: torch.Size) -> Tensor:
        parameters = (self.discount, self.high)
        with torch.no_grad():
            draws = _bfry.sample_truncated(*(value.expand(shape) for value in parameters))
        return attach_gradient(draws.view(shape), parameters, self.cdf, self.log_prob)

    def _moment(self, order: int) -> Tensor:
        log_integral = _bfry.log_partial_integral(self.high.log(), order - self.discount)
        return (log_integral - self.log_normalizer).exp()


class RectifiedGamma(UnivariateDistribution):
    r"""Distribution of :math:`\min(V, C)`, where :math:`V` has a gamma distribution [3].

    With shape :math:`a` and rate :math:`b`, it has the gamma density below :math:`C` and an atom at
    :math:`C`,

    .. math:: f(x) = \frac{b^a}{\Gamma(a)} x^{a-1} e^{-bx} \;(0 < x < C) , \quad
              P(X = C) = \frac{\Gamma(a, bC)}{\Gamma(a)} ,

    ``log_prob`` is the log density with respect to Lebesgue measure plus a unit point mass at
    :math:`C`. Used as a guide for a distribution with a density, it gives the bound of [3], which
    treats the density at the atom as if it were a probability.

    Draws have gradients with respect to all parameters; at the atom, those with respect to shape
    and rate are zero.

    :param concentration: :math:`a > 0`.
    :param rate: :math:`b > 0`.
    :param high: :math:`C > 0`.

    Example::

        >>> distribution = RectifiedGamma(2.0, 1.0, 3.0)
        >>> distribution.log_prob(torch.tensor([1.0, 3.0])), distribution.mean
        (tensor([-1.0000, -1.6137]), tensor(1.7511))
    """

    concentration: Tensor
    rate: Tensor
    high: Tensor
    arg_constraints = dict.fromkeys(("concentration", "rate", "high"), constraints.positive)

    def __init__(
        self, concentration: Any, rate: Any, high: Any, *, validate_args: bool | None = None
    ) -> None:
        parameters = {"concentration": concentration, "rate": rate, "high": high}
        super().__init__(parameters, validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        """The interval from zero to ``high``."""
        return interval_with_atom(0.0, self.high)

    def _log_prob(self, value: Tensor) -> Tensor:
        return _log_prob(value, self.concentration, self.rate, self.high)

    def _rsample(self, shape: torch.Size) -> Tensor:
        log_gamma = rsample_log_gamma(self.concentration.expand(shape))
        return positive_exp(log_gamma - self.rate.log()).minimum(self.high)

    def _cdf(self, value: Tensor) -> Tensor:
        below = _gamma_cdf(value, self.concentration, self.rate, 0.0)
        return torch.where(value < self.high, below, 1.0)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles, by bisection."""
        quantile = super().icdf(value)
        is_below = value < _gamma_cdf(self.high, self.concentration, self.rate, 0.0)
        return torch.where(is_below, quantile, self.high)

    def _moment(self, order: int) -> Tensor:
        return _moment(self.concentration, self.rate, self.high, order)


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
