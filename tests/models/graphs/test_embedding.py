"""Graphs as padded tensors, and eigenvectors of their Laplacians."""

import networkx
import pytest
import torch

from pyro_ext.models.graphs import pad_graphs, spectral_embedding

FLOATS = dict(dtype=torch.float64)


def rayleigh(graph, dim):
    """Quotients of the columns, which are the eigenvalues."""
    (adjacency,), _ = pad_graphs([graph], **FLOATS)
    x = spectral_embedding(adjacency, dim=dim)
    laplacian = torch.diag(adjacency.sum(-1)) - adjacency
    torch.testing.assert_close(x.T @ x / len(graph), torch.eye(dim, **FLOATS))
    return ((x.T @ laplacian @ x).diagonal() / len(graph)).tolist()


def test_eigenvalues():
    path, karate = networkx.path_graph(4), networkx.Graph(networkx.karate_club_graph().edges)
    assert rayleigh(path, 3) == pytest.approx([0.585786, 2.0, 3.414214], abs=1e-6)
    assert rayleigh(karate, 4) == pytest.approx([0.468525, 0.909248, 1.125011, 1.259404], abs=1e-6)


def test_conventions():
    """Columns have mean zero, a mean square of one, and cubes whose sum is positive."""
    graphs = [networkx.barabasi_albert_graph(size, 2, seed=size) for size in (9, 12)]
    adjacency, mask = pad_graphs(graphs, **FLOATS)
    x = spectral_embedding(adjacency, mask)
    size = mask.sum(-1)[:, None]
    torch.testing.assert_close(x.sum(1), torch.zeros(2, 4, **FLOATS), atol=1e-9, rtol=0)
    torch.testing.assert_close(x.square().sum(1) / size, torch.ones(2, 4, **FLOATS))
    assert bool((x.pow(3).sum(1) > 0).all()) and not x[0, 9:].any()
    alone = spectral_embedding(adjacency[0, :9, :9])
    torch.testing.assert_close(x[0, :9], alone, atol=1e-9, rtol=0)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    moved = spectral_embedding(adjacency[0, order][:, order])
    torch.testing.assert_close(moved, alone[order], atol=1e-9, rtol=0)


def test_random_signs():
    adjacency, _ = pad_graphs([networkx.barabasi_albert_graph(9, 2, seed=0)] * 50)
    torch.manual_seed(0)
    ratio = spectral_embedding(adjacency, sign="random") / spectral_embedding(adjacency)
    assert bool(torch.isclose(ratio.abs(), torch.ones(()), atol=1e-4).all())
    assert 70 < int((ratio[:, 0] < 0).sum()) < 130


def test_small_and_disconnected_graphs():
    """Columns that are not there are zero; those of parts tell the parts apart."""
    parts = networkx.disjoint_union(networkx.complete_graph(4), networkx.complete_graph(3))
    adjacency, mask = pad_graphs([networkx.path_graph(2), networkx.empty_graph(1), parts])
    x = spectral_embedding(adjacency, mask, dim=4)
    assert x[0].count_nonzero() == 2 and not x[1].any()
    torch.testing.assert_close(x[2, :4, 0], x[2, :1, 0].expand(4), atol=1e-5, rtol=0)
    assert float(x[2, 0, 0]) * float(x[2, 6, 0]) < 0


def test_graphs_of_other_kinds_are_refused(subtests):
    path, loop = networkx.path_graph(3), networkx.path_graph(3)
    loop.add_edge(1, 1)
    weighted = networkx.path_graph(2)
    weighted.add_edge(0, 1, weight=2.0)
    kinds = {
        "undirected": networkx.DiGraph([(0, 1)]),
        "self-loops": loop,
        "unweighted": weighted,
        "parallel": networkx.MultiGraph([(0, 1), (0, 1)]),
    }
    for word, graph in kinds.items():
        with subtests.test(word), pytest.raises(ValueError, match=f"graphs .*{word}.* index 1"):
            pad_graphs([path, graph])
    with pytest.raises(ValueError, match="adjacency must be symmetric.*nodes 0 and 1"):
        spectral_embedding(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
