"""Thresholds, filters, weights and smoothness."""

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from pyro_ext.models.temporal_graphs import (
    CosineFilter,
    Defense,
    EventStream,
    LowRankWeights,
    TShield,
    temporal_smoothness,
)
from tests.models.temporal_graphs.helpers import random_stream


def test_thresholds_rise_from_the_first_to_the_last():
    shield = TShield(0.6, 0.9)
    assert shield.threshold(0.0) == 0.6 and shield.threshold(1.0) == pytest.approx(0.9)
    assert shield.threshold(0.5) == pytest.approx(0.75)
    assert 0.89 < shield.threshold(19 / 20) < 0.9
    assert TShield(0.6, 0.9, schedule="linear").threshold(0.25) == pytest.approx(0.675)
    assert TShield(0.6, 0.9, schedule="fixed").threshold(0.0) == 0.9


def test_filter_keeps_what_is_plausible_and_half_at_least():
    probabilities = torch.tensor([0.1, 0.2, 0.35, 0.5, 0.75, 0.9])
    logits, nothing = probabilities.logit(), torch.zeros(2, 6, 4)
    shield = TShield(0.0, 0.4)
    assert shield.keep(logits, nothing, 0.0).all()
    assert shield.keep(logits, nothing).tolist() == [False] * 3 + [True] * 3
    # A threshold that is too high leaves the better half.
    assert TShield(0.0, 0.8).keep(logits, nothing).tolist() == [False] * 3 + [True] * 3
    everything = TShield(0.0, 0.95, min_kept=0.0)
    assert not everything.keep(logits, nothing).any()
    assert TShield(0.0, 0.95, min_kept=1.0).keep(logits, nothing).all()
    assert Defense().keep(logits, nothing).all() and not Defense.filters


def test_smoothness_is_minus_the_mean_of_decayed_cosines():
    torch.manual_seed(0)
    h, before = torch.randn(5, 4), torch.randn(5, 4)
    lapse = torch.tensor([0.0, 10.0, math.nan, 500.0, math.nan])
    seen = [0, 1, 3]
    expected = sum(
        math.exp(-0.01 * float(lapse[i])) * float(cosine_similarity(h[i], before[i], dim=0))
        for i in seen
    )
    found = temporal_smoothness(h, before, lapse, 0.01)
    assert float(found) == pytest.approx(-expected / 3, abs=1e-6) and -1.0 <= found <= 1.0
    assert float(temporal_smoothness(h, h, lapse, 0.0)) == pytest.approx(-1.0)
    assert float(temporal_smoothness(h, -h, lapse, 0.0)) == pytest.approx(1.0)
    assert float(temporal_smoothness(h, before, torch.full((5,), math.nan))) == 0.0


def test_smoothness_moves_the_new_embeddings_alone():
    h, before = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    temporal_smoothness(h, before, torch.zeros(3)).backward()
    assert h.grad is not None and before.grad is None


def test_cosine_filter():
    angles = torch.tensor([0.0, 0.9, 1.1, 3.0])
    sources = torch.tensor([1.0, 0.0]).expand(4, 2)
    destinations = 3.0 * torch.stack([angles.cos(), angles.sin()], -1)
    keep = CosineFilter(0.5).keep(torch.zeros(4), torch.stack([sources, destinations]))
    assert keep.tolist() == [True, True, False, False]


def test_low_rank_weights_are_those_of_the_whole_decomposition():
    stream = random_stream(30, 9)
    graph = torch.zeros(9, 9)
    graph[stream.sources, stream.destinations] = 1.0
    graph[stream.destinations, stream.sources] = 1.0
    left, values, right = torch.linalg.svd(graph)
    gap = values.diff().abs()
    rank = int(gap[:6].argmax()) + 1  # a rank at which the approximation is unique
    near = (left[:, :rank] * values[:rank]) @ right[:rank]
    expected = near[stream.sources, stream.destinations].clamp(min=1e-3)
    found = LowRankWeights(rank).weights(stream)
    torch.testing.assert_close(found, expected / expected.mean(), rtol=1e-4, atol=1e-4)
    assert torch.equal(found, LowRankWeights(rank).weights(stream))
    with pytest.raises(ValueError, match=r"rank must be less than the 2 nodes of the stream"):
        LowRankWeights(2).weights(EventStream([0], [1], [0.0]))
