"""Hyperparameters as a graph against their model, and priors in closed form against tensors."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.distributions import (
    BernoulliCluster,
    GaussianCluster,
    KnownVarianceGaussianCluster,
    MultinomialCluster,
    PoissonCluster,
)
from pyro_ext.inference import MarginalGibbs
from pyro_ext.inference.partitions import _cluster_loops as loops
from pyro_ext.inference.partitions.hyperparameters import Hyperparameters, closed_prior, record
from pyro_ext.inference.partitions.mixtures import ConjugateMixture, _vector, centered
from pyro_ext.potential import CompiledGraph
from pyro_ext.random_measures import (
    DirichletProcess,
    GeneralizedGammaProcess,
    NormalizedRandomMeasure,
    PitmanYor,
    StableBetaProcess,
)
from pyro_ext.random_measures.cluster_counts import cluster_sizes
from tests.inference.partitions.enumeration import POINTS, gaussian_cluster

pytestmark = pytest.mark.usefixtures("float64")

PROCESSES = {
    "generalized gamma": lambda: GeneralizedGammaProcess(2.0, 0.4, 1.5).normalize(),
    "little discount": lambda: GeneralizedGammaProcess(2.0, 1e-9, 1.5).normalize(),
    "much discount": lambda: GeneralizedGammaProcess(0.1, 0.999, 30.0).normalize(),
    "little tilt": lambda: GeneralizedGammaProcess(2.0, 0.4, 1e-200).normalize(),
    "gamma": lambda: GeneralizedGammaProcess(0.7, 0.0, 0.3).normalize(),
    "stable": lambda: GeneralizedGammaProcess(0.7, 0.6, 0.0).normalize(),
    "Pitman-Yor": lambda: PitmanYor(0.3, 0.7),
    "negative concentration": lambda: PitmanYor(0.8, -0.7),
    "Dirichlet": lambda: DirichletProcess(1.7),
}
SIZES = ([1], [3], [1, 1], [5, 3, 2, 1, 1, 1], [40, 1])
LOG_US = (-600.0, -1.0, 60.0)


def generalized_gamma():
    mass, discount = positive("mass"), pyro.sample("discount", dist.Beta(1.5, 1.5))
    return GeneralizedGammaProcess(mass * discount, discount, positive("tilt")).normalize()


def pitman_yor():
    return PitmanYor(pyro.sample("discount", dist.Beta(1.5, 1.5)), positive("concentration"))


def dirichlet():
    return DirichletProcess(positive("concentration"))


def positive(name):
    return pyro.sample(name, dist.LogNormal(0.0, 1.0))


def log_joint(process, counts, log_u):
    if isinstance(process, NormalizedRandomMeasure):
        return float(process._log_joint(counts, torch.tensor(log_u)))
    return float(process.log_eppf(counts.values, counts.multiplicity))


def test_densities_and_factors(subtests):
    for name, make in PROCESSES.items():
        process = make()
        closed = closed_prior(Hyperparameters(process, "prior"))
        assert closed.has_auxiliary is isinstance(process, NormalizedRandomMeasure)
        with subtests.test(name):
            for log_u in LOG_US:
                values = {"u": torch.tensor(log_u).exp()}
                for sizes in SIZES:
                    counts = cluster_sizes(torch.tensor(sizes))
                    expected = log_joint(process, counts, float(values["u"].log()))
                    found = closed.log_density(values, counts)
                    assert found == pytest.approx(expected, rel=1e-11, abs=1e-11)
                for found, expected in zip(
                    closed.weights(values, 50), process._product_form(50, values["u"]), strict=True
                ):
                    np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-9, atol=1e-11)


def test_models(subtests):
    for model in (generalized_gamma, pitman_yor, dirichlet):
        with subtests.test(model.__name__):
            prior = Hyperparameters(model, "prior")
            closed = closed_prior(prior)
            for _ in range(5):
                values = prior.draw() | {"u": torch.rand(())}
                counts = cluster_sizes(torch.tensor([5, 3, 3, 1]))
                process, log_sites = prior.at(values)
                expected = float(log_sites) + log_joint(process, counts, float(values["u"].log()))
                assert closed.log_density(values, counts) == pytest.approx(expected, rel=1e-11)


def test_measures_that_are_left_to_quadrature(subtests):
    def by_quadrature():
        return StableBetaProcess(positive("mass"), 0.4, 1.0).normalize()

    def with_a_batch():
        return PitmanYor(0.3, positive("concentration").expand(2))

    def branching():
        mass = positive("mass")
        return DirichletProcess(mass if mass < 1e9 else 2.0 * mass)

    fixed = StableBetaProcess(1.0, 0.4, 1.0).normalize()
    for prior in (by_quadrature, with_a_batch, branching, fixed):
        with subtests.test(str(prior)):
            assert closed_prior(Hyperparameters(prior, "prior")) is None


def test_parameters_stay_in_their_range():
    """A prior that goes beyond has no density there, as if the measure were validated."""

    def prior():
        discount = pyro.sample("discount", dist.Normal(0.5, 0.5))
        return GeneralizedGammaProcess(1.0, discount, 1.0).normalize()

    torch.manual_seed(1)  # whose first draw is inside
    closed = closed_prior(Hyperparameters(prior, "prior"))
    counts = cluster_sizes(torch.tensor([3, 1, 1]))
    state = {"discount": torch.tensor(0.5), "u": torch.tensor(1.0)}
    found = []
    for _ in range(200):
        state |= closed.move(state, counts, ())
        found.append(float(state["discount"]))
    assert 0.0 <= min(found) < 0.2 < 0.8 < max(found) < 1.0
    assert closed.log_density(state | {"discount": torch.tensor(1.2)}, counts) == -math.inf


def test_held_sites_of_a_closed_prior_stay():
    closed = closed_prior(Hyperparameters(generalized_gamma, "prior"))
    state = {name: torch.tensor(0.5) for name in ("mass", "discount", "tilt", "u")}
    moved = closed.move(state, cluster_sizes(torch.tensor([3, 1])), ("mass", "tilt"))
    assert set(moved) == {"discount", "u"}


def test_a_step_does_not_run_the_model():
    runs = []

    def prior():
        runs.append(None)
        return generalized_gamma()

    kernel = MarginalGibbs(prior, gaussian_cluster())
    kernel.setup(0, POINTS)
    state, before = kernel.initial_params, len(runs)
    for _ in range(3):
        state = kernel.sample(state)
    assert len(runs) == before


def positives(name, *shape):
    return pyro.sample(name, dist.LogNormal(torch.zeros(shape), 1.0).to_event(len(shape)))


def gaussian():
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    return GaussianCluster(
        loc, positives("r"), 1.5 + positives("dof"), torch.diag(positives("s", 2))
    )


def known():
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    return KnownVarianceGaussianCluster(loc, positives("s0"), positives("s"))


def multinomial():
    return MultinomialCluster(positives("a", 2))


def bernoulli():
    return BernoulliCluster(positives("a", 2), positives("b"))


def poisson():
    return PoissonCluster(positives("a", 2), positives("b"))


MODELS = (gaussian, known, multinomial, bernoulli, poisson)


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
        return GaussianCluster(torch.zeros(3), 0.5, positives("dof"), torch.eye(3))

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
        return PoissonCluster(torch.ones(1), positives("u"))

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
        return PoissonCluster(shapes[0], positives("rate"))

    hyperparameters = Hyperparameters(model, "cluster")
    first, second = recorded_cluster(hyperparameters), recorded_cluster(hyperparameters)
    assert first._graph is second._graph
    shapes[0] = torch.full((2,), 3.0)
    third = recorded_cluster(hyperparameters)
    assert third._graph is not first._graph
    np.testing.assert_allclose(third(np.zeros(1))[1][2:], [3.0, 3.0, 1.0, 1.0])


def test_held_sites_of_a_graph_stay():
    x = torch.randn(6, 2)
    cluster = Hyperparameters(gaussian, "cluster")
    mixture = ConjugateMixture(Hyperparameters(DirichletProcess(1.0), "prior"), cluster, x)
    state = cluster.draw() | {"assignment": torch.zeros(6).long()}
    state["dof"] = torch.tensor(2.0)
    moved = mixture.move_clusters(state, ("dof", "loc"))
    assert set(moved) == {"r", "s"}


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("model", [known, poisson])
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


@pytest.mark.slow
def test_long_runs_are_compiled():
    """Machine code gives the numbers of the graph; a short warm-up does not wait for it."""
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))

    def prior():
        return DirichletProcess(positives("concentration"))

    ends = {}
    for warmup_steps in (10, 50):
        kernel = MarginalGibbs(prior, gaussian)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            kernel.setup(warmup_steps, x)
            state = kernel.initial_params
            for _ in range(3):
                state = kernel.sample(state)
        ends[warmup_steps] = state
        for recorded in (kernel.mixture._recorded, kernel.mixture._closed._source):
            assert isinstance(recorded._graph, CompiledGraph) == (warmup_steps == 50)
    for name, value in ends[10].items():
        torch.testing.assert_close(ends[50][name], value, rtol=1e-4, atol=1e-5)
