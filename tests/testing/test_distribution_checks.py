"""The checks of distributions refuse what is wrong with a distribution, and say what."""

from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints, register_kl

from pyro_ext.testing import distributions as checks

pytestmark = [pytest.mark.statistical, pytest.mark.usefixtures("float64")]

NORMAL = {"loc": 0.3, "scale": 2.0}
GAMMA = {"concentration": 2.5, "rate": 2.0}


class WrongNormalizer(dist.Normal):
    def log_prob(self, value):
        return super().log_prob(value) + 1e-6


class WrongMean(dist.Gamma):
    @property
    def mean(self):
        return super().mean * 1.0001


class WrongVariance(dist.Normal):
    @property
    def variance(self):
        return super().variance * 1.0001


class WrongSupport(dist.Normal):
    support = constraints.positive


class WrongCdf(dist.Normal):
    def cdf(self, value):
        return super().cdf(value) + 1e-6


class WrongQuantiles(dist.Normal):
    def icdf(self, value):
        return super().icdf(value) * 1.0001


class WrongDraws(dist.Normal):
    def sample(self, sample_shape=()):
        return 1.1 * super().sample(sample_shape)


class WrongGradientOfDraws(dist.Normal):
    def rsample(self, sample_shape=()):
        draws = super().rsample(sample_shape)
        return draws.detach() + 1.2 * (draws - draws.detach())


class GradientLost(dist.Normal):
    def rsample(self, sample_shape=()):
        return self.loc + (super().rsample(sample_shape) - self.loc).detach()


class WrongGradientOfDensity(dist.Normal):
    def log_prob(self, value):
        exact = super().log_prob(value)
        return exact.detach() + 1.001 * (exact - exact.detach())


class WrongType(dist.Normal):
    def log_prob(self, value):
        return super().log_prob(value).double()


class RoughInSinglePrecision(dist.Normal):
    def log_prob(self, value):
        exact = super().log_prob(value)
        return exact if exact.dtype == torch.float64 else exact + 1e-3


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


class WrongShape(dist.Normal):
    def log_prob(self, value):
        return super().log_prob(value).sum(-1, keepdim=True)


class SeedOfItsOwn(dist.Normal):
    def sample(self, sample_shape=()):
        torch.seed()
        return super().sample(sample_shape)


class WrongCounts(dist.Binomial):
    def log_prob(self, value):
        return super().log_prob(value) + 0.1 * value


WRONG = [
    (WrongNormalizer, NORMAL, "integrates to 1"),
    (WrongMean, GAMMA, "a mean of 0.9999, not 1"),
    (WrongVariance, NORMAL, "a variance of 0.9999, not 1"),
    (WrongSupport, NORMAL, "draws of WrongSupport are outside of its support"),
    (WrongCdf, NORMAL, "cdf of WrongCdf and integral of its density differ"),
    (WrongQuantiles, NORMAL, "cdf of WrongQuantiles at its quantiles"),
    (WrongDraws, NORMAL, r"draws of WrongDraws do not have the cdf \(distance"),
    (WrongGradientOfDraws, NORMAL, "gradient of rsample of WrongGradientOfDraws in loc is"),
    (GradientLost, NORMAL, "gradient of rsample of GradientLost in scale|no gradient in scale"),
    (WrongGradientOfDensity, NORMAL, "gradient of log_prob of WrongGradientOfDensity"),
    (WrongType, NORMAL, "log_prob of WrongType is torch.float64, not torch.float32"),
    (RoughInSinglePrecision, NORMAL, "log_prob of .* in float32 and in float64 differ"),
    (AnyValue, GAMMA, "AnyValue accepts -inf outside of its support"),
    (AnyParameter, NORMAL, "loc = nan of AnyParameter is accepted"),
    (WrongShape, NORMAL, "log_prob of WrongShape"),
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
    checks.check_distribution(partial(dist.Binomial, 4), {"probs": probs}, points=points)
    with pytest.raises(AssertionError, match="sum of the probabilities of WrongCounts and 1"):
        checks.check_density(WrongCounts(4, probs), points=points)
    with pytest.raises(AssertionError, match="do not have the probabilities: p = "):
        checks.check_draws(WrongCounts(4, probs), points=points)


def test_divergences():
    @register_kl(WrongMean, WrongMean)
    def wrong(p, q):
        return torch.distributions.kl_divergence(dist.Gamma(p.concentration, p.rate), q) * 1.001

    p, q = (WrongMean(torch.tensor(a), torch.tensor(1.5)) for a in (2.0, 3.0))
    with pytest.raises(AssertionError, match="divergence of WrongMean from WrongMean and its int"):
        checks.check_divergence(p, q)


def test_numbers_that_are_not_finite():
    class Overflows(dist.Normal):
        def log_prob(self, value):
            return super().log_prob(value) - (value.exp() - value.exp().detach())

    parameters = {"loc": torch.zeros(3), "scale": torch.ones(3)}
    with pytest.raises(AssertionError, match="log_prob at loc=0, scale=1 and value=800"):
        checks.check_finite(Overflows, parameters, torch.tensor([0.0, 1.0, 800.0]))


def test_in_a_model():
    class Branches(dist.Normal):
        def log_prob(self, value):
            exact = super().log_prob(value)
            return exact.detach() + 1.1 * (exact - exact.detach())

    parameters = {name: torch.tensor(value) for name, value in NORMAL.items()}
    checks.check_in_model(dist.Normal, parameters)
    with pytest.raises(AssertionError, match="slope and finite difference"):
        checks.check_in_model(Branches, parameters)
