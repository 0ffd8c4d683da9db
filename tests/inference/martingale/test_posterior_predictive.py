"""The predictive rule of a Pyro model, against the conjugate normal model.

A statistical comparison allows 3.5 standard errors, or the 5e-4 level of a test: a false-alarm rate
of 5e-4 each, for a new seed.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.infer import NUTS
from pyro.infer.autoguide import AutoNormal
from pyro.ops.stats import effective_sample_size

from pyro_ext.inference import MCMC
from pyro_ext.inference.martingale.functionals import Expectation, Mean
from pyro_ext.inference.martingale.martingale_posterior import MartingalePosterior
from pyro_ext.inference.martingale.posterior_predictive import PosteriorPredictive
from pyro_ext.random import chain_keys
from pyro_ext.testing.moments import estimate_moment
from tests.inference.martingale.normal_models import fixed_size, model, subsampling

ALLOWED = 3.5
LEVEL = 5e-4


def data() -> torch.Tensor:
    return torch.linspace(-1.0, 2.0, 10)


def regression(x, y=None):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ slope, 0.1), obs=y)


def moments_of_loc(size: int = 10) -> tuple[float, float]:
    precision = size + 1 / 4
    return float(data().sum()) / precision, 1 / precision


def exact_guide(y):
    mean, variance = moments_of_loc()
    pyro.sample("loc", dist.Normal(torch.tensor(mean), math.sqrt(variance)))


def posterior(rule, num_samples: int, horizon: int, functional=None, **options):
    options = {"seed": 0, "progress": False, "tolerance": 1.0, **options}
    return MartingalePosterior(rule, functional or Mean(), num_samples, horizon, **options)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("predicted", "horizon", "number"),
    [
        pytest.param(model, 2990, 2000, marks=pytest.mark.slow, id="large"),
        pytest.param(model, 5, 2000, id="small"),
        pytest.param(fixed_size, 25, 1000, id="fixed_size"),
        pytest.param(subsampling, 10, 1000, id="subsampling"),
    ],
)
def test_the_mean_has_the_bayesian_posterior(predicted, horizon, number, float64):
    """The mean of the population is that of the data, and of normal points around ``loc``."""
    mean, variance = moments_of_loc()
    share = horizon / (10 + horizon)
    exact_mean = (1 - share) * 0.5 + share * mean
    exact_variance = share**2 * (variance + 1 / horizon)
    rule = PosteriorPredictive(predicted, exact_guide)
    draws = posterior(rule, number, horizon).run(data()).get_samples()["theta"]
    distribution = scipy.stats.norm(exact_mean, math.sqrt(exact_variance))
    assert scipy.stats.kstest(draws.numpy(), distribution.cdf).pvalue > LEVEL
    assert abs(estimate_moment(draws).z_score(exact_mean)) < ALLOWED
    squares = estimate_moment((draws - exact_mean) ** 2)
    assert abs(squares.z_score(exact_variance)) < ALLOWED
    if horizon == 2990:  # at large sizes that is the Bayesian posterior
        assert exact_variance == pytest.approx(variance, rel=0.005)


@pytest.mark.statistical
def test_draws_of_a_dict_are_taken_at_random(float64):
    draws = {"loc": torch.tensor([-50.0, 0.0, 50.0]), "other": torch.zeros(7)}
    rule = PosteriorPredictive(model, draws)
    state = rule.begin((data(),), chain_keys(0, range(3000)))
    latents = state.value.latents
    assert latents.keys() == {"loc"}
    counts = [int((latents["loc"] == value).sum()) for value in (-50.0, 0.0, 50.0)]
    assert scipy.stats.chisquare(counts).pvalue > LEVEL
    few = rule.begin((data(),), chain_keys(0, range(30)))
    values = rule.advance(few, 20).value.future[0][:, :20].mean(1)
    torch.testing.assert_close(values, few.value.latents["loc"], atol=ALLOWED / 20**0.5 + 1, rtol=0)


def test_means_far_from_zero_lose_no_digits():
    """Weights in single precision do not sum to one, which a large mean is multiplied by."""
    values = 1e6 + torch.randn(20, dtype=torch.float64)
    rule = PosteriorPredictive(model, {"loc": values[:5]})
    state = rule.advance(rule.begin((values,), chain_keys(0, range(4))), 1000)
    (points,) = rule.population(state).values
    torch.testing.assert_close(rule.population(state).mean, points.mean(1), atol=1e-6, rtol=0)


def test_covariates_are_rows_of_the_data(float64):
    x = torch.randn(10, 2)
    y = torch.randn(10)
    slope = torch.tensor([3.0, -2.0])
    rule = PosteriorPredictive(regression, {"slope": slope.expand(1, 2)})
    state = rule.advance(rule.begin((x, y), chain_keys(0, range(4))), 3000)
    covariates, response = rule.population(state).values
    assert covariates.shape == (4, 3010, 2) and response.shape == (4, 3010)
    assert torch.equal(covariates[:, :10], x.expand(4, 10, 2))
    assert torch.equal(response[:, :10], y.expand(4, 10))
    rows = (covariates[:, 10:, None] == x).all(-1)
    assert bool((rows.sum(-1) == 1).all())
    assert scipy.stats.chisquare(rows.sum((0, 1)).numpy()).pvalue > LEVEL
    noise = response[:, 10:] - covariates[:, 10:] @ slope
    assert scipy.stats.kstest(noise.flatten().numpy(), scipy.stats.norm(0, 0.1).cdf).pvalue > LEVEL
    # Rows stay together for a functional of both.
    product = Expectation(lambda x, y: x[..., 0] * y)(rule.population(state))
    torch.testing.assert_close(product, (covariates[..., 0] * response).mean(1))


@pytest.mark.slow
@pytest.mark.statistical
def test_kernel_sampler_and_guide(float64):
    kernel_rule = PosteriorPredictive(
        model, NUTS(model), num_samples=200, warmup_steps=200, progress=False
    )
    first = posterior(kernel_rule, 300, 990).run(data()).get_samples()["theta"]
    prepared = [kernel_rule.prepare((data(),), seed=0).posterior["loc"] for _ in range(2)]
    assert torch.equal(*prepared) and len(prepared[0].unique()) > 100
    mcmc = MCMC(NUTS(model), 200, 200, seed=1, progress=False).run(data())
    third = posterior(PosteriorPredictive(model, mcmc), 300, 990).run(data()).get_samples()["theta"]
    mean, variance = moments_of_loc()
    exact = 0.01 * 0.5 + 0.99 * mean
    for chain, draws in ((prepared[0], first), (mcmc.get_samples()["loc"], third)):
        # The draws of a chain, and 300 with replacement of these.
        error = math.sqrt(variance * (1 / effective_sample_size(chain[None]) + 1 / 300))
        assert abs(float(draws.mean()) - exact) < ALLOWED * error
    guide = AutoNormal(model)
    guide(data())
    draws = posterior(PosteriorPredictive(model, guide), 20, 100).run(data()).get_samples()
    assert len(draws["theta"].unique()) == 20


def test_vector_observations(float64):
    def vectors(y):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)

    def dimensions(y):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("dimension", 3, dim=-1), pyro.plate("data", len(y), dim=-2):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    for predicted in (vectors, dimensions):
        rule = PosteriorPredictive(predicted, {"loc": torch.tensor([[-50.0, 0.0, 50.0]])})
        draws = posterior(rule, 5, 90).run(torch.zeros(10, 3)).get_samples()["theta"]
        assert draws.shape == (5, 3)
        torch.testing.assert_close(
            draws, torch.tensor([[-45.0, 0.0, 45.0]]).expand(5, 3), atol=1.0, rtol=0
        )


def local_latents(y):
    with pyro.plate("data", len(y)):
        loc = pyro.sample("local", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def chain(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc + y.roll(1), 1.0), obs=y)


def scaled(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=2.0 * y)


def without_plate(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(loc, 1.0).expand([len(y)]).to_event(1), obs=y)


def unobserved(y):
    pyro.sample("loc", dist.Normal(0.0, 1.0))


def test_models_and_draws_that_do_not_fit(subtests):
    for predicted, draws, message in [
        (local_latents, {}, "site 'local' stands in the plate 'data' of the observations"),
        (chain, {}, "another density where the rows of the data are in another order"),
        (scaled, {}, "site 'y' observes none of the 1 tensors of the data as they are"),
        (without_plate, {}, r"observed sites \['y'\] in one plate with an argument"),
        (unobserved, {}, "must have observed sites, got none"),
        (model, {}, r"draws of the latent sites \['loc'\], got \[\]"),
        (model, {"loc": torch.zeros(5, 3)}, r"draws of the shape \(\) of the site 'loc', got \(3,"),
        (model, {"loc": torch.zeros(0)}, "the same number of draws of each site"),
    ]:
        with subtests.test(message), pytest.raises(ValueError, match=message):
            posterior(PosteriorPredictive(predicted, draws), 5, 10).run(data())


def test_errors(subtests):
    for make, error, message in [
        (
            lambda: PosteriorPredictive(model, {}, thinning=2),
            TypeError,
            r"options \['thinning'\] are those of MCMC, which only a kernel takes, got dict",
        ),
        (
            lambda: PosteriorPredictive(model, NUTS(model)).begin((data(),), chain_keys(0, [0])),
            ValueError,
            "the kernel NUTS, which has yet to run",
        ),
        (
            lambda: posterior(PosteriorPredictive(model, {}), 5, math.inf),
            ValueError,
            "horizon must be finite for a rule that does not know its limit, got inf for Posterior",
        ),
    ]:
        with subtests.test(message), pytest.raises(error, match=message):
            make()
