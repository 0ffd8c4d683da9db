"""Numbers that were computed once in thirty digits, and are noted with the formulas."""

import math

import pytest
import torch

from pyro_ext.random_measures import (
    BetaPrimeProcess,
    DeterministicArrivals,
    ExponentialArrivals,
    GammaArrivals,
    GeneralizedGammaProcess,
    LomaxArrivals,
    StableBetaProcess,
)
from pyro_ext.random_measures.arrivals import arrival_process
from tests.random_measures.references import (
    BETA_PRIME,
    GAMMA,
    GENERALIZED_BFRY,
    PARETO_MIXTURE,
    STABLE_BETA,
    gamma,
)

pytestmark = pytest.mark.usefixtures("float64")


def near(value: float, digits: float = 1e-11):
    return pytest.approx(value, rel=digits, abs=0.0)


@pytest.mark.parametrize(
    "reference, counts, value",
    [
        (GAMMA, [2], 0.165718767012),
        (GAMMA, [2, 1], 0.110809646068),
        (GAMMA, [3], 0.0549091209442),
        (GAMMA, [5, 2, 1], 1.37962457433e-4),
        (GENERALIZED_BFRY, [2], 0.283749092388),
        (BETA_PRIME, [2], 0.231063632463),
        (PARETO_MIXTURE, [2], 0.260946832848),
        (gamma(2.0, 0.0, 1.0), [2], 1 / 3),
        (gamma(3.0, 0.3, 0.0), [2], 0.7),
    ],
    ids=str,
)
def test_partition_probabilities(reference, counts, value):
    assert reference.measure().normalize().log_eppf(counts).exp().item() == near(value)


@pytest.mark.parametrize(
    "counts, value",
    [
        ([1, 2], -1.8853233187),
        ([1, 1, 3], -3.8681936558),
        ([5], -2.1867429372),
        ([1, 1, 1, 1, 1], -2.7032115648),
        ([2, 3], -4.7224132732),
    ],
)
def test_partitions_of_tree_guided_mixtures(counts, value):
    """Their measure has the mass 1.2 over the discount, and the tilt one."""
    fn = GeneralizedGammaProcess(1.2 * 0.4, 0.4, 1.0).normalize()
    assert fn.log_eppf(counts).item() == pytest.approx(value, abs=6e-11)


@pytest.mark.parametrize(
    "num_atoms, rule, transform, mean",
    [
        (1000, "exact", 0.26361, None),
        (1000, "group", 0.26154, None),
        (10, "exact", 0.35434, 1.2148),
        (10, "group", 0.2075, 1.8685),
    ],
)
def test_finite_approximation(num_atoms, rule, transform, mean):
    measure = GAMMA.measure()
    assert measure.mean.item() == pytest.approx(1.568105, abs=5e-7)
    exponent = measure.laplace_exponent(1.0)
    assert exponent.neg().exp().item() == pytest.approx(0.26366, abs=5e-6)
    error = measure.finite_error(num_atoms, 1.0, rule)
    assert (-exponent - error).exp().item() == pytest.approx(transform, abs=6e-6)
    if mean is not None:
        whole = num_atoms * measure.finite(num_atoms, rule).mean.item()
        assert whole == pytest.approx(mean, abs=6e-5)


@pytest.mark.parametrize(
    "family, value",
    [
        (ExponentialArrivals(), 0.1698),
        (GammaArrivals(1.0), 0.1698),
        (GammaArrivals(3.0), 0.1181),
        (GammaArrivals(10.0), 0.1085),
        (DeterministicArrivals(), 0.1052),
    ],
    ids=str,
)
def test_lost_mass_after_twenty_weights(family, value):
    assert GAMMA.measure().lost_mass(20, family).item() == pytest.approx(value, abs=5.1e-5)


def test_lomax_series_of_the_stable_beta_process():
    measure = STABLE_BETA.measure()
    arrivals = arrival_process(measure, LomaxArrivals(1.5))
    lost = arrivals.log_later(torch.tensor(7.3).log(), 1.0).exp()
    assert lost.item() == near(0.795562483912)
    for num_atoms, level, mean in [(20, 24.744151, 1.561350), (200, 4025.1699, 1.977134)]:
        log_level = arrivals.log_time(torch.tensor(float(num_atoms)).log())
        assert log_level.exp().item() == pytest.approx(level, rel=2e-8)
        fn = measure.finite(num_atoms)
        assert num_atoms * fn.mean.item() == pytest.approx(mean, abs=6e-7)
        lost = measure.lost_mass(num_atoms, "lomax").item()
        assert num_atoms * fn.mean.item() + lost == near(2.0)


def test_beta_prime_weights_are_the_odds_of_stable_beta_weights():
    r"""The tail of odds is that of the weights, with :math:`\eta_0 = \eta \Gamma(c)`, in mass."""
    discount, concentration, mass = 0.4, 1.3, 1.5
    odds = BetaPrimeProcess(mass, discount, discount + concentration, 1.0)
    scale = math.gamma(concentration) * math.gamma(concentration + discount)
    other = StableBetaProcess(mass * scale / math.gamma(1 + concentration), discount, concentration)
    size = torch.logspace(-6, 6, 13)
    torch.testing.assert_close(
        odds.log_tail(size), other.log_tail(size / (1 + size)), rtol=1e-11, atol=1e-11
    )
