"""Draws of total masses against their Laplace transforms, moments and known distributions."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from pyro_ext.random_measures import (
    ApproximateTotalMass,
    BetaPrimeProcess,
    GeneralizedBFRYProcess,
    InvertedTotalMass,
    TotalMass,
)
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


INVERTED = [
    beta_prime(1.5, 0.4, 2.3, 1.0),
    beta_prime(1.5, 0.0, 0.7, 2.0),
    beta_prime(1.5, 0.4, 2.3, 2.0, 0.8),
    generalized_bfry(1.5, 0.4, 2.3, 1.2),
    generalized_bfry(1.5, 0.0, 0.7, 2.0),
    generalized_bfry(1.5, 0.4, 2.3, 1.2, 0.8),
]
# Laws so narrow that the other inversion takes long.
NARROW = [
    pytest.param(reference, marks=pytest.mark.slow)
    for reference in (beta_prime(0.3, 0.9, 4.0, 0.5), generalized_bfry(20.0, 0.6, 3.0, 1.0))
]


def exponent_in_closed_form(measure, s):
    """Laplace exponent at a complex number without tilt, by hypergeometric functions."""
    mass, sigma, tau = (
        mpmath.mpf(float(getattr(measure, name))) for name in ("mass", "discount", "tail_index")
    )
    power, least = tau - sigma, mpmath.mpf("1e-25")
    sigma = max(sigma, least)
    if isinstance(measure, BetaPrimeProcess):
        rate = mpmath.mpf(float(measure.rate))
        inner = mpmath.gamma(power) * s ** (power + sigma)
        inner = inner * mpmath.hyperu(power, power + sigma + 1, rate * s)
        value = inner - mpmath.gamma(power + sigma) * rate ** -(power + sigma)
    else:
        cutoff = mpmath.mpf(float(measure.cutoff))
        value = s**sigma * mpmath.hyp2f1(-sigma, power, power + 1, -cutoff / s) / power
        value = cutoff**power * (value - cutoff**sigma / (power + sigma))
    return mass * value / sigma


@pytest.mark.parametrize(
    "reference",
    [
        *(pytest.param(reference, marks=pytest.mark.slow) for reference in INVERTED[:3]),
        *INVERTED[3:],
        *NARROW,
    ],
    ids=str,
)
def test_density_and_distribution_function(reference):
    """Against another inversion, of transforms in closed form, in many more digits."""
    measure = reference.measure()
    tilt = mpmath.mpf(float(measure.tilt))
    spread = (measure.variance.sqrt() / measure.mean).nan_to_num(1.0, 1.0).clamp(max=1.0).item()
    middle = min(measure.mean.item(), 1e4) if spread < 1.0 else 1.0
    values = [middle * math.exp(steps * spread) for steps in (-1.2, 0.0, 4.0)]
    with mpmath.workdps(60):
        start = exponent_in_closed_form(measure, tilt) if tilt else mpmath.mpf(0)

        def invert(value, divide):
            def transform(s):
                moved = s + tilt if divide else s
                log_transform = -exponent_in_closed_form(measure, moved)
                return mpmath.exp(log_transform + start) / (s if divide else 1)

            inverse = mpmath.invertlaplace(transform, value, method="talbot", degree=80)
            return inverse * (1 if divide else mpmath.exp(-tilt * value))

        densities = [float(mpmath.log(invert(value, False))) for value in values]
        probabilities = [float(invert(value, True)) for value in values]
    fn = measure.total_mass()
    assert isinstance(fn, InvertedTotalMass)
    close(fn.log_prob(torch.tensor(values)), torch.tensor(densities), 1e-11, 1e-11)
    close(fn.cdf(torch.tensor(values)), torch.tensor(probabilities), 1e-11, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("reference", [INVERTED[1], INVERTED[2], INVERTED[3]], ids=str)
def test_density_has_the_transform(reference):
    """Mass and Laplace transform of the density by quadrature over its logarithms."""
    torch.manual_seed(0)
    fn = reference.measure().total_mass()
    middle = fn.sample((2001,)).median().item()
    low, high = (-25, 12) if reference.measure().discount == 0 else (-9, 9)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    starts = np.arange(low, high, 0.5)
    points = (starts[:, None] + 0.25 * (nodes + 1.0)).ravel()
    lengths = torch.tensor(np.tile(0.25 * weights, len(starts)))
    values = middle * torch.tensor(points).exp()
    masses = lengths * values * fn.log_prob(values).exp()
    ends = fn.cdf(middle * torch.tensor([float(low), float(high)]).exp())
    close(masses.sum(), ends[1] - ends[0], 1e-9, 1e-9)
    for t in (0.3 / middle, 3.0 / middle):
        transform = (masses * (-t * values).exp()).sum() + ends[0]
        close(transform, torch.tensor(math.exp(-reference.exponent(t))), 1e-7, 1e-9)


def test_draws_follow_the_distribution_function():
    """Chi-squared over eight classes of 20,000 draws; fails for one seed in a million."""
    torch.manual_seed(0)
    fn = generalized_bfry(1.5, 0.4, 2.3, 1.2).measure().total_mass()
    levels = torch.tensor([0.2, 0.4, 0.7, 1.0, 1.5, 3.0, 8.0])
    below = torch.cat([torch.zeros(1), fn.cdf(levels), torch.ones(1)])
    classes = torch.bucketize(fn.sample((20_000,)), levels)
    counts = torch.bincount(classes, minlength=8).numpy()
    assert stats.chisquare(counts, 20_000 * below.diff().numpy()).pvalue > SMALLEST_P


@pytest.mark.slow
@pytest.mark.parametrize("reference", [INVERTED[2], INVERTED[3]], ids=str)
def test_gradients_of_density_and_draws(reference):
    """Against central differences, of the distribution function for the draws."""
    measure = reference.measure()
    parameters = {name: value.clone() for name, value in measure._parameters().items()}

    def fn(**changes):
        return type(measure)(**{**parameters, **changes}).total_mass()

    value, step = torch.tensor([0.4, 5.0]), 1e-5
    for name, parameter in parameters.items():
        variable = parameter.clone().requires_grad_()
        moved = fn(**{name: variable})
        (gradient,) = torch.autograd.grad(moved.log_prob(value).sum(), variable)
        up, down = (fn(**{name: parameter + sign * step}) for sign in (1.0, -1.0))
        numeric = (up.log_prob(value) - down.log_prob(value)).sum() / (2.0 * step)
        close(gradient, numeric, 1e-6, 1e-7)
        torch.manual_seed(0)
        draw = moved.rsample()
        (gradient,) = torch.autograd.grad(draw, variable)
        draw = draw.detach()
        numeric = -(up.cdf(draw) - down.cdf(draw)) / (2.0 * step) / fn().log_prob(draw).exp()
        close(gradient, numeric, 1e-6, 1e-7)
    point = value.clone().requires_grad_()
    (slope,) = torch.autograd.grad(fn().cdf(point).sum(), point)
    close(slope, fn().log_prob(value).exp(), 1e-9, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("tilt", [0.0, 1e-3, 1e4])
@pytest.mark.parametrize("gap", [0.02, 1.0, 15.0])
@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99])
def test_densities_are_numbers_everywhere(discount, gap, tilt):
    for process in (BetaPrimeProcess, GeneralizedBFRYProcess):
        mass = torch.tensor([1e-3, 1e4])
        fn = process(mass, discount, discount + gap, 2.0, tilt=tilt).total_mass()
        value = torch.tensor([[1e-12], [1.0], [1e9]])
        assert fn.log_prob(value).isfinite().all()
        probability = fn.cdf(value)
        assert ((probability >= 0) & (probability <= 1)).all()
        assert (probability.diff(dim=0) > -1e-6).all()


@pytest.mark.slow
def test_quantiles():
    fn = beta_prime(1.5, 0.4, 2.3, 1.0).measure().total_mass()
    probability = torch.tensor([1e-3, 0.5])
    close(fn.cdf(fn.icdf(probability)), probability, 1e-10, 0.0)


def close(actual, expected, rtol, atol):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def test_interface():
    measure = generalized_bfry(1.5, 0.4, 2.3, 1.2).measure().expand((3,))
    fn = measure.total_mass()
    assert isinstance(fn, TotalMass) and fn.batch_shape == (3,)
    assert fn.sample((2,)).shape == (2, 3)
    wide = fn.expand((4, 3))
    assert wide.sample().shape == (4, 3) and wide.mean.shape == (4, 3)
    torch.testing.assert_close(fn.laplace_exponent(0.5)[0].item(), 0.585653917818)
    draws = fn.sample((5,))
    assert fn.support.check(draws).all() and not draws.requires_grad
    with pytest.raises(ValueError, match="within the support"):
        fn.log_prob(-draws)
    assert wide.log_prob(draws[:1]).shape == (4, 3)
    with pytest.raises(NotImplementedError):
        pareto(3.0, 2.0, 1.5).measure().total_mass().log_prob(draws)


def test_too_many_weights_are_refused():
    measure = generalized_bfry(1e9, 0.4, 2.3, 1.2).measure()
    with pytest.raises(ValueError, match="at most 100000000 are drawn at once"):
        measure.total_mass().sample()


@pytest.mark.slow
@pytest.mark.parametrize("discount", [0.0, 0.4])
@pytest.mark.parametrize("process", [BetaPrimeProcess, GeneralizedBFRYProcess])
def test_densities_far_out_are_asymptotic(process, discount):
    """Powers of the value in the tail, and near zero of its power, where saddle points end."""
    fn = process(1.5, discount, 2.3).total_mass()
    log_value = torch.tensor([190.0, 210.0, 250.0, 700.0])
    slope = fn.log_prob(log_value.exp()).diff() / log_value.diff()
    torch.testing.assert_close(slope, torch.full_like(slope, -3.3), rtol=1e-6, atol=0.0)
    log_value = torch.tensor([-30.0, -40.0, -90.0, -110.0, -200.0, -300.0])
    density = fn.log_prob(log_value.exp())
    if discount:
        steps = density.neg().log().diff() / log_value.diff()
        expected = -discount / (1.0 - discount)
        torch.testing.assert_close(steps, torch.full_like(steps, expected), rtol=1e-3, atol=0.0)
    else:
        steps = torch.stack([density, fn.cdf(log_value.exp()).log()]).diff() / log_value.diff()
        power = steps[1, 0].item()
        expected = torch.tensor([[power - 1.0], [power]]).expand(2, 5)
        torch.testing.assert_close(steps, expected, rtol=1e-6, atol=0.0)
