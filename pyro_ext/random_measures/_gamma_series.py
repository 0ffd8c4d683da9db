"""Series of the generalized gamma process that follow no family of arrival times."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_ext.random_measures._logarithms import log_if_positive, survives
from pyro_ext.random_measures._roots import holds_everywhere
from pyro_ext.special import log1mexp, log_lower_gamma, log_upper_gamma
from pyro_ext.special.quadrature import integrate_log, panel_edges

if TYPE_CHECKING:
    from pyro_ext.random_measures.generalized_gamma import GeneralizedGammaProcess

__all__ = ["RejectionSeries", "RosinskiSeries", "thin_above"]


class _StableSeries:
    """What both share: the weights of the stable process without the tilt, in falling order."""

    def __init__(self, measure: "GeneralizedGammaProcess", name: str) -> None:
        if measure._validate and holds_everywhere(measure.discount <= 0):
            raise ValueError(f"discount must be > 0 for the method {name!r}")
        self._mass, self._discount = measure._double.mass, measure._double.discount
        self._tilt = measure._double.tilt

    def _log_size(self, point: Tensor) -> Tensor:
        log_rate = self._discount.log() + (1.0 - self._discount).lgamma() - self._mass.log()
        return -(log_rate + point.log()) / self._discount


class RejectionSeries(_StableSeries):
    """Weights of the stable process, each kept with the probability that the tilt leaves it."""

    def __init__(self, measure: "GeneralizedGammaProcess") -> None:
        super().__init__(measure, "rejection")

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


class RosinskiSeries(_StableSeries):
    r"""The smaller of a weight of the stable process and :math:`E U^{1/\sigma} / \tau`."""

    def __init__(self, measure: "GeneralizedGammaProcess") -> None:
        super().__init__(measure, "rosinski")

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

        def log_integrand(place: Tensor) -> Tensor:
            power = discount[..., None]
            value = place + level.expand_as(log_size)[..., None]
            safe = value.clamp(min=-690.0, max=700.0).exp()
            survival = power.log() + power * value + log_upper_gamma(-power, safe)
            survival = torch.where(is_tilted.expand_as(log_size)[..., None], survival, 0.0)
            below = power * (log_size[..., None] - place)
            excess = -power * log_size[..., None] + below + log1mexp(below.clamp(min=1e-300))
            total: Tensor = order * place + torch.where(value > -690.0, survival, 0.0) + excess
            return total

        corners = torch.stack(torch.broadcast_tensors(log_size, -level), -1)
        low = corners.min(-1).values - 45.0 / (1.0 - discount) - 5.0
        edges = panel_edges(log_integrand, low, log_size, corners)
        log_rate = math.log(order) + self._mass.log() - discount.log() - (1.0 - discount).lgamma()
        log_moment: Tensor = log_rate + integrate_log(log_integrand, edges)
        return log_moment


def thin_above(measure: "GeneralizedGammaProcess", level: Tensor) -> Tensor:
    r"""Draw all weights above levels one after the other, by adaptive thinning [1].

    From a weight :math:`t` the next is proposed with the intensity of the measure, its power law
    replaced by its value at :math:`t`, and accepted with the quotient of the two.

    :param measure: with a tilt.
    :param Tensor level: from which to begin.
    :returns: weights, zero where a proposal was rejected. **Shape:** ``(*level.shape, n)``.

    [1] S. Favaro, Y. W. Teh (2013), MCMC for normalized random measure mixture models.
    """
    measure._check("tilt", measure.tilt > 0, "> 0 for the method 'thinning'")
    own = measure._double
    with torch.no_grad():
        place, weights = level, []
        is_active = torch.ones_like(level, dtype=torch.bool)
        while bool(is_active.any()):
            exponential = -torch.log1p(-torch.rand_like(place))
            log_total = measure._log_density(place.log()) - own.tilt.log()
            share = exponential * (-log_total).exp()
            is_active = is_active & (share < 1.0)
            step = -torch.log1p(-torch.where(is_active, share, 0.0)) / own.tilt
            accept = torch.rand_like(place).log() <= -(1.0 + own.discount) * torch.log1p(
                step / place
            )
            place = place + step
            weights.append(torch.where(is_active & accept, place, 0.0))
        return torch.stack(weights, -1)
