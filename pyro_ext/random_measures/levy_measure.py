r"""The base of all measures: Lévy densities, their integrals and the inverses of these.

Everything else builds on :class:`LevyMeasure`: series, finite approximations, total masses,
normalization, partitions and plots.
"""

import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution

from pyro_ext._lib import checks
from pyro_ext.distributions.supports import positive
from pyro_ext.random_measures._numerics import as_double, solve_monotone
from pyro_ext.special import log1mexp_at_log
from pyro_ext.special.quadrature import LogIntegrand, integrate_log, panel_edges, sample_from_panels

_FALL = 45.0
_LARGEST_LOG = 700.0
_REACH = 1e5


class Factor(NamedTuple):
    """A factor by which a Lévy density is multiplied before it is integrated."""

    log_value: LogIntegrand  # logarithm of the factor at logarithms of sizes
    corners: Sequence[Tensor]  # logarithms of the sizes where its slope changes
    order: Tensor  # its slope at infinity
    low: Tensor | None = None  # logarithm of the least size, if there is one
    high: Tensor | None = None  # logarithm of the largest
    order_at_zero: float = 1.0  # its slope at zero, if that is less than one


class ArrivalFamily(Protocol):
    """Distribution of the positive number that, divided by a weight, is the weight's arrival time.

    Any object with these methods is a family. They take and return logarithms in float64 and are
    differentiable.
    """

    def log_density(self, log_value: Tensor) -> Tensor:
        """Log density of the logarithm of the number."""

    def log_cdf(self, log_value: Tensor) -> Tensor:
        """Logarithm of the distribution function."""

    def log_survival(self, log_value: Tensor) -> Tensor:
        """Logarithm of the probability of a larger number."""


class ArrivalProcess(Protocol):
    """The weights of a measure with the arrival times of a family, as logarithms in float64."""

    def log_count(self, log_time: Tensor) -> Tensor:
        r"""Logarithm of the mean number of arrivals by a time, :math:`\log \xi(t)`."""

    def log_time(self, log_count: Tensor) -> Tensor:
        """Time by which the mean number of arrivals has a given value, with gradients."""

    def sample_weight(self, log_time: Tensor) -> Tensor:
        """Draw the weight that arrives at a time."""

    def log_later(self, log_time: Tensor, order: float) -> Tensor:
        """Moment of the weights that arrive after a time: with order 1, their expected mass."""


class SeriesMethod(Protocol):
    """A way to draw the weights of a measure one by one, as logarithms in float64."""

    def sample(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Draw weights and arrival times."""

    def log_later(self, point: Tensor, order: float) -> Tensor:
        """Moment of the weights of later points: with order 1, their expected mass."""


class Values:
    """Parameters by name, in float64."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Tensor: ...


class LevyMeasure(ABC):
    """A Lévy density, with its integrals in closed form or by quadrature.

    A subclass defines the log density as a function of log sizes. Quadrature in float64 provides
    everything for which the subclass has no closed form.
    """

    batch_shape: torch.Size
    dtype: torch.dtype
    _names: tuple[str, ...]
    _double: Values
    _validate: bool
    _is_closed = False  # whether exponent, inverse and moments have closed forms

    def __init__(
        self,
        parameters: dict[str, Any],
        validate_args: bool | None = None,
        optional: Mapping[str, tuple[Any, float]] | None = None,
    ) -> None:
        """Store parameters, and optional ones where they are not the number by which they go."""
        parameters, absent = dict(parameters), {}
        for name, (value, default) in (optional or {}).items():
            if not isinstance(value, numbers.Real) or value != default:
                parameters[name] = value
            else:
                absent[name] = default
        owner = type(self).__name__
        values = checks.as_parameters(owner, parameters) if parameters else (torch.zeros(()),)
        is_checked = Distribution._validate_args if validate_args is None else validate_args
        vars(self).update(
            _names=tuple(parameters),
            _validate=is_checked,
            batch_shape=values[0].shape,
            dtype=values[0].dtype,
            _double=Values(),
        )
        own = dict(zip(parameters, values, strict=False))
        own |= {name: values[0].new_tensor(default) for name, default in absent.items()}
        for name, value in own.items():
            object.__setattr__(self, name, value)  # which refuses names of properties
            setattr(self._double, name, value.double())
        for name in parameters:
            self._check(name, own[name].isfinite(), "finite")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable, {name} cannot be set")

    def __repr__(self) -> str:
        def show(value: Tensor) -> str:
            return f"{value.item():g}" if value.dim() == 0 else f"shape {tuple(value.shape)}"

        listed = ", ".join(f"{name}={show(value)}" for name, value in self._parameters().items())
        return f"{type(self).__name__}({listed})"

    def expand(self, batch_shape: Sequence[int]) -> Self:
        """Repeat the measure over a larger batch shape."""
        shape = torch.Size(batch_shape)
        return self._like(
            **{name: value.expand(shape) for name, value in self._parameters().items()}
        )

    def _parameters(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._names}

    def _has(self, name: str) -> bool:
        """Tell whether an optional parameter was given."""
        return name in self._names

    def _like(self, **changes: Any) -> Self:
        """Measure of this class with other parameters, which are not looked at again."""
        new = type(self)(**{**self._parameters(), **changes}, validate_args=False)
        object.__setattr__(new, "_validate", self._validate)
        return new

    def _element(self, index: int) -> Self:
        """Measure without batch shape, one of the batch."""
        values = self._parameters()
        return self._like(**{name: value.reshape(-1)[index] for name, value in values.items()})

    def _unsqueezed(self) -> Self:
        """Measure in float64 with one more axis at the end, which checks no arguments."""
        new = self._like(**{name: getattr(self._double, name)[..., None] for name in self._names})
        object.__setattr__(new, "_validate", False)
        return new

    # What a subclass gives.

    @abstractmethod
    def _log_mass(self, x: Tensor) -> Tensor:
        """Logarithm of the Lévy density over the coordinate."""

    @property
    @abstractmethod
    def index_at_zero(self) -> Tensor:
        r"""Index :math:`\sigma` of regular variation at zero, :math:`\bar\rho(x) \sim x^{-\sigma}`.

        Up to slowly varying factors, ranked weights fall as :math:`k^{-1/\sigma}`, and the number
        of clusters in a sample of size :math:`n` grows as :math:`n^\sigma`.
        """

    @property
    @abstractmethod
    def index_at_infinity(self) -> Tensor:
        r"""Index :math:`\tau` of regular variation at infinity, :math:`\bar\rho(x) \sim x^{-\tau}`.

        It is infinite if large weights are rarer than under any power law.
        """

    @abstractmethod
    def _log_corners(self) -> list[Tensor]:
        """Logarithms of the sizes where the slope of the density changes, at least one."""

    def exponential_tilt(self, tilt: Any) -> Self:
        r"""Measure with the Lévy density :math:`e^{-u w} \rho(w)`.

        Given samples from the normalized measure and their auxiliary variable :math:`u`, the
        weights that no sample has hit are those of this measure.

        :param tilt: :math:`u \geq 0`.
        """
        # A subclass without the parameter ``tilt`` overrides this.
        added = self._argument("tilt", tilt, ">= 0")
        return self._like(tilt=self._result(self._double.tilt + added, tilt))

    @abstractmethod
    def rescale(self, scale: Any) -> Self:
        """Measure whose weights are multiplied by a number.

        :param scale: positive.
        """

    def _has_infinitely_many(self) -> bool:
        """Tell whether there are, or may be, infinitely many weights."""
        return True

    def _log_density(self, log_size: Tensor) -> Tensor:
        return self._log_mass(log_size) - log_size

    def _log_removal(self, log_size: Tensor) -> Tensor:
        """Return the decrease of the log density by a tilt."""
        return self._double.tilt * log_size.clamp(max=_LARGEST_LOG).exp()

    def _rescaled(self, scale: Any, factor: Tensor, /, **changes: Tensor) -> Self:
        """Measure with other parameters in float64, and the tilt that goes with a new scale."""
        if self._has("tilt"):
            changes["tilt"] = self._double.tilt / factor
        return self._like(**{name: self._result(value, scale) for name, value in changes.items()})

    # The coordinate over which densities are integrated, by default the logarithm of the size.

    def _coordinate(self, log_size: Tensor) -> Tensor:
        return log_size

    def _log_size(self, x: Tensor) -> Tensor:
        return x

    def _slope_at_infinity(self, order: Tensor) -> Tensor:
        """Return the rate at which the density times a power of the size decays at large sizes."""
        return self.index_at_infinity.double() - order

    # Integrals, which a subclass may replace by closed forms. Arguments are logarithms in float64.

    def _panels(self, factor: Factor) -> tuple[LogIntegrand, Tensor]:
        """Integrand over the coordinate, and panels that resolve it."""
        own = [self._coordinate(corner) for corner in (*self._log_corners(), *factor.corners)]
        *own, order = torch.broadcast_tensors(*own, factor.order)
        every = torch.stack(own, -1)
        slope_at_zero = min(factor.order_at_zero, 1.0) - self.index_at_zero.double()
        first = every.min(-1).values - _FALL / slope_at_zero - 5.0
        last = every.max(-1).values + _FALL / self._slope_at_infinity(order) + 9.0
        low = first if factor.low is None else self._coordinate(factor.low)
        high = last.maximum(low + 1.0) if factor.high is None else self._coordinate(factor.high)
        low, high = torch.broadcast_tensors(low.minimum(high), high)
        wide = self._unsqueezed()

        def log_integrand(x: Tensor) -> Tensor:
            return wide._log_mass(x) + factor.log_value(wide._log_size(x))

        with torch.no_grad():
            edges = panel_edges(log_integrand, low, high, every)
        # A range that ends where the integrand has not vanished ends there with its gradient, which
        # all edges that coincide with the end take on: a panel without length has none.
        low, high = low[..., None], high[..., None]
        return log_integrand, torch.where(
            edges <= low, low, torch.where(edges >= high, high, edges)
        )

    def _integrate(self, factor: Factor) -> Tensor:
        r""":math:`\log \int f(w) \rho(w) dw` for a factor :math:`f`."""
        return integrate_log(*self._panels(factor))

    def _log_exponent(self, log_shift: Tensor) -> Tensor:
        r""":math:`\log \psi(t)` at :math:`\log t`."""
        shift = log_shift[..., None]
        return self._integrate(
            Factor(
                lambda size: log1mexp_at_log(shift + size),
                [-log_shift],
                torch.zeros_like(log_shift),
            )
        )

    def _log_moment(self, order: Tensor, log_tilt: Tensor) -> Tensor:
        r""":math:`\log \kappa(n, u)` at :math:`n` and :math:`\log u`."""
        order, log_tilt = torch.broadcast_tensors(order, log_tilt)
        is_tilted = log_tilt > -torch.inf
        bend = torch.where(is_tilted, order.log() - log_tilt, self._log_corners()[0])
        is_finite = is_tilted | (self._slope_at_infinity(order) > 0)
        power = torch.where(is_finite, order, 0.0)[..., None]
        value = self._integrate(
            Factor(
                lambda size: power * size - (log_tilt[..., None] + size).exp(),
                [bend],
                torch.where(is_tilted, -torch.inf, power.squeeze(-1)),
            )
        )
        return torch.where(is_finite, value, torch.inf)

    def _log_tail(self, log_size: Tensor) -> Tensor:
        r"""Logarithm of the tail :math:`\int_x^\infty \rho` at :math:`\log x`."""
        none = torch.zeros_like(log_size)
        return self._integrate(Factor(torch.zeros_like, [log_size], none, low=log_size))

    def _log_partial_moment(self, log_size: Tensor, order: float) -> Tensor:
        r""":math:`\log \int_0^x w^n \rho(w) dw` at :math:`\log x`."""
        none = torch.zeros_like(log_size)
        return self._integrate(Factor(lambda size: order * size, [log_size], none, high=log_size))

    def _inverse_exponent(self, log_target: Tensor) -> Tensor:
        r""":math:`\log t` where :math:`\psi(t)` has a given logarithm."""

        def slope(x: Tensor, value: Tensor) -> Tensor:
            return (x + self._log_moment(torch.ones_like(x), x) - value).exp()

        reach = torch.full_like(log_target, _REACH)
        return solve_monotone(self._log_exponent, slope, log_target, -reach, reach)

    def _inverse_tail(self, log_target: Tensor) -> Tensor:
        r""":math:`\log x` where the tail has a given logarithm."""
        reach = torch.full_like(log_target, _REACH)
        return self._log_size(
            solve_monotone(
                lambda x: self._log_tail(self._log_size(x)),
                lambda x, value: -(self._log_mass(x) - value).exp(),
                log_target,
                -reach,
                reach,
            )
        )

    # The interface.

    def log_levy_density(self, value: Any) -> Tensor:
        r"""Logarithm of the Lévy density, :math:`\log \rho(w)`.

        :param Tensor value: sizes :math:`w > 0`.
        """
        size = self._argument("value", value, "> 0").log()
        return self._result(self._log_density(size), value)

    def log_tail(self, value: Any) -> Tensor:
        r"""Logarithm of the tail :math:`\bar\rho(x) = \int_x^\infty \rho(w) dw`.

        :param Tensor value: :math:`x > 0`.
        """
        log_size = self._argument("value", value, "> 0").log()
        return self._result(self._log_tail(self._expanded(log_size)), value)

    def tail(self, value: Any) -> Tensor:
        r"""Mean number of weights above a level, :math:`\bar\rho(x)`.

        :param Tensor value: the level :math:`x > 0`.
        """
        return self.log_tail(value).exp()

    def inverse_tail(self, value: Any) -> Tensor:
        """Level above which the mean number of weights has a given value.

        :param Tensor value: positive numbers.
        """
        target = self._argument("value", value, "> 0").log()
        return self._result(self._inverse_tail(self._expanded(target)).exp(), value)

    def laplace_exponent(self, value: Any) -> Tensor:
        r"""Laplace exponent of the total mass, :math:`\psi(t) = \int (1 - e^{-tw}) \rho(w) dw`.

        It is :math:`E\, e^{-tS} = e^{-\psi(t)}` for the total mass :math:`S = \sum_j W_j`.

        :param Tensor value: :math:`t \geq 0`.
        """
        argument = self._argument("value", value, ">= 0")
        is_zero = argument == 0
        exponent = self._log_exponent(
            self._expanded(torch.where(is_zero, 1.0, argument).log())
        ).exp()
        return self._result(torch.where(is_zero, 0.0, exponent), value)

    def inverse_laplace_exponent(self, value: Any) -> Tensor:
        r"""The number :math:`t` at which :math:`\psi(t)` has a given value.

        :param Tensor value: positive numbers.
        """
        target = self._argument("value", value, "> 0").log()
        return self._result(self._inverse_exponent(self._expanded(target)).exp(), value)

    def log_kappa(self, order: Any, tilt: Any) -> Tensor:
        r"""Logarithm of the tilted moment :math:`\kappa(n, u) = \int w^n e^{-uw} \rho(w) dw`.

        :param Tensor order: :math:`n \geq 1`.
        :param Tensor tilt: :math:`u \geq 0`. Without a tilt, some moments are infinite.
        """
        count = self._argument("order", order, ">= 1")
        log_tilt = self._argument("tilt", tilt, ">= 0").log()
        return self._result(self._log_moment(self._expanded(count), log_tilt), order, tilt)

    @property
    def support(self) -> Any:
        """Sizes that weights can have."""
        return positive

    @property
    def mean(self) -> Tensor:
        r"""Mean of the total mass, :math:`\kappa(1, 0)`."""
        return self.log_kappa(1.0, 0.0).exp()

    @property
    def variance(self) -> Tensor:
        r"""Variance of the total mass, :math:`\kappa(2, 0)`."""
        return self.log_kappa(2.0, 0.0).exp()

    # Draws, as hooks in logarithms and float64.

    def _sample_jump(self, order: Tensor, log_tilt: Tensor) -> Tensor:
        r"""Logarithms of weights with density proportional to :math:`w^n e^{-uw} \rho(w)`."""
        order, log_tilt = torch.broadcast_tensors(order, log_tilt)
        power, tilt = order[..., None], log_tilt[..., None]
        return self._sample_size(
            Factor(
                lambda size: power * size - (tilt + size).exp(),
                [order.log() - log_tilt],
                torch.full_like(order, -torch.inf),
            )
        )

    def _sample_size(self, factor: Factor) -> Tensor:
        r"""Logarithms of weights with density proportional to :math:`f(w) \rho(w)`."""
        panels = self._panels(factor)
        return self._log_size(sample_from_panels(*panels))

    # What only this measure knows, which the functions above it ask for first.

    def _own_arrivals(self, family: ArrivalFamily) -> ArrivalProcess | None:
        """Arrivals of a family in closed form, if there are any."""
        return None

    def _series_methods(self) -> Mapping[str, Callable[[], SeriesMethod]]:
        """Series methods by name."""
        return {}

    def _methods_above(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Samplers of all weights above levels, over one more axis with zeros for padding."""
        return {}

    def _is_own_family(self, family: ArrivalFamily) -> bool:
        """Tell whether the closed-form finite approximation is that of a family."""
        return False

    def _finite_distribution(self, num_atoms: int, rule: str) -> TorchDistribution | None:
        """Weight of a finite approximation in closed form, if there is one."""
        return None

    @abstractmethod
    def total_mass(self) -> TorchDistribution:
        r"""Distribution of the total mass :math:`S = \sum_j W_j`.

        :returns: a distribution with this batch shape. Its draws are exact unless it is an
            ``ApproximateTotalMass``.
        """

    def _sample_total_mass(self) -> Tensor:
        """A draw of the total mass."""
        return self.total_mass().sample().double()

    # Arguments and results.

    def _check(self, name: str, is_valid: Tensor, wanted: str) -> None:
        """Raise an error where a parameter does not fit, if arguments are validated."""
        if self._validate and not bool(is_valid.all()):
            bad = getattr(self, name)[~is_valid.expand(self.batch_shape)].flatten()[0].item()
            raise ValueError(f"{name} of {type(self).__name__} must be {wanted}, got {bad:g}")

    def _argument(self, name: str, value: Any, wanted: str) -> Tensor:
        """An argument in float64, checked against its bound if arguments are validated."""
        argument = as_double(value, name)
        if self._validate:
            sign, bound = wanted.split()
            is_valid = argument > float(bound) if sign == ">" else argument >= float(bound)
            if not bool(is_valid.all()):
                bad = argument[~is_valid].flatten()[0].item()
                raise ValueError(f"{name} must be {wanted}, got {bad:g}")
        return argument

    def _filled(self, value: float) -> Tensor:
        """A number over the batch shape, in float64 on the device of the parameters."""
        return self._log_corners()[0].new_full(self.batch_shape, value)

    def _expanded(self, argument: Tensor) -> Tensor:
        return argument.expand(torch.broadcast_shapes(argument.shape, self.batch_shape))

    def _result(self, result: Tensor, *arguments: Any) -> Tensor:
        """A result in the type of the measure and the arguments."""
        dtype = self.dtype
        for argument in arguments:
            if isinstance(argument, Tensor) and argument.is_floating_point():
                dtype = torch.promote_types(dtype, argument.dtype)
        return result.to(dtype)


def check_measure(argument: str, value: object) -> None:
    """Check that a value is a completely random measure."""
    checks.instance(argument, value, LevyMeasure, "a completely random measure")
