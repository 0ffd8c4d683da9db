"""Mixtures whose clusters are a Pyro model, against exact posteriors of conjugate ones."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC as PyroMCMC

from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MCMC, AuxiliaryGibbs
from pyro_ext.random_measures import DirichletProcess
from tests.inference.partitions.enumeration import CLOSED, PROCESSES, posterior_under

pytestmark = pytest.mark.usefixtures("float64")

X = torch.tensor([0.0, 0.4, 1.5, 1.8, 3.0], dtype=torch.float64)
LOC, LOC_SCALE, SCALE = 0.5, 2.0, 0.8


def cluster(x):
    loc = pyro.sample("loc", dist.Normal(LOC, LOC_SCALE))
    with pyro.plate("points", len(x)):
        pyro.sample("x", dist.Normal(loc, SCALE), obs=x)


class Conjugate:
    """The same model with the location integrated out."""

    @staticmethod
    def log_marginal(block):
        number = len(block)
        covariance = SCALE**2 * torch.eye(number) + LOC_SCALE**2
        mean = torch.full((number,), LOC)
        return torch.distributions.MultivariateNormal(mean, covariance).log_prob(block)


def exact(process):
    """Probabilities of all partitions, and mean and variance of the location of each point."""
    every, probabilities = posterior_under(process, Conjugate(), X)
    means = []
    for labels in every:
        labels = torch.tensor(labels)
        sums = torch.zeros(5).index_add(0, labels, X)
        precisions = LOC_SCALE**-2 + labels.bincount(minlength=5) * SCALE**-2
        means.append(((LOC * LOC_SCALE**-2 + sums * SCALE**-2) / precisions)[labels])
    return every, probabilities, (torch.tensor(probabilities)[:, None] * torch.stack(means)).sum(0)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("num_auxiliary", [1, 3])
@pytest.mark.parametrize("name", CLOSED)
def test_posterior_of_five_points(name, num_auxiliary):
    """Total variation of 3,000 steps to enumeration, about 0.03 to 0.05; means within 0.02.

    More than 0.09, or a mean off by more than 0.12, in less than one of 100,000 seeds.
    """
    every, probabilities, means = exact(PROCESSES[name])
    kernel = AuxiliaryGibbs(PROCESSES[name], cluster, num_auxiliary=num_auxiliary)
    draws = MCMC(kernel, 3000, warmup_steps=20, seed=0, progress=False).run(X).get_samples()
    index = {state: index for index, state in enumerate(every)}
    fractions = np.zeros(len(every))
    for row in draws["assignment"].tolist():
        fractions[index[tuple(row)]] += 1.0 / 3000
    assert 0.5 * np.abs(fractions - probabilities).sum() < 0.09
    assert float((draws["loc"].mean(0) - means).abs().max()) < 0.12


def test_draws_have_the_parameters_of_each_point():
    kernel = AuxiliaryGibbs(PROCESSES["Dirichlet"], cluster)
    draws = MCMC(kernel, 20, seed=0, progress=False).run(X).get_samples()
    for labels, values in zip(draws["assignment"], draws["loc"], strict=True):
        for k in range(int(labels.max()) + 1):
            assert len(values[labels == k].unique()) == 1
    assert len(draws["loc"].unique()) > 20


def regression(x, y):
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("points", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, noise), obs=y)


def lines():
    """Two lines through one cloud of inputs."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, generator=generator, dtype=torch.float64)
    x = torch.stack([torch.ones(60, dtype=torch.float64), inputs], -1)
    slopes = torch.where(torch.arange(60) < 30, 3.0, -3.0)
    noise = 0.1 * torch.randn(60, generator=generator, dtype=torch.float64)
    return x, slopes * inputs + noise


def prior():
    mass = pyro.sample("mass", dist.Gamma(torch.tensor(1.0), 1.0))
    return DirichletProcess(mass)


@pytest.mark.slow
def test_regressions_with_a_shared_noise():
    """Clusters of a regression model, found; the noise is one number of all clusters."""
    x, y = lines()
    kernel = AuxiliaryGibbs(prior, regression, shared=["noise"], init="one")
    mcmc = MCMC(kernel, 60, warmup_steps=100, seed=0, progress=False).run(x, y=y)
    draws = mcmc.get_samples()
    assert draws["noise"].shape == (60,) and draws["weight"].shape == (60, 60, 2)
    assert 0.07 < float(draws["noise"].mean()) < 0.14
    far = x[:, 1].abs() > 0.2
    truth = torch.where(torch.arange(60) < 30, 3.0, -3.0)
    assert float((draws["weight"][..., 1].mean(0) - truth)[far].abs().max()) < 0.3
    statistics = mcmc.sample_statistics()
    assert bool(statistics["lp"].isfinite().all())


def test_runs_under_pyro_and_in_arviz():
    pyro.set_rng_seed(0)
    kernel = AuxiliaryGibbs(PROCESSES["generalized gamma"], cluster)
    mcmc = PyroMCMC(kernel, num_samples=3, warmup_steps=1, disable_progbar=True)
    mcmc.run(X)
    assert set(mcmc.get_samples()) == {"assignment", "u", "loc"}
    ours = MCMC(AuxiliaryGibbs(PROCESSES["Dirichlet"], cluster), 8, seed=0, progress=False).run(X)
    posterior_group = to_arviz(ours).posterior
    assert posterior_group["loc"].shape == (1, 8, 5)


def test_a_start_that_is_given():
    kernel = AuxiliaryGibbs(PROCESSES["Dirichlet"], cluster)
    labels = torch.tensor([0, 0, 1, 1, 1])
    kernel.initial_params = {"assignment": labels, "loc": torch.tensor([0.0, 0.0, 2.0, 2.0, 2.0])}
    kernel.setup(0, X)
    assert torch.equal(kernel.initial_params["assignment"], labels)
    kernel.initial_params = {"assignment": labels, "loc": torch.tensor([0.0, 0.5, 2.0, 2.0, 2.0])}
    with pytest.raises(ValueError, match="must be the same for all points of a cluster"):
        kernel.setup(0, X)
    kernel.initial_params = {"assignment": labels, "loc": torch.zeros(2)}
    with pytest.raises(ValueError, match="must have shape \\(5,\\), got \\(2,\\)"):
        kernel.setup(0, X)
    kernel.initial_params = {"assignment": labels}
    with pytest.raises(ValueError, match="lacks the sites \\['loc'\\]"):
        kernel.setup(0, X)


def test_one_point_and_single_precision():
    kernel = AuxiliaryGibbs(PROCESSES["Dirichlet"], cluster)
    draws = MCMC(kernel, 3, seed=0, progress=False).run(X[:1]).get_samples()
    assert draws["assignment"].tolist() == [[0]] * 3
    torch.set_default_dtype(torch.float32)
    kernel = AuxiliaryGibbs(PROCESSES["Dirichlet"], cluster)
    draws = MCMC(kernel, 3, seed=0, progress=False).run(X.float()).get_samples()
    assert draws["loc"].dtype == torch.float32


def test_what_users_may_get_wrong():
    process = PROCESSES["Dirichlet"]

    def clash():
        return DirichletProcess(pyro.sample("loc", dist.Gamma(1.0, 1.0)))

    with pytest.raises(ValueError, match="both have the sites \\['loc'\\]"):
        AuxiliaryGibbs(clash, cluster).setup(0, X)

    def peaked(x):
        pyro.sample("shape", dist.Uniform(0.2, 0.8))
        shape = pyro.sample("other", dist.Uniform(0.2, 0.8))
        with pyro.plate("points", len(x)):
            pyro.sample("x", dist.Gamma(shape, 1.0, validate_args=False), obs=x)

    with pytest.raises(ValueError, match="not finite|infinite"):
        AuxiliaryGibbs(process, peaked).setup(0, X)
