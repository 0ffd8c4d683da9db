"""Hyperparameters of conjugate clusters as a recorded graph, which is faster than their model."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pyro_ext.distributions import ConjugateCluster
from pyro_ext.inference.partitions._hyperparameters import Hyperparameters
from pyro_ext.inference.partitions._mixture import Floats
from pyro_ext.potential import CaptureError, Layout, agree_but_for_rounding, capture, fold_constants

__all__ = ["RecordedCluster", "around_origin", "record_cluster"]

_NUM_CHECKS = 3
_NUM_TRIES = 20

_graphs: "WeakKeyDictionary[Callable[..., Any], Callable[..., Any]]" = WeakKeyDictionary()


def around_origin(cluster: ConjugateCluster) -> tuple[Tensor, ConjugateCluster]:
    """Prior mean of a cluster in float64, and the cluster relative to it."""
    values = {name: getattr(cluster, name) for name in cluster._event_dims}
    if "loc" not in values:
        center = next(iter(values.values())).new_zeros(cluster.event_shape, dtype=torch.float64)
        return center, cluster
    center = values["loc"].double()
    values["loc"] = torch.zeros_like(values["loc"])
    return center, type(cluster)(**values, validate_args=False)


class RecordedCluster:
    """Maps unconstrained hyperparameters to what compiled loops take.

    :param cluster: the model of the cluster.
    :raises CaptureError: where it cannot be recorded.
    """

    def __init__(self, cluster: Hyperparameters[ConjugateCluster]) -> None:
        self._cluster = cluster
        drawn = cluster.draw()
        self._dtypes = {name: value.dtype for name, value in drawn.items()}
        shapes = {
            name: transform.inv(drawn[name]).shape for name, transform in cluster.transforms.items()
        }
        self._layout = Layout(
            shapes, dict.fromkeys(shapes, torch.float64), next(iter(drawn.values())).device
        )
        examples = self._examples()
        example, _ = cluster.at(self._constrained(examples[0]))
        self._size = example.event_shape[0]
        self._graph = self._checked_graph(examples)

    def __call__(self, place: Floats) -> tuple[float, Floats, Floats]:
        """Log density of the hyperparameters, center of the cluster, and its parameters.

        :param place: unconstrained hyperparameters. **Shape:** ``(size,)``.
        """
        with torch.inference_mode():
            found = self._graph(torch.from_numpy(place).to(self._layout.device)).cpu().numpy()
        return float(found[0]), found[1 : 1 + self._size], found[1 + self._size :]

    def columns(self, names: Iterable[str]) -> list[int]:
        """Places of sites among the unconstrained hyperparameters."""
        return [place for name in names for place in self._layout.columns(name)]

    def place(self, values: Mapping[str, Tensor]) -> Floats:
        """Unconstrained hyperparameters in one vector."""
        transforms = self._cluster.transforms
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
            name: self._cluster.transforms[name](value).to(self._dtypes[name])
            for name, value in self._layout.unflatten(flat).items()
        }

    def _parts(self, flat: Tensor) -> Tensor:
        cluster, log_density = self._cluster.at(self._constrained(flat))
        center, centered = around_origin(cluster)
        return torch.cat([log_density[None], center, centered._compiled_tensor()])

    def _examples(self) -> list[Tensor]:
        """Some draws from the prior at which there is a cluster."""
        places = []
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for _ in range(_NUM_TRIES):
                place = torch.from_numpy(self.place(self._cluster.draw())).to(self._layout.device)
                try:
                    self._parts(place)
                except (ValueError, torch.linalg.LinAlgError):
                    continue
                places.append(place)
                if len(places) == _NUM_CHECKS:
                    break
        if not places:
            raise CaptureError("the prior of the hyperparameters gives no cluster")
        return places

    def _checked_graph(self, examples: list[Tensor]) -> Callable[..., Any]:
        """A graph that agrees with the model, the one recorded before if it still does."""
        model = self._cluster.model
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


def record_cluster(cluster: Hyperparameters[ConjugateCluster]) -> RecordedCluster | None:
    """Record the model of a cluster, where it has sites and can be recorded."""
    if not cluster.names:
        return None
    try:
        return RecordedCluster(cluster)
    except CaptureError:
        return None
