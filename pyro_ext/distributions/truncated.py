"""Truncated distributions: the normal, accurate in the tails, and any with a ``cdf``."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.special import log_ndtr, ndtri

from pyro_ext._lib import checks
from pyro_ext.distributions.bases import (
    ScalarDistribution,
    UnivariateDistribution,
    expanded,
    solve_increasing,
)
from pyro_ext.special import log1mexp

_LOG_ROOT_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_FARTHEST = 1e4  # in standard deviations: no number is beyond an infinite end
_FROM_THE_TAIL = -2.0
_NUM_STEPS = 6


class TruncatedNormal(UnivariateDistribution):
    r"""Normal distribution cut off at one or both ends.

    .. math:: f(x) = \frac{\varphi((x - \mu) / \sigma)}{\sigma\,(\Phi(b) - \Phi(a))} , \quad
              a = \frac{l - \mu}{\sigma} , \; b = \frac{h - \mu}{\sigma}

    Densities and draws are accurate even in tails where the probability under the normal
    distribution underflows. Draws have gradients with respect to all parameters.

    :param loc: :math:`\mu` of the normal distribution.
    :param scale: :math:`\sigma > 0` of the normal distribution.
    :param low: :math:`l`, the lower end; ``None`` if there is none.
    :param high: :math:`h > l`, the upper end; ``None`` if there is none.

    Example::

        >>> TruncatedNormal(0.0, 1.0, low=40.0).mean
        tensor(40.0250)
    """

    arg_constraints = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "low": constraints.dependent,
        "high": constraints.dependent,
    }

    loc: Tensor
    scale: Tensor
    low: Tensor | None = None
    high: Tensor | None = None

    def __init__(
        self,
        loc: Any,
        scale: Any,
        low: Any = None,
        high: Any = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        ends = {name: end for name, end in (("low", low), ("high", high)) if end is not None}
        super().__init__({"loc": loc, "scale": scale, **ends}, validate_args)
        if self.low is not None and self.high is not None:
            self._check_parameter("high", self.high > self.low, "> low")

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The interval, or the half line."""
        return _interval(self.low, self.high)

    # In double precision: in the tails, density and mass are both exponentials of large numbers.

    def _standard(self, value: Tensor) -> Tensor:
        return (value.double() - self.loc.double()) / self.scale.double()

    def _ends(self) -> tuple[Tensor, Tensor]:
        """Ends in standard deviations, far ones where there are none."""
        low, high = (
            torch.full_like(self.loc, far, dtype=torch.float64)
            if end is None
            else self._standard(end)
            for end, far in ((self.low, -_FARTHEST), (self.high, _FARTHEST))
        )
        return low, high

    def _log_prob(self, value: Tensor) -> Tensor:
        z, (low, high) = self._standard(value), self._ends()
        density = _log_density(z) - _log_between(low, high) - self.scale.double().log()
        return torch.where((z >= low) & (z <= high), density, -torch.inf).to(self.loc)

    def _cdf(self, value: Tensor) -> Tensor:
        low, high = self._ends()
        z = self._standard(value).clamp(low, high)
        return (_log_between(low, z) - _log_between(low, high)).exp().to(self.loc)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles."""
        low, high = self._ends()
        # In the tail that most of the interval lies in, where logarithms of probabilities differ.
        is_upper = low + high > 0
        near, far = torch.where(is_upper, -high, low), torch.where(is_upper, -low, high)
        rank = torch.where(is_upper, 1.0 - value, value).double()
        log_p = torch.logaddexp(torch.log1p(-rank) + log_ndtr(near), rank.log() + log_ndtr(far))
        z = _log_quantile(log_p)
        z = torch.where(is_upper, -z, z)
        quantile = (self.loc.double() + self.scale.double() * z).to(self.loc)
        # Rounding may lead out of the interval.
        if self.low is not None:
            above = torch.nextafter(self.low.detach(), torch.full_like(self.low, math.inf))
            quantile = torch.maximum(quantile, above)
        if self.high is not None:
            below = torch.nextafter(self.high.detach(), torch.full_like(self.high, -math.inf))
            quantile = torch.minimum(quantile, below)
        return quantile

    def _rsample(self, shape: torch.Size) -> Tensor:
        uniforms = torch.rand(shape, dtype=torch.float64, device=self.loc.device)
        return self.icdf(uniforms.clamp(min=torch.finfo(torch.float64).tiny))

    def _slopes(self) -> tuple[Tensor, Tensor]:
        """Densities at the ends over the mass between them."""
        low, high = self._ends()
        log_mass = _log_between(low, high)
        return (_log_density(low) - log_mass).exp(), (_log_density(high) - log_mass).exp()

    @property
    def mean(self) -> Tensor:
        """Mean."""
        at_low, at_high = self._slopes()
        return (self.loc + self.scale * (at_low - at_high)).to(self.loc)

    @property
    def variance(self) -> Tensor:
        """Variance."""
        (low, high), (at_low, at_high) = self._ends(), self._slopes()
        ratio = 1.0 + low * at_low - high * at_high - (at_low - at_high).square()
        return (self.scale.square() * ratio).to(self.loc)

    def entropy(self) -> Tensor:
        """Entropy."""
        (low, high), (at_low, at_high) = self._ends(), self._slopes()
        volume = _log_between(low, high) + self.scale.double().log() + _LOG_ROOT_TWO_PI + 0.5
        return (volume + 0.5 * (low * at_low - high * at_high)).to(self.loc)


class TruncatedDistribution(ScalarDistribution):
    r"""Distribution of a real number, cut off at one or both ends.

    .. math:: f(x) = \frac{f_0(x)}{F_0(h) - F_0(l)} , \quad l < x < h

    The base can be any continuous distribution with a ``cdf``. Draws invert it: with ``icdf`` if
    the base has one, and then they have gradients, or else by bisection. For a normal distribution,
    use :class:`TruncatedNormal`, which is accurate in the tails.

    :param base: a univariate distribution from Pyro, PyTorch or this package.
    :param low: :math:`l`, the lower end; ``None`` if there is none.
    :param high: :math:`h > l`, the upper end; ``None`` if there is none.
    :raises TypeError: if the base is not a distribution.
    :raises ValueError: if the base is discrete, multivariate or without a ``cdf``, or has no
        probability between the ends.

    Example::

        >>> waiting = TruncatedDistribution(dist.Exponential(1.0), high=2.0)
        >>> round(float(waiting.log_prob(torch.tensor(1.0)).exp()), 3)
        0.425
    """

    arg_constraints = {"low": constraints.dependent, "high": constraints.dependent}

    def __init__(
        self,
        base: Distribution,
        low: Any = None,
        high: Any = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        checks.instance("base", base, Distribution, "a distribution")
        support: Any = base.support
        if base.event_shape or support.is_discrete:
            raise ValueError(f"base must be a continuous univariate distribution, got {base!r:.80}")
        given = {name: end for name, end in (("low", low), ("high", high)) if end is not None}
        if not given:
            raise ValueError("low or high must be given, got None for both")
        ends = dict(zip(given, checks.as_parameters(type(self).__name__, given), strict=True))
        shape = torch.broadcast_shapes(base.batch_shape, *(end.shape for end in ends.values()))
        self.base = base.expand(shape)
        self.base._validate_args = False  # whose cdf is asked at the ends of its support
        self.low = ends["low"].expand(shape) if "low" in ends else None
        self.high = ends["high"].expand(shape) if "high" in ends else None
        super().__init__(shape, torch.Size(), validate_args=validate_args)
        try:
            below, above = self._masses()
        except NotImplementedError as error:
            raise ValueError(f"base must have a cdf, got {base!r:.80}") from error
        if self._validate_args and not bool((above > below).all()):
            raise ValueError(
                f"base must have probability between low and high, got {base!r:.80}, "
                f"{checks.shown(low)} and {checks.shown(high)}"
            )

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Tell whether draws have gradients."""
        return type(self.base).icdf is not Distribution.icdf

    def _bounds(self) -> tuple[Any, Any]:
        """Ends of the support, ``None`` where it has none."""
        inner = self.base.support
        low, high = (getattr(inner, name, None) for name in ("lower_bound", "upper_bound"))
        low = low if self.low is None else _clamped(self.low, low, None)
        high = high if self.high is None else _clamped(self.high, None, high)
        return low, high

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The interval, or the half line."""
        return _interval(*self._bounds())

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Repeat the distribution over a larger batch shape."""
        shape = torch.Size(batch_shape)
        ends = {
            name: None if end is None else end.expand(shape)
            for name, end in (("low", self.low), ("high", self.high))
        }
        return expanded(self, _instance, shape, base=self.base.expand(shape), **ends)

    def _masses(self) -> tuple[Tensor, Tensor]:
        """Probabilities of the base below either end."""
        low, high = self._bounds()
        if self.low is None:
            above = self.base.cdf(high)
            return torch.zeros_like(above), above
        below = self.base.cdf(low)
        return below, torch.ones_like(below) if self.high is None else self.base.cdf(high)

    def _log_prob(self, value: Tensor) -> Tensor:
        below, above = self._masses()
        inside = _clamped(value, *self._bounds())
        density = self.base.log_prob(inside) - (above - below).log()
        return torch.where(value == inside, density, -torch.inf)

    def _cdf(self, value: Tensor) -> Tensor:
        below, above = self._masses()
        reached: Tensor = self.base.cdf(_clamped(value, *self._bounds()))
        return (reached - below) / (above - below)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles, from those of the base or by bisection, which has no gradients."""
        below, above = self._masses()
        rank = below + value * (above - below)
        low, high = self._bounds()
        quantile = self.base.icdf(rank) if self.has_rsample else self._halved(rank, low, high)
        return _clamped(quantile, low, high)  # rounding may lead out of the interval

    def _halved(self, rank: Tensor, low: Any, high: Any) -> Tensor:
        """Solve for the quantile, between ends that may be as far as numbers go."""
        farthest = math.asinh(torch.finfo(rank.dtype).max) - 1.0
        start, end = (
            torch.full_like(rank, far)
            if bound is None
            else torch.as_tensor(bound).to(rank).asinh().expand(rank.shape)
            for bound, far in ((low, -farthest), (high, farthest))
        )
        return solve_increasing(lambda x: self.base.cdf(x.sinh()), rank, start, end).sinh()

    def _rsample(self, shape: torch.Size) -> Tensor:
        below, _ = self._masses()
        with torch.no_grad():
            ranks = torch.rand(shape, dtype=below.dtype, device=below.device)
        return self.icdf(ranks)


def _clamped(value: Tensor, low: Any, high: Any) -> Tensor:
    """Move numbers to the nearer of two ends, of which each may be ``None``."""
    value = value if low is None else value.maximum(torch.as_tensor(low).to(value))
    return value if high is None else value.minimum(torch.as_tensor(high).to(value))


def _interval(low: Any, high: Any) -> constraints.Constraint:
    """Numbers between two ends, of which one may be ``None``."""
    if low is not None and high is not None:
        return constraints.interval(low, high)
    if low is not None:
        return constraints.greater_than(low)
    return constraints.real if high is None else constraints.less_than(high)


def _log_density(z: Tensor) -> Tensor:
    """Log density of a standard normal number."""
    return -0.5 * z.square() - _LOG_ROOT_TWO_PI


def _log_between(low: Tensor, high: Tensor) -> Tensor:
    """Logarithm of the probability between two ends, of a standard normal number."""
    is_upper = low + high > 0
    near, far = torch.where(is_upper, -high, low), torch.where(is_upper, -low, high)
    larger = log_ndtr(far)
    difference = larger - log_ndtr(near)
    is_empty = difference <= 0
    log_mass = larger + log1mexp(torch.where(is_empty, 1.0, difference))
    return torch.where(is_empty, -torch.inf, log_mass)


def _log_quantile(log_p: Tensor) -> Tensor:
    """Quantiles of a standard normal number at logarithms of probabilities, by Newton steps."""
    with torch.no_grad():
        is_tail = log_p < _FROM_THE_TAIL
        middle = torch.where(is_tail, -1.0, log_p)
        square = -2.0 * torch.where(is_tail, log_p, -4.0)
        start = -(square - math.log(2.0 * math.pi) - square.log()).clamp(min=1.0).sqrt()
        z = torch.where(is_tail, start, ndtri(middle.exp()))
        for _ in range(_NUM_STEPS):
            z = torch.where(is_tail, z - (log_ndtr(z) - log_p) / _hazard(z), z)
        slope = _hazard(z)
    # A last step, whose derivative is that of the inverse.
    quantile: Tensor = z - (log_ndtr(z) - log_p) / slope
    return quantile


def _hazard(z: Tensor) -> Tensor:
    """Derivative of the logarithm of the standard normal distribution function."""
    slope: Tensor = (_log_density(z) - log_ndtr(z)).exp()
    return slope
