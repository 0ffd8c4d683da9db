"""Thresholds, filters, weights and smoothness."""

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from pyro_ext.models.temporal_graphs import (
    Defense,
    TShield,
    temporal_smoothness,
)


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
