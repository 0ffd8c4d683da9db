"""Priors of partitions in closed form, against their distributions in tensors."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference import MarginalGibbs
from pyro_ext.inference.partitions.hyperparameters import Hyperparameters, closed_prior
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
LOG_TILTS = (-600.0, -1.0, 60.0)


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
            for log_u in LOG_TILTS:
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


def test_held_sites_stay():
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


@pytest.mark.slow
@pytest.mark.statistical
def test_hyperparameters_given_a_partition():
    """Means and second moments, by quadrature; 6 standard errors of 60 batches: one in 10^6."""
    counts = cluster_sizes(torch.tensor([4, 2, 1]))

    def prior():
        mass, discount = positive("mass"), pyro.sample("discount", dist.Beta(1.5, 1.5))
        return GeneralizedGammaProcess(mass, discount, 1.0).normalize()

    closed = closed_prior(Hyperparameters(prior, "prior"))
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(80))
    log_mass, fraction = torch.meshgrid(6.0 * nodes, 0.5 * (nodes + 1.0), indexing="ij")
    process = GeneralizedGammaProcess(log_mass.exp(), fraction, torch.ones(())).normalize()
    log_density = dist.Normal(0.0, 1.0).log_prob(log_mass) + dist.Beta(1.5, 1.5).log_prob(fraction)
    log_density += process.log_eppf(torch.tensor([4.0, 2.0, 1.0]).expand(80, 80, -1))
    posterior = weights[:, None] * weights * log_density.exp()
    posterior /= posterior.sum()
    functions = [log_mass, log_mass**2, fraction, fraction**2, fraction * log_mass]
    exact = torch.stack([(posterior * value).sum() for value in functions])
    torch.manual_seed(0)
    state = {"mass": torch.tensor(1.0), "discount": torch.tensor(0.5), "u": torch.tensor(1.0)}
    rows = []
    for _ in range(3000):
        state |= closed.move(state, counts, ())
        log_mass, fraction = state["mass"].log(), state["discount"]
        rows.append(
            torch.stack([log_mass, log_mass**2, fraction, fraction**2, fraction * log_mass])
        )
    batches = torch.stack(rows).unflatten(0, (60, 50)).mean(1)
    error = batches.std(0) / math.sqrt(60)
    assert float(((batches.mean(0) - exact) / error).abs().max()) < 6.0
