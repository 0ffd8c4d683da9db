"""Partition probabilities of normalized measures against closed forms and enumeration."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pyro_ext.random_measures import GeneralizedGammaProcess, PitmanYor
from tests.random_measures.references import (
    BETA_PRIME,
    GAMMA,
    GENERALIZED_BFRY,
    NOTED,
    STABLE_BETA,
    gamma,
    generalized_bfry,
    log_quadrature,
)
from tests.random_measures.test_conformance import LAWS, QUICK

pytestmark = pytest.mark.usefixtures("float64")


EVERY_LAW = pytest.mark.parametrize(
    "fn",
    [
        pytest.param(make, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, make in LAWS.items()
        if name != "gamma"
    ],
)


EVERY_REFERENCE = pytest.mark.parametrize(
    "reference",
    [
        pytest.param(reference, marks=() if str(reference) in QUICK else pytest.mark.slow)
        for reference in NOTED
    ],
    ids=str,
)


def nggp_eppf(counts, mass, discount, tilt):
    """The closed form, an alternating sum, in many digits."""
    with mpmath.workdps(60):
        eta, sigma, tau = map(mpmath.mpf, (mass, discount, tilt))
        total, number = sum(counts), len(counts)
        level = eta / sigma * tau**sigma
        terms = (
            mpmath.binomial(total - 1, i)
            * (-1) ** i
            * level ** (i / sigma)
            * mpmath.gammainc(number - i / sigma, level)
            for i in range(total)
        )
        value = sigma ** (number - 1) * mpmath.exp(level) / mpmath.gamma(total) * sum(terms)
        for size in counts:
            value *= mpmath.rf(1 - sigma, size - 1)
        return float(mpmath.log(value))


def pitman_yor_eppf(counts, discount, concentration):
    value = sum(math.log(concentration + i * discount) for i in range(1, len(counts)))
    value -= sum(math.log(concentration + i) for i in range(1, sum(counts)))
    for size in counts:
        value += sum(math.log(i - discount) for i in range(1, size))
    return value


@pytest.mark.parametrize(
    "parameters", [(2.0, 0.4, 1.5), (0.1, 0.7, 1.0), (20.0, 0.25, 0.3), (3.0, 0.9, 1e-3)]
)
def test_generalized_gamma_process_in_closed_form(parameters):
    fn = GeneralizedGammaProcess(*parameters).normalize()
    for counts in ((1,), (2,), (3, 1), (5, 2, 1), (1, 1, 1, 1), (30, 7, 1)):
        expected = pytest.approx(nggp_eppf(counts, *parameters), rel=1e-10, abs=1e-11)
        assert fn.log_eppf(counts).item() == expected, counts


@pytest.mark.parametrize("counts", [(1,), (4,), (3, 1), (5, 2, 2, 1), (300, 20, 1)])
def test_pitman_yor_in_closed_form(counts):
    for discount, concentration in ((0.4, 1.3), (0.0, 2.0), (0.9, -0.8), (0.3, 0.0)):
        fn = PitmanYor(discount, concentration)
        expected = pitman_yor_eppf(counts, discount, concentration)
        assert fn.log_eppf(counts).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    stable = gamma(2.0, 0.3, 0.0).measure().normalize()
    assert stable.log_eppf(counts).item() == pytest.approx(
        pitman_yor_eppf(counts, 0.3, 0.0), rel=1e-10, abs=1e-11
    )
    dirichlet = gamma(2.0, 0.0, 5.0).measure().normalize()
    assert dirichlet.log_eppf(counts).item() == pytest.approx(
        pitman_yor_eppf(counts, 0.0, 2.0), rel=1e-10, abs=1e-11
    )


@EVERY_REFERENCE
def test_predictive_given_the_tilt(reference):
    fn = reference.measure().normalize()
    for u in (1e-3, 0.8, 50.0):
        sizes = (5, 1, 2)
        weights = [reference.log_kappa(n + 1, u) - reference.log_kappa(n, u) for n in sizes]
        weights = torch.tensor([*weights, reference.log_kappa(1, u)]).softmax(-1)
        torch.testing.assert_close(fn.predictive(sizes, u), weights, rtol=1e-9, atol=1e-11)


@EVERY_REFERENCE
def test_joint_density(reference):
    fn, counts = reference.measure().normalize(), (5, 2, 2)

    def log_joint(u):
        value = 8 * math.log(u) - math.lgamma(9) - reference.exponent(u)
        return value + sum(reference.log_kappa(n, u) for n in counts)

    for u in (1e-3, 0.8, 50.0):
        assert fn.log_joint(counts, u).item() == pytest.approx(log_joint(u), rel=1e-9, abs=1e-9)

    def integrand(point):
        return math.exp(fn.log_joint(counts, math.exp(point)).item() + point)

    whole, _ = integrate.quad(integrand, -30.0, 25.0, epsabs=0.0, epsrel=1e-10, points=[0.0])
    assert fn.log_eppf(counts).item() == pytest.approx(math.log(whole), abs=1e-8)


@pytest.mark.parametrize("parameters", [(0.4, 1.3), (0.0, 1.3), (0.4, -0.2)])
def test_joint_density_of_pitman_yor(parameters):
    fn = PitmanYor(*parameters)
    for counts in ([2, 1], [5, 3, 1, 1]):
        point = torch.linspace(-150.0, 60.0, 40_001)
        value = torch.trapezoid((fn.log_joint(counts, point.exp()) + point).exp(), point)
        assert value.log().item() == pytest.approx(fn.log_eppf(counts).item(), abs=1e-8)


@EVERY_LAW
def test_many_samples(fn):
    """Sums that hold for any number: of probabilities, of samples, and of clusters."""
    fn, total = fn(), 60
    order = torch.arange(1.0, total + 1)
    number, size = fn.log_num_clusters(total).exp(), fn.expected_cluster_counts(total)
    assert number.sum().item() == pytest.approx(1.0, abs=1e-9)
    assert (order * size).sum().item() == pytest.approx(total, rel=1e-9)
    assert size.sum().item() == pytest.approx((order * number).sum().item(), rel=1e-9)


@pytest.mark.slow
def test_large_counts():
    """Of the size of real data: a hundred thousand samples, most of them in large clusters."""
    counts = [50_000, 30_000, *range(1, 10)]
    expected = pitman_yor_eppf(counts, 0.3, 0.0)
    value = gamma(2.0, 0.3, 0.0).measure().normalize().log_eppf(counts)
    assert value.item() == pytest.approx(expected, rel=1e-11)
    for reference in (GENERALIZED_BFRY, BETA_PRIME, STABLE_BETA):
        fn = reference.measure().normalize()
        shares = fn.predictive(counts)
        assert shares.sum().item() == pytest.approx(1.0, abs=1e-12)
        more = fn.log_eppf([*counts, 1]) - fn.log_eppf(counts)
        assert more.exp().item() == pytest.approx(shares[-1].item(), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "reference", [gamma(10.0, 0.5, 1.0), gamma(3.0, 0.0, 2.0), STABLE_BETA], ids=str
)
def test_one_large_cluster(reference):
    """The auxiliary variable is then about the number of samples over the largest weight."""
    number = 1_000_000 if reference is not STABLE_BETA else 50_000

    def log_integrand(point):
        value = number * point - math.lgamma(number) - reference.exponent(math.exp(point))
        return value + reference.log_kappa(number, math.exp(point))

    coarse = np.linspace(-2.0, 25.0, 109)
    values = np.array([log_integrand(point) for point in coarse])
    inside = coarse[values > values.max() - 60.0]
    edges = np.linspace(inside[0] - 0.5, inside[-1] + 0.5, 7)
    expected = log_quadrature(np.vectorize(log_integrand), edges)
    value = reference.measure().normalize().log_eppf([number])
    assert value.item() == pytest.approx(expected, abs=1e-6)


@EVERY_LAW
def test_order_padding_and_batches(fn):
    fn = fn()
    value = fn.log_eppf([4, 2, 1])
    for counts in ([1, 4, 2], [0, 2, 0, 1, 4], torch.tensor([2.0, 1.0, 4.0, 0.0])):
        torch.testing.assert_close(fn.log_eppf(counts), value, rtol=1e-11, atol=1e-11)
    batch = torch.tensor([[4, 2, 1], [3, 0, 0], [1, 2, 4]])
    several = fn.log_eppf(batch)
    torch.testing.assert_close(several[[0, 2]], value.expand(2), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(several[1], fn.log_eppf([3]), rtol=1e-10, atol=1e-10)
    shares = fn.predictive(batch)
    assert shares.shape == (3, 4) and (shares[1, 1:3] == 0).all()
    torch.testing.assert_close(shares[1, [0, 3]], fn.predictive([3]), rtol=1e-10, atol=1e-10)
    assert fn.log_joint(batch, torch.tensor([[0.3], [2.0]])).shape == (2, 3)


@pytest.mark.statistical
@pytest.mark.parametrize("reference", [*NOTED, gamma(2.0, 0.0, 1.5)], ids=str)
def test_posterior_jumps(reference):
    """Means are quotients of moments; any of 18 fails for one seed in 100,000."""
    torch.manual_seed(0)
    fn, u = reference.measure().normalize(), 0.8
    number = 500 if reference.make is STABLE_BETA.make else 20_000
    counts = torch.tensor([3, 0, 1, 50]).expand(number, 4)
    draws = fn.posterior_jumps(counts, u)
    assert draws.shape == counts.shape and (draws[:, 1] == 0).all()
    for column, n in ((0, 3), (2, 1), (3, 50)):
        first = math.exp(reference.log_kappa(n + 1, u) - reference.log_kappa(n, u))
        second = math.exp(reference.log_kappa(n + 2, u) - reference.log_kappa(n, u))
        error = math.sqrt((second - first**2) / number)
        assert abs(draws[:, column].mean().item() - first) < 5.0 * error


@pytest.mark.statistical
@pytest.mark.parametrize(
    "reference, number",
    [(GAMMA, 500), pytest.param(GENERALIZED_BFRY, 20, marks=pytest.mark.slow)],
    ids=str,
)
def test_tilts(reference, number):
    """Kolmogorov-Smirnov tests; any fails for one seed in 500,000."""
    torch.manual_seed(0)
    fn, counts = reference.measure().normalize(), [5, 2, 2]
    draws = fn.sample_auxiliary(counts, (number,)).log().sort().values
    grid = torch.linspace(-20.0, 20.0, 2001)
    density = (fn.log_joint(counts, grid.exp()) + grid - fn.log_eppf(counts)).exp()
    level = torch.cumulative_trapezoid(density, grid)
    values = np.interp(draws.numpy(), grid[1:].numpy(), level.numpy())
    assert level[-1].item() == pytest.approx(1.0, abs=1e-6)
    assert stats.kstest(values, "uniform").pvalue > 1e-6


def test_posterior_measure():
    tilted = GENERALIZED_BFRY.measure().normalize().posterior_measure(0.6)
    expected = generalized_bfry(1.5, 0.4, 2.3, 1.2, 0.6)
    assert tilted.laplace_exponent(0.7).item() == pytest.approx(expected.exponent(0.7), rel=1e-10)


@pytest.mark.parametrize("parameters", [(0.4, 1.3), (0.3, 0.0), (0.6, -0.4), (0.0, 1.3)])
def test_pitman_yor_without_samples(parameters):
    """The first sample has a new cluster, also where the concentration is zero or less."""
    fn = PitmanYor(*parameters)
    assert fn.predictive([0, 0]).tolist() == [0.0, 0.0, 1.0]
    assert fn.predictive([[0, 0], [1, 0]])[0].tolist() == [0.0, 0.0, 1.0]
    assert fn.log_eppf([0, 0]).item() == 0.0


def test_sticks():
    sticks = PitmanYor(torch.tensor([0.4, 0.0]), 1.3).sticks(3)
    assert sticks.batch_shape == (2, 3)
    torch.testing.assert_close(sticks.concentration1[0], torch.full((3,), 0.6))
    torch.testing.assert_close(sticks.concentration0[0], torch.tensor([1.7, 2.1, 2.5]))


def test_errors():
    with pytest.raises(ValueError, match="infinitely many weights"):
        gamma(2.0, -0.5, 1.0).measure().normalize()


def test_float32():
    torch.set_default_dtype(torch.float32)
    for name in QUICK:
        fn = LAWS[name]()
        for value in (
            fn.log_eppf([3, 1]),
            fn.log_joint([3, 1], 0.5),
            fn.predictive([3, 1]),
            fn.log_num_clusters(3),
            fn.expected_cluster_counts(3),
        ):
            assert value.dtype == torch.float32 and value.isfinite().all()
