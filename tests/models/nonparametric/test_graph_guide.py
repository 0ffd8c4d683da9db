"""Variational inference for graphs: bounds against quadrature, recovery, and how it is run."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch.distributions import kl_divergence

from pyro_ext.distributions import RectifiedGamma, TruncatedBFRY
from pyro_ext.models.nonparametric.graph_guide import GraphGuide, _ScarceAtom, spectral_memberships
from pyro_ext.models.nonparametric.graph_model import (
    EdgeOdds,
    GraphModel,
    MixedMembership,
    bfry_weights,
    gamma_weights,
    sample_graph,
)
from pyro_ext.models.nonparametric.graph_pairs import SimpleGraph


def simulated(num_nodes, discount, seed):
    pyro.set_rng_seed(seed)
    weights = TruncatedBFRY(discount, float(num_nodes)).sample((num_nodes,))
    return weights, sample_graph(EdgeOdds(weights), seed=seed)


def test_law_with_a_scarce_atom_is_the_rectified_gamma(float64):
    concentration = torch.tensor([2.0, 0.5, 3.0]).requires_grad_()
    rate = torch.tensor([1.0, 0.1, 2.0]).requires_grad_()
    for points in ([1.0, 4.0, 4.0], [1.0, 2.0, 3.0]):
        value = torch.tensor(points)
        found = _ScarceAtom(concentration, rate, 4.0).log_prob(value)
        expected = RectifiedGamma(concentration, rate, 4.0).log_prob(value)
        torch.testing.assert_close(found, expected)
        inputs = [concentration, rate]
        gradients = [torch.autograd.grad(part.sum(), inputs) for part in (found, expected)]
        torch.testing.assert_close(*gradients)


def log_evidence(log_density, high):
    """Three weights and one edge by quadrature, in logarithms of weights."""
    nodes, coefficients = np.polynomial.legendre.leggauss(80)
    low = -14.0
    points = torch.tensor(low + (math.log(high) - low) * (nodes + 1) / 2)
    factors = torch.tensor(coefficients * (math.log(high) - low) / 2).log()
    each = log_density(points.exp()) + points + factors
    first, second, third = torch.cartesian_prod(points, points, points).exp().T
    total = first + second + third
    terms = torch.cartesian_prod(each, each, each).sum(-1) + (first * second / total).log()
    for left, right in ((first, second), (first, third), (second, third)):
        terms -= torch.log1p(left * right / total)
    return float(terms.logsumexp(0))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "gap"), [("gamma", 0.1), ("bfry", 0.6)])
def test_bound_is_near_the_evidence_and_below(kind, gap, float64):
    """The bound of three weights with one edge is below the evidence by what a gamma lacks.

    Weights of a power law, of which edges tell so little, have heavier tails than a gamma.
    """
    graph = SimpleGraph(3, torch.tensor([[0, 1]]))
    fn = dist.Gamma(2.0, 1.0) if kind == "gamma" else TruncatedBFRY(0.5, 1_000.0)
    exact = log_evidence(fn.log_prob, 40.0 if kind == "gamma" else 1_000.0 * (1 - 1e-12))
    guide = GraphGuide(GraphModel(lambda: fn), graph, seed=0)
    guide.fit(800, progress=False)
    assert exact - gap < guide.elbo(2_000, seed=1) < exact + 0.02


@pytest.mark.slow
def test_guide_of_unobserved_pairs_is_the_prior(float64):
    """Without observed pairs the bound is minus the divergence from the prior, which shrinks."""
    empty = SimpleGraph(3, torch.empty(0, 2, dtype=torch.int64))
    graph, test = empty.hold_out(0.8, seed=2)
    assert len(test.first) == 3
    prior = dist.Gamma(torch.tensor(2.0), 3.0)
    guide = GraphGuide(GraphModel(lambda: prior), graph, seed=0)
    start = dist.Gamma(guide.concentration.detach(), guide.rate.detach())
    divergence = float(kl_divergence(start, prior).sum())
    assert guide.elbo(2_000, seed=0) == pytest.approx(-divergence, rel=0.1)
    guide.fit(400, learning_rate=0.1, progress=False)
    learned = dist.Gamma(guide.concentration.detach(), guide.rate.detach())
    assert float(kl_divergence(learned, prior).sum()) < 0.4 < 0.1 * divergence


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("discount", [0.3, 0.7])
def test_index_and_weights_are_recovered(discount):
    """Within .15, and 80 in 100 weights in intervals of 90 in 100, of 1,000 nodes, on two seeds.

    The index of 1,000 weights that are known has a standard error of about .02, and degrees tell
    less. Beyond .15 are at least four standard errors.
    """
    for seed in (1, 2):
        weights, graph = simulated(1_000, discount, seed)
        model = GraphModel(bfry_weights(1_000))
        guide = GraphGuide(model, graph, seed=0).fit(600, num_pairs=3_000, progress=False)
        samples = guide.sample(200, seed=0)
        assert abs(float(samples["discount"][0]) - discount) < 0.15
        low, high = samples["weights"].quantile(torch.tensor([0.05, 0.95]), 0)
        assert float(((weights > low) & (weights < high)).float().mean()) > 0.8


def test_same_seed_same_guide_and_no_global_state():
    _, graph = simulated(40, 0.5, 0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    guides = [
        GraphGuide(GraphModel(bfry_weights(40)), graph, seed=seed).fit(15, progress=False)
        for seed in (7, 7, 8)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert guides[0].losses == guides[1].losses != guides[2].losses
    assert torch.equal(
        guides[0].sample(3, seed=1)["weights"], guides[1].sample(3, seed=1)["weights"]
    )
    assert not len(pyro.get_param_store())
    longer = [guide.fit(5, progress=False) for guide in guides[:2]]
    assert len(longer[0].losses) == 20 and longer[0].losses == longer[1].losses


def test_what_goes_on_has_new_random_numbers():
    """With steps that are too small to change a loss, the losses are those of the draws."""
    _, graph = simulated(40, 0.5, 0)
    guide = GraphGuide(GraphModel(bfry_weights(40)), graph, seed=7)
    for _ in range(3):
        guide.fit(4, learning_rate=1e-30, progress=False)
    assert len(set(guide.losses)) == 12


def test_vectorized_particles_are_refused():
    _, graph = simulated(40, 0.5, 0)
    model = GraphModel(bfry_weights(40))
    guide = GraphGuide(model, graph, seed=0)
    bound = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    with pytest.raises(ValueError, match="a GraphGuide must run outside of other plates"):
        bound.loss(model, guide, graph)
    pyro.clear_param_store()


def test_guide_runs_under_svi():
    _, graph = simulated(40, 0.5, 0)
    model = GraphModel(bfry_weights(40))
    guide = GraphGuide(model, graph, seed=0)
    with torch.no_grad():
        guide.rate_unconstrained -= 2.0
    svi = SVI(model, guide, Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(graph, num_pairs=200) for _ in range(60)]
    assert np.mean(losses[-20:]) < np.mean(losses[:20])
    assert "GraphGuide.concentration" in set(pyro.get_param_store())


@pytest.mark.slow
def test_communities_are_found():
    """Two groups of 25 nodes with 8 edges a node inside, and 1 across."""
    group = torch.arange(50) // 25
    shares = torch.nn.functional.one_hot(group).float()
    odds = EdgeOdds(torch.full((50,), 8.0), shares, torch.tensor([[2.0, 0.2], [0.2, 2.0]]))
    graph = sample_graph(odds, seed=0)
    model = GraphModel(gamma_weights(), MixedMembership(2))
    start = spectral_memberships(graph, 2)
    best = GraphGuide(model, graph, memberships=start, seed=0).fit(400, progress=False)
    draws = best.odds(50, seed=0)
    found = torch.stack([draw.memberships for draw in draws]).mean(0).argmax(-1)
    agreement = float((found == group).float().mean())
    assert max(agreement, 1 - agreement) > 0.9
    rates = torch.stack([draw.rates for draw in draws]).mean(0)
    assert float(rates.diagonal().min()) > 2.0 * float(rates[0, 1])
    plain = GraphGuide(GraphModel(gamma_weights()), graph, seed=0).fit(400, progress=False)
    assert best.elbo(20, seed=0) > plain.elbo(20, seed=0)


def test_learning_rate_falls_to_its_twentieth(monkeypatch):
    _, graph = simulated(40, 0.5, 0)
    step, rates = torch.optim.Adam.step, []

    def recorded(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    guide = GraphGuide(GraphModel(bfry_weights(40)), graph, seed=0)
    guide.fit(20, learning_rate=0.2, progress=False)
    expected = [0.2 * 0.05 ** (step / 20) for step in range(20)]
    assert rates == pytest.approx(expected)


def test_losses_that_are_no_numbers_end_the_run():
    _, graph = simulated(40, 0.5, 0)
    guide = GraphGuide(GraphModel(bfry_weights(40)), graph, seed=0)
    with torch.no_grad():
        guide.rate_unconstrained.fill_(-500.0)
        guide.concentration_unconstrained.fill_(torch.nan)
    with warnings.catch_warnings(), pytest.raises((FloatingPointError, ValueError)):
        warnings.simplefilter("ignore")
        guide.fit(3, progress=False)


def test_arguments_that_do_not_fit_are_refused():
    _, graph = simulated(40, 0.5, 0)
    shares = torch.full((40, 2), 0.5)
    mixed = GraphModel(gamma_weights(), MixedMembership(3))
    for wrong in (shares, torch.ones(40, 3)):
        with pytest.raises(
            ValueError, match=r"memberships must be rows of proportions .*\(40, 3\)"
        ):
            GraphGuide(mixed, graph, memberships=wrong)
