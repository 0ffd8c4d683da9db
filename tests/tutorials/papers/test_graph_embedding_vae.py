"""The page on the graph embedding VAE: its parts, and in full its claims."""

import random

import networkx
import pytest
import torch

from pyro_ext.models.graphs import pad_graphs

PAGE = "graph-embedding-vae"
pytestmark = pytest.mark.slow


def test_communities(names):
    """Connected, of 12 to 20 nodes, and cut in halves by one edge."""
    rng = random.Random(0)
    for graph in (names["community"](rng) for _ in range(30)):
        size = len(graph)
        assert 12 <= size <= 20 and networkx.is_connected(graph)
        assert list(graph) == list(range(size))
        parts = []
        for edge in networkx.bridges(graph):
            cut = graph.copy()
            cut.remove_edge(*edge)
            parts.append(min(map(len, networkx.connected_components(cut))))
        assert size // 2 in parts


def test_neighborhoods_are_different_graphs(names):
    graphs = names["real"]
    assert len(graphs) == 87 and all(6 <= len(graph) <= 30 for graph in graphs)
    assert len({frozenset(map(frozenset, graph.edges)) for graph in graphs}) == 87


def test_rivals_have_the_density_of_the_training_graphs(names):
    """Of 600 Erdős-Rényi graphs, within 4.4 standard errors."""
    train, sizes = names["on_communities"][0].test, [12, 17, 20] * 200
    adjacency, mask = pad_graphs(train)
    density = float(adjacency.sum() / (mask.sum(-1) * (mask.sum(-1) - 1)).sum())
    found = names["random_graphs"](train, sizes, 0)["Erdős-Rényi"]
    assert [len(graph) for graph in found] == sizes
    pairs = sum(size * (size - 1) // 2 for size in sizes)
    error = (density * (1 - density) / pairs) ** 0.5
    edges = sum(graph.number_of_edges() for graph in found)
    assert abs(edges / pairs - density) < 4.4 * error


def test_only_the_prior_differs_without_the_flow(names):
    one = names["on_communities"][0]
    vae, other = one.vae, one.bare
    for first, second in zip(vae.decoder.parameters(), other.decoder.parameters(), strict=True):
        assert torch.equal(first, second)
    mask, zero = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, 4)
    value = other.prior(mask).log_prob(zero) - 4 * torch.tensor(1 / vae.noise).log()
    torch.testing.assert_close(value, torch.full((1,), -6 * 1.8378771))
    assert len(list(vae.flow.layers)) > len(list(other.flow.layers)) == 1


@pytest.mark.page
@pytest.mark.statistical
def test_full_run_meets_its_claims_but_those_that_have_a_reason(full_run):
    """Its draws are the same with each run but for rounding."""
    claims = full_run.report.claims
    assert all(claim.holds or claim.reason for claim in claims)
