"""Graphs with pairs that are held out, and random pairs, against lists of all pairs."""

import itertools

import pytest
import torch
from scipy.stats import chi2

from pyro_ext.models.nonparametric import graph_pairs
from pyro_ext.models.nonparametric.graph_pairs import HeldOutPairs, SimpleGraph, draw_nodes


def random_graph(num_nodes, probability, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.triu_indices(num_nodes, num_nodes, 1).T
    return SimpleGraph(num_nodes, pairs[torch.rand(len(pairs), generator=generator) < probability])


def all_pairs(num_nodes):
    return list(itertools.combinations(range(num_nodes), 2))


def test_edges_are_sorted_and_counted_once():
    edges = torch.tensor([[3, 1], [0, 2], [1, 3], [2, 0], [0, 1]], dtype=torch.int32)
    graph = SimpleGraph(5, edges)
    assert graph.edges.tolist() == [[0, 1], [0, 2], [1, 3]]
    assert graph.edges.dtype == torch.int64
    assert graph.degrees.tolist() == [2, 2, 1, 1, 0]
    assert (graph.num_edges, graph.num_pairs, graph.observed_fraction) == (3, 10, 1.0)
    assert repr(graph) == "SimpleGraph(5 nodes, 3 edges)"


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        ([0, 3], r"edges must join nodes in 0 \.\. 2, got 0 \.\. 3"),
        ([2, 2], "edges must join different nodes, got a loop at 2"),
    ],
)
def test_edges_that_do_not_fit_are_refused(edge, message):
    with pytest.raises(ValueError, match=message):
        SimpleGraph(3, torch.tensor([edge]))


def test_graphs_without_edges_are_graphs():
    graph = SimpleGraph(3, torch.empty(0, 2, dtype=torch.int64))
    assert graph.degrees.tolist() == [0, 0, 0]
    assert not graph.has_edge(torch.tensor([0, 1]), torch.tensor([1, 2])).any()


def test_edges_are_found():
    graph = random_graph(12, 0.3)
    edges = {tuple(edge) for edge in graph.edges.tolist()}
    first, second = torch.cartesian_prod(torch.arange(12), torch.arange(12)).T
    expected = [
        (min(i, j), max(i, j)) in edges
        for i, j in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert graph.has_edge(first, second).tolist() == expected


@pytest.mark.parametrize("largest", [1, 20, 10_000])
def test_blocks_hold_each_pair_once(largest, monkeypatch):
    monkeypatch.setattr(graph_pairs, "_LARGEST_BLOCK", largest)
    graph = SimpleGraph(9, torch.tensor([[0, 1], [4, 7]]))
    found, blocks = [], list(graph.row_blocks())
    for first, second in blocks:
        rows, columns = (first < second).nonzero().T
        found += list(zip(first[rows, 0].tolist(), second[0, columns].tolist(), strict=True))
        assert first.numel() * second.numel() <= max(largest, 9)
    assert sorted(found) == all_pairs(9) and (len(blocks) == 1) == (largest == 10_000)


@pytest.mark.statistical
def test_pairs_are_held_out_at_the_rate_wanted():
    """Mean of 499,500 indicators within 4.5 standard errors: one seed in 150,000 would fail."""
    first, second = torch.triu_indices(1000, 1000, 1)
    is_out = HeldOutPairs(0.2, 3).contains(first, second)
    error = (0.2 * 0.8 / len(first)) ** 0.5
    assert abs(float(is_out.double().mean()) - 0.2) < 4.5 * error
    assert torch.equal(is_out, HeldOutPairs(0.2, 3).contains(second, first))
    other = HeldOutPairs(0.2, 4).contains(first, second)
    assert abs(float((is_out & other).double().mean()) - 0.04) < 4.5 * (0.04 / len(first)) ** 0.5


def test_pairs_are_either_observed_or_test_pairs():
    graph = random_graph(40, 0.2)
    train, test = graph.hold_out(0.3, seed=5)
    first, second = torch.tensor(all_pairs(40)).T
    is_observed = train.is_observed(first, second)
    left = set(zip(first[~is_observed].tolist(), second[~is_observed].tolist(), strict=True))
    tested = list(zip(test.first.tolist(), test.second.tolist(), strict=True))
    assert len(tested) == len(set(tested)) and set(tested) == left
    assert torch.equal(test.is_edge, graph.has_edge(test.first, test.second))
    assert train.num_edges + int(test.is_edge.sum()) == graph.num_edges
    assert bool((test.weight == 1).all()) and train.observed_fraction == pytest.approx(0.7)
    assert not train.is_observed(first, first).any()
    assert "30% held out" in repr(train)


def test_large_graphs_are_tested_on_some_pairs():
    graph = random_graph(200, 0.05)
    train, test = graph.hold_out(0.3, seed=5, max_non_edges=100)
    rest = ~test.is_edge
    assert int(rest.sum()) == 100
    assert not graph.has_edge(test.first[rest], test.second[rest]).any()
    assert not train.is_observed(test.first, test.second).any()
    assert len({*zip(test.first.tolist(), test.second.tolist(), strict=True)}) == len(test.first)
    number = 0.3 * graph.num_pairs - int(test.is_edge.sum())
    assert float(test.weight[rest].sum()) == pytest.approx(number)
    again = graph.hold_out(0.3, seed=5, max_non_edges=100)[1]
    assert torch.equal(test.first, again.first) and torch.equal(test.second, again.second)


def test_few_non_edges_are_all_found_and_counted(subtests):
    """Of graphs that lack few edges, of which fewer may be held out than there are on average."""
    for seed in range(10):
        with subtests.test(seed=seed):
            graph = SimpleGraph(12, torch.tensor(all_pairs(12))[3:])
            _, every = graph.hold_out(0.3, seed=seed)
            _, some = graph.hold_out(0.3, seed=seed, max_non_edges=2)
            number = int((~every.is_edge).sum())
            assert int((~some.is_edge).sum()) == min(number, 2)
            assert float(some.weight[~some.is_edge].sum()) == pytest.approx(number)


def test_pairs_can_be_held_out_once_more():
    graph = random_graph(40, 0.2)
    first, first_test = graph.hold_out(0.3, seed=5)
    second, test = first.hold_out(0.4, seed=6)
    seen = [
        {*zip(part.first.tolist(), part.second.tolist(), strict=True)}
        for part in (first_test, test)
    ]
    assert not seen[0] & seen[1] and len(seen[1]) == len(test.first)
    left = torch.tensor(all_pairs(40)).T
    observed = {*map(tuple, left.T[second.is_observed(*left)].tolist())}
    assert observed | seen[0] | seen[1] == set(all_pairs(40))
    assert len(observed) + len(seen[0]) + len(seen[1]) == len(all_pairs(40))
    assert second.observed_fraction == pytest.approx(0.7 * 0.6) and "58% held out" in repr(second)
    some = first.hold_out(0.4, seed=6, max_non_edges=20)[1]
    assert {*zip(some.first.tolist(), some.second.tolist(), strict=True)} <= seen[1]
    assert float(some.weight.sum()) == pytest.approx(len(seen[1]), rel=0.1)
    with pytest.raises(ValueError, match="seed must differ from those of pairs .* already, got 5"):
        second.hold_out(0.1, seed=5)


def test_what_was_held_out_cannot_be_an_edge():
    graph = random_graph(40, 0.2)
    train, _ = graph.hold_out(0.3, seed=5)
    with pytest.raises(ValueError, match="edges must not be among the pairs that are held out"):
        SimpleGraph(40, graph.edges, train.held_out)


@pytest.mark.statistical
def test_random_pairs_come_as_often_as_their_weights_say():
    """Chi-squared tests of 35 cells at 1e-4, whose sums of weights are those of a list."""
    graph, _ = random_graph(6, 0.5).hold_out(0.4, seed=1)
    number = 40_000
    pairs = graph.sample_pairs(number)
    shares = graph.degrees.double() + 1.0
    shares /= shares.sum()
    expected = torch.outer(shares, shares).flatten() * number
    found = (6 * pairs.first + pairs.second).bincount(minlength=36)
    statistic = float(((found - expected) ** 2 / expected).sum())
    assert statistic < chi2.ppf(1 - 1e-4, 35)
    # The mean of the weights over all pairs is one half for each order of a pair.
    is_observed = graph.is_observed(pairs.first, pairs.second)
    mean = pairs.weight * expected[6 * pairs.first + pairs.second]
    torch.testing.assert_close(mean, 0.5 * is_observed.double())
    assert 0 < int(is_observed.sum()) < number


@pytest.mark.statistical
def test_nodes_are_drawn_with_their_probabilities():
    """A chi-squared test at 1e-4; the node without probability never comes."""
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0, 5.0]).double()
    found = draw_nodes(weights, 20_000).bincount(minlength=5).double()
    expected = 20_000 * weights / weights.sum()
    assert found[0] == found[3] == 0
    wanted = expected > 0
    statistic = float(((found - expected)[wanted] ** 2 / expected[wanted]).sum())
    assert statistic < chi2.ppf(1 - 1e-4, 2)
