"""Open intervals, with bijections that never round a number to one of their ends.

If a number rounds to an end, underflows or overflows, PyTorch's bijections return the end itself,
which is outside the support. Here, values stop at the floating-point numbers next to the ends.
Beyond these, the log Jacobian keeps falling with slope one on either side, so that a density over
unconstrained numbers is continuous, finite and proper.
"""

import math
from typing import Any, NoReturn, Self

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import Transform
from torch.nn.functional import relu, softplus

from pyro_ext.distributions.bases import positive_exp


class _NumbersAbove(constraints.greater_than):
    """Numbers greater than a bound."""


class _OpenInterval(constraints.interval):
    """Numbers between two bounds. Data may be at either, which no unconstrained number is."""


class _IntervalWithAtom(constraints.interval):
    """Interval whose upper end has a probability, and between whose ends there is a density."""

    @property
    def inside(self) -> Any:
        """The part with a density."""
        return open_interval(self.lower_bound, self.upper_bound)


numbers_above: Any = _NumbersAbove
open_interval: Any = _OpenInterval
interval_with_atom: Any = _IntervalWithAtom
positive: Any = numbers_above(0.0)


def numbers_between(low: float, high: float) -> Any:
    """Return the numbers between two bounds; the second may be infinite."""
    return open_interval(low, high) if high < math.inf else numbers_above(low)


def _as(value: Any, like: Tensor) -> Tensor:
    """A bound in the type of numbers, which a number of Python has more digits than by default."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


class _Inside(Transform):
    """Bijection from the real line to the inside of a support."""

    codomain: Any
    bijective, sign = True, 1
    domain = constraints.real

    def __init__(self, support: Any, cache_size: int = 0) -> None:
        super().__init__(cache_size)
        self.codomain = support

    def with_cache(self, cache_size: int = 1) -> Self:
        """The same bijection, which remembers its last value."""
        return self if self._cache_size == cache_size else type(self)(self.codomain, cache_size)

    def _least(self, like: Tensor) -> Any:
        """A number that is greater than the lower bound, and next to it."""
        limits, low = torch.finfo(like.dtype), _as(self.codomain.lower_bound, like)
        return low + (low.abs() * limits.eps).clamp(min=limits.tiny)


class _Above(_Inside):
    """Exponential plus the lower bound."""

    def _call(self, x: Tensor) -> Tensor:
        value = (self.codomain.lower_bound + positive_exp(x)).maximum(self._least(x))
        result: Tensor = value.clamp(max=torch.finfo(x.dtype).max)
        return result

    def _inverse(self, y: Tensor) -> Tensor:
        limits = torch.finfo(y.dtype)
        result: Tensor = (
            (y - self.codomain.lower_bound).clamp(min=limits.tiny, max=limits.max).log()
        )
        return result

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Logarithm of the slope, which beyond the greatest number falls."""
        return x - 2.0 * relu(x - math.log(torch.finfo(x.dtype).max))


class _Between(_Inside):
    """Logistic function, scaled to an interval."""

    def _call(self, x: Tensor) -> Tensor:
        limits, high = torch.finfo(x.dtype), _as(self.codomain.upper_bound, x)
        value = self.codomain.lower_bound + self._width() * torch.sigmoid(x)
        greatest = high - (0.5 * high.abs() * limits.eps).clamp(min=limits.tiny)
        result: Tensor = value.maximum(self._least(x)).minimum(greatest)
        return result

    def _inverse(self, y: Tensor) -> Tensor:
        limits = torch.finfo(y.dtype)
        fraction = (y - self.codomain.lower_bound) / self._width()
        fraction = fraction.clamp(min=limits.tiny, max=1.0 - 0.5 * limits.eps)
        result: Tensor = fraction.log() - torch.log1p(-fraction)
        return result

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Logarithm of the slope."""
        log_width = _as(self._width(), x).log()
        return log_width - softplus(x) - softplus(-x)

    def _width(self) -> Any:
        return self.codomain.upper_bound - self.codomain.lower_bound


class Exponential(dist.Exponential):
    """Exponential distribution with a bijection that stays inside the support."""

    support = positive


class Gamma(dist.Gamma):
    """Gamma distribution with a bijection that stays inside the support."""

    support = positive


class InverseGamma(dist.InverseGamma):
    """Inverse gamma distribution with a bijection that stays inside the support."""

    support = positive

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, also where the inverse of a number overflows."""
        if self._validate_args:
            self._validate_sample(value)
        shape, rate = self.concentration, self.rate
        constant = shape * rate.log() - shape.lgamma()
        result: Tensor = constant - (shape + 1.0) * value.log() - rate / value
        return result


def _refuse(support: _IntervalWithAtom) -> NoReturn:
    raise NotImplementedError(
        "a distribution with an atom, such as RectifiedGamma, has no bijection with the real line: "
        "use it in guides only, and give latent sites a distribution with a density, such as "
        "TruncatedBFRY"
    )


for _registry in (biject_to, transform_to):
    _registry.register(numbers_above, _Above)
    _registry.register(open_interval, _Between)
    _registry.register(interval_with_atom, _refuse)
