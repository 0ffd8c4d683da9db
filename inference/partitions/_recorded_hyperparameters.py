"""Hyperparameters as a recorded graph, which is faster than their model."""

import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Generic
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from pyro_ext.inference.partitions._hyperparameters import Hyperparameters, Value
from pyro_ext.inference.partitions._slice_sampling import Floats, slice_sample_rows
from pyro_ext.potential import CaptureError, Layout, agree_but_for_rounding, capture, fold_constants

__all__ = ["RecordedHyperparameters", "record"]

_NUM_CHECKS = 3
_NUM_TRIES = 20

_graphs: "WeakKeyDictionary[Callable[..., Any], Callable[..., Any]]" = WeakKeyDictionary()


class RecordedHyperparameters(Generic[Value]):
    """Maps unconstrained hyperparameters to what compiled loops take.

    :param model: hyperparameters, with their model.
    :param parameters: maps what the model returns to a vector.
    :raises CaptureError: where they cannot be recorded.
    """

    def __init__(
        self, model: Hyperparameters[Value], parameters: Callable[[Value], Tensor]
    ) -> None:
        self._hyperparameters, self._parameters = model, parameters
        draws = self._valid_draws()
        self._dtypes = {name: value.dtype for name, value in draws[0].items()}
        shapes = {
            name: transform.inv(draws[0][name]).shape
            for name, transform in model.transforms.items()
        }
        self._layout = Layout(
            shapes, dict.fromkeys(shapes, torch.float64), next(iter(draws[0].values())).device
        )
        self.example = self.place(draws[0])
        self._graph = self._checked_graph(
            [torch.from_numpy(self.place(draw)).to(self._layout.device) for draw in draws]
        )
        self._last: tuple[Floats, float, Floats] | None = None

    def __call__(self, place: Floats) -> tuple[float, Floats]:
        """Log density of the hyperparameters, and parameters of what the model returns.

        :param place: unconstrained hyperparameters. **Shape:** ``(size,)``.
        """
        # A state is asked about several times before it moves on.
        if self._last is None or not np.array_equal(self._last[0], place):
            with torch.inference_mode():
                found = self._graph(torch.from_numpy(place).to(self._layout.device)).cpu().numpy()
            self._last = place.copy(), float(found[0]), found[1:]
        return self._last[1:]

    def move(
        self,
        values: Mapping[str, Tensor],
        held: Collection[str],
        log_density: Callable[[Floats], float],
    ) -> dict[str, Tensor]:
        """Move the hyperparameters but for those held, by slice sampling of unconstrained values.

        :param values: hyperparameters by name, among others.
        :param held: names of those that stay.
        :param log_density: of all that depends on them, by the parameters.
        """
        names = [name for name in self._layout.shapes if name not in held]
        columns = [column for name in names for column in self._layout.columns(name)]
        if not columns:
            return {}

        def along(places: Floats) -> Floats:
            log_sites, parameters = self(places[0])
            total = log_sites + log_density(parameters) if log_sites > -math.inf else -math.inf
            return np.array([-math.inf if math.isnan(total) else total])

        start = self.place(values)[None]
        found = self.values(slice_sample_rows(along, start, np.ones_like(start), columns)[0])
        return {name: found[name].to(values[name]) for name in names}

    def place(self, values: Mapping[str, Tensor]) -> Floats:
        """Unconstrained hyperparameters in one vector."""
        transforms = self._hyperparameters.transforms
        flat = self._layout.flatten(
            {name: transform.inv(values[name].double()) for name, transform in transforms.items()}
        )
        place: Floats = flat.cpu().numpy()
        return place

    def values(self, place: Floats) -> dict[str, Tensor]:
        """Hyperparameters by name, the inverse of :meth:`place`."""
        return self._constrained(torch.from_numpy(place).to(self._layout.device))

    def _constrained(self, flat: Tensor) -> dict[str, Tensor]:
        return {
            name: self._hyperparameters.transforms[name](value).to(self._dtypes[name])
            for name, value in self._layout.unflatten(flat).items()
        }

    def _parts(self, flat: Tensor) -> Tensor:
        returned, log_density = self._hyperparameters.at(self._constrained(flat))
        return torch.cat([log_density[None], self._parameters(returned)])

    def _valid_draws(self) -> list[dict[str, Tensor]]:
        """Some draws from the prior at which the model returns something."""
        draws = []
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for _ in range(_NUM_TRIES):
                try:
                    draw = self._hyperparameters.draw()
                    self._parameters(self._hyperparameters.at(draw)[0])
                except (ValueError, torch.linalg.LinAlgError):
                    continue
                draws.append(draw)
                if len(draws) == _NUM_CHECKS:
                    break
        if not draws:
            raise CaptureError("no draw of the hyperparameters has what the model returns")
        return draws

    def _checked_graph(self, examples: list[Tensor]) -> Callable[..., Any]:
        """A graph that agrees with the model, the one recorded before if it still does."""
        model = self._hyperparameters.model
        known = _graphs.get(model)
        if known is not None and self._agrees(known, examples):
            return known
        graph = capture(self._parts, examples[0])
        fold_constants(graph)
        if not self._agrees(graph, examples):
            raise CaptureError("the graph disagrees with the model")
        try:
            _graphs[model] = graph
        except TypeError:
            pass  # not everything that can be called can be referred to weakly
        return graph

    def _agrees(self, graph: Callable[..., Any], examples: list[Tensor]) -> bool:
        with torch.no_grad():
            for flat in examples:
                found, wanted = graph(flat), self._parts(flat)
                if found.shape != wanted.shape:
                    return False
                if agree_but_for_rounding(partial(graph, flat), found, wanted) is False:
                    return False
        return True


def record(
    model: Hyperparameters[Value], parameters: Callable[[Value], Tensor]
) -> RecordedHyperparameters[Value] | None:
    """Record a model of hyperparameters, where it has sites and can be recorded."""
    if not model.names:
        return None
    try:
        return RecordedHyperparameters(model, parameters)
    except CaptureError:
        return None
