"""Temporal graph networks against a loop over events, and what they may not see."""

import math
from functools import partial

import pyro
import pytest
import torch
from torch.nn import functional

from pyro_ext.models.temporal_graphs import EventStream, TemporalGraphNetwork
from tests.models.temporal_graphs.helpers import network_for, random_stream


class Loop:
    """The network as its definition has it: one node, one event and one neighbor at a time."""

    def __init__(self, network):
        self.network = network
        size, nodes = network.hidden_size, range(network.num_nodes)
        self.memory = {v: torch.zeros(size, dtype=torch.float64) for v in nodes}
        self.memory_time, self.mail, self.past = {}, {}, {v: [] for v in nodes}

    def encode(self, lapse):
        return (lapse * self.network.omega + self.network.phase).cos()

    def current(self, v):
        if v not in self.mail:
            return self.memory[v]
        content, time = self.mail[v]
        lapse = self.encode(time - self.memory_time.get(v, time))
        return self.network.memory_cell(torch.cat([content, lapse]), self.memory[v])

    def features(self, v):
        if self.network.node_features is None:
            return 0.0
        return self.network.of_features(self.network.node_features[v])

    def embed(self, v, time):
        network, own = self.network, self.current(v) + self.features(v)
        query = network.query(torch.cat([own, self.encode(0.0)]))
        past = self.past[v][-network.num_neighbors :]
        attended = torch.zeros_like(own)
        if past:
            rows = torch.stack(
                [
                    torch.cat([self.current(u) + self.features(u), self.encode(time - t), f])
                    for u, t, f in past
                ]
            )
            keys, values = network.key(rows), network.value(rows)
            parts = []
            for q, k, value in zip(
                query.chunk(2), keys.chunk(2, -1), values.chunk(2, -1), strict=True
            ):
                weights = functional.leaky_relu(k @ q, 0.2).softmax(0)
                parts.append(weights @ value)
            attended = torch.cat(parts)
        return network.norm(network.combine(torch.cat([attended, own])).relu())

    def take(self, batch):
        ends = list(zip(batch.sources.tolist(), batch.destinations.tolist(), strict=True))
        touched = {v for pair in ends for v in pair}
        now = {v: self.current(v).detach() for v in touched}
        for v in touched:
            self.memory[v] = now[v]
            if v in self.mail:
                self.memory_time[v] = self.mail[v][1]
        for (u, v), time, f in zip(ends, batch.times.tolist(), batch.features, strict=True):
            for one, other in ((u, v), (v, u)):
                self.mail[one] = torch.cat([now[one], now[other], f]), time
                self.past[one].append((other, time, f))


@pytest.mark.parametrize(
    ("num_features", "node_features"), [(0, None), (2, None), (2, torch.randn(7, 4))]
)
def test_it_is_what_a_loop_over_events_gives(num_features, node_features):
    stream = random_stream(num_features=num_features)
    stream.features = stream.features.double()
    network = network_for(stream, node_features=node_features).double()
    loop, state = Loop(network), network.reset()
    for batch in stream.batches(9):
        nodes = torch.arange(7)
        times = batch.times[0].expand(7)
        expected = torch.stack([loop.embed(v, float(batch.times[0])) for v in range(7)])
        torch.testing.assert_close(network.embed(state, nodes, times), expected)
        loop.take(batch)
        state = network.update(state, batch)
    assert int(state.num_events.sum()) == 120


def test_a_node_with_two_events_takes_in_the_last_mail_alone():
    network = network_for(EventStream([0], [3], [0.0]))
    two = EventStream([0, 0], [1, 2], [1.0, 4.0], num_nodes=4)
    first = network.update(network.reset(), two)
    one = EventStream([0, 1], [2, 3], [4.0, 4.0], num_nodes=4)
    second = network.update(network.reset(), one)
    assert torch.equal(first.mail[0], second.mail[0]) and first.mail_time[0] == 4.0
    following = EventStream([0], [3], [9.0], num_nodes=4)
    memory = network.update(first, following).memory[0]
    assert torch.equal(memory, network.update(second, following).memory[0])
    assert bool(memory.abs().sum() > 0)


def test_embeddings_do_not_see_their_batch_nor_what_comes_after():
    stream = random_stream(80)
    network = network_for(stream)
    past, now, later = stream[:40], stream[40:60], stream[60:]
    state = network.update(network.reset(), past)
    scores = network.score(state, now.sources, now.destinations, now.times)
    other = EventStream(
        now.destinations.flip(0), now.sources.flip(0), now.times.flip(0), num_nodes=7
    )
    for events in (other, later):
        network.update(state, events)  # which leaves the state as it is
        found = network.score(state, now.sources, now.destinations, now.times)
        assert torch.equal(found, scores)
    # What went before does change them.
    without = network.update(network.reset(), past[20:])
    assert not torch.allclose(
        network.score(without, now.sources, now.destinations, now.times), scores
    )


def test_buffers_hold_the_most_recent_neighbors():
    stream = random_stream(num_features=1)
    network = network_for(stream)
    state = network.reset()
    for batch in stream.batches(7):
        state = network.update(state, batch)
    for node in range(7):
        past = [
            (int(v if u == node else u), float(t), float(f))
            for u, v, t, f in zip(
                stream.sources,
                stream.destinations,
                stream.times,
                stream.features[:, 0],
                strict=True,
            )
            if node in (u, v)
        ]
        held = zip(
            state.neighbors[node].tolist(),
            state.neighbor_times[node].tolist(),
            state.neighbor_features[node, :, 0].tolist(),
            strict=True,
        )
        assert sorted(held) == sorted(past[-3:]) and state.num_events[node] == len(past)


def test_events_that_are_not_kept_leave_no_trace():
    stream = random_stream()
    network = network_for(stream)
    keep = torch.rand(60) < 0.5
    expected = network.update(network.reset(), stream[keep])
    for found, value in zip(network.update(network.reset(), stream, keep), expected, strict=True):
        torch.testing.assert_close(found, value, equal_nan=True, rtol=0, atol=0)
    nothing = network.update(expected, stream, torch.zeros(60, dtype=torch.bool))
    assert nothing is expected


def test_shifts_of_time_change_nothing():
    stream = random_stream()
    network = network_for(stream)
    shifted = EventStream(
        stream.sources, stream.destinations, stream.times + 1_291_597_340, num_nodes=7
    )
    scores = []
    for one in (stream, shifted):
        state = network.update(network.reset(), one[:40])
        scores.append(network.score(state, one.sources, one.destinations, one.times + 500.0))
    assert torch.equal(*scores)


def test_the_program_has_the_density_of_the_loss():
    stream = random_stream()
    network = network_for(stream)
    state = network.update(network.reset(), stream[:40])
    events, negatives = stream[40:], stream[40:].negatives(1)[0]
    keep, weights = torch.rand(20) < 0.5, torch.rand(20) + 0.1
    trace = pyro.poutine.trace(network).get_trace(
        state, events, negatives, keep=keep, weights=weights
    )
    positive = network.score(state, events.sources, events.destinations, events.times)
    negative = network.score(state, events.sources, negatives, events.times)
    losses = functional.softplus(-positive) + functional.softplus(negative)
    expected = -(losses * weights)[keep].sum() / keep.sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)
    site = trace.nodes["link"]
    assert site["is_observed"] and site["fn"].batch_shape == (2, 20)
    assert site["value"].sum() == 20
    logits, embeddings = trace.nodes["_RETURN"]["value"]
    torch.testing.assert_close(logits, torch.stack([positive, negative]))
    assert embeddings.shape == (3, 20, 6)


def test_gradients_are_those_of_finite_differences():
    stream = random_stream(num_features=1)
    stream.features = stream.features.double()
    network = network_for(stream, node_features=torch.randn(7, 2)).double()
    state = network.update(network.update(network.reset(), stream[:20]), stream[20:40])
    events = stream[40:]
    names, leaves = zip(*network.named_parameters(), strict=True)

    def loss(*values):
        values = dict(zip(names, values, strict=True))
        arguments = (state, events, events.destinations.flip(0))
        logits, _ = torch.func.functional_call(network, values, arguments)
        return functional.softplus(logits).sum()

    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)
    gradients = torch.autograd.grad(loss(*leaves), leaves)
    assert all(bool(g.abs().sum() > 0) for g in gradients), "each parameter matters"


def test_scores_of_several_destinations_and_of_each_alone():
    stream = random_stream()
    network = network_for(stream)
    state = network.update(network.reset(), stream[:40])
    events, others = stream[40:], stream[40:].negatives(4)
    found = network.score(state, events.sources, others, events.times)
    alone = [network.score(state, events.sources, one, events.times) for one in others]
    torch.testing.assert_close(found, torch.stack(alone))


def test_periods_and_dropout():
    stream = random_stream()
    network = network_for(stream, dropout=0.2)
    torch.testing.assert_close(network.omega[[0, -1]], torch.tensor([1.0, 1e-9]))
    torch.testing.assert_close(network.omega.log10().diff(), torch.full((5,), -9.0 / 5.0))
    nodes, times = torch.arange(7), torch.full((7,), 500.0)
    fixed = network.embed(network.reset(), nodes, times)
    assert torch.equal(fixed, network.embed(network.reset(), nodes, times))
    network.train()
    assert not torch.equal(fixed, network.embed(network.reset(), nodes, times))
    assert all(math.isnan(t) for t in network.reset().mail_time.tolist())


def test_the_unit_of_node_features_does_not_matter():
    """That of one-hot rows included, of which the mean square is one over their number."""
    stream = random_stream()
    first, second = stream.batches(30)

    def scores(features):
        network = network_for(stream, node_features=features)
        state = network.update(network.reset(), first)
        return network.score(state, second.sources, second.destinations, second.times)

    features = torch.randn(stream.num_nodes, 2)
    for scale in (2.0**-20, 2.0**20):
        assert torch.equal(scores(scale * features), scores(features))
    nodes = 1000
    network = TemporalGraphNetwork(nodes, node_features=torch.eye(nodes))
    there = torch.arange(nodes)
    spread = network.embed(network.reset(), there, torch.zeros(nodes)).std(0).mean()
    assert float(spread.detach()) > 0.1


def test_what_does_not_fit_is_refused_by_name():
    stream = random_stream()
    network = network_for(stream)
    state = network.reset()
    with pytest.raises(ValueError, match=r"num_heads must divide the hidden size 6, got 4"):
        network_for(stream, num_heads=4)
    with pytest.raises(ValueError, match=r"nodes must be nodes from 0 to 6, got 7 to 7"):
        network.embed(state, torch.tensor([7]), torch.tensor([0.0]))
    with pytest.raises(ValueError, match=r"state must have memories of shape \(7, 6\)"):
        network.update(network_for(random_stream(num_nodes=8)).reset(), stream)
    with pytest.raises(ValueError, match=r"events must be of nodes from 0 to 6, got 7"):
        network.update(state, EventStream([7], [0], [0.0]))
    with_features = random_stream(num_features=2)
    for take_in in (network.update, partial(network, negatives=stream.negatives(1)[0])):
        with pytest.raises(ValueError, match=r"events must have the num_features of the network"):
            take_in(state, with_features)
