"""Predictions of links and new graphs, against averages written out."""

import math

import pytest
import torch

from pyro_ext.models.nonparametric import graph_prediction
from pyro_ext.models.nonparametric.graph_guide import GraphGuide, spectral_memberships
from pyro_ext.models.nonparametric.graph_model import (
    EdgeOdds,
    GraphModel,
    MixedMembership,
    bfry_weights,
    gamma_weights,
    sample_graph,
)
from pyro_ext.models.nonparametric.graph_pairs import SimpleGraph, UnseenPairs
from pyro_ext.models.nonparametric.graph_prediction import (
    degree_odds,
    erdos_renyi_odds,
    log_link_probabilities,
    score_links,
    simulate_graphs,
)

DRAWS = [EdgeOdds(torch.tensor([1.0, 4.0, 2.0])), EdgeOdds(torch.tensor([3.0, 1.0, 9.0]))]
FIRST, SECOND = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])


def probability(pair):
    i, j = int(FIRST[pair]), int(SECOND[pair])
    odds = [float(draw.weights[i] * draw.weights[j] / draw.weights.sum()) for draw in DRAWS]
    return sum(value / (1 + value) for value in odds) / 2


def test_probabilities_are_averages_over_draws(monkeypatch):
    for at_once in (1, 2**18):
        monkeypatch.setattr(graph_prediction, "_PAIRS_AT_ONCE", at_once)
        present, absent = log_link_probabilities(DRAWS, FIRST, SECOND)
        expected = torch.tensor([probability(pair) for pair in range(3)])
        torch.testing.assert_close(present.exp(), expected)
        torch.testing.assert_close(absent.exp(), 1 - expected)


def test_scores_count_pairs_by_their_weights():
    is_edge = torch.tensor([False, True, False])
    test = UnseenPairs(FIRST, SECOND, is_edge, torch.tensor([5.0, 1.0, 2.0]))
    scores = score_links(DRAWS, test)
    first, edge, third = (probability(pair) for pair in range(3))
    expected = 5 * math.log(1 - first) + math.log(edge) + 2 * math.log(1 - third)
    assert scores.log_likelihood == pytest.approx(expected, rel=1e-5)
    assert scores.auc == pytest.approx((5 * (edge > first) + 2 * (edge > third)) / 7)
    above = 5 * (first > edge) + 2 * (third > edge)
    assert scores.average_precision == pytest.approx(1 / (1 + above))
    for kind in (torch.ones(3), torch.zeros(3)):
        with pytest.raises(ValueError, match="test must hold edges and pairs without an edge"):
            score_links(DRAWS, test._replace(is_edge=kind.bool()))


def test_baselines_expect_as_many_edges_as_there_are():
    graph, _ = sample_graph(EdgeOdds(torch.full((200,), 4.0)), seed=0).hold_out(0.2, seed=0)
    first, second = torch.triu_indices(200, 200, 1)
    observed = graph.is_observed(first, second)
    for odds in (erdos_renyi_odds(graph), degree_odds(graph)):
        expected = float((odds.log(first, second).sigmoid() * observed).sum())
        assert expected == pytest.approx(graph.num_edges, rel=0.15)
    share = float(erdos_renyi_odds(graph).log(first, second)[0].sigmoid())
    observed_pairs = 0.8 * graph.num_pairs
    assert share == pytest.approx((graph.num_edges + 0.5) / (observed_pairs + 1), rel=1e-4)
    weights = degree_odds(graph).weights
    torch.testing.assert_close(weights, (graph.degrees.float() + 0.5) / 0.8)


def test_new_graphs_are_of_new_weights():
    graph = SimpleGraph(60, torch.triu_indices(12, 12, 1).T)
    model = GraphModel(bfry_weights(60))
    guide = GraphGuide(model, graph, seed=0).fit(20, progress=False)
    graphs = list(simulate_graphs(guide, 3, seed=0))
    again = list(simulate_graphs(guide, 3, seed=0))
    assert all(
        torch.equal(one.edges, other.edges) for one, other in zip(graphs, again, strict=True)
    )
    assert len({one.num_edges for one in graphs}) > 1
    assert all(one.num_nodes == 60 and one.held_out is None for one in graphs)
    # The first dozen nodes have all the edges of the graph, and no more than others of a new one.
    heads = sum(int((one.edges < 12).all(-1).sum()) for one in graphs)
    assert heads < 0.5 * sum(one.num_edges for one in graphs)


def test_new_graphs_have_the_rates_of_the_posterior(monkeypatch):
    """Rates are of communities and not of nodes: those of the guide are far from the prior's."""
    graph = SimpleGraph(30, torch.triu_indices(6, 6, 1).T)
    guide = GraphGuide(GraphModel(gamma_weights(), MixedMembership(2)), graph, seed=0)
    with torch.no_grad():
        guide.rate_concentration_unconstrained += 5.0
        guide.rate_rate_unconstrained += 1.0
    guide.sample(1)  # makes the parameters of the inner guide
    drawn = []
    monkeypatch.setattr(
        graph_prediction, "sample_graph", lambda odds, seed: drawn.append(odds) or graph
    )
    list(simulate_graphs(guide, 2, seed=0))
    expected = guide.sample(2, seed=0)
    for odds, rates, shares in zip(drawn, expected["rates"], expected["memberships"], strict=True):
        torch.testing.assert_close(odds.rates, guide.model.communities.matrix(rates))
        assert not torch.equal(odds.memberships, shares)


def test_start_of_communities_does_not_depend_on_degrees():
    """Two groups, in each of which there are some nodes with many edges."""
    group = torch.arange(120) // 60
    shares = torch.nn.functional.one_hot(group).float()
    weights = torch.where(torch.arange(120) % 60 < 6, 40.0, 6.0)
    odds = EdgeOdds(weights, shares, torch.tensor([[2.0, 0.1], [0.1, 2.0]]))
    found = spectral_memberships(sample_graph(odds, seed=0), 2, seed=0)
    agreement = float((found.argmax(-1) == group).float().mean())
    assert max(agreement, 1 - agreement) > 0.9
    torch.testing.assert_close(found.sum(-1), torch.ones(120))
    assert sorted(found.unique().tolist()) == pytest.approx([0.1, 0.9])


def test_starts_out_of_range_are_refused():
    message = "num_communities must be less than the number of nodes, 5, got 5"
    with pytest.raises(ValueError, match=message):
        spectral_memberships(SimpleGraph(5, torch.tensor([[0, 1]])), 5)
