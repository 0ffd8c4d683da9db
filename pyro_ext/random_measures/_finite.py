"""Finite approximations of a measure: independent weights with a law in closed form or not."""

from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_ext._checks import shown
from pyro_ext.distributions.bases import clamp_positive, variance_of
from pyro_ext.random_measures._arguments import check_family
from pyro_ext.random_measures._arrival_processes import order_at_zero
from pyro_ext.random_measures._levy_integrals import Factor
from pyro_ext.random_measures._measure_law import MeasureLaw
from pyro_ext.random_measures.arrivals import (
    ArrivalFamily,
    DeterministicArrivals,
    ExponentialArrivals,
)
from pyro_ext.special import log1mexp_at_log
from pyro_ext.special.quadrature import LogIntegrand

if TYPE_CHECKING:
    from pyro_ext.random_measures._measure import CompletelyRandomMeasure

__all__ = ["FiniteAtom", "exponent_error", "finite_law"]

_LEAST_LOG = -690.0
_NEAREST = 1e-9
_MARGIN = 1e-10  # from the largest size, where densities may be infinite


class FiniteAtom(MeasureLaw):
    r"""Law of a weight of a finite approximation, by quadrature.

    .. math:: f_L(w) = \Phi(t_L | w) \rho(w) / L , \quad \int \Phi(t_L | w) \rho(w) dw = L .

    Draws come from numerical inversion and have gradients in the parameters of the measure.

    :param measure: a completely random measure.
    :param family: of arrival times, whose distribution function is :math:`\Phi`.
    :param int num_atoms: :math:`L`.
    """

    has_rsample = True
    _tensors = ("_log_count", "log_level")

    def __init__(
        self,
        measure: "CompletelyRandomMeasure",
        family: ArrivalFamily,
        num_atoms: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.family, self.num_atoms = family, num_atoms
        super().__init__(measure, validate_args)
        self._log_count = measure._filled(float(num_atoms)).log()
        self.log_level = measure._arrivals(family).log_time(self._log_count)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density.

        :param Tensor value: sizes of weights.
        """
        if self._validate_args:
            self._validate_sample(value)
        log_size = value.double().log()
        log_density = self.measure._log_density(log_size) + self.log_share(log_size)
        return self.measure._result(log_density, value)

    def log_share(self, log_size: Tensor) -> Tensor:
        """Logarithm of the density over that of the measure, at logarithms of sizes."""
        return self.family.log_cdf(self.log_level + log_size) - self._log_count

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients in the parameters of the measure.

        :param torch.Size sample_shape: how many.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        level = self.log_level.expand(shape)
        size = self.measure._sample_size(self._factor(level, torch.zeros_like(level)))
        return clamp_positive(self.measure._result(size.exp()))

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function.

        :param Tensor value: sizes of weights.
        """
        if self._validate_args:
            self._validate_sample(value)
        log_size, level = torch.broadcast_tensors(value.double().log(), self.log_level)
        factor = self._factor(level, torch.zeros_like(level))
        low = log_size if factor.low is None else log_size.maximum(factor.low)
        log_rest = self.measure._integrate(
            factor._replace(corners=[*factor.corners, log_size], low=low)
        )
        return self.measure._result(
            -torch.expm1((log_rest - self._log_count).clamp(max=0.0)), value
        )

    @property
    def mean(self) -> Tensor:
        """Mean."""
        return self._moment(1.0)

    @property
    def variance(self) -> Tensor:
        """Variance."""
        return variance_of(self.mean, self._moment(2.0))

    def _factor(self, level: Tensor, power: Tensor) -> Factor:
        """Share of the weights of each size that have arrived, times the size to a power."""
        is_sharp = isinstance(self.family, DeterministicArrivals)
        return Factor(
            lambda size: self.family.log_cdf(level[..., None] + size) + power[..., None] * size,
            [-level],
            power,
            low=-level if is_sharp else None,
            order_at_zero=order_at_zero(self.family),
        )

    def _moment(self, order: float) -> Tensor:
        power = torch.full_like(self.log_level, order)
        is_finite = self.measure._slope_at_infinity(power) > 0
        power = torch.where(is_finite, power, 0.0)
        log_moment = self.measure._integrate(self._factor(self.log_level, power))
        moment = (log_moment - self._log_count).exp()
        return self.measure._result(torch.where(is_finite, moment, torch.inf))


def finite_law(
    measure: "CompletelyRandomMeasure", num_atoms: int, rule: str, family: ArrivalFamily | None
) -> TorchDistribution:
    """Law of a weight of a finite approximation, in closed form where there is one."""
    if rule not in ("exact", "group"):
        raise ValueError(f"rule must be 'exact' or 'group', got {shown(rule)}")
    if family is None or measure._is_own_family(family):
        law = measure._finite_law(num_atoms, rule)
        if law is not None:
            return law
    family = ExponentialArrivals() if family is None else family
    check_family("family", family)
    if rule == "group":
        raise ValueError(
            "rule must be 'exact' but for measures made of a generalized gamma process with the "
            "default family, got 'group'"
        )
    return FiniteAtom(measure, family, num_atoms, validate_args=measure._validate)


def exponent_error(
    measure: "CompletelyRandomMeasure",
    num_atoms: int,
    rule: str,
    family: ArrivalFamily | None,
    value: Tensor,
) -> Tensor:
    """Laplace exponent of a finite approximation less that of the measure."""
    log_shift = measure._expanded(value).log()
    wide = measure._unsqueezed()
    log_arrived = _log_arrived(wide, finite_law(wide, num_atoms, rule, family))
    log_distance = measure._integrate(
        Factor(
            lambda size: log1mexp_at_log(log_shift[..., None] + size) + log_arrived(size),
            [-log_shift],
            torch.zeros_like(log_shift),
        )
    )
    exponent = -num_atoms * torch.log1p(-log_distance.exp())
    return exponent - measure._log_exponent(log_shift).exp()


def _log_arrived(measure: "CompletelyRandomMeasure", law: TorchDistribution) -> LogIntegrand:
    """Logarithm of the density of a weight over that of the measure, at logarithms of sizes."""
    if isinstance(law, FiniteAtom):
        return law.log_share
    end = torch.as_tensor(getattr(measure.support, "upper_bound", torch.inf)).double().log()
    high = (end - _MARGIN).clamp(max=-_LEAST_LOG)

    def log_arrived(size: Tensor) -> Tensor:
        # Below the numbers of the type, weights arrive with a probability proportional to them.
        inside = torch.minimum(size.clamp(min=_LEAST_LOG), high)
        return law.log_prob(inside.exp()) - measure._log_density(inside) + (size - inside)

    return log_arrived
