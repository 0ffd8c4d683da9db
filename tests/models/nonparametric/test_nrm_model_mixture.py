"""Mixtures whose clusters are a Pyro model, as a Pyro model and for new points."""

import math

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch

from pyro_ext.models.nonparametric import NRMModelMixture
from pyro_ext.random_measures import DirichletProcess, GeneralizedGammaProcess

pytestmark = pytest.mark.usefixtures("float64")

X = torch.tensor([0.0, 0.4, 1.5, 3.0], dtype=torch.float64)
LAW = DirichletProcess(torch.tensor(1.3, dtype=torch.float64))


def cluster(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    loc = pyro.sample("loc", dist.Normal(0.5, 2.0 * scale))
    with pyro.plate("points", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def prior():
    mass = pyro.sample("mass", dist.Gamma(torch.tensor(2.0), 2.0))
    return GeneralizedGammaProcess(mass, 0.4, 1.0).normalize()


def test_log_joint_of_its_trace():
    mixture = NRMModelMixture(LAW, cluster, shared=["scale"])
    values = {
        "assignment": torch.tensor([0, 0, 1, 1]),
        "scale": torch.tensor(0.7),
        "loc_0": torch.tensor(0.1),
        "loc_1": torch.tensor(2.0),
    }
    trace = poutine.trace(poutine.condition(mixture, data=values)).get_trace(X)
    loc = torch.tensor([0.1, 0.1, 2.0, 2.0])
    wanted = LAW.partition(4).log_prob(values["assignment"])
    wanted = wanted + dist.LogNormal(0.0, 0.5).log_prob(values["scale"])
    wanted = wanted + dist.Normal(0.5, 1.4).log_prob(torch.tensor([0.1, 2.0])).sum()
    wanted = wanted + dist.Normal(loc, 0.7).log_prob(X).sum()
    torch.testing.assert_close(trace.log_prob_sum(), wanted)


def test_it_draws_data():
    torch.manual_seed(0)
    mixture = NRMModelMixture(prior, cluster, shared=["scale"])
    trace = poutine.trace(poutine.uncondition(mixture)).get_trace(torch.zeros(30))
    labels = trace.nodes["assignment"]["value"]
    sizes = [len(trace.nodes[f"x_{k}"]["value"]) for k in range(int(labels.max()) + 1)]
    assert sizes == labels.bincount().tolist()
    assert {"mass", "scale", "loc_0"} <= set(trace.nodes)


def draws(num_draws=3):
    labels = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 2, 2]])[:num_draws]
    locs = torch.tensor([[0.2, 2.2, 9.0], [1.0, 9.0, 9.0], [0.0, 0.5, 2.0]])[:num_draws]
    return {
        "assignment": labels,
        "loc": locs.gather(1, labels),
        "scale": torch.tensor([0.8, 1.1, 0.6])[:num_draws],
        "mass": torch.tensor([0.5, 1.0, 2.0])[:num_draws],
    }


def by_hand(x_new, samples):
    """Densities with the density of a new cluster in closed form."""
    rows = []
    for labels, loc, scale, mass in zip(
        samples["assignment"], samples["loc"], samples["scale"], samples["mass"], strict=True
    ):
        weights = GeneralizedGammaProcess(mass, 0.4, 1.0).normalize().predictive(labels.bincount())
        new = dist.Normal(0.5, 5.0**0.5 * scale).log_prob(x_new).exp()
        row = weights[-1] * new
        for k in range(len(weights) - 1):
            own = loc[labels == k][0]
            row = row + weights[k] * dist.Normal(own, scale).log_prob(x_new).exp()
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.slow
@pytest.mark.statistical
def test_predictive_densities():
    """New clusters by 4,000 draws of each of three posterior draws.

    The part of a new cluster has a relative standard error below 0.04, which is off by more than
    0.2 in less than one of 100,000 seeds; it is at most a half of the density.
    """
    torch.manual_seed(0)
    mixture = NRMModelMixture(prior, cluster, shared=["scale"])
    x_new = torch.tensor([-1.0, 0.3, 2.5])
    options = {"num_prior_draws": 12_000}
    by_draw = mixture.predictive_log_prob(draws(), x_new, by_draw=True, **options)
    wanted = by_hand(x_new, draws())
    assert float((by_draw - wanted.log()).abs().max()) < 0.1
    torch.manual_seed(0)
    mean = mixture.predictive_log_prob(draws(), x_new, **options)
    torch.testing.assert_close(mean, by_draw.logsumexp(0) - math.log(3))


def test_predictive_density_adds_up_to_one():
    """Exactly so, since new clusters are averages of densities too."""
    mixture = NRMModelMixture(LAW, cluster)
    samples = draws()
    samples["scale"] = samples["scale"][:, None].expand(3, 4)
    grid = torch.linspace(-60.0, 60.0, 4001)
    values = mixture.predictive_log_prob(samples, grid, num_prior_draws=50)
    assert abs(float(torch.trapezoid(values.exp(), grid)) - 1.0) < 1e-3


def test_points_of_several_numbers():
    """Densities of dimensions in a plate of their own add up."""

    def flat(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("points", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def plated(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("dimensions", 2), pyro.plate("points", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x_new = torch.randn(5, 2)
    samples = {"assignment": torch.tensor([[0, 1, 0]]), "loc": torch.randn(1, 2, 2)[:, [0, 1, 0]]}
    values = []
    for model in (flat, plated):
        torch.manual_seed(0)
        values.append(NRMModelMixture(LAW, model).predictive_log_prob(samples, x_new))
    torch.testing.assert_close(*values)


def test_what_users_may_get_wrong():
    mixture = NRMModelMixture(LAW, cluster, shared=["scale"])
    with pytest.raises(ValueError, match="an argument must be a tensor"):
        mixture(3)
    samples = draws()
    with pytest.raises(ValueError, match="samples lacks the sites \\['loc'\\]"):
        mixture.predictive_log_prob({k: v for k, v in samples.items() if k != "loc"}, X)
    with pytest.raises(ValueError, match="samples\\['loc'\\] must have shape \\(3, 4\\)"):
        mixture.predictive_log_prob({**samples, "loc": samples["scale"]}, X)
    with pytest.raises(ValueError, match="samples lacks the sites \\['mass'\\]"):
        del samples["mass"]
        NRMModelMixture(prior, cluster, shared=["scale"]).predictive_log_prob(samples, X)
