"""Hyperparameters as a graph, against their model."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.distributions import (
    BernoulliCluster,
    DiagonalGaussianCluster,
    GaussianCluster,
    KnownVarianceGaussianCluster,
    MultinomialCluster,
    PoissonCluster,
)
from pyro_ext.inference.partitions import _cluster_loops as loops
from pyro_ext.inference.partitions.hyperparameters import Hyperparameters, record
from pyro_ext.inference.partitions.mixtures import ConjugateMixture, _vector, centered
from pyro_ext.random_measures import DirichletProcess

pytestmark = pytest.mark.usefixtures("float64")


def positive(name, *shape):
    return pyro.sample(name, dist.LogNormal(torch.zeros(shape), 1.0).to_event(len(shape)))


def gaussian():
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    return GaussianCluster(loc, positive("r"), 1.5 + positive("dof"), torch.diag(positive("s", 2)))


def diagonal():
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    return DiagonalGaussianCluster(loc, positive("r"), positive("a"), positive("b", 2))


def known():
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    return KnownVarianceGaussianCluster(loc, positive("s0"), positive("s"))


def multinomial():
    return MultinomialCluster(positive("a", 2))


def bernoulli():
    return BernoulliCluster(positive("a", 2), positive("b"))


def poisson():
    return PoissonCluster(positive("a", 2), positive("b"))


MODELS = (gaussian, diagonal, known, multinomial, bernoulli, poisson)


def recorded_cluster(hyperparameters):
    return record(hyperparameters, _vector)


@pytest.mark.parametrize("model", MODELS)
def test_the_graph_is_the_model(model):
    hyperparameters = Hyperparameters(model, "cluster")
    recorded = recorded_cluster(hyperparameters)
    for _ in range(5):
        values = hyperparameters.draw()
        cluster, log_sites = hyperparameters.at(values)
        kind, center, parameters = centered(cluster)
        found = recorded(recorded.vector(values))
        assert found[0] == pytest.approx(float(log_sites), rel=1e-12)
        np.testing.assert_allclose(found[1][:2], center, atol=1e-14)
        np.testing.assert_allclose(found[1][2:], parameters, rtol=1e-12, atol=1e-14)
        assert loops.in_range(kind, parameters, 2)
        for name, value in recorded.values(recorded.vector(values)).items():
            torch.testing.assert_close(value, values[name])


def test_parameters_out_of_range(subtests):
    for wrong in [-1.0, 0.0, math.nan, math.inf]:
        for model in MODELS:
            with subtests.test(model=model.__name__, wrong=wrong):
                hyperparameters = Hyperparameters(model, "cluster")
                cluster, _ = hyperparameters.at(hyperparameters.draw())
                kind, _, parameters = centered(cluster)
                if kind == loops.GAUSSIAN:
                    columns = (0, 1, 2) if not math.isfinite(wrong) else (0, 1)
                else:
                    columns = range(0 if kind >= loops.MULTINOMIAL else 2, len(parameters))
                for column in columns:
                    changed = parameters.copy()
                    changed[column] = wrong
                    assert not loops.in_range(kind, changed, 2)


def test_degrees_of_freedom_below_the_dimension():
    """A prior that allows them has no density there, as if they were validated."""

    def model():
        return GaussianCluster(torch.zeros(3), 0.5, positive("dof"), torch.eye(3))

    x = torch.randn(12, 3)
    cluster = Hyperparameters(model, "cluster")
    mixture = ConjugateMixture(
        Hyperparameters(DirichletProcess(1.0), "prior"), _starting_at(cluster, 4.0), x
    )
    state = {"assignment": torch.zeros(12).long(), "dof": torch.tensor(2.2)}
    for _ in range(200):
        state |= mixture.move_clusters(state, ())
        assert float(state["dof"]) > 2.0


def test_scales_stay_positive_under_any_prior():
    def model():
        scale = pyro.sample("scale", dist.Normal(torch.tensor(0.3), 1.0))
        return KnownVarianceGaussianCluster(torch.zeros(1), torch.ones(1), scale)

    cluster = Hyperparameters(model, "cluster")
    cluster.draw = lambda: {"scale": torch.tensor(0.5)}
    prior = Hyperparameters(DirichletProcess(1.0), "prior")
    mixture = ConjugateMixture(prior, cluster, torch.tensor([[0.1], [-0.2]]))
    assert mixture._recorded is not None
    state = {"assignment": torch.zeros(2).long(), "scale": torch.tensor(0.5)}
    for _ in range(200):
        state |= mixture.move_clusters(state, ())
        assert float(state["scale"]) > 0.0


def test_names_that_a_state_uses():
    def model():
        return PoissonCluster(torch.ones(1), positive("u"))

    with pytest.raises(ValueError, match="must have other names than \\['u'\\]"):
        ConjugateMixture(
            Hyperparameters(DirichletProcess(1.0), "prior"),
            Hyperparameters(model, "cluster"),
            torch.ones(2, 1),
        )


def _starting_at(cluster, value):
    cluster.draw = lambda: {"dof": torch.tensor(value)}
    return cluster


def test_models_that_cannot_be_recorded():
    def model():
        rate = pyro.sample("rate", dist.LogNormal(torch.tensor(0.0), 1.0))
        return PoissonCluster(torch.ones(2), float(rate))

    def branching():
        rate = pyro.sample("rate", dist.LogNormal(torch.tensor(0.0), 1.0))
        return PoissonCluster(torch.ones(2), rate if rate < 1e9 else 2.0 * rate)

    for source in (model, branching):
        assert recorded_cluster(Hyperparameters(source, "cluster")) is None
        mixture = ConjugateMixture(
            Hyperparameters(DirichletProcess(1.0), "prior"),
            Hyperparameters(source, "cluster"),
            torch.tensor([[1.0, 2.0], [0.0, 3.0]]),
        )
        state = {"assignment": torch.tensor([0, 0]), "rate": torch.tensor(1.0)}
        assert float(mixture.move_clusters(state, ())["rate"]) != 1.0


def test_a_model_that_reads_what_changes():
    """The record of a model is used again, but not once the model gives something else."""
    shapes = [torch.ones(2)]

    def model():
        return PoissonCluster(shapes[0], positive("rate"))

    hyperparameters = Hyperparameters(model, "cluster")
    first, second = recorded_cluster(hyperparameters), recorded_cluster(hyperparameters)
    assert first._graph is second._graph
    shapes[0] = torch.full((2,), 3.0)
    third = recorded_cluster(hyperparameters)
    assert third._graph is not first._graph
    np.testing.assert_allclose(third(np.zeros(1))[1][2:], [3.0, 3.0, 1.0, 1.0])


def test_held_sites_stay():
    x = torch.randn(6, 2)
    cluster = Hyperparameters(gaussian, "cluster")
    mixture = ConjugateMixture(Hyperparameters(DirichletProcess(1.0), "prior"), cluster, x)
    state = cluster.draw() | {"assignment": torch.zeros(6).long()}
    state["dof"] = torch.tensor(2.0)
    moved = mixture.move_clusters(state, ("dof", "loc"))
    assert set(moved) == {"r", "s"}


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("model", [diagonal, poisson])
def test_both_ways_of_moving_have_the_same_distribution(model):
    """Means of 900 draws of each, in batches of 30; apart by 5 standard errors: one in 10^4."""
    x = torch.tensor([[1.0, 2.0], [0.0, 3.0], [4.0, 1.0]])
    cluster = Hyperparameters(model, "cluster")
    mixture = ConjugateMixture(Hyperparameters(DirichletProcess(1.0), "prior"), cluster, x)
    labels = torch.tensor([0, 0, 1])
    batches = []
    for recorded in (mixture._recorded, None):
        mixture._recorded = recorded
        torch.manual_seed(1)
        cluster_state = Hyperparameters(model, "cluster").draw() | {"assignment": labels}
        rows = []
        for _ in range(900):
            cluster_state |= mixture.move_clusters(cluster_state, ())
            names = sorted(cluster_state)
            rows.append(torch.cat([cluster_state[name].double().flatten() for name in names]))
        batches.append(torch.stack(rows).clamp(max=20.0).unflatten(0, (30, 30)).mean(1))
    one, other = batches
    error = ((one.var(0) + other.var(0)) / 30).sqrt()
    moves = error > 0
    score = (one.mean(0) - other.mean(0))[moves] / error[moves]
    assert float(score.abs().max()) < 5.0
