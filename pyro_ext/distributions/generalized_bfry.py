"""The generalized BFRY, the beta prime BFRY and the stable beta BFRY distribution.

They are the distributions of the weights in finite approximations of the processes of these names.

Numbers in brackets refer to the papers listed in the docstring of the package.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.distributions import _bfry
from pyro_ext.distributions.bases import (
    LevelDistribution,
    discount_constraint,
    positive_exp,
    rsample_log_gamma,
)
from pyro_ext.distributions.supports import open_interval, positive
from pyro_ext.special import in_double


class _TwoIndices(LevelDistribution):
    """Distribution of a tilted BFRY variable times an independent one of a power law."""

    discount: Tensor
    tail_index: Tensor
    support = positive

    def __init__(
        self, parameters: dict[str, Any], level: Any, log_level: Any, validate_args: bool | None
    ) -> None:
        super().__init__(parameters, level, log_level, validate_args)
        self._check_parameter("tail_index", self.tail_index > self.discount, "> discount")

    def _moment(self, order: int) -> Tensor:
        is_finite = self.tail_index > order
        tail_index = torch.where(is_finite, self.tail_index, order + 1.0)
        tilt = torch.ones_like(self.discount)
        inner = _bfry.log_moment(self.discount, self.log_level, tilt, order).exp()
        return torch.where(is_finite, self._with_tail(inner, tail_index, order), torch.inf)

    @abstractmethod
    def _with_tail(self, inner: Tensor, tail_index: Tensor, order: int) -> Tensor:
        """The moment of the product from that of the tilted BFRY variable."""


class GeneralizedBFRY(_TwoIndices):
    r"""Generalized BFRY distribution, the distribution of :math:`c W P` [2, 4].

    :math:`W` and :math:`P` are independent. :math:`W` has the tilted BFRY distribution with
    discount :math:`\sigma`, level :math:`t` and tilt 1, and :math:`P` has a Pareto distribution
    with :math:`P(P > x) = x^{-\tau}` for :math:`x > 1`. With :math:`k = \tau - \sigma`,
    :math:`y = x / c` and the regularized incomplete gamma function :math:`P(k, y)`,

    .. math:: f(x) = \frac{1}{c} \frac{\tau \sigma \Gamma(k)}
              {\Gamma(1 - \sigma) \{(t + 1)^\sigma - 1\}} y^{-1-\tau}
              \big[ P(k, y) - (t + 1)^{-k} P(k, (t + 1) y) \big] .

    The density falls as :math:`x^{-1-\sigma}` between :math:`c / t` and :math:`c`, and as
    :math:`x^{-1-\tau}` beyond. It is the distribution of a weight in a finite approximation of a
    generalized BFRY process. At :math:`\sigma = 0` it is the limit. Draws have gradients with
    respect to all parameters.

    :param discount: :math:`\sigma`, in [0, 1).
    :param tail_index: :math:`\tau`, greater than the discount.
    :param level: :math:`t > 0`. If it overflows the floating-point type, pass ``log_level``.
    :param scale: :math:`c > 0`.
    :param log_level: :math:`\log t`, instead of ``level``.

    Example::

        >>> distribution = GeneralizedBFRY(0.4, 2.3, 30.0, 1.0)
        >>> distribution.log_prob(torch.tensor([1e-6, 1.0, 1e6]))
        tensor([  6.2994,  -2.8352, -47.1949])
    """

    scale: Tensor
    arg_constraints = {
        "discount": discount_constraint,
        "tail_index": constraints.positive,
        "level": constraints.positive,
        "scale": constraints.positive,
    }

    def __init__(
        self,
        discount: Any,
        tail_index: Any,
        level: Any = None,
        scale: Any = 1.0,
        *,
        log_level: Any = None,
        validate_args: bool | None = None,
    ) -> None:
        parameters = {"discount": discount, "tail_index": tail_index, "scale": scale}
        super().__init__(parameters, level, log_level, validate_args)

    def _log_prob(self, value: Tensor) -> Tensor:
        log_scaled = _bfry.log_scaled_density(
            value, self.scale, self.discount, self.tail_index, self.log_level
        )
        return log_scaled - self.scale.log()

    def _rsample(self, shape: torch.Size) -> Tensor:
        discount = self.discount.expand(shape)
        log_gamma = rsample_log_gamma(1.0 - discount)
        uniform, tail = torch.rand((2, *shape), dtype=discount.dtype, device=discount.device)
        log_rate = _bfry.log_rate(uniform, discount, self.log_level, torch.ones_like(discount))
        log_pareto = -torch.log1p(-tail) / self.tail_index
        return positive_exp(self.scale.log() + log_gamma - log_rate + log_pareto)

    def _cdf(self, value: Tensor) -> Tensor:
        return _cdf(value, self.discount, self.tail_index, self.log_level, self.scale)

    def _with_tail(self, inner: Tensor, tail_index: Tensor, order: int) -> Tensor:
        return self.scale**order * inner * tail_index / (tail_index - order)


@in_double
def _cdf(
    value: Tensor, discount: Tensor, tail_index: Tensor, log_level: Tensor, scale: Tensor
) -> Tensor:
    limits = torch.finfo(value.dtype)
    x = (value / scale).clamp(min=limits.tiny, max=limits.max)
    inner = _bfry.log_cdf(x, discount, log_level, torch.ones_like(x)).exp()
    density = _bfry.log_scaled_density(value, scale, discount, tail_index, log_level)
    # The Pareto factor moves mass beyond a point, in proportion to the density there.
    return (inner - torch.exp(x.log() + density) / tail_index).clamp(min=0.0)


class BetaPrimeBFRY(_TwoIndices):
    r"""Beta prime BFRY distribution, the distribution of :math:`W / B` [2, 4].

    :math:`W` and :math:`B` are independent. :math:`W` has the tilted BFRY distribution with
    discount :math:`\sigma`, level :math:`t` and tilt 1, and :math:`B` has the gamma distribution
    with shape :math:`\tau` and rate :math:`c`. With :math:`k = \tau - \sigma`,

    .. math:: f(x) = \frac{\sigma\, c^\tau \Gamma(k)}
              {\Gamma(1 - \sigma) \Gamma(\tau) \{(1 + t)^\sigma - 1\}} x^{-1-\sigma}
              \big[ (c + x)^{-k} - (c + (1 + t) x)^{-k} \big] .

    The density falls as :math:`x^{-1-\sigma}` between :math:`c / t` and :math:`c`, and as
    :math:`x^{-1-\tau}` beyond. It is the distribution of a weight in a finite approximation of a
    beta prime process. At :math:`\sigma = 0` it is the limit, in which :math:`\log(1 + t)` replaces
    :math:`\{(1 + t)^\sigma - 1\} / \sigma`. Draws have gradients with respect to all parameters.
    The distribution function is computed by quadrature, for levels up to :math:`e^{9000}`.

    :param discount: :math:`\sigma`, in [0, 1).
    :param tail_index: :math:`\tau`, greater than the discount.
    :param level: :math:`t > 0`. If it overflows the floating-point type, pass ``log_level``.
    :param rate: :math:`c > 0`; :math:`x` scales with it.
    :param log_level: :math:`\log t`, instead of ``level``.

    Example::

        >>> distribution = BetaPrimeBFRY(0.4, 2.3, 30.0, 1.0)
        >>> distribution.log_prob(torch.tensor([1e-6, 1.0, 1e6]))
        tensor([  6.9799,  -3.9115, -48.1820])
    """

    rate: Tensor
    arg_constraints = {
        "discount": discount_constraint,
        "tail_index": constraints.positive,
        "level": constraints.positive,
        "rate": constraints.positive,
    }

    def __init__(
        self,
        discount: Any,
        tail_index: Any,
        level: Any = None,
        rate: Any = 1.0,
        *,
        log_level: Any = None,
        validate_args: bool | None = None,
    ) -> None:
        parameters = {"discount": discount, "tail_index": tail_index, "rate": rate}
        super().__init__(parameters, level, log_level, validate_args)

    def _log_prob(self, value: Tensor) -> Tensor:
        return _log_beta_prime_density(
            value, self.discount, self.tail_index, self.log_level, self.rate
        )

    def _rsample(self, shape: torch.Size) -> Tensor:
        power = self.tail_index - self.discount
        parts = (value.expand(shape) for value in (self.discount, power, self.log_level))
        return positive_exp(_bfry.rsample_log_beta_prime(*parts) + self.rate.log())

    def _cdf(self, value: Tensor) -> Tensor:
        return _beta_prime_cdf(value, self.discount, self.tail_index, self.log_level, self.rate)

    def _with_tail(self, inner: Tensor, tail_index: Tensor, order: int) -> Tensor:
        for less in range(1, order + 1):
            inner = inner * self.rate / (tail_index - less)
        return inner


class StableBetaBFRY(LevelDistribution):
    r"""Distribution of a weight in the Lomax approximation of a stable beta process [2].

    .. math:: f(x) = \frac{\sigma\, \Gamma(c)}
              {\Gamma(1 - \sigma) \Gamma(c + \sigma) \{(1 + t)^\sigma - 1\}}
              x^{-1-\sigma} (1 - x)^{c + \sigma - 1} \{ 1 - (1 + t x)^{-c} \} , \quad 0 < x < 1 .

    The odds :math:`x / (1 - x)` have the beta prime BFRY distribution with tail index
    :math:`\sigma + c` and rate 1. At :math:`\sigma = 0`, the beta process, it is the limit, in
    which :math:`\log(1 + t)` replaces :math:`\{(1 + t)^\sigma - 1\} / \sigma`. Draws have gradients
    with respect to all parameters. Distribution function, mean and variance are computed by
    quadrature, for levels up to :math:`e^{9000}`.

    :param discount: :math:`\sigma`, in [0, 1).
    :param concentration: :math:`c > 0`.
    :param level: :math:`t > 0`. If it overflows the floating-point type, pass ``log_level``.
    :param log_level: :math:`\log t`, instead of ``level``.

    Example::

        >>> distribution = StableBetaBFRY(0.4, 1.5, 24.744151)
        >>> distribution.log_prob(torch.tensor(0.1)), 20.0 * distribution.mean
        (tensor(0.5839), tensor(1.5614))
    """

    discount: Tensor
    concentration: Tensor
    arg_constraints = {
        "discount": discount_constraint,
        "concentration": constraints.positive,
        "level": constraints.positive,
    }
    support = open_interval(0.0, 1.0)

    def __init__(
        self,
        discount: Any,
        concentration: Any,
        level: Any = None,
        *,
        log_level: Any = None,
        validate_args: bool | None = None,
    ) -> None:
        parameters = {"discount": discount, "concentration": concentration}
        super().__init__(parameters, level, log_level, validate_args)

    def _log_prob(self, value: Tensor) -> Tensor:
        return _log_odds_density(value, self.discount, self.concentration, self.log_level)

    def _rsample(self, shape: torch.Size) -> Tensor:
        parts = (self.discount, self.concentration, self.log_level)
        log_odds = _bfry.rsample_log_beta_prime(*(value.expand(shape) for value in parts))
        return _clamp_inside(torch.sigmoid(log_odds))

    def _cdf(self, value: Tensor) -> Tensor:
        return _odds_cdf(value, self.discount, self.concentration, self.log_level)

    @property
    def mean(self) -> Tensor:
        """Mean."""
        return _odds_mean(self.discount, self.concentration, self.log_level)

    @property
    def variance(self) -> Tensor:
        """Variance."""
        return _odds_variance(self.discount, self.concentration, self.log_level)


@in_double
def _log_beta_prime_density(
    value: Tensor, discount: Tensor, tail_index: Tensor, log_level: Tensor, rate: Tensor
) -> Tensor:
    log_value = value.log()
    x = log_value - rate.log()
    return _bfry.log_beta_prime_density(x, discount, tail_index - discount, log_level) - log_value


@in_double
def _beta_prime_cdf(
    value: Tensor, discount: Tensor, tail_index: Tensor, log_level: Tensor, rate: Tensor
) -> Tensor:
    x = value.log() - rate.log()
    return _bfry.beta_prime_cdf(x, discount, tail_index - discount, log_level)


@in_double
def _log_odds_density(
    value: Tensor, discount: Tensor, concentration: Tensor, log_level: Tensor
) -> Tensor:
    value = _clamp_inside(value)
    log_value, log_rest = value.log(), torch.log1p(-value)
    density = _bfry.log_beta_prime_density(log_value - log_rest, discount, concentration, log_level)
    return density - log_value - log_rest


@in_double
def _odds_cdf(value: Tensor, discount: Tensor, concentration: Tensor, log_level: Tensor) -> Tensor:
    value = _clamp_inside(value)
    return _bfry.beta_prime_cdf(
        value.log() - torch.log1p(-value), discount, concentration, log_level
    )


@in_double
def _odds_mean(discount: Tensor, concentration: Tensor, log_level: Tensor) -> Tensor:
    return _bfry.beta_prime_expectation(torch.sigmoid, discount, concentration, log_level)


@in_double
def _odds_variance(discount: Tensor, concentration: Tensor, log_level: Tensor) -> Tensor:
    mean = _odds_mean(discount, concentration, log_level)[..., None]
    return _bfry.beta_prime_expectation(
        lambda x: (torch.sigmoid(x) - mean).square(), discount, concentration, log_level
    )


def _clamp_inside(value: Tensor) -> Tensor:
    """Keep numbers inside the unit interval."""
    limits = torch.finfo(value.dtype)
    return value.clamp(min=limits.tiny, max=1.0 - limits.eps / 2.0)
