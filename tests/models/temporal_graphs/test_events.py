"""Order, parts and negatives of streams of events."""

import numpy as np
import pytest
import torch

from pyro_ext.models.temporal_graphs import EventStream
from pyro_ext.models.temporal_graphs.events import merged
from tests.models.temporal_graphs.helpers import random_stream

FIELDS = ("sources", "destinations", "times", "features", "fake")


def same(first, second):
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in FIELDS)


def test_events_are_sorted_and_ties_keep_their_order():
    stream = EventStream(
        [3, 0, 1, 2], [0, 1, 2, 3], [5.0, 1.0, 5.0, 1.0], [[0.0], [1.0], [2.0], [3.0]]
    )
    assert stream.sources.tolist() == [0, 2, 3, 1] and stream.destinations.tolist() == [1, 3, 0, 2]
    assert stream.times.tolist() == [1.0, 1.0, 5.0, 5.0]
    assert stream.features[:, 0].tolist() == [1.0, 3.0, 0.0, 2.0]


def test_seconds_since_1970_are_exact():
    start = 1291597340
    times = np.arange(start, start + 5)
    stream = EventStream(torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.long), times)
    assert stream.times.dtype == torch.float64 and stream.times.diff().tolist() == [1.0] * 4


def test_batches_and_splits_are_the_stream_again():
    stream = random_stream(num_features=2)
    for parts in (stream.batches(25), stream.split(0.5, 0.2)):
        assert same(merged(parts), stream)
    assert [len(part) for part in stream.split(0.5, 0.2)] == [30, 12, 18]
    assert [len(part) for part in stream.batches(25)] == [25, 25, 10]
    assert [event.sources.item() for event in stream] == stream.sources.tolist()


def test_merging_sorts_and_marks():
    stream = random_stream()
    fake = EventStream([0, 1], [1, 2], [-1.0, 30.0], num_nodes=7, fake=[True, True])
    joined = merged([stream, fake])
    assert len(joined) == 62 and int(joined.fake.sum()) == 2 and bool(joined.fake[0])
    assert bool((joined.times.diff() >= 0).all()) and same(joined.real, stream)
    none = stream[:0]
    assert same(merged([stream, none]), stream) and len(merged([none, none])) == 0


def test_negatives_are_uniform_without_the_true_destination():
    """False alarms 1e-6: counts of 5 binomials within 4.9 standard deviations."""
    stream = EventStream([0], [2], [0.0], num_nodes=6)
    drawn = torch.bincount(stream.negatives(50_000)[:, 0], minlength=6)
    assert drawn[2] == 0
    sd = (50_000 * 0.2 * 0.8) ** 0.5
    assert bool(((drawn[[0, 1, 3, 4, 5]] - 10_000).abs() < 4.9 * sd).all())
    # From elsewhere, where the true one is not in the pool.
    drawn = torch.bincount(stream.negatives(50_000, torch.tensor([5, 0, 3, 3]))[:, 0], minlength=6)
    assert drawn[[1, 2, 4]].sum() == 0 and drawn[[0, 3, 5]].min() > 16_000


def test_negatives_of_bipartite_streams_are_destinations():
    stream = EventStream([0, 1, 0], [4, 5, 3], [0.0, 1.0, 2.0], num_nodes=9, bipartite=True)
    drawn = stream.negatives(200)
    assert set(drawn.flatten().tolist()) == {3, 4, 5}
    assert not bool((drawn == stream.destinations).any())


def test_what_is_no_stream():
    with pytest.raises(ValueError, match=r"num_nodes must be more than the node 5, got 4"):
        EventStream([0], [5], [0.0], num_nodes=4)
    with pytest.raises(ValueError, match=r"bipartite must be False if a node is both"):
        EventStream([0, 1], [1, 2], [0.0, 1.0], bipartite=True)
    with pytest.raises(ValueError, match=r"fractions must leave events to each part of 3"):
        EventStream([0, 1, 2], [1, 2, 0], [0.0, 1.0, 2.0]).split(0.1)
    with pytest.raises(ValueError, match=r"index must not change the order of time"):
        random_stream()[torch.tensor([5, 0])]
