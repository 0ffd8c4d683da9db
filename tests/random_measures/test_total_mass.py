"""Draws of total masses against their Laplace transforms, moments and known distributions."""

import math

import pytest
import torch
from scipy import stats

from pyro_ext.random_measures import ApproximateTotalMass, TotalMass
from tests.random_measures.references import (
    GAMMA,
    PARETO_MIXTURE,
    STABLE_BETA,
    beta_prime,
    gamma,
    generalized_bfry,
    levy_density,
    pareto,
)

pytestmark = [pytest.mark.statistical, pytest.mark.usefixtures("float64")]

NUM_ERRORS = 5.0
SMALLEST_P = 1e-6

EXACT = [
    GAMMA,
    gamma(2.0, 0.0, 1.5),
    gamma(2.0, -0.7, 1.5),
    gamma(2.0, 0.5, 0.0),
    gamma(5.0, 0.9, 2.0),
    PARETO_MIXTURE,
    pareto(3.0, 2.0, 1.5),
    pareto(3.0, 2.0, 1.5, 0.7),
    beta_prime(1.5, 0.4, 2.3, 1.0),
    beta_prime(1.5, 0.0, 0.7, 2.0),
    beta_prime(1.5, 0.4, 2.3, 2.0, 0.8),
    beta_prime(0.3, 0.9, 4.0, 0.5),
    generalized_bfry(1.5, 0.4, 2.3, 1.2),
    generalized_bfry(1.5, 0.0, 0.7, 2.0),
    generalized_bfry(1.5, 0.4, 2.3, 1.2, 0.8),
    generalized_bfry(0.3, 0.9, 3.5, 0.5),
]


def check_transform(draws, exponent, name=""):
    """Fails for one seed in 600,000 for each of the three places."""
    assert draws.isfinite().all() and (draws >= 0).all()
    middle = draws.median().clamp(min=1e-6).item()
    for t in (0.1 / middle, 1.0 / middle, 10.0 / middle):
        terms = torch.exp(-t * draws)
        error = terms.std() / math.sqrt(len(draws))
        assert abs(terms.mean() - math.exp(-exponent(t))) < NUM_ERRORS * error + 1e-9, (name, t)


def check_moments(fn, number):
    """Each of mean and variance fails for less than one seed in 1.7 million."""
    draws = fn.sample((number,))
    assert abs(draws.mean() - fn.mean) < NUM_ERRORS * (fn.variance / number).sqrt()
    fourth = (draws - fn.mean).pow(4).mean()
    error = ((fourth - fn.variance.square()) / number).sqrt()
    assert abs(draws.var() - fn.variance) < NUM_ERRORS * error


@pytest.mark.slow
@pytest.mark.parametrize("reference", EXACT, ids=str)
def test_exact_draws(reference):
    """Transforms at three places, of half a million draws; any fails for one seed in 12,000."""
    torch.manual_seed(0)
    fn = reference.measure().total_mass()
    assert not isinstance(fn, ApproximateTotalMass)
    draws = fn.sample((500_000,))
    check_transform(draws, reference.exponent)
    if fn.variance.isfinite():
        error = (fn.variance / len(draws)).sqrt()
        assert abs(draws.mean() - fn.mean) < NUM_ERRORS * error


def test_fewer_draws():
    """Five distributions and three transforms each; any fails for one seed in 40,000."""
    torch.manual_seed(0)
    for reference in (EXACT[0], EXACT[2], EXACT[5], EXACT[10], EXACT[14]):
        check_transform(reference.measure().total_mass().sample((20_000,)), reference.exponent)


@pytest.mark.parametrize(
    "reference, fn",
    [
        (gamma(2.0, 0.0, 1.5), stats.gamma(2.0, scale=1 / 1.5)),
        # Its mean is 2 / sqrt(1.5) and its shape 8.
        (gamma(2.0, 0.5, 1.5), stats.invgauss(4 / (2 * 1.5**0.5) / 8.0, scale=8.0)),
        (gamma(1.0, 0.5, 0.0), stats.levy(scale=2.0)),
    ],
    ids=["gamma", "inverse Gaussian", "Lévy"],
)
def test_known_laws(reference, fn):
    """Kolmogorov-Smirnov tests of 100,000 draws; any fails for one seed in 330,000."""
    torch.manual_seed(0)
    draws = reference.measure().total_mass().sample((100_000,)).numpy()
    assert stats.kstest(draws, fn.cdf).pvalue > SMALLEST_P


def test_atom_of_a_finite_measure():
    """The mass is zero where there are no weights; fails for one seed in a million."""
    torch.manual_seed(0)
    measure = gamma(1.0, -0.7, 1.5).measure()
    draws = measure.total_mass().sample((100_000,))
    none = math.exp(-(1.5**-0.7) / 0.7)
    count = int((draws == 0).sum())
    assert stats.binomtest(count, 100_000, none).pvalue > SMALLEST_P


def test_approximate_draws():
    """A thousand weights and a gamma variable; the noise hides the error of the approximation.

    Any of three transforms and two moments fails for one seed in 300,000.
    """
    torch.manual_seed(0)
    fn = STABLE_BETA.measure().total_mass()
    assert isinstance(fn, ApproximateTotalMass)
    check_transform(fn.sample((1000,)), STABLE_BETA.exponent)
    check_moments(fn, 1000)


@pytest.mark.parametrize("number", [1, 10])
def test_approximation_with_few_weights(number):
    """Mean and variance are right for any number; either fails for one seed in 800,000."""
    torch.manual_seed(0)
    check_moments(ApproximateTotalMass(STABLE_BETA.measure(), number, "lomax"), 5000)


def test_approximation_for_a_density_of_a_user():
    """As above, of size-biased weights."""
    torch.manual_seed(0)
    measure = levy_density(2.0, 0.4, 1.5).measure()
    assert isinstance(measure.total_mass(), ApproximateTotalMass)
    check_moments(ApproximateTotalMass(measure, 2), 300)


def test_interface():
    measure = generalized_bfry(1.5, 0.4, 2.3, 1.2).measure().expand((3,))
    fn = measure.total_mass()
    assert isinstance(fn, TotalMass) and fn.batch_shape == (3,)
    assert fn.sample((2,)).shape == (2, 3)
    wide = fn.expand((4, 3))
    assert wide.sample().shape == (4, 3) and wide.mean.shape == (4, 3)
    draws = fn.sample((5,))
    assert fn.support.check(draws).all() and not draws.requires_grad
    with pytest.raises(NotImplementedError):
        fn.log_prob(draws)


def test_too_many_weights_are_refused():
    measure = generalized_bfry(1e9, 0.4, 2.3, 1.2).measure()
    with pytest.raises(ValueError, match="at most 100000000 are drawn at once"):
        measure.total_mass().sample()
