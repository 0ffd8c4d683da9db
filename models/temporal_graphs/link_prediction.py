"""Training of temporal graph networks, and evaluation of their predictions of the next events."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext._lib import checks
from pyro_ext._lib.modes import in_mode
from pyro_ext.diagnostics.ranking import hits_at, mean_reciprocal_rank
from pyro_ext.inference.training import Trainer
from pyro_ext.inference.training.trainer import Optimizer
from pyro_ext.models.temporal_graphs.defenses import Defense, temporal_smoothness
from pyro_ext.models.temporal_graphs.events import (
    EventStream,
    check_pool,
    check_stream,
    last_events,
)
from pyro_ext.models.temporal_graphs.network import GraphState, TemporalGraphNetwork
from pyro_ext.random import seeded

_ADAM = partial(torch.optim.Adam, lr=4e-3)


@dataclass(frozen=True, eq=False)
class LinkFit:
    """Result of training, besides the network.

    :ivar list losses: loss of each step.
    :ivar Tensor probabilities: probability that the network gave each event when it reached it, in
        each epoch; NaN for events after Ctrl-C. **Shape:** ``(num_epochs, n)``.
    :ivar Tensor kept: which events the defense kept. **Shape:** ``(num_epochs, n)``.
    """

    losses: list[float]
    probabilities: Tensor
    kept: Tensor


class LinkScores(NamedTuple):
    """Logits of real events, and of the same sources with other destinations.

    :ivar Tensor events: logits of the events. **Shape:** ``(n,)``.
    :ivar Tensor negatives: logits of the other destinations. **Shape:** ``(n, num_negatives)``.
    """

    events: Tensor
    negatives: Tensor

    @property
    def mrr(self) -> float:
        """Mean reciprocal rank; see :func:`~pyro_ext.diagnostics.ranking.mean_reciprocal_rank`."""
        return mean_reciprocal_rank(self.events, self.negatives)

    def hits(self, k: int = 10) -> float:
        """Fraction of ranks up to ``k``; see :func:`~pyro_ext.diagnostics.ranking.hits_at`."""
        return hits_at(self.events, self.negatives, k)


def fit_links(
    network: TemporalGraphNetwork,
    stream: EventStream,
    num_epochs: int,
    *,
    batch_size: int = 200,
    defense: Defense | None = None,
    optimizer: Optimizer = _ADAM,
    seed: int | None = None,
    progress: bool = True,
) -> LinkFit:
    """Train a network to distinguish events from pairs of nodes without one.

    An epoch goes through the stream once, from an empty state. Each event comes with one negative
    destination, which is drawn anew. The learning rate falls to zero along a cosine. Ctrl-C ends
    the training after a step, with a warning.

    :param TemporalGraphNetwork network: the network, which is changed in place.
    :param EventStream stream: the events, real and fake.
    :param int num_epochs: number of passes through the stream.
    :param int batch_size: number of events of a step.
    :param Defense defense: defense against inserted events, such as :class:`TShield`; none by
        default.
    :param Callable optimizer: makes an optimizer from a list of parameters.
    :param int seed: seed of all draws; ``None`` uses PyTorch's global generator.
    :param bool progress: whether to show a progress bar.
    :returns: losses, and how the network and the defense judged each event.
    :raises TrainingDiverged: if loss or gradient are not finite.

    Example::

        >>> from pyro_ext.models.temporal_graphs import EventStream, TShield
        >>> stream = EventStream([0, 1, 2, 0] * 5, [1, 2, 0, 2] * 5, list(range(20)))
        >>> network = TemporalGraphNetwork(3, hidden_size=8)
        >>> fit = fit_links(network, stream, 2, batch_size=10, defense=TShield(), progress=False)
        >>> len(fit.losses), fit.probabilities.shape
        (4, torch.Size([2, 20]))
    """
    _check_network(network, stream=stream)
    checks.integer("num_epochs", num_epochs, 0)
    checks.function("optimizer", optimizer, "a function that makes an optimizer of tensors")
    defense = _checked_defense(defense)
    check_pool("stream", stream.pool())
    _warn_of_units(network, stream)
    batches = stream.batches(batch_size)
    walk = _Walk(network, stream, batches, defense, num_epochs)
    num_steps = num_epochs * len(batches)
    cosine = partial(CosineAnnealingLR, T_max=max(num_steps, 1))
    trainer = Trainer(network, optimizer, scheduler=cosine, seed=seed)
    with in_mode(True, network):
        losses = trainer.run(walk.loss, num_steps, progress=progress)
    probabilities = torch.full((num_epochs * len(stream),), torch.nan).to(network.omega.detach())
    kept = torch.zeros_like(probabilities, dtype=torch.bool)
    # A step that was broken off may have left something, too.
    for found, parts in ((probabilities, walk.probabilities), (kept, walk.kept)):
        if parts := parts[: len(losses)]:
            taken = torch.cat(parts)
            found[: len(taken)] = taken
    shape = num_epochs, len(stream)
    return LinkFit(losses, probabilities.reshape(shape), kept.reshape(shape))


@torch.no_grad()
def evaluate_links(
    network: TemporalGraphNetwork,
    history: EventStream,
    stream: EventStream,
    *,
    batch_size: int = 200,
    num_negatives: int = 50,
    defense: Defense | None = None,
    seed: int | None = None,
) -> LinkScores:
    """Score the real events of a stream, each batch given all earlier events.

    All events of a batch are scored before the network is updated with them, except for those that
    the defense leaves out; the defense does not know which are fake. Negatives depend only on the
    seed and the real events.

    :param TemporalGraphNetwork network: the trained network.
    :param EventStream history: earlier events, which update the network without being scored.
    :param EventStream stream: the events to score.
    :param int batch_size: number of events that are scored before the network is updated with them.
    :param int num_negatives: number of other destinations with which each event is compared.
    :param Defense defense: as for :func:`fit_links`, at the end of its schedule.
    :param int seed: seed of the negatives; ``None`` uses PyTorch's global generator.

    Example::

        >>> from pyro_ext.models.temporal_graphs import EventStream
        >>> stream = EventStream([0, 1, 2, 0] * 5, [1, 2, 0, 2] * 5, list(range(20)))
        >>> network = TemporalGraphNetwork(3, hidden_size=8)
        >>> scores = evaluate_links(network, *stream.split(0.8), batch_size=4, num_negatives=2)
        >>> scores.negatives.shape, 1.0 / 3.0 <= scores.mrr <= 1.0
        (torch.Size([4, 2]), True)
    """
    _check_network(network, history=history, stream=stream)
    checks.integer("num_negatives", num_negatives, 1)
    defense = _checked_defense(defense)
    if bool(history.times[-1] > stream.times[0]):
        raise ValueError("stream must not begin before the history ends, got one that does")
    real = stream.real
    if not len(real):
        raise ValueError(f"stream must have real events, got {stream}")
    pool = torch.cat([history.pool(), stream.pool()]).unique()
    check_pool("stream", pool)
    with seeded(seed):
        negatives = real.negatives(num_negatives, pool)
    columns = iter(negatives.split([len(b.real) for b in stream.batches(batch_size)], 1))
    found = []
    with in_mode(False, network):
        state = replay(network, network.reset(), history, batch_size, defense)
        for batch in stream.batches(batch_size):
            events, others = batch.real, next(columns)
            if len(events):
                ends = torch.cat([events.destinations[None], others])
                found.append(network.score(state, events.sources, ends, events.times))
            state = replay(network, state, batch, batch_size, defense)
    logits = torch.cat(found, 1)
    return LinkScores(logits[0], logits[1:].T)


@torch.no_grad()
def replay(
    network: TemporalGraphNetwork,
    state: GraphState,
    stream: EventStream,
    batch_size: int,
    defense: Defense | None = None,
) -> GraphState:
    """Take in events in batches, without those that a defense leaves out."""
    for batch in stream.batches(batch_size):
        keep = None
        if defense is not None and defense.filters:
            embeddings = _embed_ends(network, state, batch)
            keep = defense.keep(network.decode(*embeddings), embeddings)
        state = network.update(state, batch, keep)
    return state


class _Walk:
    """The loss of a training, which remembers where in the stream it is."""

    def __init__(
        self,
        network: TemporalGraphNetwork,
        stream: EventStream,
        batches: list[EventStream],
        defense: Defense,
        num_epochs: int,
    ) -> None:
        self.network, self.batches, self.defense = network, batches, defense
        self.num_epochs, self.pool, self.step = num_epochs, stream.pool(), 0
        weights = defense.weights(stream)
        sizes = [len(batch) for batch in batches]
        self.weights = None if weights is None else weights.split(sizes)
        self.probabilities: list[Tensor] = []
        self.kept: list[Tensor] = []
        self._restart()

    def _restart(self) -> None:
        """Forget all events."""
        self.state = self.network.reset()
        self.previous = torch.zeros_like(self.state.memory)
        self.previous_time = self.state.memory_time.clone()

    def loss(self) -> Tensor:
        """Return the negative log density of the next batch, and update the state with it."""
        epoch, number = divmod(self.step, len(self.batches))
        if not number:
            self._restart()
        events, keep = self.batches[number], None
        if self.defense.filters:
            with torch.no_grad(), in_mode(False, self.network):
                embeddings = _embed_ends(self.network, self.state, events)
                wrong = torch.tensor(torch.nan)  # the trainer's error says what helps
                if not bool(embeddings.isfinite().all()):
                    return wrong
                logits = self.network.decode(*embeddings)
                if not bool(logits.isfinite().all()):
                    return wrong
                keep = self.defense.keep(logits, embeddings, epoch / self.num_epochs)
            self.probabilities.append(logits.sigmoid())
        program = partial(
            self.network,
            self.state,
            events,
            events.negatives(1, self.pool)[0],
            keep=keep,
            weights=None if self.weights is None else self.weights[number],
        )
        with pyro.validation_enabled(False):  # the trainer reports losses that are not finite
            trace = pyro.poutine.trace(
                partial(self._with_smoothness, program, events, keep)
            ).get_trace()
            log_prob = torch.as_tensor(trace.log_prob_sum())
        if keep is None:
            keep = torch.ones_like(events.fake)
            found: Any = trace.nodes["_RETURN"]["value"]
            self.probabilities.append(found.detach().sigmoid())
        self.kept.append(keep)
        self.state = self.network.update(self.state, events, keep)
        self.step += 1
        return -log_prob

    def _with_smoothness(
        self, program: Callable[[], tuple[Tensor, Tensor]], events: EventStream, keep: Tensor | None
    ) -> Tensor:
        """The Pyro program with a factor for the steadiness of nodes; logits of the events."""
        logits, embeddings = program()
        if self.defense.eta and bool(embeddings.isfinite().all()):
            ends = embeddings[:2].transpose(0, 1)
            nodes = torch.stack([events.sources, events.destinations], 1)
            times = events.times[:, None].expand_as(nodes)
            if keep is not None:
                ends, nodes, times = ends[keep], nodes[keep], times[keep]
            ends, nodes, times = ends.flatten(0, 1), nodes.flatten(), times.flatten()
            smoothness = temporal_smoothness(
                ends, self.previous[nodes], times - self.previous_time[nodes], self.defense.theta
            )
            pyro.factor("smooth", -self.defense.eta * smoothness)
            last = last_events(nodes)
            self.previous[nodes[last]] = ends[last].detach()
            self.previous_time[nodes[last]] = times[last]
        return logits[0]


def _embed_ends(network: TemporalGraphNetwork, state: GraphState, events: EventStream) -> Tensor:
    """Embeddings of sources and destinations. **Shape:** ``(2, n, size)``."""
    nodes = torch.cat([events.sources, events.destinations])
    embeddings: Tensor = network.embed(state, nodes, events.times.repeat(2)).unflatten(0, (2, -1))
    return embeddings


def _warn_of_units(network: TemporalGraphNetwork, stream: EventStream) -> None:
    """Warn where all times look alike to a network."""
    span = float(stream.times[-1] - stream.times[0])
    least = 1.0 / float(network.omega.detach().abs().max())
    if 0.0 < span < least:
        warnings.warn(
            f"stream lasts for {span:.3g} units of time, of which the network's encoding hardly "
            f"distinguishes times that differ by less than {least:.3g}: use a smaller unit of time",
            stacklevel=3,
        )


def _check_network(network: Any, **streams: Any) -> None:
    checks.instance("network", network, TemporalGraphNetwork, "a TemporalGraphNetwork")
    for name, stream in streams.items():
        check_stream(name, stream)
        for size in ("num_nodes", "num_features"):
            if getattr(stream, size) != getattr(network, size):
                raise ValueError(
                    f"{name} must have the {size} of the network, {getattr(network, size)}, got "
                    f"{getattr(stream, size)}"
                )


def _checked_defense(defense: Any) -> Defense:
    checks.instance("defense", defense, (Defense, type(None)), "a Defense or None")
    return defense or Defense()
