"""Random measures in Pyro models: shapes and sites, guides and kernels, on real counts."""

import collections
import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC as PyroMCMC
from pyro.infer import NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

from pyro_ext.random_measures import (
    BetaPrimeProcess,
    DirichletProcess,
    FiniteApproximation,
    GammaArrivals,
    GeneralizedBFRYProcess,
    GeneralizedGammaProcess,
    LomaxArrivals,
    PitmanYor,
    StableBetaProcess,
    TruncatedSeries,
    random_measure,
)
from pyro_ext.testing.potential import check_potential

GAMMA = GeneralizedGammaProcess(2.0, 0.4, 1.5)


def word_counts():
    """How often each word occurs in the documentation that comes with Python, in falling order."""
    from pydoc_data.topics import topics

    words = re.findall(r"[a-z]+", " ".join(topics.values()).lower())
    counts = sorted(collections.Counter(words).values(), reverse=True)
    assert len(counts) > 1000
    return torch.tensor(counts).unique(return_counts=True)


TRUNCATIONS = {
    "finite": (GAMMA, 7),
    "group": (GAMMA, FiniteApproximation(7, "group")),
    "family": (GAMMA, FiniteApproximation(7, family=GammaArrivals(3.0))),
    "size-biased": (GAMMA, TruncatedSeries(7)),
    "largest first": (GAMMA, TruncatedSeries(7, "inverse_levy")),
    "gamma times": (GAMMA, TruncatedSeries(7, GammaArrivals(3.0))),
    "stable beta": (StableBetaProcess(2.0, 0.4, 1.5), 7),
    "beta prime": (BetaPrimeProcess(1.5, 0.4, 2.3), 7),
    "generalized BFRY": (GeneralizedBFRYProcess(1.5, 0.4, 2.3), TruncatedSeries(7)),
    "normalized": (GAMMA.normalize(), 7),
    "normalized series": (GAMMA.normalize(), TruncatedSeries(7)),
    "Pitman-Yor": (PitmanYor(0.4, 1.3), 7),
    "Dirichlet": (DirichletProcess(1.3), TruncatedSeries(7)),
}


@pytest.mark.parametrize("key", TRUNCATIONS)
def test_shapes_and_sites(key):
    measure, truncation = TRUNCATIONS[key]
    pyro.set_rng_seed(0)
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    trace = pyro.poutine.trace(random_measure).get_trace("G", measure, base, truncation)
    result = trace.nodes["_RETURN"]["value"]
    assert result.atoms.shape == (7, 2) and result.weights.shape == (7,)
    assert result.lost_mass.shape == () and (result.weights > 0).all()
    assert trace.log_prob_sum().isfinite()
    sites = {name for name, site in trace.nodes.items() if site["type"] == "sample"}
    assert {"G_plate", "G_atoms", "G_weights"} <= sites
    if key.startswith(("normalized", "Pitman", "Dirichlet")):
        assert result.weights.sum().item() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(trace.nodes["G_weights"]["value"], result.weights)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "key",
    [
        "finite",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("size-biased", "largest first")),
        pytest.param("gamma times", marks=pytest.mark.slow),
    ],
)
def test_prior_draws_have_the_mass_of_the_measure(key):
    """Mean of weights and lost mass; false alarms in 1 of 10,000 seeds (four tests, 4.2 sigma)."""
    measure, truncation = TRUNCATIONS[key]
    pyro.set_rng_seed(1)
    num_draws = {"gamma times": 300, "largest first": 500}.get(key, 2000)
    totals = []
    for _ in range(num_draws):
        result = random_measure("G", measure, dist.Normal(0.0, 1.0), truncation)
        totals.append(result.weights.sum() + result.lost_mass)
    totals = torch.stack(totals)
    expected = 7 * measure.finite(7).mean if key == "finite" else measure.mean
    error = (totals.mean() - expected) / (totals.std() / math.sqrt(num_draws))
    assert error.abs() < 4.2


@pytest.mark.parametrize("method", ["size_biased", "inverse_levy"])
def test_normalized_weights_and_lost_mass_are_divided_by_the_same_sum(method):
    """With the values of all sites given."""
    pyro.set_rng_seed(0)
    base, truncation = dist.Normal(0.0, 1.0), TruncatedSeries(7, method)
    trace = pyro.poutine.trace(random_measure).get_trace("G", GAMMA, base, truncation)
    plain = trace.nodes["_RETURN"]["value"]
    replayed = pyro.poutine.replay(random_measure, trace)
    normalized = replayed("G", GAMMA.normalize(), base, truncation)
    total = plain.weights.sum()
    assert abs(total.log()) > 0.1 and plain.lost_mass > 0
    torch.testing.assert_close(normalized.weights, plain.weights / total)
    torch.testing.assert_close(normalized.lost_mass, plain.lost_mass / total)


def mixture_model(truncation, data):
    """Mixture over a normalized measure whose parameters are latent."""
    mass = pyro.sample("mass", dist.Gamma(2.0, 0.5))
    discount = pyro.sample("discount", dist.Beta(2.0, 2.0))
    measure = GeneralizedGammaProcess(mass, discount, 1.0).normalize()
    mixture = random_measure("G", measure, dist.Normal(0.0, 3.0), truncation)
    with pyro.plate("data", len(data), subsample_size=50) as index:
        fn = dist.MixtureSameFamily(
            dist.Categorical(mixture.weights), dist.Normal(mixture.atoms, 0.7)
        )
        pyro.sample("x", fn, obs=data[index])


@pytest.mark.parametrize("truncation", [10, TruncatedSeries(10)], ids=["finite", "series"])
def test_a_recorded_potential_agrees_with_pyro(truncation):
    """Without a warning, so that it is really recorded."""
    check_potential(mixture_model, truncation, word_counts()[0].float().log())


def test_svi_and_predictive():
    data = word_counts()[0].float().log()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoNormal(mixture_model)
    svi = SVI(mixture_model, guide, Adam({"lr": 0.05}), Trace_ELBO())
    losses = torch.tensor([svi.step(10, data) for _ in range(150)])
    assert losses.isfinite().all() and losses[-30:].mean() < 0.8 * losses[:10].mean()
    draws = Predictive(mixture_model, guide=guide, num_samples=5)(10, data)
    assert draws["G_weights"].shape[0] == 5 and draws["G_weights"].shape[-1] == 10


@pytest.mark.parametrize("key", ["finite", "size-biased", "normalized", "Pitman-Yor"])
def test_draws_of_parameters_looked_at_together(key):
    _, truncation = TRUNCATIONS[key]
    discount = torch.tensor([[0.2], [0.5], [0.8]])
    measure = GeneralizedGammaProcess(2.0, discount, 1.5)
    if key == "normalized":
        measure = measure.normalize()
    elif key == "Pitman-Yor":
        measure = PitmanYor(discount, 1.3)
    result = random_measure("G", measure, dist.Normal(0.0, 1.0), truncation)
    assert result.weights.shape == (3, 7) and result.lost_mass.shape == (3,)


def eppf_model(make, sizes, multiplicity):
    """Counts as clusters of samples of a normalized measure."""
    mass = pyro.sample("mass", dist.LogNormal(4.0, 1.0))
    discount = pyro.sample("discount", dist.Uniform(0.0, 1.0))
    fn = make(mass, discount)
    if isinstance(fn, PitmanYor):
        pyro.factor("partition", fn.log_eppf(sizes, multiplicity))
        return
    prior = dist.LogNormal(5.0, 2.0)
    tilt = pyro.sample("u", prior)
    joint = fn.log_joint(sizes, tilt, multiplicity)
    pyro.factor("partition", joint - prior.log_prob(tilt))


LAWS = {
    "Pitman-Yor": lambda mass, discount: PitmanYor(discount, mass),
    "generalized gamma": lambda mass, discount: GeneralizedGammaProcess(
        mass, discount, 1.0
    ).normalize(),
    "beta prime": lambda mass, discount: BetaPrimeProcess(
        mass, discount, discount + 1.0, 1.0
    ).normalize(),
    "generalized BFRY": lambda mass, discount: GeneralizedBFRYProcess(
        mass, discount, discount + 1.0, 1.0
    ).normalize(),
}


@pytest.mark.parametrize("key", LAWS)
def test_partitions_with_latent_parameters_are_recorded(key):
    check_potential(eppf_model, LAWS[key], *word_counts())


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.usefixtures("float64")
def test_nuts_on_real_counts_agrees_with_quadrature():
    """Posterior of the discount of a Pitman-Yor process, and of a generalized gamma one.

    Means within 5 standard errors of quadrature over a grid; correct code fails with one seed in a
    million.
    """
    sizes, multiplicity = word_counts()
    sizes, multiplicity = sizes.double(), multiplicity.double()
    masses = torch.linspace(3.0, 8.0, 201).exp()
    discounts = torch.linspace(0.1, 0.4, 201)
    mass, discount = torch.meshgrid(masses, discounts, indexing="ij")
    log_prior = dist.LogNormal(4.0, 1.0).log_prob(mass) + mass.log()
    log_eppf = PitmanYor(discount, mass).log_eppf(sizes, multiplicity)
    weight = (log_prior + log_eppf).flatten().softmax(0)
    exact = (weight * discount.flatten()).sum()
    pyro.set_rng_seed(0)
    mcmc = PyroMCMC(NUTS(eppf_model), num_samples=600, warmup_steps=300, disable_progbar=True)
    mcmc.run(LAWS["Pitman-Yor"], sizes, multiplicity)
    draws = mcmc.get_samples()["discount"]
    size = mcmc.diagnostics()["discount"]["n_eff"]
    assert abs(draws.mean() - exact) < 5.0 * draws.std() / math.sqrt(size)
    # The other distribution says nearly the same of these counts, and its auxiliary variable mixes.
    mcmc = PyroMCMC(NUTS(eppf_model), num_samples=300, warmup_steps=300, disable_progbar=True)
    mcmc.run(LAWS["generalized gamma"], sizes, multiplicity)
    assert abs(mcmc.get_samples()["discount"].mean() - exact) < 0.03


def test_a_measure_in_a_plate_is_refused():
    def model():
        with pyro.plate("outer", 3):
            random_measure("G", GAMMA, dist.Normal(0.0, 1.0), 5)

    with pytest.raises(ValueError, match="outside of all plates"):
        model()


@pytest.mark.parametrize(
    ("measure", "base", "truncation", "message"),
    [
        (GAMMA.expand((2,)), dist.Normal(0.0, 1.0), 5, "measure must have no batch shape"),
        (GAMMA, dist.Normal(torch.zeros(2), 1.0), 5, "base must have no batch shape"),
        (GAMMA, dist.Normal(0.0, 1.0), TruncatedSeries(5, "rosinski"), "method"),
        (GAMMA, dist.Normal(0.0, 1.0), TruncatedSeries(5, LomaxArrivals(2.0)), "method"),
        (PitmanYor(0.4, 1.0), dist.Normal(0.0, 1.0), FiniteApproximation(5), "stick-breaking"),
    ],
)
def test_bad_arguments(measure, base, truncation, message):
    with pytest.raises(ValueError, match=message):
        random_measure("G", measure, base, truncation)
