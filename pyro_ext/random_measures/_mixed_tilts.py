"""What the generalized BFRY and the beta prime process share: mixtures over tilts."""

from collections.abc import Callable, Mapping

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_ext.distributions.bases import rsample_log_gamma
from pyro_ext.random_measures._logarithms import log_if_positive, log_sum
from pyro_ext.random_measures._measure import CompletelyRandomMeasure
from pyro_ext.random_measures._scaled_series import ScaledSeries
from pyro_ext.random_measures._series import SeriesMethod
from pyro_ext.random_measures._tilt_inversion import log_inverse as invert_tilts
from pyro_ext.random_measures._tilt_mixture import (
    log_exponent_integral,
    log_moment_integral,
    sample_log_tilt,
)
from pyro_ext.random_measures.generalized_gamma import GeneralizedGammaProcess
from pyro_ext.random_measures.total_mass import InvertedTotalMass

__all__ = ["MixedTilts"]

_LARGEST_POWER = 1e9  # beyond it nodes of quadrature do not resolve a density at a sharp end


class MixedTilts(CompletelyRandomMeasure):
    r"""Measure with :math:`\rho(w) = \frac{\eta}{\Gamma(1-\sigma)} w^{-1-\sigma} e^{-uw} m(w)`.

    Here :math:`m(w) = \int x^{k-1} g(x) e^{-wx} dx` with :math:`k = \tau - \sigma`, and
    :math:`g` ends about a scale, sharply or as :math:`e^{-x}`. A subclass gives the scale, which of
    the two it is, and the measure whose weights are divided by independent variables.
    """

    mass: Tensor
    discount: Tensor
    tail_index: Tensor
    tilt: Tensor
    _damping: float

    def _check_parameters(self) -> None:
        self._check("mass", self.mass > 0, "> 0")
        self._check("discount", (self.discount >= 0) & (self.discount < 1), "in [0, 1)")
        self._check("tail_index", self.tail_index > self.discount, "> discount")
        self._check("tilt", self.tilt >= 0, ">= 0")

    def _log_end(self) -> Tensor:
        """Logarithm of the scale about which the mixing density ends."""
        raise NotImplementedError

    def _base(self) -> GeneralizedGammaProcess:
        """Measure whose weights, divided by independent variables, are those of this one."""
        raise NotImplementedError

    def _log_divisor(self, shape: torch.Size) -> Tensor:
        """Logarithms of draws of the variables that divide, with gradients."""
        raise NotImplementedError

    def _log_divisor_moment(self, order: float) -> Tensor:
        """Logarithm of a moment of one over the variables that divide."""
        raise NotImplementedError

    @property
    def _power(self) -> Tensor:
        return self._double.tail_index - self._double.discount

    @property
    def index_at_zero(self) -> Tensor:
        r"""Index of regular variation at zero, :math:`\sigma`."""
        return self.discount

    @property
    def index_at_infinity(self) -> Tensor:
        r"""Index of regular variation at infinity, :math:`\tau` without tilt, infinite with it."""
        return torch.where(self.tilt > 0, torch.inf, self.tail_index)

    def total_mass(self) -> TorchDistribution:
        """Law of the total mass, with exact draws, and a density by inversion.

        A draw is the sum of a tilted stable variable and a compound Poisson sum.
        """
        return InvertedTotalMass(self, validate_args=self._validate)

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
        """Power of the mixing density that quadrature resolves, and what to add to logarithms.

        At a sharp end all of the mass of a large power is at the end, and goes as one over it.
        """
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

    def _log_inverse_transform(self, log_value: Tensor, pole: Tensor) -> Tensor:
        """Logarithm of the density of the total mass, or of its distribution function."""
        own, end = self._double, self._log_end()
        log_inverse = invert_tilts(
            log_value + end,
            own.mass.log() + own.tail_index * end,
            self._power,
            own.discount,
            own.tilt * (-end).exp(),
            pole,
            self._damping,
        )
        return log_inverse + torch.where(pole > 0, 0.0, end)

    def _sample_jump(self, order: Tensor, log_tilt: Tensor) -> Tensor:
        power, relative, mixing, damping = torch.broadcast_tensors(
            order - self._double.discount,
            self._log_relative_tilt(log_tilt),
            self._power,
            torch.full_like(order, self._damping),
        )
        place = sample_log_tilt(mixing, power, relative, damping)
        log_rate = torch.logaddexp(place, relative) + self._log_end()
        return rsample_log_gamma(power) - log_rate

    def _series_methods(self) -> Mapping[str, Callable[[], SeriesMethod]]:
        return {"scaled": lambda: ScaledSeries(self, self._base(), self._log_divisor)}
