"""Temporal graph networks: nodes with memories, and attention to recent neighbors.

[1] E. Rossi, B. Chamberlain, F. Frasca, D. Eynard, F. Monti, M. Bronstein (2020),
Temporal graph networks for deep learning on dynamic graphs.
"""

import math
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_ext._lib import checks
from pyro_ext.models.temporal_graphs.events import EventStream, check_stream, last_events

_MOST_PRODUCTS = 1 << 25  # of nodes and memories at a time


class GraphState(NamedTuple):
    """Memory of a :class:`TemporalGraphNetwork`.

    :ivar Tensor memory: memory of each node. **Shape:** ``(num_nodes, hidden_size)``.
    :ivar Tensor memory_time: time of the last event that updated it, or NaN. **Shape:**
        ``(num_nodes,)``.
    :ivar Tensor mail: mail from the last event of each node, for the next update. **Shape:**
        ``(num_nodes, 2 * hidden_size + num_features)``.
    :ivar Tensor mail_time: time of that event, or NaN. **Shape:** ``(num_nodes,)``.
    :ivar Tensor neighbors: the other nodes of the most recent events, in no order. **Shape:**
        ``(num_nodes, num_neighbors)``.
    :ivar Tensor neighbor_times: times of these events. **Shape:** ``(num_nodes, num_neighbors)``.
    :ivar Tensor neighbor_features: features of these events. **Shape:**
        ``(num_nodes, num_neighbors, num_features)``.
    :ivar Tensor num_events: number of events that each node has had. **Shape:** ``(num_nodes,)``.
    """

    memory: Tensor
    memory_time: Tensor
    mail: Tensor
    mail_time: Tensor
    neighbors: Tensor
    neighbor_times: Tensor
    neighbor_features: Tensor
    num_events: Tensor


class TemporalGraphNetwork(nn.Module):
    r"""Predicts events between nodes from earlier events [1], as a Pyro program.

    A node has a memory :math:`s_v`, which a GRU updates with one mail at a time. A mail holds both
    memories of the node's last event and the event's features. The embedding :math:`h_v(t)` is one
    layer of attention to the most recent neighbors,

    .. math:: \mathrm{LayerNorm}(\mathrm{ReLU}(W_o [a_v, s_v])), \quad a_v = \sum_u w_u V [s_u, f,
        \Phi(t - t_u)], \quad w \propto \exp \mathrm{LeakyReLU}_{0.2}(q \cdot k),

    with :math:`\Phi(\Delta) = \cos(\omega \Delta + b)`, where :math:`\omega` starts with periods
    from seconds to years, for times in seconds. The logit of an event is
    :math:`w^\top \mathrm{ReLU}(W_s h_u + W_d h_v)`.

    The module has no memory of its own: :meth:`reset` makes a :class:`GraphState`, :meth:`embed`
    and :meth:`score` read it, and :meth:`update` returns the next one. A batch is scored only from
    events in earlier batches.

    :param int num_nodes: number of nodes.
    :param int hidden_size: size of memories, embeddings and the encoding of time.
    :param int num_features: number of features of an event.
    :param Tensor node_features: features of nodes, such as numbers that identify them, in any unit:
        a power of two scales them to unit size, and a linear map adds them to memories. Without
        them, a node is known only by its events. **Shape:** ``(num_nodes, num_node_features)``.
    :param int num_neighbors: number of recent events to attend to.
    :param int num_heads: number of attention heads; it must divide the hidden size.
    :param float dropout: dropout rate of embeddings in training; 0.2 in T-SPEAR's code.

    [1] E. Rossi, B. Chamberlain, F. Frasca, D. Eynard, F. Monti, M. Bronstein (2020),
    Temporal graph networks for deep learning on dynamic graphs.

    Example::

        >>> from pyro_ext.models.temporal_graphs import EventStream
        >>> stream = EventStream([0, 2, 1, 0], [1, 0, 2, 1], [5.0, 7.0, 20.0, 25.0])
        >>> network = TemporalGraphNetwork(3, hidden_size=8)
        >>> first, second = stream.batches(2)
        >>> state = network.update(network.reset(), first)
        >>> network.score(state, second.sources, second.destinations, second.times).shape
        torch.Size([2])
        >>> logits, embeddings = network(state, second, second.negatives(1)[0])
        >>> logits.shape, embeddings.shape
        (torch.Size([2, 2]), torch.Size([3, 2, 8]))
    """

    omega: Tensor
    node_features: Tensor | None

    def __init__(
        self,
        num_nodes: int,
        hidden_size: int = 32,
        *,
        num_features: int = 0,
        node_features: Any = None,
        num_neighbors: int = 10,
        num_heads: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_nodes = checks.integer("num_nodes", num_nodes, 2)
        self.hidden_size = d = checks.integer("hidden_size", hidden_size, 1)
        self.num_features = checks.integer("num_features", num_features, 0)
        self.num_neighbors = checks.integer("num_neighbors", num_neighbors, 1)
        self.num_heads = checks.integer("num_heads", num_heads, 1)
        if d % num_heads:
            raise ValueError(f"num_heads must divide the hidden size {d}, got {num_heads}")
        self.dropout = checks.number("dropout", dropout, least=0, below=1)
        if node_features is not None:
            shape = f"({num_nodes}, num_node_features)"
            node_features = checks.as_tensor("node_features", node_features, shape, finite=True)
            node_features = node_features.to(torch.get_default_dtype())
            self.of_features = nn.Linear(node_features.shape[1], d)
            size = float(node_features.square().mean().sqrt())
            # A power of two is exact: features of unit size are taken as they are.
            self._feature_scale = 2.0 ** -round(math.log2(size)) if size else 1.0
        self.register_buffer("node_features", node_features)
        self.omega = nn.Parameter(10.0 ** (-9.0 * torch.arange(d) / max(d - 1, 1)))
        self.phase = nn.Parameter(torch.zeros(d))
        self.memory_cell = nn.GRUCell(3 * d + num_features, d)
        self.query = nn.Linear(2 * d, d)
        self.key = nn.Linear(2 * d + num_features, d)
        self.value = nn.Linear(2 * d + num_features, d)
        self.combine = nn.Linear(2 * d, d)
        self.norm = nn.LayerNorm(d)
        self.of_source, self.of_destination = nn.Linear(d, d), nn.Linear(d, d)
        self.logit = nn.Linear(d, 1)

    # States --------------------------------------------------------------------------------------

    def reset(self) -> GraphState:
        """Return the state before all events."""
        like, n, k = self.omega.detach(), self.num_nodes, self.num_neighbors
        never = torch.full((n,), math.nan, dtype=torch.float64, device=like.device)
        return GraphState(
            memory=like.new_zeros(n, self.hidden_size),
            memory_time=never,
            mail=like.new_zeros(n, 2 * self.hidden_size + self.num_features),
            mail_time=never,
            neighbors=torch.zeros(n, k, dtype=torch.long, device=like.device),
            neighbor_times=never.new_zeros(n, k),
            neighbor_features=like.new_zeros(n, k, self.num_features),
            num_events=torch.zeros(n, dtype=torch.long, device=like.device),
        )

    @torch.no_grad()
    def update(
        self, state: GraphState, events: EventStream, keep: Tensor | None = None
    ) -> GraphState:
        """Update the state with a batch of events, none of which sees another.

        The memories of their nodes are updated, and the last event of each node is its new mail.

        :param GraphState state: the previous state, which is not changed.
        :param EventStream events: the new events.
        :param Tensor keep: true for events that update the state; by default all do. **Shape:**
            ``(n,)``.
        :returns: the new state, without a gradient.
        """
        self._check_state(state)
        self._check_events(events)
        if keep is not None:
            events = events[checks.as_tensor("keep", keep, f"({len(events)},)", kind="booleans")]
        if not len(events):
            return state
        nodes = torch.stack([events.sources, events.destinations], 1).flatten()
        others = torch.stack([events.destinations, events.sources], 1).flatten()
        times = events.times.repeat_interleave(2)
        features = events.features.to(state.memory).repeat_interleave(2, 0)

        touched = nodes.unique()
        memory, memory_time = state.memory.clone(), state.memory_time.clone()
        memory[touched] = self._memories(state, touched)
        memory_time[touched] = torch.where(
            state.mail_time[touched].isnan(), memory_time[touched], state.mail_time[touched]
        )
        # What each node has as its first, second, ... event of the batch.
        order = nodes.argsort(stable=True)
        grouped, count = nodes[order], nodes.bincount(minlength=self.num_nodes)
        rank = torch.arange(len(order), device=order.device) - torch.searchsorted(grouped, grouped)

        last = last_events(nodes)
        mail, mail_time = state.mail.clone(), state.mail_time.clone()
        mail[nodes[last]] = torch.cat(
            [memory[nodes[last]], memory[others[last]], features[last]], -1
        )
        mail_time[nodes[last]] = times[last]

        recent = rank >= count[grouped] - self.num_neighbors
        order, rows = order[recent], grouped[recent]
        slots = (state.num_events[rows] + rank[recent]) % self.num_neighbors
        return GraphState(
            memory,
            memory_time,
            mail,
            mail_time,
            neighbors=state.neighbors.index_put((rows, slots), others[order]),
            neighbor_times=state.neighbor_times.index_put((rows, slots), times[order]),
            neighbor_features=state.neighbor_features.index_put((rows, slots), features[order]),
            num_events=state.num_events + count,
        )

    # Scores --------------------------------------------------------------------------------------

    def embed(self, state: GraphState, nodes: Tensor, times: Tensor) -> Tensor:
        """Compute embeddings of nodes.

        :param GraphState state: state after all earlier events.
        :param Tensor nodes: **Shape:** ``(n,)``.
        :param Tensor times: time for each node, none before the events in the state. **Shape:**
            ``(n,)``.
        :returns: **Shape:** ``(n, hidden_size)``.
        """
        self._check_state(state)
        nodes = self._checked_nodes("nodes", nodes)
        times = checks.as_tensor(
            "times", times, f"({len(nodes)},)", dtype=torch.float64, finite=True
        )
        if len(nodes) > (most := max(_MOST_PRODUCTS // self.num_nodes, 1)):
            parts = zip(nodes.split(most), times.split(most), strict=True)
            return torch.cat([self.embed(state, *part) for part in parts])
        neighbors, present = state.neighbors[nodes], state.num_events[nodes, None]
        absent = torch.arange(self.num_neighbors, device=nodes.device) >= present
        needed = torch.zeros(self.num_nodes, dtype=torch.bool, device=nodes.device)
        needed[nodes] = needed[neighbors] = True
        place = needed.cumsum(0) - 1
        memories = self._memories(state, needed.nonzero()[:, 0])
        if self.node_features is not None:
            features = self._feature_scale * self.node_features[needed]
            memories = memories + self.of_features(features)
        own = memories[place[nodes]]
        lapse = times[:, None] - state.neighbor_times[nodes]
        around = [self._encode(lapse)]
        if self.num_features:
            around.append(state.neighbor_features[nodes])
        query = self.query(torch.cat([own, self.phase.cos().expand_as(own)], -1))
        attended = self._attend(query, memories, place[neighbors], around, absent)
        hidden = self.combine(torch.cat([attended, own], -1))
        hidden = functional.dropout(hidden, self.dropout, self.training)
        embeddings: Tensor = self.norm(hidden.relu())
        return embeddings

    def decode(self, sources: Tensor, destinations: Tensor) -> Tensor:
        """Compute logits of events from embeddings of nodes, whose dimensions broadcast.

        :param Tensor sources: **Shape:** ``(*batch, hidden_size)``.
        :param Tensor destinations: **Shape:** ``(*batch, hidden_size)``.
        :returns: **Shape:** ``(*batch,)``.
        """
        shape, like = f"(*batch, {self.hidden_size})", next(self.parameters())
        return self._decode(
            checks.as_tensor("sources", sources, shape, finite=True, like=like),
            checks.as_tensor("destinations", destinations, shape, finite=True, like=like),
        )

    def score(
        self, state: GraphState, sources: Tensor, destinations: Tensor, times: Tensor
    ) -> Tensor:
        """Compute logits of events.

        :param GraphState state: state after all earlier events.
        :param Tensor sources: **Shape:** ``(n,)``.
        :param Tensor destinations: one or several for each source. **Shape:** ``(*m, n)``.
        :param Tensor times: **Shape:** ``(n,)``.
        :returns: **Shape:** ``(*m, n)``.
        """
        sources = self._checked_nodes("sources", sources)
        shape = f"(*m, {len(sources)})"
        destinations = checks.as_tensor("destinations", destinations, shape, kind="integers")
        ends = torch.cat([sources[None], destinations.reshape(-1, len(sources))])
        times = checks.as_tensor("times", times, f"({len(sources)},)", dtype=torch.float64)
        all_times = times.repeat(len(ends))
        if not 0 <= int(ends.min()) <= int(ends.max()) < self.num_nodes:
            raise ValueError(
                f"destinations must be nodes from 0 to {self.num_nodes - 1}, got "
                f"{int(ends.min())} to {int(ends.max())}"
            )
        embeddings = self.embed(state, ends.flatten(), all_times).unflatten(0, ends.shape)
        return self._decode(embeddings[0], embeddings[1:]).reshape(destinations.shape)

    def forward(
        self,
        state: GraphState,
        events: EventStream,
        negatives: Tensor,
        *,
        keep: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the Pyro program, whose site ``"link"`` tells whether pairs of nodes have events.

        Its log density is the negative sum of the binary cross-entropies of events and of as many
        pairs without events, each averaged over the events that are kept.

        :param GraphState state: state after all earlier events.
        :param EventStream events: the observed events.
        :param Tensor negatives: a destination without an event for each source. **Shape:**
            ``(n,)``.
        :param Tensor keep: true for events that count; by default all do. **Shape:** ``(n,)``.
        :param Tensor weights: positive factors of their log densities. **Shape:** ``(n,)``.
        :returns: logits, those of the events first, **Shape:** ``(2, n)``; and embeddings of
            sources, destinations and negatives, **Shape:** ``(3, n, hidden_size)``.
        """
        self._check_events(events)
        events, num = check_stream("events", events), len(events)
        negatives = self._checked_nodes("negatives", negatives, f"({num},)")
        nodes = torch.cat([events.sources, events.destinations, negatives])
        embeddings = self.embed(state, nodes, events.times.repeat(3)).unflatten(0, (3, num))
        logits = self._decode(embeddings[0], embeddings[1:])
        num_kept = num
        if keep is None:
            keep = torch.ones(num, dtype=torch.bool, device=logits.device)
        else:
            keep = checks.as_tensor("keep", keep, f"({num},)", kind="booleans")
            num_kept = max(int(keep.sum()), 1)
        scale = logits.new_full((num,), 1.0 / num_kept)
        if weights is not None:
            weights = checks.as_tensor("weights", weights, f"({num},)", like=logits, finite=True)
            if not bool((weights > 0).all()):
                raise ValueError(f"weights must be positive, got {float(weights.min()):g}")
            scale = scale * weights
        labels = torch.tensor([[1.0], [0.0]]).to(logits).expand(2, num)
        with (
            pyro.plate("kinds", 2, dim=-2),
            pyro.plate("events", num, dim=-1),
            pyro.poutine.mask(mask=keep),  # type: ignore[call-overload]
            pyro.poutine.scale(scale=scale),
        ):
            pyro.sample("link", dist.Bernoulli(logits=logits), obs=labels)
        return logits, embeddings

    # Helpers -------------------------------------------------------------------------------------

    def _decode(self, sources: Tensor, destinations: Tensor) -> Tensor:
        """As :meth:`decode`, of whatever a training may come to."""
        hidden = self.of_source(sources) + self.of_destination(destinations)
        logits: Tensor = self.logit(hidden.relu()).squeeze(-1)
        return logits

    def _encode(self, lapse: Tensor) -> Tensor:
        """Cosines of a time since something."""
        return torch.addcmul(self.phase, lapse.to(self.omega)[..., None], self.omega).cos()

    def _attend(
        self, query: Tensor, memories: Tensor, index: Tensor, around: list[Tensor], absent: Tensor
    ) -> Tensor:
        """Sum of values over neighbors, of whom parts are known, weighted by heads of attention.

        Maps to keys and values are applied to queries and sums, of which there are fewer. Products
        with memories are those with all of them, one large product of matrices.
        """
        heads, sizes = (self.num_heads, -1), [part.shape[-1] for part in (memories, *around)]
        query = query.unflatten(-1, heads)
        key, bias = self.key.weight.unflatten(0, heads), self.key.bias.unflatten(0, heads)
        of_memory, *of_parts = torch.einsum("nhc,hcd->nhd", query, key).split(sizes, -1)
        index = index[:, None].expand(-1, self.num_heads, -1)
        products = (of_memory @ memories.mT).gather(-1, index)
        products = products + (query * bias).sum(-1, keepdim=True)
        for part, values in zip(of_parts, around, strict=True):
            products = torch.baddbmm(products, part, values.mT)
        products = functional.leaky_relu(products, 0.2)
        absent = absent[:, None]
        lowest = torch.finfo(products.dtype).min  # and not -inf: a node may have no neighbor
        weights = products.masked_fill(absent, lowest).softmax(-1).masked_fill(absent, 0.0)
        of_nodes = weights.new_zeros(*weights.shape[:2], len(memories))
        of_nodes = of_nodes.scatter_add(-1, index, weights)
        sums = [of_nodes @ memories, *(weights @ values for values in around)]
        value = self.value.weight.unflatten(0, heads)
        attended: Tensor = torch.einsum("nhd,hcd->nhc", torch.cat(sums, -1), value)
        total = weights.sum(-1, keepdim=True)
        attended = attended + total * self.value.bias.unflatten(0, heads)
        return attended.flatten(1)

    def _memories(self, state: GraphState, nodes: Tensor) -> Tensor:
        """Memories of different nodes with what is in their mail."""
        memory, mail_time = state.memory[nodes], state.mail_time[nodes]
        lapse = self._encode((mail_time - state.memory_time[nodes]).nan_to_num(0.0))
        updated = self.memory_cell(torch.cat([state.mail[nodes], lapse], -1), memory)
        return torch.where(mail_time.isnan()[:, None], memory, updated)

    def _check_state(self, state: Any) -> None:
        checks.instance("state", state, GraphState, "a GraphState, as reset() makes it")
        shape = (self.num_nodes, self.hidden_size)
        if state.memory.shape != shape:
            raise ValueError(
                f"state must have memories of shape {shape}, got {tuple(state.memory.shape)}"
            )

    def _check_events(self, events: Any) -> None:
        checks.instance("events", events, EventStream, "an EventStream")
        ends = torch.stack([events.sources, events.destinations])
        if len(events) and int(ends.max()) >= self.num_nodes:
            raise ValueError(
                f"events must be of nodes from 0 to {self.num_nodes - 1}, got {int(ends.max())}"
            )
        if events.num_features != self.num_features:
            raise ValueError(
                f"events must have the num_features of the network, {self.num_features}, got "
                f"{events.num_features}"
            )

    def _checked_nodes(self, name: str, value: Any, shape: str = "(n,)") -> Tensor:
        nodes = checks.as_tensor(name, value, shape, kind="integers").long()
        if int(nodes.min()) < 0 or int(nodes.max()) >= self.num_nodes:
            raise ValueError(
                f"{name} must be nodes from 0 to {self.num_nodes - 1}, got {int(nodes.min())} to "
                f"{int(nodes.max())}"
            )
        return nodes
