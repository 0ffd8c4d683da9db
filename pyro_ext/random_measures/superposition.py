"""Sums of independent completely random measures."""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_ext.random_measures._arguments import check_measure
from pyro_ext.random_measures._levy_integrals import Factor
from pyro_ext.random_measures._measure import CompletelyRandomMeasure
from pyro_ext.random_measures.total_mass import ApproximateTotalMass, TotalMass

__all__ = ["Superposition"]


class Superposition(CompletelyRandomMeasure):
    r"""Sum of independent completely random measures, whose Lévy densities add.

    ``first + second`` makes one. A draw of a weight first chooses the measure that it belongs to,
    and that choice has no gradient.

    :param measures: two or more, of batch shapes that broadcast.
    :raises ValueError: for fewer than two.

    Example::

        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> first = GeneralizedGammaProcess(1.0, 0.5, 1.0)
        >>> (first + GeneralizedGammaProcess(2.0, 0.0, 3.0)).mean
        tensor(1.6667)
    """

    parts: tuple[CompletelyRandomMeasure, ...]

    def __init__(self, *measures: CompletelyRandomMeasure) -> None:
        if len(measures) < 2:
            raise ValueError(f"a superposition takes two or more measures, got {len(measures)}")
        for number, measure in enumerate(measures):
            check_measure(f"measures[{number}]", measure)
        shape = torch.broadcast_shapes(*(measure.batch_shape for measure in measures))
        put = object.__setattr__
        put(self, "parts", tuple(measure.expand(shape) for measure in measures))
        put(self, "batch_shape", shape)
        dtype = measures[0].dtype
        for measure in measures[1:]:
            dtype = torch.promote_types(dtype, measure.dtype)
        put(self, "dtype", dtype)
        put(self, "_validate", any(measure._validate for measure in measures))
        put(self, "_names", ())

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))

    def _with(self, parts: Sequence[CompletelyRandomMeasure]) -> "Superposition":
        return Superposition(*parts)

    def expand(self, batch_shape: Sequence[int]) -> Self:
        """Repeat the measure over a larger batch shape.

        :param torch.Size batch_shape: the new shape.
        :returns: the measure of that shape.
        """
        return self._with([part.expand(batch_shape) for part in self.parts])  # type: ignore[return-value]

    def exponential_tilt(self, tilt: Any) -> "Superposition":
        r"""Sum of the tilted measures.

        :param tilt: :math:`u \geq 0`.
        """
        return self._with([part.exponential_tilt(tilt) for part in self.parts])

    def rescale(self, scale: Any) -> "Superposition":
        """Sum of the rescaled measures.

        :param scale: positive.
        """
        return self._with([part.rescale(scale) for part in self.parts])

    def total_mass(self) -> TorchDistribution:
        """Law of the total mass, exact where those of all parts are."""
        laws = [part.total_mass() for part in self.parts]
        if any(isinstance(law, ApproximateTotalMass) for law in laws):
            return ApproximateTotalMass(self, validate_args=self._validate)
        return TotalMass(self, validate_args=self._validate)

    @property
    def index_at_zero(self) -> Tensor:
        """Index of regular variation at zero, the largest of the parts."""
        return self._extreme("index_at_zero").amax(0)

    @property
    def index_at_infinity(self) -> Tensor:
        """Index of regular variation at infinity, the least of the parts."""
        return self._extreme("index_at_infinity").amin(0)

    def _extreme(self, index: str) -> Tensor:
        return torch.stack(
            [getattr(part, index).to(self.dtype).expand(self.batch_shape) for part in self.parts]
        )

    def _element(self, index: int) -> Self:
        return self._with([part._element(index) for part in self.parts])  # type: ignore[return-value]

    def _unsqueezed(self) -> Self:
        return self._with([part._unsqueezed() for part in self.parts])  # type: ignore[return-value]

    def _has_infinitely_many(self) -> bool:
        return any(part._has_infinitely_many() for part in self.parts)

    def _log_corners(self) -> list[Tensor]:
        return [corner for part in self.parts for corner in part._log_corners()]

    # Whatever is linear in the Lévy density adds.

    def _log_mass(self, place: Tensor) -> Tensor:
        return self._sum(part._log_density(place) for part in self.parts) + place

    def _log_density(self, log_size: Tensor) -> Tensor:
        return self._sum(part._log_density(log_size) for part in self.parts)

    def _log_exponent(self, log_shift: Tensor) -> Tensor:
        return self._sum(part._log_exponent(log_shift) for part in self.parts)

    def _log_moment(self, order: Tensor, log_tilt: Tensor) -> Tensor:
        return self._sum(part._log_moment(order, log_tilt) for part in self.parts)

    def _log_tail(self, log_size: Tensor) -> Tensor:
        return self._sum(part._log_tail(log_size) for part in self.parts)

    def _log_partial_moment(self, log_size: Tensor, order: float) -> Tensor:
        return self._sum(part._log_partial_moment(log_size, order) for part in self.parts)

    def _integrate(self, factor: Factor) -> Tensor:
        return self._sum(part._integrate(factor) for part in self.parts)

    def _sample_jump(self, order: Tensor, log_tilt: Tensor) -> Tensor:
        order, log_tilt = torch.broadcast_tensors(order, log_tilt)
        shares = torch.stack([part._log_moment(order, log_tilt) for part in self.parts], -1)
        draws = [part._sample_jump(order, log_tilt) for part in self.parts]
        return _choose(shares, draws)

    def _sample_size(self, factor: Factor) -> Tensor:
        shares = torch.stack([part._integrate(factor) for part in self.parts], -1)
        return _choose(shares, [part._sample_size(factor) for part in self.parts])

    def _sample_total_mass(self) -> Tensor:
        total = self._filled(0.0)
        for part in self.parts:
            total = total + part._sample_total_mass()
        return total

    def _sum(self, logs: Iterable[Tensor]) -> Tensor:
        return torch.stack(torch.broadcast_tensors(*logs), -1).logsumexp(-1)


def _choose(log_shares: Tensor, draws: Sequence[Tensor]) -> Tensor:
    """One of several draws for each element, with given probabilities but for a factor."""
    part = dist.Categorical(logits=log_shares.detach()).sample()
    every = torch.stack(torch.broadcast_tensors(*draws), -1)
    return every.gather(-1, part[..., None]).squeeze(-1)
