"""What completely random measures share: their interface, and integrals of a Lévy density."""

import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution

from pyro_ext._checks import as_parameters, as_size, check_integer
from pyro_ext.distributions.supports import positive
from pyro_ext.random_measures import _finite, _series
from pyro_ext.random_measures._arrival_processes import ArrivalProcess, arrival_process
from pyro_ext.random_measures._levy_integrals import (
    Factor,
    invert_exponent,
    invert_tail,
    levy_panels,
)
from pyro_ext.random_measures._logarithms import as_double
from pyro_ext.random_measures._series import Series, SeriesMethod
from pyro_ext.random_measures.arrivals import ArrivalFamily
from pyro_ext.random_measures.normalized import NormalizedRandomMeasure
from pyro_ext.special import log1mexp_at_log
from pyro_ext.special.quadrature import LogIntegrand, integrate_log, sample_from_panels

if TYPE_CHECKING:
    from pyro_ext.random_measures.superposition import Superposition

__all__ = ["CompletelyRandomMeasure"]


class Values:
    """Parameters by name, in float64."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Tensor: ...


class CompletelyRandomMeasure(ABC):
    r"""Completely random measure without fixed atoms, an immutable value.

    It is :math:`G = \sum_j W_j \delta_{\theta_j}`, where the weights :math:`W_j` are the points of
    a Poisson process on the positive numbers with a Lévy density :math:`\rho`, and the atoms
    :math:`\theta_j` are independent draws of any law. Sizes, parameters and results are tensors;
    parameters have a common batch shape with which arguments broadcast.

    A subclass gives the Lévy density by its logarithm at logarithms. All else follows from it by
    quadrature, in float64, where the subclass has no closed form.
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
        values = as_parameters(owner, parameters) if parameters else (torch.zeros(()),)
        put = super().__setattr__
        put("_names", tuple(parameters))
        put("_validate", Distribution._validate_args if validate_args is None else validate_args)
        put("batch_shape", values[0].shape)
        put("dtype", values[0].dtype)
        put("_double", Values())
        for name, value in zip(parameters, values, strict=False):
            put(name, value)
            setattr(self._double, name, value.double())
            self._check(name, value.isfinite(), "finite")
        for name, default in absent.items():
            put(name, values[0].new_tensor(default))
            setattr(self._double, name, getattr(self, name).double())

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable, {name} cannot be set")

    def __repr__(self) -> str:
        def show(value: Tensor) -> str:
            return f"{value.item():g}" if value.dim() == 0 else f"shape {tuple(value.shape)}"

        listed = ", ".join(f"{name}={show(value)}" for name, value in self._parameters().items())
        return f"{type(self).__name__}({listed})"

    def expand(self, batch_shape: Sequence[int]) -> Self:
        """Repeat the measure over a larger batch shape.

        :param torch.Size batch_shape: the new shape.
        :returns: the measure of that shape.
        """
        shape = torch.Size(batch_shape)
        return self._like(
            **{name: value.expand(shape) for name, value in self._parameters().items()}
        )

    def _parameters(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._names}

    def _has(self, name: str) -> bool:
        """Whether an optional parameter was given."""
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
    def _log_mass(self, place: Tensor) -> Tensor:
        r"""Logarithm of the Lévy density over places, which are :math:`\log w` if not redefined."""

    @property
    @abstractmethod
    def index_at_zero(self) -> Tensor:
        r"""Index :math:`\sigma` of regular variation at zero, :math:`\bar\rho(x) \sim x^{-\sigma}`.

        Ranked weights fall as :math:`k^{-1/\sigma}`, and the number of clusters in a sample of size
        :math:`n` grows as :math:`n^\sigma`, but for slowly varying factors.
        """

    @property
    @abstractmethod
    def index_at_infinity(self) -> Tensor:
        r"""Index :math:`\tau` of regular variation at infinity, :math:`\bar\rho(x) \sim x^{-\tau}`.

        Infinite where large weights are rarer than in any power law.
        """

    @abstractmethod
    def _log_corners(self) -> list[Tensor]:
        """Logarithms of the sizes where the slope of the density changes, at least one."""

    def exponential_tilt(self, tilt: Any) -> "CompletelyRandomMeasure":
        r"""Measure with the Lévy density :math:`e^{-u w} \rho(w)`.

        Given samples of the normalized measure and their auxiliary variable :math:`u`, it is the
        law of the measure without the weights that were seen.

        :param tilt: :math:`u \geq 0`.
        """
        # Where the tilt is no parameter, a subclass does something else.
        added = self._argument("tilt", tilt, ">= 0")
        return self._like(tilt=self._result(self._double.tilt + added, tilt))

    @abstractmethod
    def rescale(self, scale: Any) -> "CompletelyRandomMeasure":
        """Measure whose weights are multiplied by a number.

        :param scale: positive.
        """

    def _has_infinitely_many(self) -> bool:
        """Whether there are infinitely many weights, or that is not known to fail."""
        return True

    def _log_density(self, log_size: Tensor) -> Tensor:
        return self._log_mass(log_size) - log_size

    def _rescaled(self, scale: Any, factor: Tensor, /, **changes: Tensor) -> Self:
        """Measure with other parameters in float64, and the tilt that goes with a new scale."""
        if self._has("tilt"):
            changes["tilt"] = self._double.tilt / factor
        return self._like(**{name: self._result(value, scale) for name, value in changes.items()})

    # The coordinate in which densities are integrated.

    def _place(self, log_size: Tensor) -> Tensor:
        return log_size

    def _log_size(self, place: Tensor) -> Tensor:
        return place

    def _slope_at_infinity(self, order: Tensor) -> Tensor:
        """How fast the density, times a power of the size, falls at the end of all places."""
        return self.index_at_infinity.double() - order

    # Integrals, which a subclass may replace by closed forms. Arguments are logarithms in float64.

    def _panels(self, factor: Factor) -> tuple[LogIntegrand, Tensor]:
        """Integrand over places and panels that resolve it, for a factor of order one at zero."""
        return levy_panels(self, factor)

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
        return invert_exponent(self, log_target)

    def _inverse_tail(self, log_target: Tensor) -> Tensor:
        r""":math:`\log x` where the tail has a given logarithm."""
        return invert_tail(self, log_target)

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
        place = self._argument("value", value, "> 0").log()
        return self._result(self._log_tail(self._expanded(place)), value)

    def tail(self, value: Any) -> Tensor:
        r"""Mean number of weights above a level, :math:`\bar\rho(x)`.

        :param Tensor value: the level :math:`x > 0`.
        """
        return self.log_tail(value).exp()

    def inverse_tail(self, value: Any) -> Tensor:
        """Level above which there is a given number of weights on average.

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
        :param Tensor tilt: :math:`u \geq 0`. Without tilt some moments are infinite.
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

    @abstractmethod
    def total_mass(self) -> TorchDistribution:
        r"""Law of the total mass :math:`S = \sum_j W_j`.

        :returns: a distribution of this batch shape. Its class says what is known about the law:
            draws are exact where it is not called an approximation.
        """

    def normalize(self) -> NormalizedRandomMeasure:
        """Return the random probability measure :math:`G / S`."""
        return NormalizedRandomMeasure(self)

    def __add__(self, other: "CompletelyRandomMeasure") -> "Superposition":
        """Sum of two independent measures."""
        from pyro_ext.random_measures.superposition import Superposition

        return Superposition(self, other)

    # Finite approximations and series.

    def finite(
        self, num_atoms: int, rule: str = "exact", family: ArrivalFamily | None = None
    ) -> TorchDistribution:
        r"""Law of the independent weights of a finite approximation [1].

        With ``num_atoms`` :math:`= L` such weights the measure
        :math:`\sum_{l \leq L} W_l \delta_{\theta_l}` converges in law to this one as :math:`L`
        grows. The density is :math:`\Phi(t_L | w) \rho(w) / L`, where :math:`\Phi(t | w)` is the
        probability that a weight arrives until :math:`t` and the level :math:`t_L` is such that
        :math:`L` weights do so on average.

        :param int num_atoms: :math:`L`.
        :param str rule: ``"exact"`` for this level; ``"group"``, for measures made of a generalized
            gamma process, for :math:`t_L = (\sigma L / \eta)^{1/\sigma}`, which ignores the tilt.
        :param family: arrival times, by default those with a law in closed form where there is one.
        :returns: a distribution of this batch shape. Pyro's plates repeat it.
        :raises ValueError: for an argument that is not allowed, such as a family by which
            infinitely many weights arrive until any time.

        [1] J. Lee, X. Miscouridou, F. Caron (2019), A unified construction for series
        representations and finite approximations of completely random measures.
        """
        return _finite.finite_law(self, check_integer("num_atoms", num_atoms, 1), rule, family)

    def finite_error(
        self,
        num_atoms: int,
        value: Any,
        rule: str = "exact",
        family: ArrivalFamily | None = None,
    ) -> Tensor:
        r"""Error of a finite approximation, in its Laplace exponent.

        :param int num_atoms: as of :meth:`finite`.
        :param Tensor value: :math:`t > 0`.
        :param str rule: as of :meth:`finite`.
        :param family: as of :meth:`finite`.
        :returns: :math:`-L \log E\, e^{-t W} - \psi(t)`, by quadrature; negative where the
            approximation has too little mass.
        """
        argument = self._argument("value", value, "> 0")
        count = check_integer("num_atoms", num_atoms, 1)
        return self._result(_finite.exponent_error(self, count, rule, family, argument), value)

    def series(
        self,
        num_jumps: int | None = None,
        method: str | ArrivalFamily = "size_biased",
        seed: int | None = None,
        *,
        tolerance: float | None = None,
        sample_shape: Sequence[int] = (),
    ) -> Series:
        r"""Draw the first weights of a series representation [1].

        Draws have gradients in the parameters unless a method says otherwise. Every measure knows
        ``"size_biased"``, ``"inverse_levy"`` and all families of arrival times; some know more, see
        their classes.

        What a size-biased series leaves out, given its last arrival time, is the same measure with
        that time for a further tilt. So its total mass can be drawn, too, as in the example.

        :param int num_jumps: how many weights are drawn.
        :param method: name of a method, or an arrival family.
        :param int seed: of the draws; by default PyTorch's generator goes on.
        :param float tolerance: in place of ``num_jumps``: as many are drawn as it takes until the
            expected mass of the rest is at most this share of the mass drawn, in all of the batch.
        :param sample_shape: how many series are drawn.
        :returns: ``(weights, arrivals, lost_mass)``: weights in the order of their arrival times,
            with zeros where a method rejects; the times; and the expected mass of all that arrives
            later. **Shape:** ``(*sample_shape, *batch_shape, num_jumps)``, the same, and without
            the last axis.
        :raises ValueError: for an argument that is not allowed.

        [1] J. Lee, X. Miscouridou, F. Caron (2019), A unified construction for series
        representations and finite approximations of completely random measures.

        Example::

            >>> from pyro_ext.random_measures import GeneralizedGammaProcess
            >>> measure = GeneralizedGammaProcess(2.0, 0.4, 1.5)
            >>> series = measure.series(20, seed=0)
            >>> remainder = measure.exponential_tilt(series.arrivals[-1])
            >>> bool(torch.isclose(remainder.mean, series.lost_mass))
            True
            >>> total = series.weights.sum() + remainder.total_mass().sample()
        """
        return _series.draw(
            self, num_jumps, method, seed, tolerance, as_size("sample_shape", sample_shape)
        )

    def lost_mass(self, num_jumps: Any, method: str | ArrivalFamily = "size_biased") -> Tensor:
        r"""Expected mass after the first weights of a series, :math:`e(t_L)`.

        :param Tensor num_jumps: :math:`L > 0`, at whose mean arrival time the series ends.
        :param method: as of :meth:`series`.
        :returns: the mass, for ``"scaled"`` series of a tilted measure an upper bound of it.
            **Shape:** that of ``num_jumps`` and the batch together.
        """
        target = self._expanded(self._argument("num_jumps", num_jumps, "> 0"))
        return self._result(
            _series.series_method(self, method).log_later(target, 1.0).exp(), num_jumps
        )

    def num_jumps(self, tolerance: float, method: str | ArrivalFamily = "size_biased") -> int:
        r"""Length of a series that loses at most a given share of the mean total mass.

        :param float tolerance: the share, in (0, 1).
        :param method: as of :meth:`series`.
        :returns: the least :math:`L` with :math:`e(t_L) \leq` ``tolerance`` :math:`E S`, for all of
            the batch.
        :raises ValueError: where the mean is infinite.
        """
        return _series.shortest(self, tolerance, method)

    def jumps_above(
        self,
        level: Any,
        seed: int | None = None,
        *,
        method: str = "inversion",
        sample_shape: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        r"""Draw all weights above a level, exactly.

        There are :math:`\text{Poisson}(\bar\rho(x))` of them, independent with density
        proportional to :math:`\rho`. Given their number they have gradients in the parameters; the
        number has none.

        :param level: :math:`x > 0`.
        :param int seed: of the draws; by default PyTorch's generator goes on.
        :param str method: ``"inversion"`` of the tail, or another that the measure knows.
        :param sample_shape: how many times.
        :returns: weights, falling in each row and padded with zeros; and a mask of those that are
            there. **Shape:** ``(*sample_shape, *batch_shape, largest number)`` each.
        """
        threshold = self._expanded(self._argument("level", level, "> 0"))
        return _series.draw_above(
            self, threshold, seed, method, as_size("sample_shape", sample_shape)
        )

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

    def _arrivals(self, family: ArrivalFamily) -> ArrivalProcess:
        """Weights in the order of the arrival times of a family, in closed form where it exists."""
        return arrival_process(self, family)

    def _sample_total_mass(self) -> Tensor:
        """A draw of the total mass, which a subclass gives if it has no law of its own."""
        return self.total_mass().sample().double()

    def _series_methods(self) -> Mapping[str, Callable[[], SeriesMethod]]:
        """Methods that only this measure knows."""
        return {}

    def _methods_above(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Samplers of all weights above levels that only this measure knows.

        They return weights with zeros for padding, in any order, over one more axis.
        """
        return {}

    def _is_own_family(self, family: ArrivalFamily) -> bool:
        """Whether the finite approximation in closed form is that of a family."""
        return False

    def _finite_law(self, num_atoms: int, rule: str) -> TorchDistribution | None:
        """Finite approximation in closed form, if there is one."""
        return None

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
