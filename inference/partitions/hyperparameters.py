"""Hyperparameters: what a Pyro model of them returns and how dense they are.

A model that can be recorded runs as a graph, and a prior of partitions in closed form as a compiled
loop, both of which are faster than the model.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to
from torch.fx import GraphModule

from pyro_ext.inference.partitions._slice_sampling import (
    Floats,
    slice_sample_log,
    slice_sample_rows,
)
from pyro_ext.posterior.fixed_points import Noise
from pyro_ext.potential import (
    CaptureError,
    Layout,
    agree_but_for_rounding,
    capture,
    compile_graph,
    fold_constants,
)
from pyro_ext.random_measures import GeneralizedGammaProcess, NormalizedRandomMeasure, PitmanYor
from pyro_ext.random_measures.cluster_counts import ClusterSizes

Value = TypeVar("Value")
_NUM_CHECKS = 3
_NUM_TRIES = 20
_graphs: "WeakKeyDictionary[Callable[..., Any], Callable[..., Any]]" = WeakKeyDictionary()
Process = NormalizedRandomMeasure | PitmanYor


class Hyperparameters(Generic[Value]):
    """A value, or a Pyro model of no arguments that returns one."""

    def __init__(self, source: Value | Callable[[], Value], name: str) -> None:
        self._value: Any = None
        self._model: Callable[[], Value] | None = None
        self.transforms: dict[str, Transform] = {}
        # A distribution can be called too, for a draw.
        if not callable(source) or isinstance(source, Distribution):
            self._value = source
            return
        self._model = source
        for site, entry in self._trace().nodes.items():
            if entry["type"] != "sample" or entry["infer"].get("_deterministic"):
                continue
            if entry["is_observed"] or entry["fn"].has_enumerate_support:
                kind = "observed" if entry["is_observed"] else "discrete"
                raise ValueError(
                    f"{name} has the {kind} site {site!r}; its sites must be continuous latent ones"
                )
            self.transforms[site] = biject_to(entry["fn"].support)

    @property
    def names(self) -> list[str]:
        """Names of the sites."""
        return list(self.transforms)

    @property
    def model(self) -> Callable[[], Value]:
        """The model."""
        if self._model is None:
            raise TypeError(f"{self._value!r:.80} is no model")
        return self._model

    def draw(self) -> dict[str, Tensor]:
        """Values of the sites from their prior."""
        nodes = self._trace().nodes if self._model is not None else {}
        return {name: nodes[name]["value"].detach() for name in self.names}

    def fixed(self, noise: Noise) -> dict[str, Tensor]:
        """Values of the sites that do not depend on their prior."""
        values = {}
        for name, value in self.draw().items():
            transform = self.transforms[name]
            values[name] = transform(noise(name, transform.inverse_shape(value.shape)).to(value))
        return values

    def at(self, values: Mapping[str, Tensor]) -> tuple[Value, Tensor]:
        """Return the model's return value at values of its sites, and their log density."""
        total = torch.zeros((), dtype=torch.float64)
        if self._model is None:
            return self._value, total
        sites = _Sites({name: values[name] for name in self.names})
        with torch.no_grad(), sites:
            returned = self._model()
            for name, transform in self.transforms.items():
                value = values[name]
                total = total + sites.distributions[name].log_prob(value).sum()
                unconstrained = transform.inv(value)
                total = total + transform.log_abs_det_jacobian(unconstrained, value).sum()
        return returned, total

    def _trace(self) -> Any:
        with torch.no_grad():
            return poutine.trace(self.model).get_trace()


class _Sites(Messenger):
    """Gives sites their values, and keeps their distributions, which is less work than a trace."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values
        self.distributions: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._values:
            msg["value"] = self._values[msg["name"]]
            self.distributions[msg["name"]] = msg["fn"]
        msg["stop"] = True


class RecordedHyperparameters(Generic[Value]):
    """Maps unconstrained hyperparameters to what compiled loops take."""

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
        self.example = self.vector(draws[0])
        self._examples = [
            torch.from_numpy(self.vector(draw)).to(self._layout.device) for draw in draws
        ]
        self._graph: Callable[..., Any] = self._checked_graph(self._examples)
        self._last: tuple[Floats, float, Floats] | None = None

    def __call__(self, vector: Floats) -> tuple[float, Floats]:
        """Log density of the hyperparameters, and parameters of what the model returns."""
        # A state is asked about several times before it moves on.
        if self._last is None or not np.array_equal(self._last[0], vector):
            with torch.inference_mode():
                found = self._graph(torch.from_numpy(vector).to(self._layout.device)).cpu().numpy()
            self._last = vector.copy(), float(found[0]), found[1:]
        return self._last[1:]

    def compile(self) -> None:
        """Run as machine code from here on, where it can be made and agrees."""
        if not isinstance(self._graph, GraphModule):
            return
        with contextlib.suppress(Exception):  # the graph does as well, and without a compiler
            compiled = compile_graph(self._graph, self._examples[0])
            if self._agrees(compiled, self._examples):
                self._graph = compiled

    def move(
        self,
        values: Mapping[str, Tensor],
        held: Collection[str],
        log_density: Callable[[Floats], float],
    ) -> dict[str, Tensor]:
        """Move the hyperparameters but for those held, by slice sampling."""
        names = [name for name in self._layout.shapes if name not in held]
        columns = [column for name in names for column in self._layout.columns(name)]
        if not columns:
            return {}

        def along(vectors: Floats) -> Floats:
            log_sites, parameters = self(vectors[0])
            total = log_sites + log_density(parameters) if log_sites > -math.inf else -math.inf
            return np.array([-math.inf if math.isnan(total) else total])

        start = self.vector(values)[None]
        found = self.values(slice_sample_rows(along, start, np.ones_like(start), columns)[0])
        return {name: found[name].to(values[name]) for name in names}

    def vector(self, values: Mapping[str, Tensor]) -> Floats:
        """Unconstrained hyperparameters in one vector."""
        transforms = self._hyperparameters.transforms
        flat = self._layout.flatten(
            {name: transform.inv(values[name].double()) for name, transform in transforms.items()}
        )
        vector: Floats = flat.cpu().numpy()
        return vector

    def values(self, vector: Floats) -> dict[str, Tensor]:
        """Hyperparameters by name, the inverse of :meth:`vector`."""
        return self._constrained(torch.from_numpy(vector).to(self._layout.device))

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


class ClosedPrior:
    """Distribution of a partition with hyperparameters, for compiled loops."""

    def __init__(
        self, source: RecordedHyperparameters[Process] | Floats, has_auxiliary: bool
    ) -> None:
        self._source = source
        self.has_auxiliary = has_auxiliary

    def log_density(self, values: Mapping[str, Tensor], counts: ClusterSizes) -> float:
        """Log density of the sites, unconstrained, of the partition and the auxiliary variable."""
        log_sites, process = self._at(values)
        return log_sites + _log_joint(counts, _log_u(values), process)

    def weights(self, values: Mapping[str, Tensor], number: int) -> tuple[Floats, Floats]:
        """Log factors of a partition's probability by sizes of clusters, and by their number."""
        from pyro_ext.inference.partitions._prior_loops import log_factors

        factors: tuple[Floats, Floats] = log_factors(self._at(values)[1], number, _log_u(values))
        return factors

    def move(
        self, state: Mapping[str, Tensor], counts: ClusterSizes, held: Collection[str]
    ) -> dict[str, Tensor]:
        """Move the auxiliary variable, and the sites but for those held."""
        moved = {}
        if self.has_auxiliary:
            _, process = self._at(state)
            moved["u"] = slice_sample_log(partial(_log_joint, counts, process=process), state["u"])
        if isinstance(self._source, RecordedHyperparameters):
            log_density = partial(_log_joint, counts, _log_u(moved))
            moved |= self._source.move(state, held, log_density)
        return moved

    def compile(self) -> None:
        """Run the model of the hyperparameters as machine code."""
        if isinstance(self._source, RecordedHyperparameters):
            self._source.compile()

    def _at(self, values: Mapping[str, Tensor]) -> tuple[float, Floats]:
        """Log density of the sites, and the process as a vector."""
        if isinstance(self._source, RecordedHyperparameters):
            return self._source(self._source.vector(values))
        return 0.0, self._source


def closed_prior(prior: Hyperparameters[Process]) -> ClosedPrior | None:
    """A prior for compiled loops, where it is in closed form and can be recorded."""
    from pyro_ext.inference.partitions._prior_loops import GENERALIZED_GAMMA

    if prior.names:
        recorded = record(prior, _vector)
        if recorded is None:
            return None
        _, example = recorded(recorded.example)
        return ClosedPrior(recorded, bool(example[0] == GENERALIZED_GAMMA))
    try:
        process = _vector(prior.at({})[0]).numpy()
    except CaptureError:
        return None
    return ClosedPrior(process, bool(process[0] == GENERALIZED_GAMMA))


def _log_joint(counts: ClusterSizes, log_u: float, process: Floats) -> float:
    """Log density of a partition, minus infinity where there is no such distribution."""
    from pyro_ext.inference.partitions import _prior_loops

    if not _prior_loops.in_range(process):
        return -math.inf
    sizes, times = counts.values.numpy(), counts.multiplicity.numpy()
    return float(_prior_loops.log_joint(process, sizes, times, log_u))


def _log_u(values: Mapping[str, Tensor]) -> float:
    return float(values["u"].log()) if "u" in values else math.nan


def _vector(process: Process) -> Tensor:
    """A distribution as compiled loops take it."""
    from pyro_ext.inference.partitions._prior_loops import GENERALIZED_GAMMA, PITMAN_YOR

    if isinstance(process, PitmanYor):
        kind, parameters = PITMAN_YOR, [process.discount, process.concentration]
    elif isinstance(process, NormalizedRandomMeasure) and isinstance(
        process.measure, GeneralizedGammaProcess
    ):
        measure = process.measure
        kind, parameters = GENERALIZED_GAMMA, [measure.mass, measure.discount, measure.tilt]
    else:
        raise CaptureError(f"{process!r:.80} is not in closed form")
    if process.batch_shape:
        raise CaptureError(f"{process!r:.80} has a batch shape")
    values = torch.stack(parameters).detach().double().cpu()
    return torch.cat([values.new_full((1,), kind), values])
