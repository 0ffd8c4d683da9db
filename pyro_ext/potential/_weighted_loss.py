"""What losses over weighted observations have in common, whatever they are losses of."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from pyro_ext.potential._batched import Backend, BatchedFunction, RandomPoints
from pyro_ext.potential._capture import Fallback, Gradient
from pyro_ext.potential._layout import Layout

__all__ = ["Regularizer", "WeightedLoss"]

Regularizer = Callable[[dict[str, Tensor]], Tensor]

_SMALL = 5


class WeightedLoss(ABC):
    """A loss that is a weighted sum over observations, as a function of a flat vector.

    :param Layout layout: names and shapes of the parameters in the flat vector.
    :param Tensor start: a flat vector with a finite loss.
    :param int num_points: number of observations.
    :param int subsample_size: number of them in a minibatch, ``None`` for all.
    :param Sequence rows: tensors whose rows are the observations.
    :param str backend: as of :class:`Potential`.
    :param Sequence data: other tensors that the loss uses.
    """

    def __init__(
        self,
        layout: Layout,
        start: Tensor,
        num_points: int,
        subsample_size: int | None,
        rows: Sequence[Tensor],
        backend: Backend,
        data: Sequence[Tensor],
    ) -> None:
        self.layout = layout
        self.num_points = num_points
        self.subsample_size = subsample_size
        self.rows = tuple(rows)
        self._points = RandomPoints(start)
        fallback = Fallback()
        fixed = [*data, *rows]
        self._shared = BatchedFunction(
            Gradient(self._with_own_rows), self._example, backend, fixed, fallback
        )
        self._varying = BatchedFunction(
            Gradient(self._value),
            lambda: [*self._example(), *self.rows],
            backend,
            data,
            fallback,
        )

    def __call__(
        self,
        flat: Tensor,
        weights: Tensor,
        index: Tensor | None = None,
        rows: Sequence[Tensor] = (),
        capacity: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss of each draw, and its gradient.

        :param Tensor flat: parameters, unconstrained. **Shape:** ``(num_draws, size)``.
        :param Tensor weights: of the observations. **Shape:** ``(num_draws, num_points)``.
        :param Tensor index: the minibatch of each draw, where the loss subsamples.
            **Shape:** ``(num_draws, subsample_size)``.
        :param Sequence rows: observations of each draw instead of those that all share.
            **Shape:** ``(num_draws, num_points, *event)`` each.
        :param int capacity: a number of draws to record a graph for, which is several times faster;
            fewer are filled up to it, or to a fifth of it. The graphs are kept.
        :returns: **Shape:** ``(num_draws,)`` and ``(num_draws, size)``.
        """
        arguments = [flat, weights, *([] if index is None else [index]), *rows]
        function = self._varying if rows else self._shared
        number = len(flat)
        if capacity is None or number > capacity:
            value, gradient = function.over_any(*arguments)
            return value, gradient
        # A second graph serves what is left when most of the draws are done.
        small = -(-capacity // _SMALL)
        missing = (small if number <= small else capacity) - number
        if missing:
            arguments = [
                torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) for part in arguments
            ]
        value, gradient = function(*arguments)
        return value[:number], gradient[:number]

    def value(self, flat: Tensor, weights: Tensor, *rows: Tensor) -> Tensor:
        """Loss of one draw: a pure function of all observations that runs the model.

        It can be differentiated and vectorized with :mod:`torch.func`.

        :param Tensor flat: parameters, unconstrained. **Shape:** ``(size,)``.
        :param Tensor weights: of the observations. **Shape:** ``(num_points,)``.
        :param rows: the observations. **Shape:** ``(num_points, *event)`` each.
        :returns: a scalar.
        :raises ValueError: where the loss subsamples.
        """
        if self.subsample_size is not None:
            raise ValueError(
                f"the loss takes minibatches of {self.subsample_size} of {self.num_points} "
                "observations; call it with an index"
            )
        return self._value(flat, weights, *rows)

    @abstractmethod
    def with_rows(self, rows: Sequence[Tensor]) -> Self:
        """The same loss over other observations. **Shape:** ``(num_points, *event)`` each."""

    @abstractmethod
    def start(self, draws: Sequence[int], seed: int, strategy: Any = None) -> Tensor:
        """Where the search for the minimum starts, unconstrained. **Shape:** ``(draws, size)``."""

    @abstractmethod
    def constrain(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameters by name from flat ones. **Shape:** ``(num_draws, *event)`` each."""

    @abstractmethod
    def _value(self, flat: Tensor, weights: Tensor, *rest: Tensor) -> Tensor:
        """Loss of one draw; ``rest`` are its minibatch, where there is one, and its rows."""

    def _with_own_rows(self, flat: Tensor, weights: Tensor, *indices: Tensor) -> Tensor:
        return self._value(flat, weights, *indices, *self.rows)

    def _example(self) -> list[Tensor]:
        flat = self._points()
        weights = torch.rand(self.num_points, generator=self._points.generator).to(flat)
        if self.subsample_size is None:
            return [flat, weights / self.num_points]
        order = torch.randperm(self.num_points, generator=self._points.generator)
        return [flat, weights / self.num_points, order[: self.subsample_size].to(flat.device)]
