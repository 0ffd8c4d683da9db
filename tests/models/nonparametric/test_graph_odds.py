"""Likelihood and draws of random graphs, against lists of all pairs and of all graphs."""

import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from scipy.stats import chi2

from pyro_ext.models.nonparametric import graph_model, graph_pairs
from pyro_ext.models.nonparametric.graph_model import (
    EdgeOdds,
    graph_log_likelihood,
    log_non_edges,
    sample_graph,
)
from pyro_ext.models.nonparametric.graph_pairs import SimpleGraph

WEIGHTS = [0.5, 2.0, 7.0, 1.5]
SHARES = [[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.0, 1.0]]
RATES = [[1.7, 0.2], [0.2, 0.9]]


def odds_of(communities, dtype=torch.float64):
    parts = [WEIGHTS, SHARES, RATES] if communities else [WEIGHTS]
    return EdgeOdds(*(torch.tensor(part, dtype=dtype) for part in parts))


def exact_odds(first, second, communities):
    affinity = 1.0
    if communities:
        affinity = sum(
            SHARES[first][a] * RATES[a][b] * SHARES[second][b] for a in range(2) for b in range(2)
        )
    return affinity * WEIGHTS[first] * WEIGHTS[second] / sum(WEIGHTS)


def exact_log_probability(edges, communities):
    total = 0.0
    for pair in itertools.combinations(range(4), 2):
        odds = exact_odds(*pair, communities)
        total += math.log(odds) * (pair in edges) - math.log(1 + odds)
    return total


def all_graphs():
    pairs = list(itertools.combinations(range(4), 2))
    for chosen in itertools.product([False, True], repeat=len(pairs)):
        yield [pair for pair, present in zip(pairs, chosen, strict=True) if present]


@pytest.mark.parametrize("communities", [False, True])
def test_likelihood_is_that_of_a_list_of_pairs(communities):
    odds, total = odds_of(communities), 0.0
    for edges in all_graphs():
        graph = SimpleGraph(4, torch.tensor(edges, dtype=torch.int64).view(-1, 2))
        found = float(graph_log_likelihood(odds, graph))
        assert found == pytest.approx(exact_log_probability(edges, communities), rel=1e-12)
        total += math.exp(found)
    assert total == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("communities", [False, True])
def test_pairs_that_are_held_out_count_for_nothing(communities):
    graph, test = SimpleGraph(4, torch.tensor([[0, 1], [1, 2], [2, 3]])).hold_out(0.5, seed=1)
    left = {*zip(test.first.tolist(), test.second.tolist(), strict=True)}
    assert 0 < len(left) < 6
    expected = 0.0
    for pair in set(itertools.combinations(range(4), 2)) - left:
        odds = exact_odds(*pair, communities)
        expected += math.log(odds) * (list(pair) in graph.edges.tolist()) - math.log(1 + odds)
    assert float(graph_log_likelihood(odds_of(communities), graph)) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("communities", [False, True])
def test_blocks_change_nothing_and_gradients_are_those_of_differences(communities, monkeypatch):
    graph, _ = SimpleGraph(4, torch.tensor([[0, 1], [1, 2], [2, 3]])).hold_out(0.3, seed=2)
    odds = odds_of(communities)
    parts = [odds.weights, odds.memberships, odds.rates] if communities else [odds.weights]
    parts = [part.requires_grad_() for part in parts]
    whole = log_non_edges(EdgeOdds(*parts), graph)
    gradients = torch.autograd.grad(whole, parts)
    monkeypatch.setattr(graph_pairs, "_LARGEST_BLOCK", 1)
    assert len(list(graph.row_blocks())) == 4
    blockwise = log_non_edges(EdgeOdds(*parts), graph)
    torch.testing.assert_close(blockwise, whole)
    torch.testing.assert_close(torch.autograd.grad(blockwise, parts), gradients)
    with pyro.validation_enabled(False):  # a share of zero is moved to both sides
        assert torch.autograd.gradcheck(lambda *p: graph_log_likelihood(EdgeOdds(*p), graph), parts)


def test_likelihood_holds_one_block_at_a_time(monkeypatch):
    """What the gradient keeps for later stays linear in the number of nodes."""
    kept = []
    monkeypatch.setattr(graph_pairs, "_LARGEST_BLOCK", 1_000)
    graph = SimpleGraph(300, torch.tensor([[0, 1]]))
    weights = torch.rand(300).requires_grad_()

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = log_non_edges(EdgeOdds(weights), graph)
    assert sum(kept) < 100 * 300
    total.backward()
    assert bool(weights.grad.isfinite().all())


def test_odds_of_tiny_and_huge_weights_are_finite():
    weights = torch.tensor([1e-38, 1e-38, 1e18, 1e18]).requires_grad_()
    value = graph_log_likelihood(EdgeOdds(weights), SimpleGraph(4, torch.tensor([[0, 1], [0, 2]])))
    value.backward()
    assert bool(value.isfinite()) and bool(weights.grad.isfinite().all())


@pytest.mark.statistical
@pytest.mark.parametrize("communities", [False, True])
def test_draws_have_the_probabilities_of_all_graphs(communities):
    """A chi-squared test of the 64 graphs of four nodes at 1e-4, pooled where few are expected."""
    number = 4_000
    odds = odds_of(communities, torch.float32)
    graphs = [tuple(map(tuple, sample_graph(odds, seed=s).edges.tolist())) for s in range(number)]
    expected = {
        tuple(edges): number * math.exp(exact_log_probability(edges, communities))
        for edges in all_graphs()
    }
    large = [edges for edges, value in expected.items() if value >= 5]
    found = [graphs.count(edges) for edges in large]
    wanted = [expected[edges] for edges in large]
    cells = np.array(
        [*zip(found, wanted, strict=True), (number - sum(found), number - sum(wanted))]
    )
    statistic = float(((cells[:, 0] - cells[:, 1]) ** 2 / cells[:, 1]).sum())
    assert statistic < chi2.ppf(1 - 1e-4, len(cells) - 1)


def test_draws_come_in_parts(monkeypatch):
    odds = EdgeOdds(torch.full((300,), 20.0))
    graph = sample_graph(odds, seed=3)
    monkeypatch.setattr(graph_model, "_MOST_CANDIDATES", 500)
    parts = sample_graph(odds, seed=3)
    odds_each = 20.0 / 300.0
    mean = graph.num_pairs * odds_each / (1 + odds_each)
    for other in (graph, parts):
        assert abs(other.num_edges - mean) < 4.5 * mean**0.5


TWO = torch.tensor([2.0, 3.0, 1.0])
SHARED = torch.full((3, 2), 0.5)
BAD_ODDS = {
    "weights must be finite and >= 0, got -3 in row 1": lambda: EdgeOdds([1.0, -3.0, 2.0]),
    "weights must not all be zero": lambda: EdgeOdds([0.0, 0.0]),
    "memberships and rates must be given together": lambda: EdgeOdds(TWO, SHARED),
    "memberships must have the shape [(]3, num_comm": lambda: EdgeOdds(
        TWO, SHARED[:2], torch.eye(2)
    ),
    "rates must have the shape [(]2, 2[)]": lambda: EdgeOdds(TWO, SHARED, torch.eye(3)),
    "rates must be symmetric": lambda: EdgeOdds(
        TWO, SHARED, torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    ),
    "odds must have one weight for each of 6 nodes, got 9": lambda: graph_log_likelihood(
        EdgeOdds(torch.ones(9)), SimpleGraph(6, torch.tensor([[0, 1]]))
    ),
    "odds must have half the sum .* got 5e[+]09 and 49,999,995,000,000": lambda: sample_graph(
        EdgeOdds(torch.full((10_000_000,), 1e3))
    ),
}


def test_odds_that_are_none(subtests):
    for message, make in BAD_ODDS.items():
        with subtests.test(message), pytest.raises(ValueError, match=message):
            make()


def test_a_graph_whose_edges_are_nearly_certain():
    """It is drawn pair by pair, since points of a process would be billions."""
    assert sample_graph(EdgeOdds([1e9] * 3), seed=0).num_edges == 3


@pytest.mark.statistical
def test_pairs_by_themselves_have_their_probabilities():
    """The number of edges of each pair is within 4.5 standard errors: one seed in 15,000 fails."""
    odds, number = EdgeOdds(torch.tensor([3.0, 5.0, 2.0, 9.0])), 2_000
    counts = torch.zeros(4, 4)
    for seed in range(number):
        first, second = sample_graph(odds, seed=seed).edges.T
        counts[first, second] += 1
    first, second = torch.triu_indices(4, 4, 1)
    chance = odds.log(first, second).sigmoid()
    scores = (counts[first, second] - number * chance) / (number * chance * (1 - chance)).sqrt()
    assert float(scores.abs().max()) < 4.5
    assert float(counts.sum() - counts[first, second].sum()) == 0
