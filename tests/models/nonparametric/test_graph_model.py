"""Models of graphs, against their densities written out, and minibatches against all pairs."""

import itertools
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_ext.distributions import TruncatedBFRY
from pyro_ext.models.nonparametric import graph_pairs
from pyro_ext.models.nonparametric.graph_guide import GraphGuide
from pyro_ext.models.nonparametric.graph_model import (
    EdgeOdds,
    GraphModel,
    MixedMembership,
    bfry_weights,
    gamma_weights,
    sample_graph,
)
from pyro_ext.models.nonparametric.graph_pairs import SimpleGraph
from pyro_ext.potential import Potential

GRAPH = SimpleGraph(5, torch.tensor([[0, 1], [0, 2], [0, 3], [2, 3]]))


def log_joint(model, values, graph=GRAPH, **kwargs):
    trace = poutine.trace(poutine.condition(model, values)).get_trace(graph, **kwargs)
    return trace.log_prob_sum()


def log_pairs(odds, graph):
    total = 0.0
    for first, second in itertools.combinations(range(graph.num_nodes), 2):
        value = odds(first, second)
        total += math.log(value) * ([first, second] in graph.edges.tolist()) - math.log1p(value)
    return total


def test_density_is_that_of_its_parts(float64):
    weights = torch.tensor([3.0, 0.4, 1.0, 0.7, 0.1])
    values = {"discount": torch.tensor(0.6), "weights": weights}
    fn = TruncatedBFRY(0.6, 5.0**1.2)
    width = 1.0 / 1.2 - 1e-3
    edges = log_pairs(lambda i, j: float(weights[i] * weights[j] / weights.sum()), GRAPH)
    expected = float(fn.log_prob(weights).sum()) - math.log(width) + edges
    found = log_joint(GraphModel(bfry_weights(5, 1.2)), values)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_density_with_communities_is_that_of_its_parts(float64):
    weights = torch.tensor([3.0, 0.4, 1.0, 0.7, 0.1])
    shares = dist.Dirichlet(torch.ones(2)).sample((5,))
    rates = torch.tensor([1.5, 0.2, 0.8])
    matrix = torch.tensor([[1.5, 0.2], [0.2, 0.8]])
    values = {"concentration": torch.tensor(1.3), "weights": weights}
    values |= {"memberships": shares, "rates": rates}
    prior = [
        dist.LogNormal(0.0, 2.0).log_prob(values["concentration"]),
        dist.Gamma(1.3, 1.0).log_prob(weights),
        dist.Dirichlet(torch.full((2,), 0.5)).log_prob(shares),
        dist.Gamma(2.0, 2.0).log_prob(rates),
    ]
    edges = log_pairs(
        lambda i, j: float(
            weights[i] * weights[j] / weights.sum() * (shares[i] @ matrix @ shares[j])
        ),
        GRAPH,
    )
    expected = sum(float(part.sum()) for part in prior) + edges
    model = GraphModel(gamma_weights(), MixedMembership(2, 0.5, 2.0))
    assert float(log_joint(model, values)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("largest", [15, 10_000])
@pytest.mark.parametrize("communities", [None, MixedMembership(2)])
def test_models_are_recorded_as_graphs(communities, largest, monkeypatch):
    """Over one block of pairs and over two, without a warning."""
    monkeypatch.setattr(graph_pairs, "_LARGEST_BLOCK", largest)
    model, graph = GraphModel(bfry_weights(5), communities), GRAPH.hold_out(0.2, seed=0)[0]
    assert len(list(graph.row_blocks())) == (2 if largest == 15 else 1)
    potential = Potential(model, graph, backend="trace")
    start = potential.init(2, seed=0)
    expected = Potential(model, graph, backend="eager").value_and_grad(start)
    torch.testing.assert_close(potential.value_and_grad(start), expected)


def test_minibatches_of_edges_are_those_of_a_potential_and_random_pairs_are_not():
    potential = Potential(GraphModel(bfry_weights(5)), GRAPH, num_edges=2)
    (plate,) = potential.subsampled_plates
    assert (plate.name, plate.size, plate.subsample_size) == ("edges", 4, 2)
    with pytest.raises(ValueError, match="draws random numbers of its own"):
        Potential(GraphModel(bfry_weights(5)), GRAPH, num_pairs=2)


def test_priors_know_the_size_of_their_graphs_and_can_be_sent():
    model = pickle.loads(pickle.dumps(GraphModel(bfry_weights(10, 1.2), MixedMembership(2))))
    for make in (lambda: poutine.trace(model)(GRAPH), lambda: GraphGuide(model, GRAPH)):
        with pytest.raises(ValueError, match="must be for graphs of 5 nodes, .* got num_nodes=10"):
            make()
    received = pickle.loads(pickle.dumps(GraphModel(gamma_weights())))
    assert "concentration" in poutine.trace(received).get_trace(GRAPH).nodes


def test_numbers_of_priors_are_on_the_device_of_the_graph():
    """Of a graph whose edges are moved by force, since no other device may be here."""
    graph = SimpleGraph(5, GRAPH.edges)
    object.__setattr__(graph, "edges", graph.edges.to("meta"))

    def prior():
        raise LookupError(torch.tensor(0.5).device.type)

    with pytest.raises(LookupError, match="meta"):
        GraphModel(prior)(graph)
    assert torch.tensor(0.5).device.type == "cpu"


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("communities", [None, MixedMembership(2)])
def test_minibatches_have_no_bias(communities, float64):
    """Bound and gradient at the same draws: largest of 61 scores below 4.5, one seed in 2,000."""
    graph, _ = sample_graph(EdgeOdds(torch.full((30,), 5.0)), seed=1).hold_out(0.2, seed=0)
    model = GraphModel(bfry_weights(30), communities)
    guide = GraphGuide(model, graph, seed=0)
    drawn = guide.sample(1, seed=2)
    values = {name: value[0].requires_grad_(name == "weights") for name, value in drawn.items()}
    weights = values["weights"]

    def value_and_gradient(**kwargs):
        value = log_joint(model, values, graph, **kwargs)
        return torch.cat([value.detach().view(1), *torch.autograd.grad(value, [weights])])

    exact = value_and_gradient()
    draws = torch.stack([value_and_gradient(num_edges=10, num_pairs=100) for _ in range(600)])
    scores = (draws.mean(0) - exact) / (draws.std(0) / 600**0.5)
    assert float(scores.abs().max()) < 4.5
    assert 0.4 < float(scores.square().mean()) < 2.0
    # Edges alone vary as well, and pairs alone.
    for kwargs in ({"num_edges": 10}, {"num_pairs": 100}):
        assert float((value_and_gradient(**kwargs) - exact)[0].abs()) > 1e-3


def test_prior_has_indices_for_which_the_graph_is_sparse():
    for truncation, largest in ((0.5, 1.0), (2.0, 0.5)):
        trace = poutine.trace(bfry_weights(50, truncation)).get_trace()
        support = trace.nodes["discount"]["fn"].support
        assert float(support.upper_bound) == pytest.approx(largest, rel=1e-5)
        high = trace.nodes["_RETURN"]["value"].high
        assert float(high) == pytest.approx(50**truncation)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="num_edges must be at most 4, the"):
        GraphModel(gamma_weights())(GRAPH, num_edges=5)


def test_model_draws_weights_of_its_prior():
    with pyro.condition(data={"discount": torch.tensor(0.5)}):
        odds = GraphModel(bfry_weights(4_000)).odds(4_000)
    fn = TruncatedBFRY(0.5, 4_000.0)
    points = torch.tensor([0.1, 1.0, 10.0, 100.0])
    found = (odds.weights[:, None] <= points).float().mean(0)
    assert float((found - fn.cdf(points)).abs().max()) < 0.04
