"""Distributions of a single weight: one seen in samples, or one of a finite approximation."""

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.distributions.bases import ScalarDistribution, clamp_positive, expanded
from pyro_ext.random_measures._numerics import as_double
from pyro_ext.random_measures.arrivals import (
    DeterministicArrivals,
    ExponentialArrivals,
    arrival_process,
    check_family,
    order_at_zero,
)
from pyro_ext.random_measures.levy_measure import ArrivalFamily, Factor, LevyMeasure, check_measure
from pyro_ext.special import log1mexp_at_log
from pyro_ext.special.quadrature import LogIntegrand

_LEAST_LOG = -690.0
_MARGIN = 1e-10  # from the largest size, where densities may be infinite


class MeasureDistribution(TorchDistribution):
    """Base class of distributions of a number, with the batch shape of a measure."""

    arg_constraints: dict[str, Any] = {}
    measure: LevyMeasure
    _tensors: tuple[str, ...] = ()

    def __init__(self, measure: LevyMeasure, validate_args: bool | None = None) -> None:
        check_measure("measure", measure)
        self.measure = measure
        super().__init__(measure.batch_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """Sizes that weights of the measure can have."""
        return self.measure.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Repeat the distribution over a larger batch shape."""
        shape = torch.Size(batch_shape)
        values = {name: getattr(self, name).expand(shape) for name in self._tensors}
        return expanded(self, _instance, shape, measure=self.measure.expand(shape), **values)


class JumpDistribution(MeasureDistribution, ScalarDistribution):
    r"""Distribution of a weight of a measure, given that samples have hit it.

    .. math:: f(w) = \frac{w^n e^{-uw} \rho(w)}{\kappa(n, u)} .

    With :math:`n = 1`, it is the distribution of the weight that arrives at the time :math:`u` of a
    size-biased series. In general, it is that of the weight of a cluster of :math:`n` samples from
    the normalized measure. Draws have the same gradients as draws from the measure.

    :param measure: a completely random measure.
    :param order: :math:`n > 0`.
    :param tilt: :math:`u \geq 0`.

    Example::

        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> JumpDistribution(GeneralizedGammaProcess(2.0, 0.4, 1.5), 1.0, 0.5).mean
        tensor(0.3000)
    """

    _tensors = ("_order", "_log_tilt")

    def __init__(
        self, measure: LevyMeasure, order: Any, tilt: Any, *, validate_args: bool | None = None
    ) -> None:
        check_measure("measure", measure)
        order, tilt = torch.broadcast_tensors(as_double(order, "order"), as_double(tilt, "tilt"))
        shape = torch.broadcast_shapes(order.shape, measure.batch_shape)
        self._order, self._log_tilt = order.expand(shape), tilt.expand(shape).log()
        super().__init__(measure.expand(shape), validate_args)
        if self._validate_args and not bool((order > 0).all()):
            raise ValueError(f"order must be > 0, got {order.min():g}")
        if self._validate_args and not bool((tilt >= 0).all()):
            raise ValueError(f"tilt must be >= 0, got {tilt.min():g}")

    def _log_prob(self, value: Tensor) -> Tensor:
        log_size = value.double().log()
        log_weight = self._order * log_size - (self._log_tilt + log_size).exp()
        log_density = self.measure._log_density(log_size) + log_weight
        constant = self.measure._log_moment(self._order, self._log_tilt)
        return self.measure._result(log_density - constant, value)

    def _rsample(self, shape: torch.Size) -> Tensor:
        measure = self.measure.expand(shape)
        log_size = measure._sample_jump(self._order.expand(shape), self._log_tilt.expand(shape))
        return clamp_positive(self.measure._result(log_size.exp()))

    def _moment(self, order: int) -> Tensor:
        log_moment = self.measure._log_moment(self._order + order, self._log_tilt)
        constant = self.measure._log_moment(self._order, self._log_tilt)
        return self.measure._result((log_moment - constant).exp())


class FiniteAtom(MeasureDistribution, ScalarDistribution):
    r"""Distribution of a weight in a finite approximation, by quadrature.

    .. math:: f_L(w) = \Phi(t_L | w) \rho(w) / L , \quad \int \Phi(t_L | w) \rho(w) dw = L .

    Draws use numerical inversion and have gradients with respect to the parameters of the measure.
    """

    _tensors = ("_log_count", "log_level")

    def __init__(
        self,
        measure: LevyMeasure,
        family: ArrivalFamily,
        num_atoms: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.family, self.num_atoms = family, num_atoms
        super().__init__(measure, validate_args)
        self._log_count = measure._filled(float(num_atoms)).log()
        self.log_level = arrival_process(measure, family).log_time(self._log_count)

    def _log_prob(self, value: Tensor) -> Tensor:
        log_size = value.double().log()
        log_density = self.measure._log_density(log_size) + self.log_fraction(log_size)
        return self.measure._result(log_density, value)

    def log_fraction(self, log_size: Tensor) -> Tensor:
        """Logarithm of the density over that of the measure, at logarithms of sizes."""
        return self.family.log_cdf(self.log_level + log_size) - self._log_count

    def _rsample(self, shape: torch.Size) -> Tensor:
        level = self.log_level.expand(shape)
        size = self.measure._sample_size(self._factor(level, torch.zeros_like(level)))
        return clamp_positive(self.measure._result(size.exp()))

    def _cdf(self, value: Tensor) -> Tensor:
        log_size, level = torch.broadcast_tensors(value.double().log(), self.log_level)
        factor = self._factor(level, torch.zeros_like(level))
        low = log_size if factor.low is None else log_size.maximum(factor.low)
        log_rest = self.measure._integrate(
            factor._replace(corners=[*factor.corners, log_size], low=low)
        )
        return self.measure._result(
            -torch.expm1((log_rest - self._log_count).clamp(max=0.0)), value
        )

    def _factor(self, level: Tensor, power: Tensor) -> Factor:
        """Fraction of the weights of each size that have arrived, times the size to a power."""
        is_sharp = isinstance(self.family, DeterministicArrivals)
        return Factor(
            lambda size: self.family.log_cdf(level[..., None] + size) + power[..., None] * size,
            [-level],
            power,
            low=-level if is_sharp else None,
            order_at_zero=order_at_zero(self.family),
        )

    def _moment(self, order: int) -> Tensor:
        power = torch.full_like(self.log_level, order)
        is_finite = self.measure._slope_at_infinity(power) > 0
        power = torch.where(is_finite, power, 0.0)
        log_moment = self.measure._integrate(self._factor(self.log_level, power))
        moment = (log_moment - self._log_count).exp()
        return self.measure._result(torch.where(is_finite, moment, torch.inf))


def finite_distribution(
    measure: LevyMeasure, num_atoms: int, rule: str, family: ArrivalFamily | None
) -> TorchDistribution:
    """Distribution of a weight in a finite approximation, in closed form if there is one."""
    checks.choice("rule", rule, ("exact", "group"))
    if family is None or measure._is_own_family(family):
        distribution = measure._finite_distribution(num_atoms, rule)
        if distribution is not None:
            return distribution
    family = ExponentialArrivals() if family is None else family
    check_family("family", family)
    if rule == "group":
        raise ValueError(
            "rule must be 'exact', got 'group', which only measures derived from a generalized "
            "gamma process support, with the default family"
        )
    return FiniteAtom(measure, family, num_atoms, validate_args=measure._validate)


def exponent_error(
    measure: LevyMeasure, num_atoms: int, rule: str, family: ArrivalFamily | None, value: Tensor
) -> Tensor:
    """Laplace exponent of a finite approximation less that of the measure."""
    log_shift = measure._expanded(value).log()
    wide = measure._unsqueezed()
    log_arrived = _log_arrived(wide, finite_distribution(wide, num_atoms, rule, family))
    log_distance = measure._integrate(
        Factor(
            lambda size: log1mexp_at_log(log_shift[..., None] + size) + log_arrived(size),
            [-log_shift],
            torch.zeros_like(log_shift),
        )
    )
    exponent = -num_atoms * torch.log1p(-log_distance.exp())
    return exponent - measure._log_exponent(log_shift).exp()


def _log_arrived(measure: LevyMeasure, distribution: TorchDistribution) -> LogIntegrand:
    """Logarithm of the density of a weight over that of the measure, at logarithms of sizes."""
    if isinstance(distribution, FiniteAtom):
        return distribution.log_fraction
    end = getattr(measure.support, "upper_bound", torch.inf)
    end = torch.as_tensor(end, dtype=torch.float64).log()
    high = (end - _MARGIN).clamp(max=-_LEAST_LOG)

    def log_arrived(size: Tensor) -> Tensor:
        # Below the numbers of the type, weights arrive with a probability proportional to them.
        inside = torch.minimum(size.clamp(min=_LEAST_LOG), high)
        return distribution.log_prob(inside.exp()) - measure._log_density(inside) + (size - inside)

    return log_arrived
