"""Models of sizes of clusters: their densities, samplers that agree, and calibration."""

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.integrate import quad

from pyro_ext.datasets import load_frequencies
from pyro_ext.diagnostics import sbc
from pyro_ext.inference import (
    MCMC,
    Gibbs,
    IndependenceMetropolis,
    RandomWalk,
)
from pyro_ext.models.nonparametric import (
    FrequencyModel,
    beta_prime_prior,
    generalized_bfry_prior,
    generalized_gamma_prior,
    pareto_mixture_prior,
    pitman_yor_prior,
)
from pyro_ext.potential import Potential
from pyro_ext.random_measures import (
    BetaPrimeProcess,
    GeneralizedBFRYProcess,
    GeneralizedGammaProcess,
    ParetoMixtureProcess,
    PitmanYor,
    frequency_table,
)
from tests.inference.models import nuts_at_the_mode

pytestmark = pytest.mark.usefixtures("float64")

TABLE = [[1, 4], [2, 2], [4, 1], [12, 1]]
PRIORS = {
    "generalized BFRY": generalized_bfry_prior,
    "beta prime": beta_prime_prior,
    "Pareto mixture": pareto_mixture_prior,
    "generalized gamma": generalized_gamma_prior,
    "Pitman-Yor": pitman_yor_prior,
}
VALUES = {
    "mass": 3.0,
    "discount": 0.4,
    "excess": 0.9,
    "pareto_mass": 2.0,
    "pareto_scale": 1.5,
    "concentration": 2.0,
    "scaled_tilt": 2.5,
}


def table():
    return torch.tensor(TABLE)


def values(*names):
    return {name: torch.tensor(VALUES[name]) for name in names}


def log_density(model, *args, **data):
    """Log joint density without the priors of the hyperparameters."""
    trace = poutine.trace(poutine.condition(model, data=data)).get_trace(*args)
    trace.compute_log_prob()
    return trace.nodes["counts"]["log_prob_sum"], trace


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("generalized BFRY", lambda: GeneralizedBFRYProcess(3.0, 0.4, 1.3).normalize()),
        ("beta prime", lambda: BetaPrimeProcess(3.0, 0.4, 1.3).normalize()),
        (
            "Pareto mixture",
            lambda: ParetoMixtureProcess(3.0, 0.4, 1.0, 2.0, 1.5, 1.3).normalize(),
        ),
        ("generalized gamma", lambda: GeneralizedGammaProcess(3.0, 0.4, 1.0).normalize()),
        ("Pitman-Yor", lambda: PitmanYor(0.4, 2.0)),
    ],
)
def test_priors_return_the_process_of_their_sites(name, measure):
    process = FrequencyModel(PRIORS[name]).process(values(*VALUES))
    torch.testing.assert_close(process.log_eppf([5, 2, 1]), measure().log_eppf([5, 2, 1]))


@pytest.mark.parametrize("name", PRIORS)
def test_integral_over_the_tilt_is_the_likelihood(name):
    model, given = FrequencyModel(PRIORS[name]), values(*VALUES)
    whole, _ = log_density(model, table(), **given)
    if name == "Pitman-Yor":
        other, trace = log_density(model.with_scaled_tilt, table(), **given)
        assert "scaled_tilt" not in trace.nodes
        torch.testing.assert_close(whole, other)
        return

    def integrand(point):
        given["scaled_tilt"] = torch.tensor(math.exp(point))
        value, _ = log_density(model.with_scaled_tilt, table(), **given)
        return math.exp(float(value - whole) + point)

    total = sum(quad(integrand, *ends, epsabs=1e-8)[0] for ends in ((-12.0, 0.0), (0.0, 9.0)))
    assert total == pytest.approx(1.0, abs=1e-6)


def test_forms_are_recorded_as_graphs_with_the_same_numbers():
    model = FrequencyModel(generalized_bfry_prior).with_scaled_tilt
    traced, eager = (Potential(model, table(), backend=kind) for kind in ("trace", "eager"))
    params = traced.init(num_chains=2, seed=0)
    for first, second in zip(
        traced.value_and_grad(params), eager.value_and_grad(params), strict=True
    ):
        torch.testing.assert_close(first, second)


def test_the_form_without_tilts_is_recorded_where_the_number_of_samples_is_given():
    model = FrequencyModel(pitman_yor_prior)
    first = Potential(model, table(), num_samples=24, backend="trace")
    second = Potential(model.with_scaled_tilt, table(), backend="eager")
    params = first.init(num_chains=2, seed=0)
    torch.testing.assert_close(first(params), second(params))


@pytest.mark.parametrize("name", ["generalized BFRY", "beta prime", "Pitman-Yor"])
def test_large_terms_cancel_before_they_are_rounded(name):
    """Log densities of bible words, as differences of millions, in float32 and float64."""
    words = load_frequencies("bible_words").table
    given = {key: value.float() for key, value in values(*VALUES).items()}
    wide = {key: value.double() for key, value in given.items()}
    model = FrequencyModel(PRIORS[name]).with_scaled_tilt
    expected, _ = log_density(model, words, **wide)
    torch.set_default_dtype(torch.float32)
    found, _ = log_density(model, words, **given)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(expected), rel=2e-7)


@pytest.mark.parametrize("name", PRIORS)
def test_models_can_be_sent_to_other_processes(name):
    model = pickle.loads(pickle.dumps(FrequencyModel(PRIORS[name])))
    found, expected = (
        each.process(values(*VALUES)) for each in (model, FrequencyModel(PRIORS[name]))
    )
    torch.testing.assert_close(found.log_eppf([5, 2, 1]), expected.log_eppf([5, 2, 1]))


def test_draws_of_the_model_have_the_number_of_samples():
    model = FrequencyModel(pitman_yor_prior)
    assert int(model(num_samples=40).prod(-1).sum()) == 40
    samples = {"concentration": torch.tensor([1.0, 60.0]), "discount": torch.tensor([0.1, 0.5])}
    tables = model.predictive(samples, 200, num_replicates=3, seed=1)
    assert [int(each.prod(-1).sum()) for each in tables] == [200] * 6
    numbers = [int(each[:, 1].sum()) for each in tables]
    assert max(numbers[:3]) < min(numbers[3:])
    fixed = FrequencyModel(PitmanYor(0.3, 1.0)).predictive({}, 50, num_replicates=2)
    assert len(fixed) == 2


def test_wrong_arguments_are_refused():
    model = FrequencyModel(pitman_yor_prior)
    with pytest.raises(ValueError, match="table or num_samples must be given, got neither"):
        model()
    with pytest.raises(ValueError, match=r"samples lacks the sites \['discount'\]"):
        model.predictive({"concentration": torch.ones(2)}, 10)
    for draws, message in (
        (torch.ones(3), r"samples\['discount'\] must have the shape \(2,\), .* got \(3,\)"),
        (torch.tensor(0.5), r"samples\['discount'\] must have the shape \(2,\), .* got \(\)"),
        (torch.rand(1, 2), r"samples\['discount'\] must have the shape .* chains .* got \(1, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.predictive({"concentration": torch.ones(2), "discount": draws}, 10)
    with pytest.raises(ValueError, match=r"\['concentration'\] must have the shape \(num_draws,\)"):
        model.predictive({"concentration": torch.ones(1, 2), "discount": torch.ones(2)}, 10)
    with pytest.raises(TypeError, match="prior must be or return"):
        FrequencyModel(lambda: 3.0).process()


def reference(prior_laws, measure):
    """Posterior means of a function of mass and discount by quadrature over both."""
    mass, discount = torch.meshgrid(
        torch.linspace(-1.5, 4.0, 9), torch.linspace(-4.0, 3.0, 9), indexing="ij"
    )
    mass, discount = mass.flatten().exp(), discount.flatten().sigmoid()
    sizes, numbers = table().unbind(-1)
    fn = measure(mass, discount).normalize()
    log_joint = fn.log_eppf(sizes.expand(81, 4), numbers.expand(81, 4))
    log_joint = log_joint + prior_laws["mass"].log_prob(mass) + mass.log()
    log_joint = log_joint + prior_laws["discount"].log_prob(discount)
    weights = (log_joint + (discount * (1.0 - discount)).log()).softmax(0)
    return {
        name: (
            float((weights * value).sum()),
            float((weights * value**2).sum() - (weights * value).sum() ** 2) ** 0.5,
        )
        for name, value in {"mass": mass.log(), "discount": discount}.items()
    }


def pareto_mixture(mass, discount, tail_index):
    return ParetoMixtureProcess(mass, discount, 1.0, 2.0, 1.5, tail_index)


def fixed_excess(kind, prior_laws):
    """Prior whose index at infinity exceeds the discount by 0.9."""

    def prior():
        mass = pyro.sample("mass", prior_laws["mass"])
        discount = pyro.sample("discount", prior_laws["discount"])
        return kind(mass, discount, discount + 0.9).normalize()

    return prior


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("kind", [GeneralizedBFRYProcess, BetaPrimeProcess])
def test_samplers_agree_with_quadrature(kind):
    """NUTS over the tilt and random walks; means within six standard errors.

    These are from ten batches. Eight means are each beyond with a probability of 2e-4.
    """
    prior_laws = {"mass": dist.LogNormal(1.0, 0.7), "discount": dist.Beta(2.0, 2.0)}
    exact = reference(prior_laws, lambda mass, discount: kind(mass, discount, discount + 0.9))
    model = FrequencyModel(fixed_excess(kind, prior_laws))
    start = values("mass", "discount", "scaled_tilt")
    potential = Potential(model.with_scaled_tilt, table(), backend="eager")
    by_nuts = nuts_at_the_mode(potential, start, 150, warmup_steps=40)
    chain = {name: value[None] for name, value in start.items()}
    kernel = Gibbs([(RandomWalk(0.9), list(chain))], model=model.with_scaled_tilt)
    mcmc = MCMC(kernel, 700, warmup_steps=20, initial_params=chain, progress=False, seed=0)
    for draws in (by_nuts, mcmc.run(table()).get_samples()):
        for name, value in {"mass": draws["mass"].log(), "discount": draws["discount"]}.items():
            mean, deviation = exact[name]
            error = float(value.view(10, -1).mean(-1).std()) / 10**0.5
            assert abs(float(value.mean()) - mean) < 6.0 * error, name
            assert error < 0.45 * deviation
            assert float(value.std()) == pytest.approx(deviation, rel=0.35)


def check_calibration(model, infer, num_simulations, num_samples, num_rows):
    """Simulation-based calibration at a level of 1e-3, with nine draws of each posterior.

    There are as many rows as there are sizes that can differ.
    """
    rows = frequency_table([num_samples], num_rows)
    options = {"num_draws": 9, "log_likelihood": False, "seed": 0, "progress": False}
    result = sbc(model, infer, num_simulations, rows, num_samples=num_samples, **options)
    assert not result.failures
    assert result.is_calibrated(1e-3), result.uniformity()
    spread = result.uniformity()["spread"]
    assert bool((spread > 0.5).all()) and bool((spread < 1.5).all())


@pytest.mark.slow
@pytest.mark.statistical
def test_independence_metropolis_is_calibrated():
    """Simulation-based calibration on partitions of 100 samples, at a level of 1e-3.

    Spreads of 20 ranks have a standard deviation of about 0.12.
    """

    def prior():
        mass = pyro.sample("mass", dist.LogNormal(1.5, 1.0))
        discount = pyro.sample("discount", dist.Beta(2.0, 2.0))
        return GeneralizedGammaProcess(mass, discount, 1.0).normalize()

    model = FrequencyModel(prior)

    def infer(observing, *args, **options):
        seen = poutine.trace(observing).get_trace(*args, **options).nodes["counts"]["value"]
        kernel = IndependenceMetropolis(model.with_scaled_tilt, num_points=256)
        kernel.setup(0, seen[seen[:, 1] > 0].long())
        chains = kernel.begin(range(9), int(torch.randint(2**31, ())))
        position = kernel.advance(chains, 30).position
        potential = kernel.potential
        draws = potential.constrain(potential.layout.unflatten(position))
        return {name: draws[name] for name in model._sites()}

    check_calibration(model, infer, 20, 100, 13)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("kind", [GeneralizedBFRYProcess, BetaPrimeProcess, pareto_mixture])
def test_independence_metropolis_agrees_with_quadrature(kind):
    """Means of 40 chains within five standard errors; six means of all: one in 10^6."""
    prior_laws = {"mass": dist.LogNormal(1.0, 0.7), "discount": dist.Beta(2.0, 2.0)}
    exact = reference(prior_laws, lambda mass, discount: kind(mass, discount, discount + 0.9))
    kernel = IndependenceMetropolis(
        FrequencyModel(fixed_excess(kind, prior_laws)).with_scaled_tilt, num_points=256
    )
    mcmc = MCMC(kernel, 50, warmup_steps=20, num_chains=40, seed=0, progress=False)
    draws = mcmc.run(table()).get_samples(group_by_chain=True)
    for name, value in {"mass": draws["mass"].log(), "discount": draws["discount"]}.items():
        mean, deviation = exact[name]
        error = float(value.mean(1).std()) / 40**0.5
        assert abs(float(value.mean()) - mean) < 5.0 * error, name
        assert error < 0.1 * deviation
        assert float(value.std()) == pytest.approx(deviation, rel=0.15)


@pytest.mark.parametrize("name", ["generalized BFRY", "Pareto mixture"])
def test_at_the_unit_tilt_as_many_clusters_are_expected(name):
    model, given = FrequencyModel(PRIORS[name]), values(*VALUES)
    _, trace = log_density(model.with_scaled_tilt, table(), **given)
    unit = trace.nodes["tilt"]["value"] / given["scaled_tilt"]
    expected = float(model.process(given).measure.laplace_exponent(unit))
    assert 0.7 < expected / float(table()[:, 1].sum()) < 1.3


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda: PitmanYor(0.428, 414.8), -357621.1),
        (lambda: GeneralizedBFRYProcess(2354.0, 0.187, 1.09).normalize(), -357427.8),
        (lambda: BetaPrimeProcess(3224.0, 0.112, 1.181).normalize(), -357426.2),
    ],
)
def test_likelihoods_of_news_words_are_those_that_are_known(fn, expected):
    """Maxima that were computed by other quadrature, at parameters with three digits."""
    sizes, numbers = load_frequencies("news_words").table.unbind(-1)
    assert float(fn().log_eppf(sizes, numbers)) == pytest.approx(expected, abs=0.11)


@pytest.mark.parametrize(("tail_index", "expected"), [(10.0, -23.920872), (100.0, -23.905444)])
def test_beta_prime_approaches_the_generalized_gamma_process(tail_index, expected):
    """Known numbers; the limit of the generalized gamma process is -23.903849."""
    mass = 2.0 * math.exp(-math.lgamma(tail_index))
    found = BetaPrimeProcess(mass, 0.4, tail_index).normalize().log_eppf([5, 3, 3, 2, 1, 1, 1])
    assert float(found) == pytest.approx(expected, abs=1e-6)
    limit = GeneralizedGammaProcess(2.0, 0.4, 1.0).normalize().log_eppf([5, 3, 3, 2, 1, 1, 1])
    assert float(limit) == pytest.approx(-23.903849, abs=1e-6)
