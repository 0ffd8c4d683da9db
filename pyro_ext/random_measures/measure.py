r"""Completely random measures, with their series and approximations, and their sums."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.random_measures.finite import exponent_error, finite_distribution
from pyro_ext.random_measures.levy_measure import ArrivalFamily, Factor, LevyMeasure, check_measure
from pyro_ext.random_measures.probability_measures import NormalizedRandomMeasure
from pyro_ext.random_measures.series import (
    Series,
    draw_above,
    draw_series,
    series_method,
    shortest_series,
)
from pyro_ext.random_measures.total_mass import ApproximateTotalMass, TotalMass


class CompletelyRandomMeasure(LevyMeasure):
    r"""Completely random measure without fixed atoms, an immutable value.

    It is :math:`G = \sum_j W_j \delta_{\theta_j}`, where the weights :math:`W_j` are the points of
    a Poisson process on the positive numbers with a Lévy density :math:`\rho`, and the atoms
    :math:`\theta_j` are independent draws from any distribution. Sizes, parameters and results are
    tensors. The parameters have a common batch shape, with which arguments broadcast.

    A subclass defines the log Lévy density as a function of log sizes. Quadrature in float64
    provides everything for which the subclass has no closed form.
    """

    def normalize(self) -> NormalizedRandomMeasure[Self]:
        """Return the random probability measure :math:`G / S`."""
        return NormalizedRandomMeasure(self)

    def __add__(self, other: "CompletelyRandomMeasure") -> "Superposition":
        """Sum of two independent measures."""
        return Superposition(self, other)

    # Finite approximations and series.

    def finite(
        self, num_atoms: int, rule: str = "exact", family: ArrivalFamily | None = None
    ) -> TorchDistribution:
        r"""Distribution of the independent weights of a finite approximation [1].

        With ``num_atoms`` :math:`= L` such weights, the measure
        :math:`\sum_{l \leq L} W_l \delta_{\theta_l}` converges in distribution to this one as
        :math:`L` grows. The density of a weight is :math:`\Phi(t_L | w) \rho(w) / L`, where
        :math:`\Phi(t | w)` is the probability that the weight arrives by the time :math:`t`, and
        the level :math:`t_L` is the time by which :math:`L` weights arrive on average.

        :param int num_atoms: :math:`L`.
        :param str rule: ``"exact"`` for this level, or ``"group"`` for
            :math:`t_L = (\sigma L / \eta)^{1/\sigma}`, which ignores the tilt; only measures
            derived from a generalized gamma process have the latter.
        :param family: a family of arrival times. Default: one for which the distribution has a
            closed form, if there is one.
        :returns: a distribution with this batch shape. Pyro's plates repeat it.
        :raises ValueError: for invalid arguments, such as a family with which infinitely many
            weights arrive by any time.

        [1] J. Lee, X. Miscouridou, F. Caron (2019), A unified construction for series
        representations and finite approximations of completely random measures.
        """
        return finite_distribution(self, checks.integer("num_atoms", num_atoms, 1), rule, family)

    def finite_error(
        self, num_atoms: int, value: Any, rule: str = "exact", family: ArrivalFamily | None = None
    ) -> Tensor:
        r"""Error of the Laplace exponent of a finite approximation.

        :param int num_atoms: as in :meth:`finite`.
        :param Tensor value: :math:`t > 0`.
        :param str rule: as in :meth:`finite`.
        :param family: as in :meth:`finite`.
        :returns: :math:`-L \log E\, e^{-t W} - \psi(t)`, by quadrature; negative if the
            approximation has too little mass.
        """
        argument = self._argument("value", value, "> 0")
        count = checks.integer("num_atoms", num_atoms, 1)
        return self._result(exponent_error(self, count, rule, family, argument), value)

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

        Draws have gradients with respect to the parameters unless the class says otherwise. Every
        measure supports ``"size_biased"``, ``"inverse_levy"`` and all families of arrival times;
        some classes list further methods.

        Given the last arrival time of a size-biased series, the weights that it leaves out are
        those of the same measure, tilted further by that time. So the total mass of the rest can be
        drawn too, as in the example.

        :param int num_jumps: the number of weights to draw.
        :param method: the name of a method, or an arrival family.
        :param int seed: seed of the draws. Default: use PyTorch's global generator.
        :param float tolerance: instead of ``num_jumps``; draw weights until, in the whole batch,
            the expected mass of the rest is at most this fraction of the mass drawn.
        :param sample_shape: the shape of independent series.
        :returns: ``(weights, arrivals, lost_mass)``: the weights in the order of their arrival
            times, zero where a method rejects them; the arrival times; and the expected mass of all
            later weights. **Shape:** ``(*sample_shape, *batch_shape, num_jumps)`` for the first
            two, and ``(*sample_shape, *batch_shape)`` for the third.

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
        return draw_series(
            self, num_jumps, method, seed, tolerance, checks.as_size("sample_shape", sample_shape)
        )

    def lost_mass(self, num_jumps: Any, method: str | ArrivalFamily = "size_biased") -> Tensor:
        r"""Expected mass of the weights that a truncated series leaves out, :math:`e(t_L)`.

        :param Tensor num_jumps: :math:`L > 0`. The series ends at the time :math:`t_L` by which
            :math:`L` weights arrive on average.
        :param method: as in :meth:`series`.
        :returns: the mass, or an upper bound for ``"scaled"`` series of a tilted measure.
            **Shape:** that of ``num_jumps``, broadcast with the batch shape.
        """
        target = self._expanded(self._argument("num_jumps", num_jumps, "> 0"))
        return self._result(series_method(self, method).log_later(target, 1.0).exp(), num_jumps)

    def num_jumps(self, tolerance: float, method: str | ArrivalFamily = "size_biased") -> int:
        r"""Length of a series that loses at most a given fraction of the mean total mass.

        :param float tolerance: the fraction, in (0, 1).
        :param method: as in :meth:`series`.
        :returns: the smallest :math:`L` with :math:`e(t_L) \leq` ``tolerance`` :math:`E S` in the
            whole batch.
        :raises ValueError: if the mean total mass is infinite.
        """
        return shortest_series(self, tolerance, method)

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
        proportional to :math:`\rho`. The weights have gradients with respect to the parameters; the
        number of weights has none.

        :param level: :math:`x > 0`.
        :param int seed: seed of the draws. Default: use PyTorch's global generator.
        :param str method: ``"inversion"`` of the tail, or another method that the class lists.
        :param sample_shape: the shape of independent draws.
        :returns: the weights, in decreasing order in each row and padded with zeros, and a mask
            that is false for padding. **Shape:** ``(*sample_shape, *batch_shape, largest number)``
            each.
        """
        threshold = self._expanded(self._argument("level", level, "> 0"))
        return draw_above(
            self, threshold, seed, method, checks.as_size("sample_shape", sample_shape)
        )


def _log_sum(logs: Iterable[Tensor]) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*logs), -1).logsumexp(-1)


def _summed(name: str) -> Callable[..., Tensor]:
    """A method of the sum by those of its parts."""

    def method(self: "Superposition", *args: Any) -> Tensor:
        return _log_sum(getattr(part, f"_log_{name}")(*args) for part in self.parts)

    return method


class Superposition(CompletelyRandomMeasure):
    r"""Sum of independent completely random measures, whose Lévy densities add.

    ``first + second`` creates one. Drawing a weight first chooses the measure that it belongs to;
    this choice has no gradient.

    :param measures: two or more measures whose batch shapes broadcast.
    :raises ValueError: for fewer than two measures.

    Example::

        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> first = GeneralizedGammaProcess(1.0, 0.5, 1.0)
        >>> (first + GeneralizedGammaProcess(2.0, 0.0, 3.0)).mean
        tensor(1.6667)
    """

    parts: tuple[CompletelyRandomMeasure, ...]

    def __init__(self, *measures: CompletelyRandomMeasure) -> None:
        if len(measures) < 2:
            raise ValueError(f"a superposition needs two or more measures, got {len(measures)}")
        for number, measure in enumerate(measures):
            check_measure(f"measures[{number}]", measure)
        shape = torch.broadcast_shapes(*(measure.batch_shape for measure in measures))
        vars(self).update(
            parts=tuple(measure.expand(shape) for measure in measures),
            batch_shape=shape,
            dtype=functools.reduce(torch.promote_types, (measure.dtype for measure in measures)),
            _validate=any(measure._validate for measure in measures),
            _names=(),
        )

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))

    def _each(self, function: Callable[[CompletelyRandomMeasure], CompletelyRandomMeasure]) -> Self:
        return Superposition(*map(function, self.parts))  # type: ignore[return-value]

    def expand(self, batch_shape: Sequence[int]) -> Self:
        """Repeat the measure over a larger batch shape."""
        return self._each(lambda part: part.expand(batch_shape))

    def exponential_tilt(self, tilt: Any) -> Self:
        r"""Sum of the tilted measures.

        :param tilt: :math:`u \geq 0`.
        """
        return self._each(lambda part: part.exponential_tilt(tilt))

    def rescale(self, scale: Any) -> Self:
        """Sum of the rescaled measures.

        :param scale: positive.
        """
        return self._each(lambda part: part.rescale(scale))

    def total_mass(self) -> TorchDistribution:
        """Distribution of the total mass, exact if those of all parts are."""
        distributions = [part.total_mass() for part in self.parts]
        if any(isinstance(distribution, ApproximateTotalMass) for distribution in distributions):
            return ApproximateTotalMass(self, validate_args=self._validate)
        return TotalMass(self, validate_args=self._validate)

    @property
    def index_at_zero(self) -> Tensor:
        """Index of regular variation at zero, the largest of the parts."""
        return self._extreme("index_at_zero").amax(0)

    @property
    def index_at_infinity(self) -> Tensor:
        """Index of regular variation at infinity, the smallest of the parts."""
        return self._extreme("index_at_infinity").amin(0)

    def _extreme(self, index: str) -> Tensor:
        return torch.stack(
            [getattr(part, index).to(self.dtype).expand(self.batch_shape) for part in self.parts]
        )

    def _element(self, index: int) -> Self:
        return self._each(lambda part: part._element(index))

    def _unsqueezed(self) -> Self:
        return self._each(lambda part: part._unsqueezed())

    def _has_infinitely_many(self) -> bool:
        return any(part._has_infinitely_many() for part in self.parts)

    def _log_corners(self) -> list[Tensor]:
        return [corner for part in self.parts for corner in part._log_corners()]

    # Whatever is linear in the Lévy density adds.

    def _log_mass(self, x: Tensor) -> Tensor:
        return self._log_density(x) + x

    _log_density, _log_exponent, _log_moment = map(_summed, ("density", "exponent", "moment"))
    _log_tail, _log_partial_moment = map(_summed, ("tail", "partial_moment"))

    def _integrate(self, factor: Factor) -> Tensor:
        return _log_sum(part._integrate(factor) for part in self.parts)

    def _sample_jump(self, order: Tensor, log_tilt: Tensor) -> Tensor:
        order, log_tilt = torch.broadcast_tensors(order, log_tilt)
        log_weights = torch.stack([part._log_moment(order, log_tilt) for part in self.parts], -1)
        draws = [part._sample_jump(order, log_tilt) for part in self.parts]
        return _choose(log_weights, draws)

    def _sample_size(self, factor: Factor) -> Tensor:
        log_weights = torch.stack([part._integrate(factor) for part in self.parts], -1)
        return _choose(log_weights, [part._sample_size(factor) for part in self.parts])

    def _sample_total_mass(self) -> Tensor:
        total = self._filled(0.0)
        for part in self.parts:
            total = total + part._sample_total_mass()
        return total


def _choose(log_weights: Tensor, draws: Sequence[Tensor]) -> Tensor:
    """One of several draws for each element, with given probabilities but for a factor."""
    part = dist.Categorical(logits=log_weights.detach()).sample()
    every = torch.stack(torch.broadcast_tensors(*draws), -1)
    return every.gather(-1, part[..., None]).squeeze(-1)
