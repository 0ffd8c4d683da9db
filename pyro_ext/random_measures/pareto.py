r"""A process of finitely many Pareto weights, and its sum with a generalized gamma process.

[1] F. Ayed, J. Lee, F. Caron (2019), Beyond the Chinese restaurant and Pitman-Yor processes:
statistical models with double power-law behavior.
"""

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution

from pyro_ext._lib import checks
from pyro_ext.distributions.supports import numbers_above
from pyro_ext.random_measures._numerics import (
    log_if_positive,
    log_sum,
    sample_log_concave,
    survives,
)
from pyro_ext.random_measures.generalized_gamma import GeneralizedGammaProcess
from pyro_ext.random_measures.levy_measure import Factor
from pyro_ext.random_measures.measure import CompletelyRandomMeasure, Superposition
from pyro_ext.random_measures.total_mass import TotalMass, compound_poisson
from pyro_ext.special import log1mexp_at_log, log_exprel, log_upper_gamma
from pyro_ext.special.quadrature import LogIntegrand

_LARGEST_LOG = 700.0


class ParetoProcess(CompletelyRandomMeasure):
    r"""A Poisson number of Pareto weights.

    .. math:: \rho(w) = \beta w^{-1-\tau} e^{-uw} , \quad w > w_0 .

    Without the tilt :math:`u`, the mean number of weights is :math:`\beta w_0^{-\tau} / \tau`.

    :param mass: :math:`\beta > 0`.
    :param scale: :math:`w_0 > 0`, which all weights exceed.
    :param tail_index: :math:`\tau > 0`.
    :param tilt: :math:`u \geq 0`, an exponential tilt.

    Example::

        >>> ParetoProcess(3.0, 2.0, 1.5).mean
        tensor(4.2426)
    """

    mass: Tensor
    scale: Tensor
    tail_index: Tensor
    tilt: Tensor

    def __init__(
        self,
        mass: Any,
        scale: Any,
        tail_index: Any,
        *,
        tilt: Any = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        parameters = {"mass": mass, "scale": scale, "tail_index": tail_index}
        super().__init__(parameters, validate_args, {"tilt": (tilt, 0.0)})
        for name in parameters:
            self._check(name, getattr(self, name) > 0, "> 0")
        self._check("tilt", self.tilt >= 0, ">= 0")

    @property
    def index_at_zero(self) -> Tensor:
        """Index of regular variation at zero, which is zero since there are no small weights."""
        return torch.zeros_like(self.mass)

    @property
    def index_at_infinity(self) -> Tensor:
        r"""Index of regular variation at infinity: :math:`\tau`, or infinite with a tilt."""
        return torch.where(self.tilt > 0, torch.inf, self.tail_index)

    @property
    def support(self) -> Any:
        """Numbers greater than the scale."""
        return numbers_above(self.scale)

    def rescale(self, scale: Any) -> "ParetoProcess":
        r"""Process with mass :math:`\beta a^\tau` and scale :math:`a w_0`.

        :param scale: :math:`a > 0`.
        """
        factor, own = self._argument("scale", scale, "> 0"), self._double
        mass = own.mass * factor**own.tail_index
        return self._rescaled(scale, factor, mass=mass, scale=own.scale * factor)

    def total_mass(self) -> TorchDistribution:
        """Distribution of the total mass, with exact draws."""
        return TotalMass(self, validate_args=self._validate)

    def _has_infinitely_many(self) -> bool:
        return False

    def _log_corners(self) -> list[Tensor]:
        own = self._double
        start = own.scale.log()
        log_tilt, is_tilted = log_if_positive(own.tilt)
        bend = torch.where(is_tilted, -log_tilt, start)
        return list(torch.broadcast_tensors(start, bend.maximum(start)))

    def _log_mass(self, x: Tensor) -> Tensor:
        own = self._double
        value = own.mass.log() - own.tail_index * x - self._log_removal(x)
        # A node of quadrature at the very end belongs to the inside, whatever its rounding.
        return torch.where(x < own.scale.log() - 1e-9, -torch.inf, value)

    def _panels(self, factor: Factor) -> tuple[LogIntegrand, Tensor]:
        start = self._double.scale.log()
        low = start
        if factor.low is not None:
            low = torch.maximum(*torch.broadcast_tensors(factor.low, start))
        return super()._panels(factor._replace(low=low))

    def _log_upper(self, power: Tensor, log_rate: Tensor, log_size: Tensor) -> Tensor:
        r""":math:`\log \int_x^\infty w^{p-1} e^{-zw} dw`, with :math:`p < 0` where z is zero."""
        is_tilted = log_rate > -torch.inf
        rate = torch.where(is_tilted, log_rate, 0.0)
        log_level = rate + log_size
        level = log_level.clamp(min=-690.0, max=_LARGEST_LOG)
        # Up to the least level, the exponential is one.
        gap = level - log_level
        part = torch.where(gap > 0, gap, 1.0)
        below = power * level + part.log() + log_exprel(-power * part)
        inside = log_upper_gamma(power, level.exp())
        inside = torch.where(gap > 0, torch.logaddexp(inside, below), inside)
        tilted = inside - power * rate
        slope = torch.where(power < 0, -power, 1.0)
        untilted = torch.where(power < 0, power * log_size - slope.log(), torch.inf)
        return torch.where(is_tilted, tilted, untilted)

    def _log_rate(self, log_tilt: Tensor) -> Tensor:
        return log_sum(log_tilt, self._double.tilt)

    def _log_exponent(self, log_shift: Tensor) -> Tensor:
        if self._has("tilt"):
            return super()._log_exponent(log_shift)
        own = self._double
        start = own.scale.log()
        # By parts, so that nothing cancels.
        ends = log1mexp_at_log(log_shift + start) - own.tail_index * start
        power, log_rate, start = torch.broadcast_tensors(1.0 - own.tail_index, log_shift, start)
        inside = log_shift + self._log_upper(power, log_rate, start)
        return (own.mass / own.tail_index).log() + torch.logaddexp(ends, inside)

    def _log_moment(self, order: Tensor, log_tilt: Tensor) -> Tensor:
        own = self._double
        values = torch.broadcast_tensors(
            order - own.tail_index, self._log_rate(log_tilt), own.scale.log()
        )
        return own.mass.log() + self._log_upper(*values)

    def _log_tail(self, log_size: Tensor) -> Tensor:
        own = self._double
        none = torch.full_like(log_size, -torch.inf)
        values = torch.broadcast_tensors(
            -own.tail_index,
            self._log_rate(none),
            torch.maximum(*torch.broadcast_tensors(log_size, own.scale.log())),
        )
        return own.mass.log() + self._log_upper(*values)

    def _sample_jump(self, order: Tensor, log_tilt: Tensor) -> Tensor:
        own = self._double
        power, log_rate, start = torch.broadcast_tensors(
            order - own.tail_index, self._log_rate(log_tilt), own.scale.log()
        )
        # The density over logarithms is concave: a power of the size, and the tilt.
        peak = power.clamp(min=1e-300).log() - log_rate
        peak = torch.where(power > 0, peak, start).maximum(start)
        end = torch.maximum(peak, -log_rate)
        reach = torch.where(power < 0, -60.0 / power.clamp(max=-1e-3), 0.0)
        x = sample_log_concave(
            lambda x, power, log_rate: power * x - (log_rate + x).exp(),
            lambda x, power, log_rate: power - (log_rate + x).exp(),
            (power, log_rate),
            peak,
            start,
            torch.where(log_rate > -torch.inf, end + 60.0, start + reach),
        )
        if not (power.requires_grad or log_rate.requires_grad or start.requires_grad):
            return x
        level = self._log_upper(power, log_rate, x)
        level = (level - self._log_upper(power, log_rate, start)).exp()
        density = (power * x - (log_rate + x).exp()).exp()
        density = density / self._log_upper(power, log_rate, start).exp()
        draw: Tensor = x + (level - level.detach()) / density.detach()
        return draw

    def _sample_total_mass(self) -> Tensor:
        own = self._double
        number = torch.poisson(own.mass * own.scale**-own.tail_index / own.tail_index)

        def draw(scale: Tensor, tail_index: Tensor, tilt: Tensor) -> Tensor:
            weight = scale * (1.0 - torch.rand_like(scale)) ** (-1.0 / tail_index)
            return torch.where(survives(weight, tilt), weight, 0.0)

        return compound_poisson(number, draw, own.scale, own.tail_index, own.tilt)


class ParetoMixtureProcess(Superposition):
    r"""Generalized gamma process plus independent Pareto weights [1].

    .. math:: \rho(w) = \frac{\eta}{\Gamma(1 - \sigma)} w^{-1-\sigma} e^{-cw}
              + \beta w^{-1-\tau} 1\{w > w_0\} .

    Its tail falls as :math:`x^{-\sigma}` near zero and as :math:`x^{-\tau}` at infinity. It is a
    :class:`Superposition`, and so are its tilts.

    :param mass: :math:`\eta > 0`.
    :param discount: :math:`\sigma < 1`.
    :param tilt: :math:`c > 0`.
    :param pareto_mass: :math:`\beta > 0`.
    :param pareto_scale: :math:`w_0 > 0`.
    :param tail_index: :math:`\tau > 0`.

    Example::

        >>> measure = ParetoMixtureProcess(1.5, 0.4, 1.0, 1.5, 2.0, 2.2)
        >>> measure.laplace_exponent(0.5)
        tensor(0.7747)
    """

    def __init__(
        self,
        mass: Any,
        discount: Any,
        tilt: Any,
        pareto_mass: Any,
        pareto_scale: Any,
        tail_index: Any,
        *,
        validate_args: bool | None = None,
    ) -> None:
        pareto = [
            checks.as_parameter("pareto_mass", pareto_mass),
            checks.as_parameter("pareto_scale", pareto_scale),
            tail_index,
        ]
        for name, value in zip(("pareto_mass", "pareto_scale"), pareto, strict=False):
            is_checked = Distribution._validate_args if validate_args is None else validate_args
            numbers = torch.as_tensor(value)
            if is_checked and not bool(((numbers > 0) & numbers.isfinite()).all()):
                raise ValueError(f"{name} must be finite and > 0, got {value!r:.80}")
        super().__init__(
            GeneralizedGammaProcess(mass, discount, tilt, validate_args=validate_args),
            ParetoProcess(*pareto, validate_args=validate_args),
        )
