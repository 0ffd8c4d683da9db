"""Transformed distributions of positive numbers, and how much of their mass is resolved."""

import math
from typing import Any, NoReturn

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to

from pyro_ext.distributions.bases import clamp_positive
from pyro_ext.distributions.supports import numbers_between, positive

_MOST_LOST = 0.01


def affine(distribution: TorchDistribution, loc: float, scale: float) -> TorchDistribution:
    """Distribution of a number in other units and from another start."""
    return _image(distribution, _Affine(loc, scale, _end(distribution)))


def bounded(distribution: TorchDistribution, largest: float) -> TorchDistribution:
    """Distribution of :math:`x / (1 + x / b)`, which is less than a bound."""
    return _image(distribution, _Bounded(largest))


def squared_cauchy(scale: float) -> TorchDistribution:
    """Distribution of the square of a half-Cauchy variable."""
    return _image(_HalfCauchy(torch.tensor(scale)), _Square())


def resolved(distribution: TorchDistribution) -> TorchDistribution:
    """The distribution, without a bijection where too much mass is not resolved from the end."""
    fraction = _lost_fraction(distribution)
    if fraction <= _MOST_LOST:
        return distribution
    return _image(distribution, _Unresolved(_end(distribution), fraction))


def _lost_fraction(distribution: TorchDistribution) -> float:
    """Fraction of the mass below the least number inside of the support."""
    support: Any = distribution.support
    if isinstance(distribution, dist.Delta) or support.is_discrete:
        return 0.0
    if isinstance(distribution, dist.Beta):
        # PyTorch has no distribution function of it; near zero it is a power.
        shape, other = distribution.concentration1.double(), distribution.concentration0.double()
        beta = shape.lgamma() + other.lgamma() - (shape + other).lgamma()
        log_least = math.log(torch.finfo(distribution.concentration1.dtype).tiny)
        return float((shape * log_least - shape.log() - beta).exp())
    with torch.random.fork_rng(devices=[]):
        dtype = distribution.sample().dtype
    least = _least_above(torch.as_tensor(getattr(support, "lower_bound", 0.0), dtype=dtype))
    try:
        return float(distribution.cdf(least))
    except NotImplementedError:  # a user's own distribution, about which nothing is known
        return 0.0


def _least_above(low: Tensor) -> Tensor:
    return low.nextafter(low + 1.0).clamp(min=torch.finfo(low.dtype).tiny)


def _end(distribution: TorchDistribution) -> float:
    return float(getattr(distribution.support, "upper_bound", math.inf))


def _image(distribution: TorchDistribution, transform: Any) -> TorchDistribution:
    image: TorchDistribution = dist.TransformedDistribution(distribution, [transform])
    return image


class _Affine(dist.transforms.AffineTransform):
    """Affine map of numbers that are positive, and bounded or not; PyTorch's own forgets that."""

    def __init__(self, loc: float, scale: float, high: float = math.inf) -> None:
        super().__init__(loc, scale)
        self._high = high

    def _call(self, x: Tensor) -> Tensor:
        # A small number that is added to a larger one does not change it, but is inside.
        image = self.loc + self.scale * x
        return image.maximum(_least_above(image.new_tensor(self.loc)))

    def _inverse(self, y: Tensor) -> Tensor:
        return clamp_positive((y - self.loc) / self.scale)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def domain(self) -> Any:
        """Positive numbers up to the bound."""
        return numbers_between(0.0, self._high)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def codomain(self) -> Any:
        """Their images."""
        low = float(self.loc)
        return numbers_between(low, low + float(self.scale) * self._high)


class _HalfCauchy(dist.HalfCauchy):
    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, also where the square of a number overflows."""
        if self._validate_args:
            self._validate_sample(value)
        log_multiple = value.log() - self.scale.log()
        growth = torch.logaddexp(2.0 * log_multiple, torch.zeros_like(log_multiple))
        result: Tensor = math.log(2.0 / math.pi) - self.scale.log() - growth
        return result


class _Square(dist.transforms.PowerTransform):
    """Square of a positive number."""

    codomain = positive

    def __init__(self) -> None:
        super().__init__(torch.tensor(2.0))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Logarithm of the slope, which itself may overflow."""
        return math.log(2.0) + x.log()


class _Bounded(dist.transforms.Transform):
    r"""Map of positive numbers to those below a bound, :math:`x / (1 + x / b)`."""

    bijective, sign = True, 1
    domain = constraints.positive

    def __init__(self, largest: float) -> None:
        super().__init__()
        self._largest = largest

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def codomain(self) -> Any:
        """Positive numbers up to the bound."""
        return numbers_between(0.0, self._largest)

    def _call(self, x: Tensor) -> Tensor:
        return self._largest / (1.0 + self._largest / x)  # the bound itself where x is infinite

    def _inverse(self, y: Tensor) -> Tensor:
        # Next to the bound numbers have no precision left.
        return y / (1.0 - y / self._largest).clamp(min=torch.finfo(y.dtype).eps)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Logarithm of the slope."""
        return -2.0 * torch.log1p(x / self._largest)


class _Unresolved(_Affine):
    """The numbers themselves, as numbers of which too many are lost."""

    def __init__(self, high: float, fraction: float) -> None:
        super().__init__(0.0, 1.0, high)
        self._fraction = fraction

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def codomain(self) -> Any:
        """The same numbers, without a bijection."""
        return _UnresolvedSupport(self.domain, self._fraction)


class _UnresolvedSupport(constraints.Constraint):
    """Support of a distribution whose mass is in part below the least number.

    In coordinates of a bijection the density there would be that of the least number.
    """

    event_dim = 0

    def __init__(self, numbers: Any, fraction: float) -> None:
        self.numbers, self.fraction = numbers, fraction

    def check(self, value: Any) -> Any:
        """Check whether values are in the support."""
        return self.numbers.check(value)


def _refuse(support: _UnresolvedSupport) -> NoReturn:
    raise ValueError(
        "variances must have at most 1% of their mass below the least number of their type, for "
        "samplers and guides that move them in other coordinates, got "
        f"{support.fraction:.0%}; use a narrower layer, float64, or jumps with a positive index "
        "at zero, such as those of horseshoe_variances()"
    )


for _registry in (biject_to, transform_to):
    _registry.register(_UnresolvedSupport, _refuse)
