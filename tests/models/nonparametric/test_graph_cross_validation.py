"""The truncation of weights, by held-out links."""

import pytest
import torch

from pyro_ext.models.nonparametric import (
    GraphGuide,
    GraphModel,
    MixedMembership,
    SimpleGraph,
    bfry_weights,
    cross_validate_truncation,
    score_links,
)

EDGES = torch.triu_indices(9, 9, 1).T
GRAPH = SimpleGraph(30, torch.cat([EDGES, torch.tensor([[0, i] for i in range(9, 30)])]))
OPTIONS = {"num_splits": 2, "num_steps": 20, "num_samples": 5}


@pytest.mark.slow
def test_scores_are_those_of_guides_of_graphs_with_pairs_held_out(monkeypatch):
    splits, hold_out = [], SimpleGraph.hold_out

    def recorded(self, *args, **kwargs):
        splits.append((kwargs["seed"], hold_out(self, *args, **kwargs)))
        return splits[-1][1]

    monkeypatch.setattr(SimpleGraph, "hold_out", recorded)
    before = torch.get_rng_state()
    scores = cross_validate_truncation(GRAPH, [0.5, 1.0], fraction=0.3, **OPTIONS, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(scores) == [0.5, 1.0] and len({seed for seed, _ in splits}) == 2
    for row, (seed, (train, test)) in enumerate(splits):
        assert train.observed_fraction == pytest.approx(0.7)
        for beta, found in scores.items():
            guide = GraphGuide(GraphModel(bfry_weights(30, beta)), train, seed=seed)
            guide.fit(20, progress=False)
            expected = score_links(guide.odds(5, seed=seed), test).log_likelihood
            assert float(found[row]) == pytest.approx(expected, rel=1e-5)


def test_pairs_that_are_held_out_already_play_no_part_and_communities_may():
    train, _ = GRAPH.hold_out(0.2, seed=0)
    scores = cross_validate_truncation(train, [0.8], MixedMembership(2), **OPTIONS)
    again = cross_validate_truncation(train, [0.8], MixedMembership(2), **OPTIONS)
    assert scores[0.8].shape == (2,) and torch.equal(scores[0.8], again[0.8])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"truncations": []}, "truncations must be a list of numbers, at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cross_validate_truncation(GRAPH, **arguments)
