"""Losses over weighted observations, for many draws: of a Pyro model, and of a plain function."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.potential.arguments import not_finite
from pyro_ext.potential.batched import Backend, BatchedFunction, RandomPoints, check_backend
from pyro_ext.potential.evaluation import (
    Evaluation,
    Record,
    factorization_errors,
    from_unconstrained,
)
from pyro_ext.potential.graph_capture import Fallback, Gradient
from pyro_ext.potential.layout import Layout
from pyro_ext.potential.potential import Potential
from pyro_ext.potential.rows import RowArguments, WeightedModel, plate_of
from pyro_ext.potential.runner import InitStrategy, init_to_suggested
from pyro_ext.potential.structure import Site
from pyro_ext.random import spawn_seed

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
        self._start, self._points = start, RandomPoints(start)
        self._backend: Backend = backend
        fallback = Fallback()
        fixed = [*data, *rows]
        self._shared = BatchedFunction(
            Gradient(self._with_own_rows), self._example, backend, fixed, fallback
        )
        self._varying = BatchedFunction(
            Gradient(self._value), lambda: [*self._example(), *self.rows], backend, data, fallback
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
        """Return the starting points of the searches for the minimum.

        :param Sequence draws: numbers of the draws, on which alone each start depends.
        :param int seed: of all.
        :param strategy: draws a start.
        :returns: unconstrained. **Shape:** ``(len(draws), size)``.
        """

    @abstractmethod
    def constrain(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameters by name. **Shape:** ``(num_draws, size)`` to ``(num_draws, *event)``."""

    @abstractmethod
    def _value(self, flat: Tensor, weights: Tensor, *rest: Tensor) -> Tensor:
        """Loss of one draw; ``rest`` are its minibatch, where there is one, and its rows."""

    def _with_own_rows(self, flat: Tensor, weights: Tensor, *indices: Tensor) -> Tensor:
        return self._value(flat, weights, *indices, *self.rows)

    def _example(self) -> list[Tensor]:
        flat, generator = self._points(), self._points.generator
        weights = torch.rand(self.num_points, generator=generator, device="cpu").to(flat)
        if self.subsample_size is None:
            return [flat, weights / self.num_points]
        order = torch.randperm(self.num_points, generator=generator, device="cpu")
        return [flat, weights / self.num_points, order[: self.subsample_size].to(flat.device)]


class WeightedPotential(WeightedLoss):
    r"""The negative log likelihood of a Pyro model with a weight for each observation.

    .. math:: L_w(\theta) = - \sum_i w_i \log p(y_i \mid \theta)

    The observations are the elements of a plate, and what stands in it counts by their weights:
    observed sites, and each ``pyro.factor``. A factor outside of the plate is a part of the prior.
    Parameters are unconstrained, and no log-Jacobian is added: a minimum is one in the model's own
    parameters. Where the plate subsamples, the loss of a minibatch is scaled as the model scales
    it.

    :param model: a Pyro model with its latent sites outside of the plate, and its observed sites in
        it.
    :param tuple args: its arguments.
    :param dict kwargs: its keyword arguments.
    :param str plate: name of the plate of the observations; it may be left out where the observed
        sites (or where there are none, the factors) have one plate in common.
    :param float prior_weight: weight of the negative log prior, which is left out of the loss
        without one.
    :param regularizer: a function of the values of the latent sites that is added to the loss.
    :param str backend: as of :class:`Potential`.
    :param init_strategy: likewise.
    :raises ValueError: where there is no such plate, an observed site stands outside of it or a
        latent one in it, or another plate subsamples.

    Example::

        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> loss = WeightedPotential(model, (torch.tensor([0.0, 4.0]),))
        >>> loss(torch.tensor([[1.0]]), torch.tensor([[0.75, 0.25]]))[1]
        tensor([[0.]])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        plate: str | None = None,
        prior_weight: float = 0.0,
        regularizer: Regularizer | None = None,
        backend: Backend = "trace",
        init_strategy: InitStrategy = init_to_suggested,
    ) -> None:
        checks.number("prior_weight", prior_weight, least=0)
        args = tuple(checks.sequence("args", args, "the arguments of the model", 0))
        if kwargs is not None:
            checks.mapping("kwargs", kwargs, "a dict of arguments of the model")
        self.potential = Potential(
            model, *args, backend=backend, init_strategy=init_strategy, **(kwargs or {})
        )
        self.plate = plate_of(self.potential.structure, plate)
        observed = self.potential.observed_sites
        if outside := [name for name, site in observed.items() if self.plate not in site.plates]:
            raise ValueError(
                f"observed sites must stand in the plate {self.plate.name!r}, whose elements have "
                f"the weights; {outside} do not"
            )
        factors = self.potential.factors
        in_plate = [name for name, site in factors.items() if self.plate in site.plates]
        self._data = [*observed, *in_plate]
        self._prior = [*self.potential.sites, *(name for name in factors if name not in in_plate)]
        self.prior_weight = prior_weight
        self.regularizer = checks.optional(checks.function, "regularizer", regularizer)
        size = self.plate.size
        arguments = RowArguments(model, self.potential.args, self.potential.kwargs, size)
        self._weighted = WeightedModel(model, arguments, self.plate.name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            values = self.potential.init(init_strategy=init_strategy)
            start = self.potential.layout.flatten(values)[0]
        super().__init__(
            self.potential.layout,
            start,
            size,
            self.plate.subsample_size if self.plate.is_subsampled else None,
            arguments.rows,
            backend,
            arguments.tensors,
        )

    @property
    def sites(self) -> Mapping[str, Site]:
        """The latent sites of the model."""
        return self.potential.sites

    def with_rows(self, rows: Sequence[Tensor]) -> Self:
        """The same loss over other observations.

        :param Sequence rows: instead of the arguments that have as many rows as the plate has
            elements, in their order. **Shape:** ``(num_points, *event)`` each.
        """
        args, kwargs = self._weighted.arguments.fill(rows)
        new = type(self)(
            self.potential.model,
            args,
            kwargs,
            plate=self.plate.name,
            prior_weight=self.prior_weight,
            regularizer=self.regularizer,
            backend=self._backend,
        )
        if rows and new.num_points != len(rows[0]):
            raise ValueError(
                f"model must take the size of the plate {self.plate.name!r} from its arguments: "
                f"with {len(rows[0])} rows the plate has {new.num_points} elements"
            )
        return new

    def start(
        self, draws: Sequence[int], seed: int, strategy: InitStrategy | None = None
    ) -> Tensor:
        """Draw starting points by a strategy of Pyro, or as :meth:`Potential.init` does."""
        values = self.potential.init_chains(draws, seed, strategy or init_to_suggested)
        return self.layout.flatten(values)

    def constrain(self, flat: Tensor) -> dict[str, Tensor]:
        """Values of the latent sites from unconstrained ones."""
        return self.potential.constrain(self.layout.unflatten(flat))

    def _value(self, flat: Tensor, weights: Tensor, *rest: Tensor) -> Tensor:
        rows = list(rest)
        indices = dict(self.potential.whole_indices)
        if self.subsample_size is not None:
            indices[self.plate.name] = rows.pop(0)
        choice = from_unconstrained(self.layout.unflatten(flat), indices)
        try:
            return self._loss(Evaluation(choice, indices).run(self._weighted, (weights, *rows), {}))
        except factorization_errors():
            return torch.nan * flat.sum()

    def _loss(self, records: Mapping[str, Record]) -> Tensor:
        loss = torch.stack([-records[name].scaled_log_prob().sum() for name in self._data])
        loss = loss.sum()
        if self.prior_weight:
            prior = torch.stack([records[name].scaled_log_prob().sum() for name in self._prior])
            loss = loss - self.prior_weight * prior.sum()
        if self.regularizer is not None:
            loss = loss + self.regularizer({name: records[name].value for name in self.sites})
        return loss


class WeightedFunction(WeightedLoss):
    r"""A weighted sum of the losses of observations, :math:`\sum_i w_i \, l(z_i, \theta)`.

    :param loss_fn: maps parameters by name and the data to a loss for each observation, ``(n,)``.
    :param tuple args: the data, tensors with a row for each observation.
    :param Mapping params: parameters with a finite loss. **Shape:** ``(*event)`` each.
    :param int subsample_size: number of observations in a minibatch; all without it.
    :param regularizer: a function of the parameters that is added to the loss.
    :param str backend: as of :class:`Potential`.

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
        checks.function("loss_fn", loss_fn)
        params = checks.tensors("params", params, finite=True)
        checks.optional(checks.integer, "subsample_size", subsample_size, 1)
        rows = checks.sequence("args", args, "tensors with a row for each observation")
        args = tuple(
            checks.as_tensor(f"args[{i}]", part, "(n, ...)") for i, part in enumerate(rows)
        )
        num_points = len(args[0])
        if any(len(part) != num_points for part in args):
            raise ValueError(
                "args must be tensors with as many rows each, one for each observation, got "
                f"{[tuple(part.shape) for part in args]!r:.80}"
            )
        self.loss_fn = loss_fn
        self.regularizer = checks.optional(checks.function, "regularizer", regularizer)
        layout = Layout.of(params)
        start = layout.flatten({name: value.detach() for name, value in params.items()})
        losses = loss_fn(layout.unflatten(start), *args)
        if not isinstance(losses, Tensor) or losses.shape != (num_points,):
            got = tuple(losses.shape) if isinstance(losses, Tensor) else losses
            raise ValueError(
                f"loss_fn must return the shape ({num_points},), a loss for each observation, got "
                f"{got!r:.80}"
            )
        try:
            checks.all_finite("loss_fn", losses.detach())
        except ValueError as error:
            found = [not_finite(f"args[{i}]", part) for i, part in enumerate(args)]
            raise ValueError("; ".join([*filter(None, found), f"{error} at params"])) from None
        is_whole = subsample_size is None or subsample_size >= num_points
        size = None if is_whole else subsample_size
        super().__init__(layout, start, num_points, size, args, backend, [])
        self._subsample_size = subsample_size

    def with_rows(self, rows: Sequence[Tensor]) -> Self:
        """The same loss over other observations."""
        return type(self)(
            self.loss_fn,
            tuple(rows),
            self.layout.unflatten(self._start),
            subsample_size=self._subsample_size,
            regularizer=self.regularizer,
            backend=self._backend,
        )

    def start(self, draws: Sequence[int], seed: int, strategy: Any = None) -> Tensor:
        """Return the given parameters as starting points, or draw them by a strategy.

        The strategy is a function without arguments that uses PyTorch's generator.
        """
        if strategy is None:
            return self._start.expand(len(draws), -1)
        rows = []
        with torch.random.fork_rng():
            for number in draws:
                torch.manual_seed(spawn_seed(seed, number, 1))
                drawn = {name: value.detach()[None] for name, value in strategy().items()}
                self.layout.check(drawn, "init_strategy()")
                rows.append(self.layout.flatten(drawn)[0])
        return torch.stack(rows)

    def constrain(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameters by name from flat ones."""
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
