"""Random graphs with independent edges: sparse and dense densities, draws, refusals, inference."""

import networkx
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.distributions import BernoulliExponentialGraph, LogitGraph
from pyro_ext.inference import MCMC, NUTS


def edges_of(adjacency):
    return adjacency.triu(1).nonzero()


@pytest.mark.usefixtures("float64")
def test_sparse_and_dense_densities_agree():
    torch.manual_seed(0)
    rates = torch.rand(5, 6, 3)
    graph = BernoulliExponentialGraph(rates)
    for _ in range(20):
        adjacency = BernoulliExponentialGraph(rates[0]).sample()
        dense, sparse = graph.log_prob(adjacency), graph.log_prob_edges(edges_of(adjacency))
        torch.testing.assert_close(dense, sparse, atol=1e-13, rtol=1e-13)
    total, own = rates.sum(-2).square().sum(-1), rates.square().sum((-1, -2))
    torch.testing.assert_close(graph.log_prob(torch.zeros(6, 6)), -(total - own) / 2)


def test_sparse_density_is_precise_where_one_node_outweighs_all_others():
    """The difference of squares would lose all digits."""
    rates = torch.full((4, 1), 1e-4)
    rates[0] = 1e3
    value = BernoulliExponentialGraph(rates).log_prob_edges(torch.zeros(0, 2, dtype=torch.int64))
    assert float(value) == pytest.approx(-0.3 - 3e-8, rel=1e-6)


@pytest.mark.usefixtures("float64")
def test_padding_changes_nothing():
    torch.manual_seed(0)
    rates, mask = torch.rand(5, 2), torch.tensor([True, False, True, True, False])
    padded = BernoulliExponentialGraph(torch.where(mask[:, None], rates, torch.nan), mask)
    alone = BernoulliExponentialGraph(rates[mask])
    adjacency = padded.sample()
    kept = adjacency[mask][:, mask]
    torch.testing.assert_close(padded.log_prob(adjacency), alone.log_prob(kept))
    edges = edges_of(adjacency)
    torch.testing.assert_close(padded.log_prob_edges(edges), alone.log_prob(kept))
    assert not adjacency[~mask].any()
    features = torch.randn(5, 2)
    padded, alone = LogitGraph(features, 0.3, 0.1, mask), LogitGraph(features[mask], 0.3, 0.1)
    torch.testing.assert_close(padded.log_prob(adjacency), alone.log_prob(kept))


@pytest.mark.statistical
@pytest.mark.usefixtures("float64")
def test_frequencies_of_sparse_draws():
    """Of 15 pairs each within 4.4 standard errors: false alarms 1.6e-4."""
    torch.manual_seed(0)
    graph = BernoulliExponentialGraph(torch.rand(6, 3) * torch.tensor([1.0, 0.0, 0.7]))
    number, counts = 3_000, torch.zeros(6, 6)
    for _ in range(number):
        first, second = graph.sample_edges().T
        assert bool((first < second).all())
        counts[first, second] += 1
    exact = graph.mean.triu(1)
    error = (graph.variance / number).sqrt()
    assert bool(((counts / number - exact).abs() <= 4.4 * error).all())


@pytest.mark.statistical
def test_many_edges_are_drawn():
    """Number of edges of 100,000 nodes within 4.4 standard errors: false alarms 1e-5."""
    torch.manual_seed(0)
    rates = torch.rand(100_000, 2, dtype=torch.float64) * 0.01
    rates[::3] = 0.0
    edges = BernoulliExponentialGraph(rates).sample_edges()
    mean = float((rates.sum(0).square().sum() - rates.square().sum()) / 2)
    assert abs(len(edges) - mean) < 4.4 * mean**0.5 and 100_000 < mean
    assert not bool((edges % 3 == 0).any())
    assert bool((edges[:, 0] < edges[:, 1]).all()) and len(edges.unique(dim=0)) == len(edges)


def test_no_edges_and_single_nodes():
    graph = BernoulliExponentialGraph(torch.zeros(3, 2))
    assert graph.sample_edges().shape == (0, 2)
    assert float(graph.log_prob(torch.zeros(3, 3))) == 0.0
    assert float(graph.log_prob(1.0 - torch.eye(3))) == -torch.inf
    single = BernoulliExponentialGraph(torch.ones(1, 2))
    assert single.sample().tolist() == [[0.0]] and single.sample_edges().shape == (0, 2)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_adjacency_of_any_type(kind):
    adjacency = torch.tensor([[0, 1], [1, 0]]).to(kind)
    value = BernoulliExponentialGraph(torch.ones(2, 1)).log_prob(adjacency)
    assert float(value) == pytest.approx(-0.4586751)


def test_graphs_of_other_kinds_are_refused(subtests):
    graph = BernoulliExponentialGraph(torch.ones(3, 1), torch.tensor([True, True, False]))
    values = {
        "undirected": [[0, 1, 0], [0, 0, 0], [0, 0, 0]],
        "unweighted": [[0, 2, 0], [2, 0, 0], [0, 0, 0]],
        "self-loops": [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        "absent nodes": [[0, 0, 1], [0, 0, 0], [1, 0, 0]],
    }
    for word, rows in values.items():
        with subtests.test(word), pytest.raises(ValueError, match=f"value must be .*{word}"):
            graph.log_prob(torch.tensor(rows, dtype=torch.float32))
    edges = {
        "different": [[0, 0]],
        "from 0 to 2": [[0, 3]],
        "present in node_mask": [[0, 2]],
        "distinct": [[0, 1], [1, 0]],
    }
    for word, rows in edges.items():
        with subtests.test(word), pytest.raises(ValueError, match=f"edges must .*{word}"):
            graph.log_prob_edges(torch.tensor(rows))
    with pytest.raises(ValueError, match="rates must have no batch shape"):
        graph.expand((2,)).sample_edges()
    with pytest.raises(ValueError, match="rates must give at most"):
        BernoulliExponentialGraph(torch.full((3, 1), 1e9)).sample_edges()
    with pytest.raises(ValueError, match="node_mask .* must broadcast"):
        BernoulliExponentialGraph(torch.ones(2, 3, 1), torch.ones(4, 3, dtype=torch.bool))


def block_model(adjacency):
    """Rates of two blocks."""
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0).expand((2,)).to_event(1))
    membership = torch.eye(2).repeat_interleave(8, 0)
    pyro.sample("adjacency", BernoulliExponentialGraph(membership * rate.sqrt()), obs=adjacency)


def exact_means(adjacency):
    """Posterior means of both rates, by a sum over a fine grid."""
    rate = torch.arange(1, 4001).double() / 1000
    means = []
    for block in (adjacency[:8, :8], adjacency[8:, 8:]):
        number = block.sum() / 2
        log_weight = number * torch.log(-torch.expm1(-rate)) - (28 - number + 1.0) * rate
        means.append(float((log_weight.softmax(0) * rate).sum()))
    return means


def planted():
    graph = networkx.disjoint_union(
        networkx.gnp_random_graph(8, 0.6, seed=1), networkx.gnp_random_graph(8, 0.3, seed=2)
    )
    return torch.tensor(networkx.to_numpy_array(graph), dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.statistical
def test_nuts_draws_rates():
    """Means within 4.4 standard errors of 300 effective draws: false alarms 2e-5."""
    adjacency = planted()
    mcmc = MCMC(NUTS(block_model), num_samples=300, warmup_steps=100, num_chains=2, seed=0)
    draws = mcmc.run(adjacency).get_samples()["rate"]
    error = 4.4 * draws.std(0) / 300**0.5
    assert bool(((draws.mean(0) - torch.tensor(exact_means(adjacency))).abs() < error).all())
