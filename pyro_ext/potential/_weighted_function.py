"""Weighted sums of a function's losses, for many draws."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pyro_ext._checks import (
    as_tensor,
    check_callable,
    check_finite,
    check_integer,
    check_sequence,
    check_tensors,
)
from pyro_ext.potential._arguments import not_finite
from pyro_ext.potential._batched import Backend, check_backend
from pyro_ext.potential._layout import Layout
from pyro_ext.potential._weighted_loss import Regularizer, WeightedLoss

__all__ = ["WeightedFunction"]


class WeightedFunction(WeightedLoss):
    r"""A weighted sum of the losses of observations, :math:`\sum_i w_i \, l(z_i, \theta)`.

    :param loss_fn: maps parameters by name and the data to a loss for each observation, ``(n,)``.
    :param tuple args: the data, tensors with a row for each observation.
    :param Mapping params: parameters with a finite loss. **Shape:** ``(*event)`` each.
    :param int subsample_size: number of observations in a minibatch; all without it.
    :param regularizer: a function of the parameters that is added to the loss.
    :param str backend: as of :class:`Potential`.
    :raises ValueError: for data of different lengths, or a function that returns another shape.

    Example::

        >>> loss = WeightedFunction(
        ...     lambda params, y: (y - params["mean"]).square(), (torch.tensor([0.0, 4.0]),),
        ...     {"mean": torch.tensor(0.0)})
        >>> loss(torch.tensor([[1.0]]), torch.tensor([[0.75, 0.25]]))
        (tensor([3.]), tensor([[0.]]))
    """

    def __init__(
        self,
        loss_fn: Callable[..., Tensor],
        args: tuple[Tensor, ...],
        params: Mapping[str, Tensor],
        *,
        subsample_size: int | None = None,
        regularizer: Regularizer | None = None,
        backend: Backend = "trace",
    ) -> None:
        check_backend(backend)
        check_callable("loss_fn", loss_fn)
        if regularizer is not None:
            check_callable("regularizer", regularizer)
        params = check_tensors("params", params, finite=True)
        if subsample_size is not None:
            check_integer("subsample_size", subsample_size, 1)
        rows = check_sequence("args", args, "tensors with a row for each observation")
        args = tuple(as_tensor(f"args[{i}]", part, "(n, ...)") for i, part in enumerate(rows))
        lengths = {len(rows) for rows in args if isinstance(rows, Tensor) and rows.dim() > 0}
        if len(lengths) != 1 or not all(isinstance(rows, Tensor) for rows in args):
            shapes = [tuple(rows.shape) if isinstance(rows, Tensor) else rows for rows in args]
            raise ValueError(
                "args must be tensors with as many rows each, one for each observation, got "
                f"{shapes!r:.80}"
            )
        (num_points,) = lengths
        self.loss_fn = loss_fn
        self.regularizer = regularizer
        first = next(iter(params.values()))
        layout = Layout(
            {name: value.shape for name, value in params.items()},
            {name: value.dtype for name, value in params.items()},
            first.device,
        )
        start = layout.flatten({name: value.detach() for name, value in params.items()})
        losses = loss_fn(layout.unflatten(start), *args)
        if not isinstance(losses, Tensor) or losses.shape != (num_points,):
            got = tuple(losses.shape) if isinstance(losses, Tensor) else losses
            raise ValueError(
                f"loss_fn must return the shape ({num_points},), a loss for each observation, got "
                f"{got!r:.80}"
            )
        try:
            check_finite("loss_fn", losses.detach())
        except ValueError as error:
            found = [not_finite(f"args[{i}]", part) for i, part in enumerate(args)]
            raise ValueError("; ".join([*filter(None, found), f"{error} at params"])) from None
        is_whole = subsample_size is None or subsample_size >= num_points
        size = None if is_whole else subsample_size
        super().__init__(layout, start, num_points, size, args, backend, [])
        self._start = start
        self._subsample_size = subsample_size
        self._backend = backend

    def with_rows(self, rows: Sequence[Tensor]) -> Self:
        """The same loss over other observations. **Shape:** ``(num_points, *event)`` each.

        :param Sequence rows: instead of the data.
        """
        return type(self)(
            self.loss_fn,
            tuple(rows),
            self.layout.unflatten(self._start),
            subsample_size=self._subsample_size,
            regularizer=self.regularizer,
            backend=self._backend,
        )

    def start(self, draws: Sequence[int], seed: int, strategy: Any = None) -> Tensor:
        """Where the searches for the minimum start. **Shape:** ``(len(draws), size)``.

        :param Sequence draws: numbers of the draws, on which alone each start depends.
        :param int seed: of all.
        :param strategy: a function without arguments that draws parameters by PyTorch's generator;
            without one all start at those given.
        :raises ValueError: for parameters of other names or shapes.
        """
        if strategy is None:
            return self._start.expand(len(draws), -1)
        rows = []
        with torch.random.fork_rng():
            for number in draws:
                words = np.random.SeedSequence(seed, spawn_key=(number, 1)).generate_state(1)
                torch.manual_seed(int(words[0]))
                drawn = {name: value.detach()[None] for name, value in strategy().items()}
                self.layout.check(drawn, "init_strategy()")
                rows.append(self.layout.flatten(drawn)[0])
        return torch.stack(rows)

    def constrain(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameters by name. **Shape:** ``(num_draws, size)`` to ``(num_draws, *event)``.

        :param Tensor flat: flat parameters.
        """
        return self.layout.unflatten(flat)

    def _value(self, flat: Tensor, weights: Tensor, *rest: Tensor) -> Tensor:
        params = self.layout.unflatten(flat)
        if self.subsample_size is None:
            loss = (weights * self.loss_fn(params, *rest)).sum()
        else:
            index, *rows = rest
            losses = self.loss_fn(params, *(part.index_select(0, index) for part in rows))
            scale = self.num_points / self.subsample_size
            loss = scale * (weights.index_select(0, index) * losses).sum()
        return loss if self.regularizer is None else loss + self.regularizer(params)
