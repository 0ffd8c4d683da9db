"""Fake events that poison a stream before a network is trained on it.

[1] D. Lee, J. Lee, K. Shin (2024), Spear and shield: adversarial attacks and defense methods for
model-based link prediction on continuous-time dynamic graphs.
"""

import math
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from pyro_ext._lib import checks, optional
from pyro_ext._lib.modes import in_mode
from pyro_ext.models.temporal_graphs.events import EventStream, check_stream, merged
from pyro_ext.models.temporal_graphs.link_prediction import replay
from pyro_ext.models.temporal_graphs.network import TemporalGraphNetwork
from pyro_ext.random import seeded

_BANDWIDTH = 0.1  # in standard deviations
_STRUCTURAL = ("random", "preference", "jaccard", "degree", "pagerank")


def spread_pairs(costs: Any, num_pairs: int, *, extra_rounds: int = 0) -> tuple[Tensor, Tensor]:
    """Choose cheap pairs of rows and columns, spread over both.

    Rounds of the assignment problem choose one-to-one pairs among those that no earlier round has
    chosen, until there are enough; the cheapest are returned. When all pairs have been chosen, all
    become available again.

    :param Tensor costs: costs of pairs, infinite for pairs that are not allowed. **Shape:**
        ``(m, k)``.
    :param int num_pairs: number of pairs.
    :param int extra_rounds: number of further rounds, for a cheaper and less spread choice.
    :returns: rows and columns, the cheapest pair first. **Shape:** ``(num_pairs,)`` each.

    Example::

        >>> inf = float("inf")
        >>> rows, columns = spread_pairs([[inf, 1.0, 5.0], [2.0, inf, 3.0], [6.0, 4.0, inf]], 3)
        >>> sorted(rows.tolist()), sorted(columns.tolist())
        ([0, 1, 2], [0, 1, 2])
    """
    from scipy.optimize import linear_sum_assignment

    matrix = checks.as_tensor("costs", costs, "(m, k)").detach().double().cpu().numpy()
    checks.integer("num_pairs", num_pairs, 0)
    checks.integer("extra_rounds", extra_rounds, 0)
    allowed = np.isfinite(matrix)
    if np.isnan(matrix).any() or np.isneginf(matrix).any():
        raise ValueError("costs must be numbers or inf, got NaN or -inf")
    if not allowed.any():
        raise ValueError("costs must allow a pair, got inf alone")
    low, high = matrix[allowed].min(), matrix[allowed].max()
    # One pair more is worth any change of the others.
    closed = high + (high - low + 1.0) * (min(matrix.shape) + 1.0)
    open_pairs, found = allowed.copy(), np.zeros((0, 2), dtype=np.int64)
    rounds_left = extra_rounds
    while len(found) < num_pairs or rounds_left:
        rounds_left -= len(found) >= num_pairs
        if not open_pairs.any():
            open_pairs = allowed.copy()
        pairs = np.stack(linear_sum_assignment(np.where(open_pairs, matrix, closed)), 1)
        pairs = pairs[open_pairs[tuple(pairs.T)]]
        open_pairs[tuple(pairs.T)] = False
        found = np.concatenate([found, pairs])
    found = found[matrix[tuple(found.T)].argsort(kind="stable")[:num_pairs]]
    rows, columns = torch.from_numpy(found.copy()).unbind(1)
    return rows, columns


class _Options(TypedDict, total=False):
    batch_size: int
    resolution: float | None
    bandwidth: float | None
    extra_rounds: int


class _Attack:
    """Base class of attacks: the times of fake events, and the nodes that they may connect."""

    def __init__(
        self,
        budget: float,
        batch_size: int = 200,
        resolution: float | None = None,
        bandwidth: float | None = None,
        extra_rounds: int = 0,
    ) -> None:
        self.budget = checks.number("budget", budget, least=0)
        self.batch_size = checks.integer("batch_size", batch_size, 1)
        self.resolution = checks.optional(checks.number, "resolution", resolution, above=0)
        self.bandwidth = checks.optional(checks.number, "bandwidth", bandwidth, above=0)
        self.extra_rounds = checks.integer("extra_rounds", extra_rounds, 0)

    def perturb(
        self, stream: EventStream, *, history: EventStream | None = None, seed: int | None = None
    ) -> EventStream:
        """Put fake events into a stream.

        :param EventStream stream: is not changed. Its first batch gets no fake events.
        :param EventStream history: what the attacker knows of the time before.
        :param int seed: of all draws; ``None`` draws from PyTorch's generator.
        :returns: all events by time, where ``fake`` marks those that were put in.

        Example::

            >>> from pyro_ext.models.temporal_graphs import EventStream, StructuralAttack
            >>> stream = EventStream([0, 1, 2, 0] * 5, [1, 2, 0, 2] * 5, list(range(20)))
            >>> StructuralAttack("degree", batch_size=10).perturb(stream, seed=0)
            EventStream(23 events, 3 nodes, 0 features, 3 fake)
        """
        check_stream("stream", stream)
        if history is not None:
            check_stream("history", history)
            if history.num_nodes != stream.num_nodes:
                raise ValueError(
                    f"history must have the {stream.num_nodes} nodes of the stream, got "
                    f"{history.num_nodes}"
                )
        units = self._units(stream)
        fakes, before, memory = [], None, self._begin(stream, history)
        with seeded(seed):
            for batch in stream.batches(self.batch_size):
                if before is not None and (number := self._number(batch)):
                    fakes.append(self._fakes(memory, before, batch, number, units))
                before, memory = batch, self._advance(memory, batch)
        return merged([stream, *fakes])

    def _number(self, batch: EventStream) -> int:
        """Number of fake events of a batch; a product like 0.29 * 100 is not rounded down to 28."""
        return math.floor(self.budget * len(batch) + 1e-9)

    def _units(self, stream: EventStream) -> "_Units":
        """In what units times and features are, and from where these count."""
        origin, unit = 0.0, self.resolution
        if unit is None:
            origin, unit = float(stream.times[0]), _unit(stream.times)
        columns = stream.features.unbind(-1)
        of_features = stream.features.new_tensor([_unit(column) for column in columns])
        return _Units(unit, origin, of_features, stream.features.amin(0))

    def _fakes(
        self, memory: Any, before: EventStream, batch: EventStream, number: int, units: "_Units"
    ) -> EventStream:
        """Fake events of a batch, in the order of time."""
        first, last = float(batch.times[0]), float(batch.times[-1])
        times = _near(batch.times[:, None], number, self.bandwidth)[:, 0]
        if units.of_times:
            times = ((times - units.first_time) / units.of_times).floor()
            times = units.first_time + times * units.of_times
        times = times.clamp(first, last).sort().values
        features = _near(before.features, number, None)
        steps = ((features - units.least_features) / units.of_features).round()
        whole = units.least_features + steps * units.of_features
        features = torch.where(units.of_features > 0, whole, features)
        sources, destinations = before.sources.unique(), before.destinations.unique()
        if not batch.bipartite:
            sources = destinations = torch.cat([sources, destinations]).unique()
        costs = self._costs(memory, sources, destinations, times[0]).double()
        costs = costs.masked_fill(sources[:, None] == destinations, torch.inf)
        if not bool(costs.isfinite().any()):
            raise ValueError(
                "stream must have two nodes in each batch to make fake events of, got one with the "
                f"node {int(sources[0])} alone"
            )
        rows, columns = spread_pairs(costs, number, extra_rounds=self.extra_rounds)
        order = torch.randperm(number)
        return EventStream(
            sources[rows[order]],
            destinations[columns[order]],
            times,
            features,
            num_nodes=batch.num_nodes,
            fake=torch.ones(number, dtype=torch.bool),
            bipartite=batch.bipartite,
        )

    def _begin(self, stream: EventStream, history: EventStream | None) -> Any:
        """Return the attacker's memory before the stream."""
        raise NotImplementedError

    def _advance(self, memory: Any, batch: EventStream) -> Any:
        """Return the attacker's memory after a batch of real events."""
        raise NotImplementedError

    def _costs(self, memory: Any, sources: Tensor, destinations: Tensor, time: Tensor) -> Tensor:
        """Costs of all pairs, the lowest to be chosen."""
        raise NotImplementedError


class TSpear(_Attack):
    r"""T-SPEAR: events that a network finds implausible, but that are otherwise hard to notice [1].

    * Each batch except the first gets ``budget`` times as many fake events as it has real ones.
    * Their times are drawn from a kernel density estimate of the times of the batch, and their
      features from one of the features of the previous batch, with a normal kernel whose standard
      deviation is a tenth of the features' own.
    * Like those of real events, they are multiples of the largest step that divides all real ones,
      such as whole seconds: times are rounded down to a multiple, and features to the nearest
      multiple.
    * Their nodes occur in the previous batch.
    * :func:`spread_pairs` spreads them over nodes, with the logits of the surrogate before the
      batch as costs. The surrogate remembers only real events.

    :param TemporalGraphNetwork surrogate: a network trained by the attacker, for example by
        :func:`fit_links` on the same stream; it is not changed.
    :param float budget: number of fake events for each real one.
    :param int batch_size: number of events of a batch.
    :param float resolution: unit to which times are rounded down; by default the largest unit of
        which the gaps between real events are multiples.
    :param float bandwidth: standard deviation of the kernel of times, in their unit; by default a
        tenth of the standard deviation of the times of the batch.
    :param int extra_rounds: as for :func:`spread_pairs`.

    [1] D. Lee, J. Lee, K. Shin (2024), Spear and shield: adversarial attacks and defense methods
    for model-based link prediction on continuous-time dynamic graphs.

    Example::

        >>> from pyro_ext.models.temporal_graphs import EventStream, TemporalGraphNetwork
        >>> stream = EventStream([0, 1, 2, 0] * 5, [1, 2, 0, 2] * 5, list(range(20)))
        >>> surrogate = TemporalGraphNetwork(3, hidden_size=8)  # which is to be trained
        >>> TSpear(surrogate, budget=0.3, batch_size=10).perturb(stream, seed=0)
        EventStream(23 events, 3 nodes, 0 features, 3 fake)
    """

    def __init__(
        self, surrogate: TemporalGraphNetwork, budget: float = 0.3, **options: Unpack[_Options]
    ) -> None:
        checks.instance("surrogate", surrogate, TemporalGraphNetwork, "a TemporalGraphNetwork")
        super().__init__(budget, **options)
        self.surrogate = surrogate

    def _begin(self, stream: EventStream, history: EventStream | None) -> Any:
        """State of the surrogate."""
        for size in ("num_nodes", "num_features"):
            if getattr(stream, size) != getattr(self.surrogate, size):
                raise ValueError(
                    f"stream must have the {size} of the surrogate, "
                    f"{getattr(self.surrogate, size)}, got {getattr(stream, size)}"
                )
        state = self.surrogate.reset()
        if history is None:
            return state
        return replay(self.surrogate, state, history, self.batch_size)

    def _advance(self, memory: Any, batch: EventStream) -> Any:
        return self.surrogate.update(memory, batch)

    @torch.no_grad()
    def _costs(self, memory: Any, sources: Tensor, destinations: Tensor, time: Tensor) -> Tensor:
        """Logits."""
        nodes = torch.cat([sources, destinations])
        with in_mode(False, self.surrogate):
            embeddings = self.surrogate.embed(memory, nodes, time.expand(len(nodes)))
        first, second = embeddings.split([len(sources), len(destinations)])
        return self.surrogate.decode(first[:, None], second)


class StructuralAttack(_Attack):
    """Baselines for :class:`TSpear`, whose costs come from the graph of all real events so far.

    Nodes, times and features are chosen in the same way.

    :param str kind: cost of a pair: ``"random"``, which is uniform; ``"preference"``, the product
        of degrees; ``"jaccard"``, the fraction of common neighbors; ``"degree"`` or ``"pagerank"``,
        sums over both nodes. An edge between two nodes counts once.
    :param float budget: number of fake events for each real one.
    :param int batch_size: number of events of a batch.
    :param float resolution: unit to which times are rounded down; by default the largest unit of
        which the gaps between real events are multiples.
    :param float bandwidth: standard deviation of the kernel of times, in their unit; by default a
        tenth of the standard deviation of the times of the batch.
    :param int extra_rounds: as for :func:`spread_pairs`.

    Example::

        >>> from pyro_ext.models.temporal_graphs import EventStream
        >>> stream = EventStream([0, 1, 2, 0] * 5, [1, 2, 0, 2] * 5, list(range(20)))
        >>> StructuralAttack("random", batch_size=10).perturb(stream, seed=0).fake.sum()
        tensor(3)
    """

    def __init__(
        self, kind: str = "random", budget: float = 0.3, **options: Unpack[_Options]
    ) -> None:
        checks.choice("kind", kind, _STRUCTURAL)
        super().__init__(budget, **options)
        self.kind = kind

    def _begin(self, stream: EventStream, history: EventStream | None) -> Any:
        """Return a mask of the node pairs that have had an event."""
        graph = torch.zeros(stream.num_nodes, stream.num_nodes, dtype=torch.bool)
        return graph if history is None else self._advance(graph, history)

    def _advance(self, memory: Any, batch: EventStream) -> Any:
        graph: Tensor = memory.to(batch.sources.device).clone()
        graph[batch.sources, batch.destinations] = True
        graph[batch.destinations, batch.sources] = True
        return graph

    def _costs(self, memory: Any, sources: Tensor, destinations: Tensor, time: Tensor) -> Tensor:
        if self.kind == "random":
            size = len(sources), len(destinations)
            return torch.rand(size, dtype=torch.float64, device=sources.device)
        graph: Tensor = memory.double()
        degrees = graph.sum(-1)
        if self.kind == "jaccard":
            common = graph[sources] @ graph[destinations].T
            total = degrees[sources][:, None] + degrees[destinations] - common
            return common / total.clamp(min=1.0)
        if self.kind == "preference":
            return degrees[sources][:, None] * degrees[destinations]
        values = degrees if self.kind == "degree" else _pagerank(graph)
        return values[sources][:, None] + values[destinations]


class _Units(NamedTuple):
    """Step sizes of real times and features (zero if they have none), and their origins."""

    of_times: float
    first_time: float
    of_features: Tensor
    least_features: Tensor


def _unit(values: Tensor) -> float:
    """The largest step of which all differences are multiples, by Euclid; zero without any.

    Differences of real numbers are multiples of what rounding leaves of them.
    """
    noise = 4.0 * torch.finfo(values.dtype).eps * float(values.abs().max())
    gaps = values.double().unique().diff()
    if not len(gaps):
        return 0.0
    whole = float(gaps.sum())
    while True:
        unit = float(gaps.min())
        steps = (gaps / unit).round()
        # The error of a unit counts as often as the unit does.
        rest = (gaps - steps * unit).abs()
        rest = rest[rest > noise * (1.0 + steps)]
        if not len(rest):
            return whole / round(whole / unit)
        gaps = torch.cat([gaps.min()[None], rest])


def _near(values: Tensor, number: int, bandwidth: float | None) -> Tensor:
    """Draws from the kernel density estimate of rows."""
    drawn = values[torch.randint(len(values), (number,))]
    spread = (values - values.mean(0)).square().mean(0).sqrt()
    width = _BANDWIDTH * spread if bandwidth is None else bandwidth
    return drawn + width * torch.randn_like(drawn)


def _pagerank(graph: Tensor) -> Tensor:
    """PageRank of each node."""
    networkx = optional.optional_module("networkx", "PageRank", "networkx", "graphs")
    found = networkx.pagerank(networkx.from_numpy_array(graph.numpy(force=True)))
    return torch.tensor([found[node] for node in range(len(graph))], dtype=graph.dtype)
