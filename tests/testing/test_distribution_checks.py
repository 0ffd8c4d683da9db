"""The checks of distributions refuse what is wrong with a distribution, and say what."""

from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints, register_kl

from pyro_ext.testing import distributions as checks
from tests.testing.wrong import wrong, wrong_type

pytestmark = [pytest.mark.statistical, pytest.mark.usefixtures("float64")]

NORMAL = {"loc": 0.3, "scale": 2.0}
GAMMA = {"concentration": 2.5, "rate": 2.0}


class WrongSupport(dist.Normal):
    support = constraints.positive


class GradientLost(dist.Normal):
    def rsample(self, sample_shape=()):
        return self.loc + (super().rsample(sample_shape) - self.loc).detach()


class AnyValue(dist.Gamma):
    def log_prob(self, value):
        checked, self._validate_args = self._validate_args, False
        result = super().log_prob(value.abs())
        self._validate_args = checked
        return result


class AnyParameter(dist.Normal):
    def __init__(self, loc, scale, validate_args=None):
        super().__init__(loc, scale, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


class SeedOfItsOwn(dist.Normal):
    def sample(self, sample_shape=()):
        torch.seed()
        return super().sample(sample_shape)


def steeper(factor):
    """The same values with derivatives that are larger by a factor."""
    return lambda value: value.detach() + factor * (value - value.detach())


def rough_in_single_precision(density):
    return density if density.dtype == torch.float64 else density + 1e-3


# Of a normal distribution: the method that is wrong, what it makes of its results, and the error.
CHANGED = [
    ("log_prob", lambda density: density + 1e-6, "integrates to 1"),
    ("variance", lambda value: value * 1.0001, "a variance of 0.9999, not 1"),
    ("cdf", lambda value: value + 1e-6, "cdf of Wrong and integral of its density differ"),
    ("icdf", lambda value: value * 1.0001, "cdf of Wrong at its quantiles"),
    ("sample", lambda draws: 1.1 * draws, r"draws of Wrong do not have the cdf \(distance"),
    ("rsample", steeper(1.2), "gradient of rsample of Wrong in loc is"),
    ("log_prob", steeper(1.001), "gradient of log_prob of Wrong"),
    ("log_prob", torch.Tensor.double, "log_prob of Wrong is torch.float64, not torch.float32"),
    ("log_prob", rough_in_single_precision, "log_prob of .* in float32 and in float64 differ"),
    ("log_prob", lambda density: density.sum(-1, keepdim=True), "log_prob of Wrong"),
]
WrongMean = wrong_type(dist.Gamma, mean=lambda value: value * 1.0001)
WRONG = [
    *((wrong_type(dist.Normal, **{name: one}), NORMAL, message) for name, one, message in CHANGED),
    (WrongMean, GAMMA, "a mean of 0.9999, not 1"),
    (WrongSupport, NORMAL, "draws of WrongSupport are outside of its support"),
    (GradientLost, NORMAL, "gradient of rsample of GradientLost in scale|no gradient in scale"),
    (AnyValue, GAMMA, "AnyValue accepts -inf outside of its support"),
    (AnyParameter, NORMAL, "loc = nan of AnyParameter is accepted"),
    (SeedOfItsOwn, NORMAL, "draws of SeedOfItsOwn differ with the same seed"),
]


@pytest.mark.parametrize(
    "make, parameters, message", WRONG, ids=lambda value: getattr(value, "__name__", "")
)
def test_wrong_distributions_are_refused(make, parameters, message):
    tensors = {name: torch.tensor(value) for name, value in parameters.items()}
    with pytest.raises(AssertionError, match=message):
        checks.check_distribution(make, tensors)


@pytest.mark.parametrize(
    "make, parameters",
    [
        (dist.Normal, NORMAL),
        (dist.Laplace, NORMAL),
        (dist.StudentT, {"df": 2.5, "loc": 1.0, "scale": 0.2}),
        (dist.Gamma, GAMMA),
        (dist.Uniform, {"low": 1.0, "high": 3.0}),
        (dist.Kumaraswamy, {"concentration1": 0.6, "concentration0": 2.0}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_distributions_of_pyro_pass(make, parameters):
    checks.check_distribution(
        make, {name: torch.tensor(value) for name, value in parameters.items()}
    )


def test_discrete_distributions():
    points, probs = torch.arange(5.0), torch.tensor(0.3)
    other = dist.Binomial(4, probs).log_prob(points) + 0.1 * points
    counts = wrong(dist.Binomial, 4, probs, log_prob=lambda _: other)
    checks.check_distribution(partial(dist.Binomial, 4), {"probs": probs}, points=points)
    with pytest.raises(AssertionError, match="sum of the probabilities of Wrong and 1"):
        checks.check_density(counts, points=points)
    with pytest.raises(AssertionError, match="do not have the probabilities: p = "):
        checks.check_draws(counts, points=points)


def test_divergences():
    @register_kl(WrongMean, WrongMean)
    def wrong(p, q):
        return torch.distributions.kl_divergence(dist.Gamma(p.concentration, p.rate), q) * 1.001

    p, q = (WrongMean(torch.tensor(a), torch.tensor(1.5)) for a in (2.0, 3.0))
    with pytest.raises(AssertionError, match="divergence of Wrong from Wrong and its int"):
        checks.check_divergence(p, q)


def test_numbers_that_are_not_finite():
    class Overflows(dist.Normal):
        def log_prob(self, value):
            return super().log_prob(value) - (value.exp() - value.exp().detach())

    parameters = {"loc": torch.zeros(3), "scale": torch.ones(3)}
    with pytest.raises(AssertionError, match="log_prob at loc=0, scale=1 and value=800"):
        checks.check_finite(Overflows, parameters, torch.tensor([0.0, 1.0, 800.0]))


def test_in_a_model():
    parameters = {name: torch.tensor(value) for name, value in NORMAL.items()}
    checks.check_in_model(dist.Normal, parameters)
    with pytest.raises(AssertionError, match="slope and finite difference"):
        checks.check_in_model(wrong_type(dist.Normal, log_prob=steeper(1.1)), parameters)
