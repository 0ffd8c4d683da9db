"""Events between nodes of a graph, in order of time."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib import checks


class EventStream:
    """A temporal graph: events with features, each between two nodes, sorted by time.

    Events that are not in order are sorted; simultaneous events keep their order. Times are in
    double precision, which represents seconds since 1970 exactly.

    :param Tensor sources: the first node of each event, from zero. **Shape:** ``(n,)``.
    :param Tensor destinations: the second node of each event. **Shape:** ``(n,)``.
    :param Tensor times: times in any unit, finite. **Shape:** ``(n,)``.
    :param Tensor features: features of the events, finite; none by default. **Shape:**
        ``(n, num_features)``.
    :param int num_nodes: number of nodes; by default one more than the largest that occurs.
    :param Tensor fake: marks events that an attack has inserted. Networks and defenses never use
        it; metrics do. **Shape:** ``(n,)``, booleans.
    :param bool bipartite: whether sources and destinations are of two kinds, such as users and
        pages. Negatives are then drawn from destinations only; otherwise from all nodes.
    :raises ValueError: for shapes, nodes or times that do not fit.

    Example::

        >>> stream = EventStream([0, 2, 1], [1, 0, 2], [5.0, 20.0, 7.0])
        >>> stream, stream.sources.tolist(), len(stream[1:])
        (EventStream(3 events, 3 nodes, 0 features, 0 fake), [0, 1, 2], 2)
        >>> [len(part) for part in stream.split(0.7)]
        [2, 1]
    """

    def __init__(
        self,
        sources: Any,
        destinations: Any,
        times: Any,
        features: Any = None,
        *,
        num_nodes: int | None = None,
        fake: Any = None,
        bipartite: bool = False,
    ) -> None:
        sources = checks.as_tensor("sources", sources, "(n,)", kind="integers").long()
        shape, device = f"({len(sources)},)", sources.device
        destinations = checks.as_tensor("destinations", destinations, shape, kind="integers").long()
        times = checks.as_tensor("times", times, shape, dtype=torch.float64, finite=True)
        if features is None:
            features = torch.zeros(len(sources), 0, device=device)
        features = checks.as_tensor(
            "features", features, f"({len(sources)}, num_features)", allow_empty=True, finite=True
        )
        if not features.is_floating_point():
            features = features.to(torch.get_default_dtype())
        if fake is None:
            fake = torch.zeros(len(sources), dtype=torch.bool, device=device)
        fake = checks.as_tensor("fake", fake, shape, kind="booleans")
        for name, nodes in (("sources", sources), ("destinations", destinations)):
            if int(nodes.min()) < 0:
                raise ValueError(f"{name} must be nodes >= 0, got {int(nodes.min())}")
        largest = int(torch.maximum(sources, destinations).max())
        num_nodes = largest + 1 if num_nodes is None else checks.integer("num_nodes", num_nodes, 1)
        if largest >= num_nodes:
            raise ValueError(f"num_nodes must be more than the node {largest}, got {num_nodes}")
        if checks.boolean("bipartite", bipartite) and bool(torch.isin(sources, destinations).any()):
            raise ValueError(
                "bipartite must be False if a node is both a source and a destination, got True"
            )
        order = times.argsort(stable=True)
        self.sources: Tensor = sources[order]
        self.destinations: Tensor = destinations.to(device)[order]
        self.times: Tensor = times.to(device)[order]
        self.features: Tensor = features.to(device)[order]
        self.fake: Tensor = fake.to(device)[order]
        self.num_nodes = num_nodes
        self.bipartite = bipartite

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.sources)

    def __repr__(self) -> str:
        """Show the sizes; never the events."""
        return (
            f"EventStream({len(self):,} events, {self.num_nodes:,} nodes, {self.num_features} "
            f"features, {int(self.fake.sum()):,} fake)"
        )

    def __getitem__(self, index: slice | Tensor) -> "EventStream":
        """Some of the events, by a slice, a mask or numbers in order; there may be none."""
        if not isinstance(index, slice):
            is_mask = getattr(index, "dtype", None) in (torch.bool, bool)
            kind = "booleans" if is_mask else "integers"
            index = checks.as_tensor("index", index, "(m,)", kind=kind, allow_empty=True)
        taken = object.__new__(EventStream)
        for name in ("sources", "destinations", "times", "features", "fake"):
            setattr(taken, name, getattr(self, name)[index])
        if not isinstance(index, slice) and bool((taken.times.diff() < 0).any()):
            raise ValueError("index must not change the order of time, got one that does")
        taken.num_nodes, taken.bipartite = self.num_nodes, self.bipartite
        return taken

    def __iter__(self) -> Iterator["EventStream"]:
        """Streams of one event each."""
        return (self[k : k + 1] for k in range(len(self)))

    @property
    def num_features(self) -> int:
        """Number of features of an event."""
        return self.features.shape[1]

    @property
    def real(self) -> "EventStream":
        """The events that no attack has inserted."""
        return self[~self.fake]

    def batches(self, batch_size: int) -> list["EventStream"]:
        """Divide events into successive batches.

        :param int batch_size: number of events of each batch; the last one may have fewer.
        """
        checks.integer("batch_size", batch_size, 1)
        return [self[k : k + batch_size] for k in range(0, len(self), batch_size)]

    def split(self, *fractions: float) -> tuple["EventStream", ...]:
        """Split the stream at fractions of its events, earlier parts first.

        :param fractions: fraction of all events in each part except the last, which has the rest.
        :returns: one more part than there are fractions; none is empty.
        """
        for number, fraction in enumerate(fractions):
            checks.number(f"fractions[{number}]", fraction, above=0, below=1)
        ends = [round(sum(fractions[: k + 1]) * len(self)) for k in range(len(fractions))]
        edges = [0, *ends, len(self)]
        if any(low >= high for low, high in zip(edges, edges[1:], strict=False)):
            raise ValueError(
                f"fractions must leave events to each part of {len(self)}, got {fractions}"
            )
        parts = zip(edges, edges[1:], strict=False)
        return tuple(self[low:high] for low, high in parts)

    def negatives(self, num_negatives: int, pool: Tensor | None = None) -> Tensor:
        """Draw other nodes that might have been the destinations, from PyTorch's generator.

        They are uniform over the pool without the true destination.

        :param int num_negatives: number of nodes for each event.
        :param Tensor pool: nodes to draw from, at least two; by default the destinations
            of a bipartite stream, and otherwise all nodes. **Shape:** ``(m,)``.
        :returns: **Shape:** ``(num_negatives, n)``.
        """
        checks.integer("num_negatives", num_negatives, 1)
        if pool is None:
            pool = self.pool()
            check_pool("stream", pool)
        pool = checks.as_tensor("pool", pool, "(m,)", kind="integers").to(self.sources.device)
        pool = torch.unique(pool)
        if len(pool) < 2 or not 0 <= int(pool[0]) <= int(pool[-1]) < self.num_nodes:
            raise ValueError(
                f"pool must have at least two nodes, from 0 to {self.num_nodes - 1}, got "
                f"{pool.tolist()!r:.80}"
            )
        # A step around the circle of the pool from the true destination, or from anywhere.
        place = torch.searchsorted(pool, self.destinations).clamp(max=len(pool) - 1)
        within = (pool[place] == self.destinations).long()
        shape = (num_negatives, len(self))
        steps = torch.rand(shape, dtype=torch.float64, device=pool.device) * (len(pool) - within)
        return pool[(place + within + steps.long()) % len(pool)]

    def pool(self) -> Tensor:
        """Nodes from which negatives are drawn. **Shape:** ``(m,)``."""
        nodes: Tensor = torch.arange(self.num_nodes, device=self.sources.device)
        return self.destinations.unique() if self.bipartite else nodes


def check_stream(argument: str, value: Any) -> EventStream:
    """Check that a value is a stream with events."""
    checks.instance(argument, value, EventStream, "an EventStream")
    if not len(value):
        raise ValueError(f"{argument} must have events, got {value}")
    checks.all_finite(argument, value.times)
    return value  # type: ignore[no-any-return]


def check_pool(argument: str, pool: Tensor) -> None:
    """Check that a stream has nodes to draw negatives from."""
    if len(pool) < 2:
        raise ValueError(
            f"{argument} must have at least two nodes that events go to, for one that is not the "
            f"destination, got {pool.tolist()}"
        )


def merged(streams: Sequence[EventStream]) -> EventStream:
    """Events of streams of the same nodes by time, in the order of the streams at equal times."""
    first = streams[0]
    parts = {
        name: torch.cat([getattr(stream, name).to(first.sources.device) for stream in streams])
        for name in ("sources", "destinations", "times", "features", "fake")
    }
    if not len(parts["times"]):
        return first
    return EventStream(**parts, num_nodes=first.num_nodes, bipartite=first.bipartite)


def last_events(nodes: Tensor) -> Tensor:
    """Return the index of the last occurrence of each node. **Shape:** ``(num_different,)``."""
    order = nodes.argsort(stable=True)
    ends = nodes[order].diff(append=nodes.new_full((1,), -1)) != 0
    return order[ends]
