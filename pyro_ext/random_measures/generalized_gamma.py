"""The generalized gamma process and its special cases, with their own series methods.

[1] A. Brix (1999), Generalized gamma measures and shot-noise Cox processes.

[2] M. Perman, J. Pitman, M. Yor (1992), Size-biased sampling of Poisson point processes and
excursions.

[3] J. Rosiński (2001), Series representations of Lévy processes from the perspective of point
processes.

[4] S. Favaro, Y. W. Teh (2013), MCMC for normalized random measure mixture models.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_ext.distributions import TiltedBFRY, TiltedStable
from pyro_ext.distributions.bases import rsample_log_gamma
from pyro_ext.distributions.supports import Gamma
from pyro_ext.random_measures._numerics import (
    log_if_positive,
    log_sum,
    log_upper_gamma_at_log,
    survives,
)
from pyro_ext.random_measures.arrivals import GammaArrivals
from pyro_ext.random_measures.levy_measure import ArrivalFamily, SeriesMethod
from pyro_ext.random_measures.measure import CompletelyRandomMeasure
from pyro_ext.random_measures.total_mass import TotalMass
from pyro_ext.special import log1mexp, log1prel, log_exprel, log_lower_gamma, log_upper_gamma
from pyro_ext.special.operations import holds_everywhere, may_hold_everywhere
from pyro_ext.special.quadrature import integrate_log, panel_edges

_SMALLEST = 1e-300
_LARGEST_LOG = 700.0
_TINY_LOG = -36.0
_LEAST_RATIO = -1.0 + 1e-16


class GeneralizedGammaProcess(CompletelyRandomMeasure):
    r"""Generalized gamma process [1].

    .. math:: \rho(w) = \frac{\eta}{\Gamma(1 - \sigma)} w^{-1-\sigma} e^{-\tau w} , \quad
              \psi(t) = \frac{\eta}{\sigma} \{(t + \tau)^\sigma - \tau^\sigma\} , \quad
              \kappa(n, u) = \eta \frac{\Gamma(n - \sigma)}{\Gamma(1 - \sigma)}
              (u + \tau)^{\sigma - n} .

    With :math:`\sigma = 0` it is the gamma process, with :math:`\sigma = 1/2` the inverse Gaussian
    process, and with :math:`\tau = 0` the stable process. With :math:`\sigma < 0` there are
    finitely many weights: a Poisson number of gamma variables. Everything has a closed form. Some
    authors define :math:`\eta` without the factor :math:`1 / \Gamma(1 - \sigma)`, or divided by
    :math:`\sigma`.

    In addition to the series methods of every measure, ``"rejection"`` takes the largest weights of
    the stable process and keeps each with probability :math:`e^{-\tau w}`, and ``"rosinski"`` is
    the series of [3]; both need :math:`\sigma > 0`. ``"size_biased"`` is the series of [2], in
    closed form. If there is a tilt, ``jumps_above`` can also use adaptive thinning,
    ``method="thinning"`` [4].

    :param mass: :math:`\eta > 0`.
    :param discount: :math:`\sigma < 1`.
    :param tilt: :math:`\tau \geq 0`; it must be positive if the discount is not.

    Example::

        >>> measure = GeneralizedGammaProcess(2.0, 0.4, 1.5)
        >>> measure.mean, measure.laplace_exponent(1.0)
        (tensor(1.5681), tensor(1.3331))
    """

    mass: Tensor
    discount: Tensor
    tilt: Tensor
    _is_closed = True

    def __init__(
        self, mass: Any, discount: Any, tilt: Any, *, validate_args: bool | None = None
    ) -> None:
        super().__init__({"mass": mass, "discount": discount, "tilt": tilt}, validate_args)
        self._check("mass", self.mass > 0, "> 0")
        self._check("discount", self.discount < 1, "< 1")
        self._check("tilt", self.tilt >= 0, ">= 0")
        self._check("tilt", (self.tilt > 0) | (self.discount > 0), "> 0 where the discount is not")

    @property
    def index_at_zero(self) -> Tensor:
        r"""Index of regular variation at zero, :math:`\max(\sigma, 0)`."""
        return self.discount.clamp(min=0.0)

    @property
    def index_at_infinity(self) -> Tensor:
        r"""Index of regular variation at infinity: :math:`\sigma` without a tilt, else infinite."""
        return torch.where(self.tilt > 0, torch.inf, self.discount)

    def rescale(self, scale: Any) -> "GeneralizedGammaProcess":
        r"""Generalized gamma process with mass :math:`\eta a^\sigma` and tilt :math:`\tau / a`.

        :param scale: :math:`a > 0`.
        """
        factor = self._argument("scale", scale, "> 0")
        own = self._double
        return self._rescaled(scale, factor, mass=own.mass * factor**own.discount)

    def total_mass(self) -> TorchDistribution:
        r"""Distribution of the total mass.

        :returns: ``TiltedStable`` if all discounts are positive, ``Gamma`` if all are zero,
            otherwise ``TotalMass``.
        """
        mass, discount, tilt = self.mass, self.discount, self.tilt
        if holds_everywhere(discount == 0):
            return Gamma(mass, tilt, validate_args=self._validate)
        if holds_everywhere(discount <= 0) or not may_hold_everywhere(discount > 0):
            return TotalMass(self, validate_args=self._validate)
        return TiltedStable(mass / discount, discount, tilt, validate_args=self._validate)

    def _has_infinitely_many(self) -> bool:
        return may_hold_everywhere(self.discount >= 0)

    def _log_corners(self) -> list[Tensor]:
        own = self._double
        return [torch.where(own.tilt > 0, -own.tilt.log(), 0.0)]

    def _log_scale(self) -> Tensor:
        own = self._double
        return own.mass.log() - (1.0 - own.discount).lgamma()

    def _log_rate(self, log_tilt: Tensor) -> Tensor:
        r""":math:`\log (u + \tau)`, with a gradient also without tilt."""
        return log_sum(log_tilt, self._double.tilt)

    def _log_mass(self, x: Tensor) -> Tensor:
        own = self._double
        return self._log_scale() - own.discount * x - self._log_removal(x)

    def _log_tail(self, x: Tensor) -> Tensor:
        own = self._double
        log_tilt, is_tilted = log_if_positive(own.tilt)
        level = torch.where(is_tilted, x + log_tilt, 0.0)
        discount, level = torch.broadcast_tensors(own.discount, level)
        tilted = discount * log_tilt + log_upper_gamma_at_log(-discount, level)
        index = torch.where(is_tilted, 0.5, own.discount)
        untilted = -own.discount * x - index.log()
        return self._log_scale() + torch.where(is_tilted, tilted, untilted)

    def _log_exponent(self, log_shift: Tensor) -> Tensor:
        own = self._double
        log_tilt, is_tilted = log_if_positive(own.tilt)
        ratio = torch.where(is_tilted, log_shift - log_tilt, 0.0)
        growth = torch.logaddexp(ratio, torch.zeros_like(ratio))
        log_growth = torch.where(ratio < _TINY_LOG, ratio, growth.clamp(min=_SMALLEST).log())
        tilted = own.discount * log_tilt + log_growth + log_exprel(own.discount * growth)
        index = torch.where(is_tilted, 0.5, own.discount)
        untilted = own.discount * log_shift - index.log()
        return own.mass.log() + torch.where(is_tilted, tilted, untilted)

    def _inverse_exponent(self, log_target: Tensor) -> Tensor:
        own = self._double
        log_tilt, is_tilted = log_if_positive(own.tilt)
        log_level = log_target - own.mass.log() - own.discount * log_tilt
        level = torch.where(is_tilted, log_level, 0.0).clamp(max=_LARGEST_LOG).exp()
        growth = level * log1prel((own.discount * level).clamp(min=_LEAST_RATIO))
        small = growth < 1e-12
        tilted = log_tilt + torch.where(
            small, log_level, growth + log1mexp(torch.where(small, 1.0, growth))
        )
        index = torch.where(is_tilted, 0.5, own.discount)
        untilted = (log_target + index.log() - own.mass.log()) / index
        return torch.where(is_tilted, tilted, untilted)

    def _log_moment(self, order: Tensor, log_tilt: Tensor) -> Tensor:
        own = self._double
        power = order - own.discount
        return self._log_scale() + power.lgamma() - power * self._log_rate(log_tilt)

    def _sample_jump(self, order: Tensor, log_tilt: Tensor) -> Tensor:
        log_rate = self._log_rate(log_tilt)
        power = order - self._double.discount
        return rsample_log_gamma(power + torch.zeros_like(log_rate)) - log_rate

    def _log_partial_moment(self, log_size: Tensor, order: float) -> Tensor:
        own = self._double
        power = order - own.discount
        log_tilt, is_tilted = log_if_positive(own.tilt)
        level = (log_size + log_tilt).clamp(min=-_LARGEST_LOG, max=_LARGEST_LOG)
        safe = torch.where(is_tilted, level, 0.0).exp()
        tilted = log_lower_gamma(power, safe) - power * log_tilt
        untilted = power * log_size - power.log()
        is_small = ~is_tilted | (level <= -_LARGEST_LOG)
        return self._log_scale() + torch.where(is_small, untilted, tilted)

    def _sample_total_mass(self) -> Tensor:
        own = self._double
        sign = own.discount.sign()
        negative = torch.where(sign < 0, own.discount, -1.0)
        number = torch.poisson(-own.mass * own.tilt**negative / negative)
        shape = torch.where(sign < 0, -negative * number, own.mass)
        gamma = torch._standard_gamma(shape.clamp(min=1e-300)) / own.tilt
        gamma = torch.where((sign < 0) & (number == 0), 0.0, gamma)
        stability = torch.where(sign > 0, own.discount, 0.5)
        stable = TiltedStable(own.mass / stability, stability, own.tilt, validate_args=False)
        return torch.where(sign > 0, stable.sample(), gamma)

    def _series_methods(self) -> Mapping[str, Callable[[], SeriesMethod]]:
        return {
            "rejection": lambda: _RejectionSeries(self),
            "rosinski": lambda: _RosinskiSeries(self),
        }

    def _methods_above(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        return {"thinning": lambda level: thin_above(self, level)}

    def _is_own_family(self, family: ArrivalFamily) -> bool:
        return isinstance(family, GammaArrivals) and family.concentration == 1.0

    def _finite_distribution(self, num_atoms: int, rule: str) -> TorchDistribution | None:
        log_level = self._finite_log_level(num_atoms, rule)
        if holds_everywhere(self.discount < 0):
            return None
        return TiltedBFRY(
            self.discount,
            tilt=self.tilt,
            log_level=log_level.to(self.dtype),
            validate_args=self._validate,
        )

    def _finite_log_level(self, num_atoms: int, rule: str) -> Tensor:
        """Logarithm of the level of a finite approximation with exponential arrivals."""
        own = self._double
        count = torch.full_like(own.mass, float(num_atoms))
        if rule == "exact":
            return self._inverse_exponent(count.log())
        self._check("discount", self.discount > 0, "> 0 for the rule 'group'")
        return (own.discount.log() + count.log() - own.mass.log()) / own.discount


class _StableSeries:
    """Base of both series: the weights of the stable process without the tilt, in falling order."""

    name: str

    def __init__(self, measure: GeneralizedGammaProcess) -> None:
        if measure._validate and holds_everywhere(measure.discount <= 0):
            raise ValueError(f"discount must be > 0 for the method {self.name!r}")
        self._mass, self._discount = measure._double.mass, measure._double.discount
        self._tilt = measure._double.tilt

    def _log_size(self, point: Tensor) -> Tensor:
        log_rate = self._discount.log() + (1.0 - self._discount).lgamma() - self._mass.log()
        return -(log_rate + point.log()) / self._discount


class _RejectionSeries(_StableSeries):
    """Weights of the stable process, each kept with the probability that the tilt leaves it."""

    name = "rejection"

    def sample(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Weights, zero where rejected, and the inverses of those of the stable process."""
        log_size = self._log_size(points)
        keep = survives(log_size.exp(), self._tilt)
        return torch.where(keep, log_size, -math.inf), -log_size

    def log_later(self, point: Tensor, order: float) -> Tensor:
        """Moment of the smaller weights, those that would be rejected left out."""
        log_size, power = self._log_size(point), order - self._discount
        log_tilt, is_tilted = log_if_positive(self._tilt)
        level = torch.where(is_tilted, log_size + log_tilt, 0.0).exp().clamp(min=1e-300)
        tilted = log_lower_gamma(power, level) - power * log_tilt
        untilted = power * log_size - power.log()
        return (
            self._mass.log()
            - (1.0 - self._discount).lgamma()
            + torch.where(is_tilted, tilted, untilted)
        )


class _RosinskiSeries(_StableSeries):
    r"""The smaller of a weight of the stable process and :math:`E U^{1/\sigma} / \tau`."""

    name = "rosinski"

    def sample(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Weights, and the inverses of those of the stable process."""
        log_size = self._log_size(points)
        uniform, other = torch.rand((2, *log_size.shape), dtype=points.dtype, device=points.device)
        log_exponential = torch.log(-torch.log1p(-other.clamp(min=1e-300)))
        log_tilt, is_tilted = log_if_positive(self._tilt)
        cap = log_exponential + uniform.clamp(min=1e-300).log() / self._discount - log_tilt
        return torch.where(is_tilted & (cap < log_size), cap, log_size), -log_size

    def log_later(self, point: Tensor, order: float) -> Tensor:
        r"""Moment of the later weights.

        It is :math:`\int_0^{a} n v^{n-1} P(V > v) \{N(v) - N(a)\} dv` with the tail :math:`N` of
        the stable process, the weight :math:`a` of the point and
        :math:`P(V > v) = \sigma (\tau v)^\sigma \Gamma(-\sigma, \tau v)`.
        """
        log_size = self._log_size(point)
        discount, log_size = torch.broadcast_tensors(self._discount, log_size)
        level, is_tilted = log_if_positive(self._tilt)

        def log_integrand(x: Tensor) -> Tensor:
            power = discount[..., None]
            value = x + level.expand_as(log_size)[..., None]
            safe = value.clamp(min=-690.0, max=700.0).exp()
            survival = power.log() + power * value + log_upper_gamma(-power, safe)
            survival = torch.where(is_tilted.expand_as(log_size)[..., None], survival, 0.0)
            below = power * (log_size[..., None] - x)
            excess = -power * log_size[..., None] + below + log1mexp(below.clamp(min=1e-300))
            total: Tensor = order * x + torch.where(value > -690.0, survival, 0.0) + excess
            return total

        corners = torch.stack(torch.broadcast_tensors(log_size, -level), -1)
        low = corners.min(-1).values - 45.0 / (1.0 - discount) - 5.0
        edges = panel_edges(log_integrand, low, log_size, corners)
        log_rate = math.log(order) + self._mass.log() - discount.log() - (1.0 - discount).lgamma()
        log_moment: Tensor = log_rate + integrate_log(log_integrand, edges)
        return log_moment


def thin_above(measure: GeneralizedGammaProcess, level: Tensor) -> Tensor:
    r"""Draw all weights above levels one after the other, by adaptive thinning [4]."""
    measure._check("tilt", measure.tilt > 0, "> 0 for the method 'thinning'")
    own = measure._double
    with torch.no_grad():
        x, weights = level, []
        is_active = torch.ones_like(level, dtype=torch.bool)
        while bool(is_active.any()):
            exponential = -torch.log1p(-torch.rand_like(x))
            log_total = measure._log_density(x.log()) - own.tilt.log()
            fraction = exponential * (-log_total).exp()
            is_active = is_active & (fraction < 1.0)
            step = -torch.log1p(-torch.where(is_active, fraction, 0.0)) / own.tilt
            accept = torch.rand_like(x).log() <= -(1.0 + own.discount) * torch.log1p(step / x)
            x = x + step
            weights.append(torch.where(is_active & accept, x, 0.0))
        return torch.stack(weights, -1)
