"""Mixtures over exponential tilts: the generalized BFRY and the beta prime process.

Both have one power law near zero and another for large weights [1].

[1] F. Ayed, J. Lee, F. Caron (2019), Beyond the Chinese restaurant and Pitman-Yor processes:
statistical models with double power-law behavior.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_ext.distributions import BetaPrimeBFRY, GeneralizedBFRY
from pyro_ext.distributions.bases import by_rejection, rsample_log_gamma
from pyro_ext.random_measures._numerics import (
    log_if_positive,
    log_sum,
    log_upper_gamma_at_log,
    survives,
)
from pyro_ext.random_measures._tilt_integrals import (
    log_exponent_integral,
    log_moment_integral,
    sample_log_tilt,
)
from pyro_ext.random_measures.generalized_gamma import GeneralizedGammaProcess
from pyro_ext.random_measures.levy_measure import SeriesMethod
from pyro_ext.random_measures.measure import CompletelyRandomMeasure
from pyro_ext.random_measures.total_mass import TotalMass, compound_poisson
from pyro_ext.special import log1mexp, log_exprel, log_lower_gamma_at_log

_LARGEST_POWER = 1e9  # beyond it nodes of quadrature do not resolve a density at a sharp end
_TINY_DISCOUNT = 1e-6


class MixedTilts(CompletelyRandomMeasure):
    r"""Measure with :math:`\rho(w) = \frac{\eta}{\Gamma(1-\sigma)} w^{-1-\sigma} e^{-uw} m(w)`.

    Here :math:`m(w) = \int x^{k-1} g(x) e^{-wx} dx` with :math:`k = \tau - \sigma`, and :math:`g`
    falls off at a certain scale, either sharply or as :math:`e^{-x}`. A subclass defines the scale,
    the kind of falloff, and the measure whose weights are divided by independent variables.
    """

    mass: Tensor
    discount: Tensor
    tail_index: Tensor
    tilt: Tensor
    _damping: float

    def __init__(
        self,
        mass: Any,
        discount: Any,
        tail_index: Any,
        end: dict[str, Any],
        tilt: Any,
        validate_args: bool | None,
    ) -> None:
        parameters = {"mass": mass, "discount": discount, "tail_index": tail_index, **end}
        super().__init__(parameters, validate_args, {"tilt": (tilt, 0.0)})
        self._check("mass", self.mass > 0, "> 0")
        self._check("discount", (self.discount >= 0) & (self.discount < 1), "in [0, 1)")
        self._check("tail_index", self.tail_index > self.discount, "> discount")
        self._check("tilt", self.tilt >= 0, ">= 0")
        for name in end:
            self._check(name, getattr(self, name) > 0, "> 0")

    @abstractmethod
    def _log_end(self) -> Tensor:
        """Logarithm of the scale about which the mixing density ends."""

    @abstractmethod
    def _base(self) -> GeneralizedGammaProcess:
        """Measure whose weights, divided by independent variables, are those of this one."""

    @abstractmethod
    def _log_divisor(self, shape: torch.Size) -> Tensor:
        """Logarithms of draws of the variables that divide, with gradients."""

    @abstractmethod
    def _log_divisor_moment(self, order: float) -> Tensor:
        """Logarithm of a moment of one over the variables that divide."""

    @property
    def _power(self) -> Tensor:
        return self._double.tail_index - self._double.discount

    @property
    def index_at_zero(self) -> Tensor:
        r"""Index of regular variation at zero, :math:`\sigma`."""
        return self.discount

    @property
    def index_at_infinity(self) -> Tensor:
        r"""Index of regular variation at infinity: :math:`\tau`, or infinite with a tilt."""
        return torch.where(self.tilt > 0, torch.inf, self.tail_index)

    def total_mass(self) -> TorchDistribution:
        """Distribution of the total mass, with exact draws."""
        return TotalMass(self, validate_args=self._validate)

    def _log_corners(self) -> list[Tensor]:
        log_tilt, is_tilted = log_if_positive(self._double.tilt)
        end = -self._log_end()
        return [end, torch.where(is_tilted, -log_tilt, end)]

    def _log_scale(self) -> Tensor:
        own = self._double
        return own.mass.log() - (1.0 - own.discount).lgamma()

    def _log_relative_tilt(self, log_tilt: Tensor) -> Tensor:
        r"""Logarithm of the whole tilt, in units of the scale."""
        return log_sum(log_tilt, self._double.tilt) - self._log_end()

    def _resolved_power(self) -> tuple[Tensor, Tensor]:
        """Power of the mixing density that quadrature resolves, and what to add to logarithms."""
        # At a sharp end all of the mass of a large power is at the end, and goes as one over it.
        power = self._power
        if self._damping:
            return power, torch.zeros_like(power)
        kept = power.clamp(max=_LARGEST_POWER)
        return kept, kept.log() - power.log()

    def _log_exponent(self, log_shift: Tensor) -> Tensor:
        own, end = self._double, self._log_end()
        mixing, correction = self._resolved_power()
        none = torch.full_like(log_shift, -torch.inf)
        damping = torch.full_like(log_shift, self._damping)
        integral = log_exponent_integral(
            mixing, own.discount, log_shift - end, self._log_relative_tilt(none), damping
        )
        return own.mass.log() + own.tail_index * end + integral + correction

    def _log_moment(self, order: Tensor, log_tilt: Tensor) -> Tensor:
        own = self._double
        order, log_tilt = torch.broadcast_tensors(order, log_tilt)
        power = order - own.discount
        damping = torch.full_like(power, self._damping)
        mixing, correction = self._resolved_power()
        integral = log_moment_integral(mixing, power, self._log_relative_tilt(log_tilt), damping)
        scale = self._log_scale() + (own.tail_index - order) * self._log_end()
        return scale + power.lgamma() + integral + correction

    def _sample_jump(self, order: Tensor, log_tilt: Tensor) -> Tensor:
        power, relative, mixing, damping = torch.broadcast_tensors(
            order - self._double.discount,
            self._log_relative_tilt(log_tilt),
            self._power,
            torch.full_like(order, self._damping),
        )
        x = sample_log_tilt(mixing, power, relative, damping)
        log_rate = torch.logaddexp(x, relative) + self._log_end()
        return rsample_log_gamma(power) - log_rate

    def _series_methods(self) -> Mapping[str, Callable[[], SeriesMethod]]:
        return {"scaled": lambda: _ScaledSeries(self)}


class _ScaledSeries:
    """Size-biased weights of the base, divided by variables, of which a tilt keeps some."""

    def __init__(self, measure: MixedTilts) -> None:
        self._measure, self._base = measure, measure._base()

    def sample(self, points: Tensor) -> tuple[Tensor, Tensor]:
        log_time = self._base._inverse_exponent(points.log())
        log_weight = self._base._sample_jump(torch.ones_like(log_time), log_time)
        log_weight = log_weight - self._measure._log_divisor(log_weight.shape)
        keep = survives(log_weight.exp(), self._measure._double.tilt)
        return torch.where(keep, log_weight, -torch.inf), log_time

    def log_later(self, point: Tensor, order: float) -> Tensor:
        # Those that would be rejected are included.
        log_time = self._base._inverse_exponent(point.log())
        later = self._base._log_moment(torch.full_like(log_time, order), log_time)
        is_finite = self._measure._double.tail_index > order
        return torch.where(is_finite, later + self._measure._log_divisor_moment(order), torch.inf)


class GeneralizedBFRYProcess(MixedTilts):
    r"""Generalized BFRY process [1].

    .. math:: \rho(w) = \frac{\eta}{\Gamma(1 - \sigma)} w^{-1-\tau} e^{-uw}
              \gamma(\tau - \sigma, c w)
              = \frac{\eta}{\Gamma(1 - \sigma)} w^{-1-\sigma} e^{-uw}
              \int_0^c x^{\tau-\sigma-1} e^{-wx} dx .

    Without the tilt :math:`u`, its tail falls as :math:`x^{-\sigma}` near zero and as
    :math:`x^{-\tau}` at infinity. Moments and the Laplace exponent are computed by quadrature;
    draws of the total mass are exact. The weights are those of a generalized gamma process divided
    by independent :math:`\text{Beta}(\tau, 1)` variables. The series method ``"scaled"`` uses this,
    and so does the finite approximation if there is no tilt. Draws of the series ``"size_biased"``
    involve a latent tilt, through which no gradient flows; draws of ``"scaled"`` have all
    gradients.

    :param mass: :math:`\eta > 0`.
    :param discount: :math:`\sigma`, in [0, 1).
    :param tail_index: :math:`\tau`, greater than the discount. Without a tilt, the mean total mass
        is infinite for indices up to 1.
    :param cutoff: :math:`c > 0`. One power law gives way to the other at weights of about
        :math:`1/c`.
    :param tilt: :math:`u \geq 0`, an exponential tilt.

    Example::

        >>> measure = GeneralizedBFRYProcess(1.5, 0.4, 2.3, 1.2)
        >>> measure.laplace_exponent(0.5), measure.log_kappa(7, 0.7)
        (tensor(0.5857), tensor(4.3478))
    """

    cutoff: Tensor
    _damping = 0.0

    def __init__(
        self,
        mass: Any,
        discount: Any,
        tail_index: Any,
        cutoff: Any = 1.0,
        *,
        tilt: Any = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(mass, discount, tail_index, {"cutoff": cutoff}, tilt, validate_args)

    def rescale(self, scale: Any) -> "GeneralizedBFRYProcess":
        r"""Process with mass :math:`\eta a^\tau`, cutoff :math:`c / a` and tilt :math:`u / a`.

        :param scale: :math:`a > 0`.
        """
        factor, own = self._argument("scale", scale, "> 0"), self._double
        mass = own.mass * factor**own.tail_index
        return self._rescaled(scale, factor, mass=mass, cutoff=own.cutoff / factor)

    def _log_end(self) -> Tensor:
        return self._double.cutoff.log()

    def _log_mass(self, x: Tensor) -> Tensor:
        own, lower = self._double, log_lower_gamma_at_log(self._power, x + self._log_end())
        return self._log_scale() - own.tail_index * x - self._log_removal(x) + lower

    def _log_tail(self, log_size: Tensor) -> Tensor:
        if self._has("tilt"):
            return super()._log_tail(log_size)
        own = self._double
        argument = log_size + self._log_end()
        discount, argument = torch.broadcast_tensors(own.discount, argument)
        body = log_lower_gamma_at_log(self._power, argument) - own.tail_index * log_size
        rest = log_upper_gamma_at_log(-discount, argument) + own.tail_index * self._log_end()
        return self._log_scale() - own.tail_index.log() + torch.logaddexp(body, rest)

    def _base(self) -> GeneralizedGammaProcess:
        own, power = self._double, self._power
        mass = own.mass * own.cutoff**power / own.tail_index
        return GeneralizedGammaProcess(mass, own.discount, own.cutoff, validate_args=False)

    def _log_divisor(self, shape: torch.Size) -> Tensor:
        uniform = torch.rand(shape, dtype=torch.float64, device=self.mass.device)
        return torch.log1p(-uniform) / self._double.tail_index

    def _log_divisor_moment(self, order: float) -> Tensor:
        tail_index = self._double.tail_index
        return tail_index.log() - (tail_index - order).log()

    def _finite_distribution(self, num_atoms: int, rule: str) -> TorchDistribution | None:
        if self._has("tilt"):
            return None
        own = self._double
        log_level = self._base()._finite_log_level(num_atoms, rule) - self._log_end()
        return GeneralizedBFRY(
            self.discount,
            self.tail_index,
            scale=(1.0 / own.cutoff).to(self.dtype),
            log_level=log_level.to(self.dtype),
            validate_args=self._validate,
        )

    def _sample_total_mass(self) -> Tensor:
        own, power = self._double, self._power
        main = GeneralizedGammaProcess(
            own.mass * own.cutoff**power / power,
            own.discount,
            own.cutoff + own.tilt,
            validate_args=False,
        )
        number = torch.poisson(own.mass * own.cutoff**own.tail_index / (power * own.tail_index))

        def draw(discount: Tensor, tail_index: Tensor, cutoff: Tensor, tilt: Tensor) -> Tensor:
            log_weight = rsample_log_gamma(1.0 - discount) - cutoff.log()
            log_weight = log_weight - torch.rand_like(discount).log() / tail_index
            weight = log_weight.exp()
            return torch.where(survives(weight, tilt), weight, 0.0)

        parameters = own.discount, own.tail_index, own.cutoff, own.tilt
        return main._sample_total_mass() + compound_poisson(number, draw, *parameters)


class BetaPrimeProcess(MixedTilts):
    r"""Beta prime process [1].

    .. math:: \rho(w) = \frac{\eta \Gamma(\tau - \sigma)}{\Gamma(1 - \sigma)} w^{-1-\sigma}
              (c + w)^{\sigma - \tau} e^{-uw}
              = \frac{\eta}{\Gamma(1 - \sigma)} w^{-1-\sigma} e^{-uw}
              \int_0^\infty x^{\tau-\sigma-1} e^{-cx} e^{-wx} dx .

    It has the same properties as :class:`GeneralizedBFRYProcess`, except that the weights of a
    generalized gamma process are divided by :math:`\text{Gamma}(\tau, c)` variables. Do not compare
    the masses of processes with different :math:`\tau`: the density contains a factor of about
    :math:`\Gamma(\tau)`.

    :param mass: :math:`\eta > 0`.
    :param discount: :math:`\sigma`, in [0, 1).
    :param tail_index: :math:`\tau`, greater than the discount.
    :param rate: :math:`c > 0`. One power law gives way to the other at weights of about :math:`c`.
    :param tilt: :math:`u \geq 0`, an exponential tilt.

    Example::

        >>> measure = BetaPrimeProcess(1.5, 0.4, 2.3, 1.0)
        >>> measure.laplace_exponent(0.5), measure.log_kappa(7, 0.7)
        (tensor(0.5625), tensor(4.0715))
    """

    rate: Tensor
    _damping = 1.0

    def __init__(
        self,
        mass: Any,
        discount: Any,
        tail_index: Any,
        rate: Any = 1.0,
        *,
        tilt: Any = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(mass, discount, tail_index, {"rate": rate}, tilt, validate_args)

    def rescale(self, scale: Any) -> "BetaPrimeProcess":
        r"""Process with mass :math:`\eta a^\tau`, rate :math:`c a` and tilt :math:`u / a`.

        :param scale: :math:`a > 0`.
        """
        factor, own = self._argument("scale", scale, "> 0"), self._double
        mass = own.mass * factor**own.tail_index
        return self._rescaled(scale, factor, mass=mass, rate=own.rate * factor)

    def _log_end(self) -> Tensor:
        return -self._double.rate.log()

    def _log_mass(self, x: Tensor) -> Tensor:
        own, power = self._double, self._power
        mixture = power.lgamma() - power * torch.logaddexp(x, own.rate.log())
        return self._log_scale() - own.discount * x - self._log_removal(x) + mixture

    def _base(self) -> GeneralizedGammaProcess:
        own = self._double
        mass = (own.mass.log() + own.tail_index.lgamma() - own.tail_index * own.rate.log()).exp()
        tilt = torch.ones_like(mass)
        return GeneralizedGammaProcess(mass, own.discount, tilt, validate_args=False)

    def _log_divisor(self, shape: torch.Size) -> Tensor:
        return rsample_log_gamma(self._double.tail_index.expand(shape)) - self._double.rate.log()

    def _log_divisor_moment(self, order: float) -> Tensor:
        own = self._double
        moment = (own.tail_index - order).lgamma() - own.tail_index.lgamma()
        return order * own.rate.log() + moment

    def _finite_distribution(self, num_atoms: int, rule: str) -> TorchDistribution | None:
        if self._has("tilt"):
            return None
        log_level = self._base()._finite_log_level(num_atoms, rule)
        return BetaPrimeBFRY(
            self.discount,
            self.tail_index,
            rate=self.rate,
            log_level=log_level.to(self.dtype),
            validate_args=self._validate,
        )

    def _sample_total_mass(self) -> Tensor:
        # Of rate one it is a generalized gamma process of tilt k, and independent weights of
        # density proportional to w^(-1-discount) [(1 + w)^(-k) - exp(-k w)].
        own, power = self._double, self._power
        tilt = own.tilt * own.rate
        log_mass = own.mass.log() - own.tail_index * own.rate.log() + power.lgamma()
        mass = log_mass.exp()
        main = GeneralizedGammaProcess(mass, own.discount, power + tilt, validate_args=False)
        safe = own.discount.clamp(min=_TINY_DISCOUNT)
        growth = power.log() - ((power + safe).lgamma() - power.lgamma()) / safe
        growth = torch.where(
            own.discount < _TINY_DISCOUNT,
            power.log() - torch.digamma(power + 0.5 * own.discount),
            growth,
        )
        number = torch.poisson(
            mass
            * (own.discount * (power.log() - growth)).exp()
            * growth
            * log_exprel(own.discount * growth).exp()
        )

        def draw(discount: Tensor, power: Tensor, tilt: Tensor) -> Tensor:
            weight = by_rejection(_propose_log_excess, discount, power).exp()
            return torch.where(survives(weight, tilt), weight, 0.0)

        more = compound_poisson(number, draw, own.discount, power, tilt)
        return own.rate * (main._sample_total_mass() + more)


def _propose_log_excess(discount: Tensor, power: Tensor) -> tuple[Tensor, Tensor]:
    r"""Logarithms of draws with density :math:`\propto w^{-1-\sigma} [(1 + w)^{-k} - e^{-kw}]`."""
    # By rejection under k w^(1-discount) / 2, k w^(-discount) and a Lomax density.
    first = torch.where(power > 1.0, power.rsqrt(), 1.0)
    second = first.maximum(1.0 / power)
    near = 0.5 * power * first ** (2.0 - discount) / (2.0 - discount)
    start, stop = first ** (1.0 - discount), second ** (1.0 - discount)
    middle = power * (stop - start) / (1.0 - discount)
    decay = discount + power
    log_far = (1.0 + discount) * torch.log1p(1.0 / second) - decay * torch.log1p(second)
    far = log_far.exp() / decay
    choice, x, height = torch.rand(
        (3, *discount.shape), dtype=discount.dtype, device=discount.device
    )
    choice = choice * (near + middle + far)
    is_near, is_far = choice < near, choice >= near + middle
    x = 1.0 - x
    log_near = first.log() + x.log() / (2.0 - discount)
    log_middle = (start + x * (stop - start)).log() / (1.0 - discount)
    far_draw = torch.expm1(torch.log1p(second) - x.log() / decay)
    draw = torch.where(is_near, log_near, torch.where(is_far, far_draw.log(), log_middle))
    weight = draw.exp()
    log_growth = torch.log1p(weight)
    excess = power * (weight - log_growth)
    log_target = -power * log_growth + log1mexp(excess.clamp(min=1e-300))
    log_bound = torch.where(is_near, (0.5 * power).log() + 2.0 * draw, power.log() + draw)
    lomax = (1.0 + discount) * (torch.log1p(1.0 / second) + draw - log_growth) - power * log_growth
    log_bound = torch.where(is_far, lomax, log_bound)
    return draw, torch.log1p(-height) <= log_target - log_bound
