r"""The stable beta process, whose weights are at most one.

[1] Y. W. Teh, D. Görür (2009), Indian buffet processes with power-law behavior.

[2] R. Thibaux, M. I. Jordan (2007), Hierarchical beta processes and the Indian buffet process.

[3] J. Lee, X. Miscouridou, F. Caron (2019), A unified construction for series representations and
finite approximations of completely random measures.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_ext.distributions import StableBetaBFRY
from pyro_ext.distributions.bases import rsample_log_gamma, solve_increasing
from pyro_ext.distributions.supports import open_interval
from pyro_ext.random_measures._numerics import log_if_positive
from pyro_ext.random_measures.arrivals import LomaxArrivals
from pyro_ext.random_measures.levy_measure import (
    ArrivalFamily,
    ArrivalProcess,
    Factor,
    SeriesMethod,
)
from pyro_ext.random_measures.measure import CompletelyRandomMeasure
from pyro_ext.random_measures.series import ArrivalSeries
from pyro_ext.random_measures.total_mass import ApproximateTotalMass
from pyro_ext.special import log1mexp, log1prel, log_exprel
from pyro_ext.special.operations import holds_everywhere

_SMALLEST = 1e-300
_LARGEST_LOG = 700.0
_ROUNDING = 4e-16
_FAR_ROUND = 1e6


class StableBetaProcess(CompletelyRandomMeasure):
    r"""Stable beta process, or three-parameter beta process [1].

    .. math:: \rho(w) = \eta \frac{\Gamma(1 + c)}{\Gamma(1 - \sigma) \Gamma(c + \sigma)}
              w^{-1-\sigma} (1 - w)^{c+\sigma-1} e^{-uw} , \quad 0 < w < 1 .

    With :math:`\sigma = 0`, it is the beta process. Without the tilt :math:`u`, the mean total mass
    is :math:`\eta`. These formulas are for ``scale=1``; in general, the weights are multiplied by
    ``scale``. Moments and the Laplace exponent are computed by quadrature.

    In addition to the series methods of every measure, and only if :math:`u = 0`, there are
    ``"lomax"``, in closed form for :math:`c > 0` [3], and ``"rounds"``, which draws the weights in
    the rounds of [2]: each round has a Poisson number of weights with beta distributions.

    :param mass: :math:`\eta > 0`.
    :param discount: :math:`\sigma`, in [0, 1).
    :param concentration: :math:`c > -\sigma`.
    :param tilt: :math:`u \geq 0`, an exponential tilt.
    :param scale: the largest possible weight, positive.

    Example::

        >>> measure = StableBetaProcess(2.0, 0.4, 1.5)
        >>> measure.laplace_exponent(1.0), measure.mean
        (tensor(1.7919), tensor(2.))
    """

    mass: Tensor
    discount: Tensor
    concentration: Tensor
    tilt: Tensor
    scale: Tensor

    def __init__(
        self,
        mass: Any,
        discount: Any,
        concentration: Any,
        *,
        tilt: Any = 0.0,
        scale: Any = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        parameters = {"mass": mass, "discount": discount, "concentration": concentration}
        super().__init__(parameters, validate_args, {"tilt": (tilt, 0.0), "scale": (scale, 1.0)})
        self._check("mass", self.mass > 0, "> 0")
        self._check("discount", (self.discount >= 0) & (self.discount < 1), "in [0, 1)")
        self._check("concentration", self.concentration > -self.discount, "> -discount")
        self._check("tilt", self.tilt >= 0, ">= 0")
        self._check("scale", self.scale > 0, "> 0")

    @property
    def index_at_zero(self) -> Tensor:
        r"""Index of regular variation at zero, :math:`\sigma`."""
        return self.discount

    @property
    def index_at_infinity(self) -> Tensor:
        """Index of regular variation at infinity, which is infinite since weights are bounded."""
        return torch.full_like(self.discount, torch.inf)

    @property
    def support(self) -> Any:
        """The interval from zero to the scale."""
        return open_interval(0.0, self.scale)

    def rescale(self, scale: Any) -> "StableBetaProcess":
        """Stable beta process with weights multiplied by a number.

        :param scale: positive.
        """
        factor, own = self._argument("scale", scale, "> 0"), self._double
        return self._rescaled(scale, factor, scale=own.scale * factor)

    def total_mass(self) -> TorchDistribution:
        """Approximate distribution of the total mass: a thousand weights plus a gamma variable."""
        is_closed = not self._has("tilt") and holds_everywhere(self.concentration > 0)
        method = "lomax" if is_closed else "size_biased"
        return ApproximateTotalMass(self, method=method, validate_args=self._validate)

    def _log_scale(self) -> Tensor:
        own = self._double
        return (
            own.mass.log()
            + (1.0 + own.concentration).lgamma()
            - (1.0 - own.discount).lgamma()
            - (own.concentration + own.discount).lgamma()
        )

    # Points are the logits of sizes, in which nothing is singular at the largest size.

    def _coordinate(self, log_size: Tensor) -> Tensor:
        log_ratio = (log_size - self._double.scale.log()).clamp(max=-_SMALLEST)
        return log_ratio - log1mexp(-log_ratio)

    def _log_size(self, x: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid(x) + self._double.scale.log()

    def _slope_at_infinity(self, order: Tensor) -> Tensor:
        own = self._double
        return (own.concentration + own.discount).expand(
            torch.broadcast_shapes(order.shape, self.batch_shape)
        )

    def _log_corners(self) -> list[Tensor]:
        own = self._double
        middle = own.scale.log().expand(self.batch_shape) - math.log(2.0)
        log_tilt, is_tilted = log_if_positive(own.tilt)
        bend = torch.where(is_tilted, -log_tilt, middle)
        return [middle, bend.minimum(middle)]

    def _log_mass(self, x: Tensor) -> Tensor:
        own = self._double
        log_ratio = torch.nn.functional.logsigmoid(x)
        log_rest = torch.nn.functional.logsigmoid(-x)
        power = own.concentration + own.discount
        tilted = own.tilt * own.scale * log_ratio.exp()
        return self._log_scale() - own.discount * log_ratio + power * log_rest - tilted

    def _log_density(self, log_size: Tensor) -> Tensor:
        own = self._double
        log_scale = own.scale.log()
        log_ratio = log_size - log_scale
        # Next to the largest size, rounding of logarithms decides which is larger.
        rounding = _ROUNDING * (1.0 + log_scale.abs())
        inside = log_ratio < torch.where(log_scale == 0, 0.0, rounding)
        log_rest = log1mexp(torch.where(inside, -log_ratio, 1.0).maximum(rounding))
        power = own.concentration + own.discount - 1.0
        body = self._log_scale() - own.discount * log_ratio + power * log_rest
        return torch.where(inside, body - own.tilt * log_size.exp(), -torch.inf) - log_size

    def _log_tail(self, log_size: Tensor) -> Tensor:
        inside = log_size < self._double.scale.log()
        safe = torch.where(inside, log_size, self._double.scale.log() - 1.0)
        return torch.where(inside, super()._log_tail(safe), -torch.inf)

    def _is_own_family(self, family: ArrivalFamily) -> bool:
        return (
            isinstance(family, LomaxArrivals)
            and not self._has("tilt")
            and holds_everywhere(self.concentration == family.concentration)
        )

    def _own_arrivals(self, family: ArrivalFamily) -> ArrivalProcess | None:
        return _LomaxTimes(self) if self._is_own_family(family) else None

    def _series_methods(self) -> Mapping[str, Callable[[], SeriesMethod]]:
        if self._has("tilt"):
            return {}
        return {"lomax": lambda: ArrivalSeries(_LomaxTimes(self)), "rounds": lambda: _Rounds(self)}

    def _finite_distribution(self, num_atoms: int, rule: str) -> TorchDistribution | None:
        if self._has("tilt") or self._has("scale") or rule != "exact":
            return None
        if holds_everywhere(self.concentration <= 0):
            return None
        count = torch.full_like(self._double.mass, float(num_atoms))
        log_level = _LomaxTimes(self).log_time(count.log())
        return StableBetaBFRY(
            self.discount,
            self.concentration,
            log_level=log_level.to(self.dtype),
            validate_args=self._validate,
        )


class _LomaxTimes:
    """Lomax arrival times of the concentration of the process, in closed form [3]."""

    def __init__(self, measure: StableBetaProcess) -> None:
        measure._check("concentration", measure.concentration > 0, "> 0 for Lomax arrival times")
        self._measure = measure

    def log_count(self, log_time: Tensor) -> Tensor:
        r""":math:`\log\{\eta c [(1 + t)^\sigma - 1] / \sigma\}`."""
        own = self._measure._double
        x = log_time + own.scale.log()
        growth = torch.logaddexp(x, torch.zeros_like(x))
        log_growth = torch.where(x < -36.0, x, growth.clamp(min=_SMALLEST).log())
        log_rate = (own.mass * own.concentration).log()
        return log_rate + log_growth + log_exprel(own.discount * growth)

    def log_time(self, log_count: Tensor) -> Tensor:
        own = self._measure._double
        log_level = log_count - (own.mass * own.concentration).log()
        level = log_level.clamp(max=_LARGEST_LOG).exp()
        growth = level * log1prel(own.discount * level)
        is_small = growth < 1e-12
        log_excess = growth + log1mexp(torch.where(is_small, 1.0, growth))
        return torch.where(is_small, log_level, log_excess) - own.scale.log()

    def sample_weight(self, log_time: Tensor) -> Tensor:
        r"""Draws of :math:`V / \{1 + T (1 - V)\}` with a beta variable :math:`V`."""
        own = self._measure._double
        shape = torch.broadcast_shapes(log_time.shape, own.discount.shape)
        first = rsample_log_gamma((1.0 - own.discount).expand(shape))
        second = rsample_log_gamma((own.concentration + own.discount).expand(shape))
        x = log_time + own.scale.log()
        growth = torch.logaddexp(x, torch.zeros_like(x))
        return first - torch.logaddexp(first, second + growth) + own.scale.log()

    def log_later(self, log_time: Tensor, order: float) -> Tensor:
        own = self._measure._double
        log_time = self._measure._expanded(log_time)
        log_relative, power = log_time + own.scale.log(), own.concentration[..., None]

        def log_factor(size: Tensor) -> Tensor:
            relative = log_relative[..., None] + size - own.scale.log()[..., None]
            growth = torch.logaddexp(relative, torch.zeros_like(relative))
            return order * size - power * growth

        return self._measure._integrate(
            Factor(log_factor, [-log_time], torch.full_like(log_time, order))
        )


class _Rounds:
    r"""The weights in rounds, of which the :math:`r`-th has a Poisson number [2].

    After :math:`R` rounds their mean number is
    :math:`\frac{\eta \Gamma(1+c)}{\sigma \Gamma(c+\sigma)}
    \left[ \frac{\Gamma(R+c+\sigma)}{\Gamma(R+c)} - \frac{\Gamma(c+\sigma)}{\Gamma(c)} \right]`.
    """

    def __init__(self, measure: StableBetaProcess) -> None:
        measure._check("concentration", measure.concentration > 0, "> 0 for the method 'rounds'")
        self._measure = measure

    def _log_count(self, rounds: Tensor) -> Tensor:
        """Logarithm of the mean number of weights until a round, which may lie between two."""
        own = self._measure._double
        # Where the discount is zero, the quotient is the limit of one near it.
        discount = own.discount.clamp(min=1e-7)
        start = (own.concentration + discount).lgamma() - own.concentration.lgamma()
        x = rounds + own.concentration
        is_far = x > _FAR_ROUND
        near = torch.where(is_far, 1.0, x)
        end = torch.where(
            is_far,
            discount * (x + 0.5 * (discount - 1.0)).log(),
            (near + discount).lgamma() - near.lgamma(),
        )
        gap = (end - start).clamp(min=_SMALLEST)
        log_scale = own.mass.log() + (1.0 + own.concentration).lgamma()
        log_scale = log_scale - (own.concentration + discount).lgamma()
        return log_scale + start + gap.log() + log_exprel(gap) - discount.log()

    def _round(self, point: Tensor) -> Tensor:
        """Round in which the mean number reaches a point."""
        target = point.log()
        low, high = torch.full_like(target, -40.0), torch.full_like(target, 700.0)
        x = solve_increasing(lambda x: self._log_count(x.exp()), target, low, high)
        return x.exp().ceil().clamp(min=1.0)

    def sample(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Beta variables of the rounds of the points, and the rounds for times."""
        own = self._measure._double
        rounds = self._round(points)
        first = rsample_log_gamma((1.0 - own.discount).expand(rounds.shape))
        second = rsample_log_gamma(rounds - 1.0 + own.concentration + own.discount)
        weight = first - torch.logaddexp(first, second) + own.scale.log()
        return weight, rounds.log()

    def log_later(self, point: Tensor, order: float) -> Tensor:
        own = self._measure._double
        rounds = self._round(self._measure._expanded(point))

        def log_moment(seen: Tensor) -> Tensor:
            power = order - own.discount
            rest = own.concentration + own.discount + seen
            value = power.lgamma() + rest.lgamma() - (power + rest).lgamma()
            return self._measure._log_scale() + value + order * own.scale.log()

        after, before = self._log_count(rounds).exp(), self._log_count(rounds - 1.0).exp()
        before = torch.where(rounds > 1.0, before, 0.0)
        gap = after - before
        # Very late rounds have next to no weights each, and no two of them differ.
        has_gap = gap > 0
        fraction = (after - point) / torch.where(has_gap, gap, 1.0)
        fraction = torch.where(has_gap, fraction, 0.0).clamp(0.0, 1.0)
        whole, later = log_moment(rounds - 1.0).exp(), log_moment(rounds).exp()
        return (later + fraction * (whole - later)).log()
