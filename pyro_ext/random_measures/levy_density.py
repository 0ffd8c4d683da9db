"""Measures with a user-defined Lévy density."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.distributions.supports import numbers_between
from pyro_ext.random_measures.levy_measure import Factor
from pyro_ext.random_measures.measure import CompletelyRandomMeasure
from pyro_ext.random_measures.total_mass import ApproximateTotalMass
from pyro_ext.special.quadrature import LogIntegrand

_LEAST_LOG, _LARGEST_LOG = -600.0, 600.0
_LEAST_VALUE = -1e6  # far below any power law


class LevyDensityProcess(CompletelyRandomMeasure):
    r"""Completely random measure with any Lévy density, by quadrature.

    As a function of :math:`\log w`, the density times :math:`w` must be smooth with at most one
    peak; for a sum of such densities, use :class:`Superposition`. Below 1e-260 and above 1e260, the
    density is extrapolated by the power law that it follows there. All results are differentiable
    with respect to the parameters.

    :param log_levy_density: a function of sizes, and of the parameters as keyword arguments, that
        returns :math:`\log \rho(w)`.
    :param parameters: numbers or tensors that broadcast to the batch shape.
    :param corners: sizes at which the slope of the log density changes.
    :param float high: the largest size of a weight, infinite by default. The density must be
        bounded near it.
    :raises ValueError: if :math:`\int \min(1, w) \rho(w) dw` is infinite.

    Example::

        >>> def log_density(w, mass):
        ...     return mass.log() - w.log() - w
        >>> measure = LevyDensityProcess(log_density, {"mass": 2.0})
        >>> measure.mean, measure.laplace_exponent(1.0)
        (tensor(2.), tensor(1.3863))
    """

    _function: Callable[..., Tensor]
    _corners: tuple[float, ...]
    _high: float

    def __init__(
        self,
        log_levy_density: Callable[..., Tensor],
        parameters: Mapping[str, Any] | None = None,
        *,
        corners: Sequence[float] = (1.0,),
        high: float = torch.inf,
        validate_args: bool | None = None,
    ) -> None:
        checks.function("log_levy_density", log_levy_density)
        if parameters is not None:
            checks.mapping("parameters", parameters, "a dict of numbers or tensors by name")
        checks.instance("high", high, (int, float), "a number > 0")
        corners = checks.sequence("corners", corners, "a list of positive numbers", 0)
        for corner in corners:
            checks.number("corners", corner, above=0)
        own_corners = tuple(corners) or (1.0,)
        vars(self).update(_function=log_levy_density, _corners=own_corners, _high=float(high))
        super().__init__(dict(parameters or {}), validate_args)
        if self._validate:
            if not high > 0:
                raise ValueError(f"high must be > 0, got {high!r:.80}")
            try:
                at_zero, at_infinity = self._slopes()
            except TypeError as error:
                raise TypeError(
                    "log_levy_density must accept sizes, and the parameters by name, got "
                    f"parameters={parameters!r:.80} and {error}"
                ) from error
            if not bool((at_zero < 1.0).all()):
                raise ValueError(
                    "log_levy_density must grow slower than w ** -2 at zero, where its index is "
                    f"{at_zero.max():g}"
                )
            if not bool((at_infinity > 0.0).all()):
                raise ValueError(
                    "log_levy_density must fall faster than w ** -1 at infinity, where its index "
                    f"is {at_infinity.min():g}"
                )

    def _like(self, **changes: Any) -> Self:
        return self._with(self._function, {**self._parameters(), **changes}, self._high)

    def _with(
        self, function: Callable[..., Tensor], parameters: Mapping[str, Any], high: float
    ) -> Self:
        new = type(self)(
            function, parameters, corners=self._corners, high=high, validate_args=False
        )
        object.__setattr__(new, "_validate", self._validate)
        return new

    @property
    def index_at_zero(self) -> Tensor:
        """Index of regular variation at zero, by the slope at a size of 1e-260."""
        return self._slopes()[0].clamp(min=0.0).to(self.dtype)

    @property
    def index_at_infinity(self) -> Tensor:
        """Index of regular variation at infinity, by the slope at a size of 1e260."""
        return self._slopes()[1].to(self.dtype)

    @property
    def support(self) -> Any:
        """Sizes that weights can have."""
        return numbers_between(0.0, self._high)

    def exponential_tilt(self, tilt: Any) -> "LevyDensityProcess":
        r"""Measure with the Lévy density :math:`e^{-u w} \rho(w)`.

        :param tilt: :math:`u \geq 0`.
        """
        name, inner = f"tilt_{len(self._names)}", self._function

        def function(size: Tensor, **parameters: Tensor) -> Tensor:
            own_tilt = parameters.pop(name)
            return inner(size, **parameters) - own_tilt * size

        added = self._argument("tilt", tilt, ">= 0")
        return self._with(function, {**self._parameters(), name: added}, self._high)

    def rescale(self, scale: Any) -> "LevyDensityProcess":
        """Measure whose weights are multiplied by a number.

        :param scale: a positive number, or a tensor of them if ``high`` is infinite.
        """
        name, inner = f"scale_{len(self._names)}", self._function

        def function(size: Tensor, **parameters: Tensor) -> Tensor:
            own_scale = parameters.pop(name)
            return inner(size / own_scale, **parameters) - own_scale.log()

        factor = self._argument("scale", scale, "> 0")
        high = self._high * float(factor) if self._high < torch.inf else self._high
        return self._with(function, {**self._parameters(), name: factor}, high)

    def total_mass(self) -> TorchDistribution:
        """Approximate distribution of the total mass: a thousand weights plus a gamma variable."""
        return ApproximateTotalMass(self, validate_args=self._validate)

    def _log_corners(self) -> list[Tensor]:
        zero = self._anchor().new_zeros(self.batch_shape)
        corners = [zero + math.log(corner) for corner in self._corners]
        if self._high < torch.inf:
            corners = [corner.clamp(max=math.log(self._high)) for corner in corners]
        for name, value in vars(self._double).items():
            # Tilts and changes of scale move corners.
            if name.startswith("tilt_"):
                corners.append(-value.clamp(min=1e-290).log())
            elif name.startswith("scale_"):
                corners = [corner + value.log() for corner in corners]
        return corners

    def _anchor(self) -> Tensor:
        """A tensor of the type and the device in which this measure computes."""
        values = list(vars(self._double).values())
        return values[0] if values else torch.zeros((), dtype=torch.float64)

    def _inner(self, x: Tensor) -> Tensor:
        return self._function(x.exp(), **vars(self._double)) + x

    def _log_mass(self, x: Tensor) -> Tensor:
        inside = x.clamp(min=_LEAST_LOG, max=_LARGEST_LOG)
        at_zero, at_infinity = self._slopes()
        finite = torch.where(at_infinity < torch.inf, at_infinity, 0.0)
        below, beyond = (inside - x).clamp(min=0.0), (x - inside).clamp(min=0.0)
        value = self._inner(inside) + at_zero * below - finite * beyond
        return torch.where(x.exp() <= self._high, value, -torch.inf)

    def _panels(self, factor: Factor) -> tuple[LogIntegrand, Tensor]:
        if self._high < torch.inf:
            # A little less, so that no rounding leads out of the support.
            end = self._anchor().new_full(self.batch_shape, math.log(self._high) - 1e-15)
            high = end if factor.high is None else torch.minimum(factor.high, end)
            factor = factor._replace(high=high)
        return super()._panels(factor)

    def _slopes(self) -> tuple[Tensor, Tensor]:
        """Indices at both ends, from the density at sizes that differ by a factor of e."""
        points = self._anchor().new_tensor(
            [_LEAST_LOG, _LEAST_LOG + 1.0, _LARGEST_LOG - 1.0, _LARGEST_LOG]
        )
        first, second, third, fourth = (self._inner(x.expand(self.batch_shape)) for x in points)
        is_bounded = (fourth < _LEAST_VALUE) | (self._high < torch.inf)
        fall = torch.where(is_bounded, 0.0, third) - torch.where(is_bounded, 0.0, fourth)
        return first - second, torch.where(is_bounded, torch.inf, fall)
