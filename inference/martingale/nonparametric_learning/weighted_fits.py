"""Fits of a loss to weighted data, many draws at a time, near the fit to mean weights."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_ext.inference.martingale.nonparametric_learning.dirichlet_weights import (
    BootstrapWeights,
    EmpiricalBase,
    atoms_of_draws,
    fitting_atoms,
)
from pyro_ext.inference.optimization import (
    Center,
    Minimizer,
    Minimum,
    Objective,
    center_of,
    minibatches_of,
)
from pyro_ext.potential import WeightedLoss
from pyro_ext.random import chain_keys

_SHIFT = 0.1
_NUMBERS_PER_BATCH = 1 << 17  # what one operation works on should stay in the processor's cache


class WeightedFits:
    """Draws of weights and atoms, and the fits to them, as :class:`PosteriorBootstrap` says.

    :param initial: where the fit with equal weights starts, instead of at a drawn point.
    """

    def __init__(
        self,
        loss: WeightedLoss,
        weights: BootstrapWeights,
        optimizer: Minimizer,
        initial: Tensor | None,
        seed: int,
        *,
        num_samples: int,
        num_restarts: int,
        init_strategy: Any,
        batch_size: int | None,
    ) -> None:
        self._rows = loss.rows
        base_measure = weights.base_measure if weights.concentration > 0 else None
        self._base_measure = base_measure
        self._has_own_atoms = not (base_measure is None or isinstance(base_measure, EmpiricalBase))
        self._seed = seed
        num_atoms = 0
        if base_measure is not None:
            if not loss.rows:
                raise ValueError(
                    "base_measure needs a model whose data are arguments with a row for each "
                    "observation, but it has none"
                )
            num_atoms = weights.truncation if self._has_own_atoms else len(base_measure)
            if self._has_own_atoms:
                drawn = atoms_of_draws(base_measure, num_atoms, loss.rows, range(1), seed)
                atoms = [part[0] for part in drawn]
            else:
                atoms = fitting_atoms(base_measure.atoms, num_atoms, loss.rows)
            pairs = zip(loss.rows, atoms, strict=True)
            loss = loss.with_rows([torch.cat([one, other]) for one, other in pairs])
        self.loss = loss
        self._weights = weights.of(loss.num_points - num_atoms, num_atoms)
        self._num_atoms = num_atoms
        self._optimizer = optimizer
        self._num_restarts = num_restarts
        self._init_strategy = init_strategy
        self._initial = initial
        numbers = loss.num_points
        if self._has_own_atoms:
            numbers *= 1 + sum(row[0].numel() for row in loss.rows)
        fitting = max(1, _NUMBERS_PER_BATCH // (numbers * max(1, num_restarts)))
        self.batch_size = fitting if batch_size is None else batch_size
        self._capacity = min(self.batch_size, num_samples) * max(1, num_restarts)

    def fit(self, members: range) -> dict[str, Tensor]:
        """Fields of :class:`~pyro_ext.inference.optimization.Minimum` for some draws."""
        if self.center is None:
            objective = self._objective(members, self._num_restarts)
            numbers = range(members.start * self._num_restarts, members.stop * self._num_restarts)
            starts = self.loss.start(numbers, self._seed, self._init_strategy)
            return _lowest(self._optimizer.minimize(objective, starts), self._num_restarts)
        objective = self._objective(members, 1)
        return self.center.search(self._optimizer, objective, len(members))._asdict()

    def example(self) -> list[Tensor]:
        """Return the loss of the first draw at two points, which identifies a set of fits."""
        start = self._first_start()[None]
        objective = self._objective(range(1), 1)
        numbers = torch.zeros(1, dtype=torch.int64, device=start.device)
        return [objective(start + shift, numbers)[0] for shift in (0.0, _SHIFT)]

    @cached_property
    def center(self) -> Center | None:
        """The fit to the data with the mean weights, and the curvature there.

        It is ``None`` with restarts, which do not start from it.
        """
        if self._num_restarts:
            return None
        loss = self.loss
        weights = self._weights.mean.to(loss.layout.device, loss.layout.dtype)[None]
        objective = self._weighted(range(1), weights, self._rows_of(range(1)))
        return center_of(self._optimizer, objective, self._first_start())

    def _first_start(self) -> Tensor:
        if self._initial is not None and not self._num_restarts:
            return self._initial
        return self.loss.start(range(1), self._seed, self._init_strategy)[0]

    def _objective(self, members: range, num_starts: int) -> Objective:
        """The weighted loss of some draws, each of them as often as it has starts."""
        loss = self.loss
        weights = self._weights.draw(members, self._seed).to(loss.layout.device, loss.layout.dtype)
        rows = self._rows_of(members)
        if num_starts > 1:
            weights = weights.repeat_interleave(num_starts, 0)
            rows = [part.repeat_interleave(num_starts, 0) for part in rows]
        return self._weighted(members, weights, rows)

    def _weighted(self, members: range, weights: Tensor, rows: list[Tensor]) -> Objective:
        """The loss with given weights and rows, on minibatches where it subsamples."""
        loss = self.loss
        minibatches = None
        if loss.subsample_size is not None:
            keys = chain_keys(self._seed, members, loss.layout.device)
            minibatches = minibatches_of(keys, loss.subsample_size, loss.num_points)

        def objective(flat: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
            index = None if minibatches is None else minibatches(numbers)
            own = [part[numbers] for part in rows]
            return loss(flat, weights[numbers], index, own, self._capacity)

        return objective

    def _rows_of(self, members: range) -> list[Tensor]:
        """Observations and atoms of some draws, none where all draws share them."""
        if not self._has_own_atoms:
            return []
        atoms = atoms_of_draws(self._base_measure, self._num_atoms, self._rows, members, self._seed)
        return [
            torch.cat([one.expand(len(members), *one.shape), other], 1)
            for one, other in zip(self._rows, atoms, strict=True)
        ]


def _lowest(found: Minimum, num_restarts: int) -> dict[str, Tensor]:
    """The best of the starts of each draw."""
    by_draw = found.value.reshape(-1, num_restarts)
    numbers = torch.arange(len(by_draw), device=by_draw.device)
    chosen = numbers * num_restarts + by_draw.argmin(1)
    return {name: part[chosen] for name, part in found._asdict().items()}
