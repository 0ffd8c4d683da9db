"""The likelihood given tilts of the clusters, against that without them and published formulas."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit, gammaln

from pyro_ext.random_measures import (
    BetaPrimeProcess,
    GeneralizedBFRYProcess,
    GeneralizedGammaProcess,
    cluster_tilt_distribution,
    log_joint_given_cluster_tilts,
)

pytestmark = pytest.mark.usefixtures("float64")


MEASURES = {
    "generalized BFRY": lambda: GeneralizedBFRYProcess(1.5, 0.4, 2.3, 1.7),
    "beta prime": lambda: BetaPrimeProcess(1.5, 0.4, 2.3, 0.7),
}


def exponent(name, shift):
    """Laplace exponent by quadrature of the Lévy density, from its formula."""

    def mixing(weight):
        if name == "beta prime":
            return math.gamma(1.9) * (0.7 + weight) ** -1.9
        return quad(lambda x: x**0.9 * math.exp(-weight * x), 0.0, 1.7)[0]

    def integrand(point):
        weight = math.exp(point)
        return -math.expm1(-shift * weight) * math.exp(-0.4 * point) * mixing(weight)

    parts = [(-60.0, -5.0), (-5.0, 5.0), (5.0, 25.0)]
    return 1.5 / math.gamma(0.6) * sum(quad(integrand, *part, limit=200)[0] for part in parts)


def published(name, counts, tilt, points):
    """Log joint density in unconstrained coordinates of the tilts, as the paper's code has it."""
    sigma, tau, number = 0.4, 2.3, len(counts)
    total = sum(counts)
    value = (total - 1) * math.log(tilt) - exponent(name, tilt) - math.lgamma(total)
    value += number * (math.log(1.5) - gammaln(1.0 - sigma))
    orders = np.asarray(counts) - sigma
    value += gammaln(orders).sum()
    if name == "beta prime":
        tilts = np.exp(points)
        value += (-0.7 * tilts).sum()
    else:
        tilts = 1.7 * expit(points)
        value += -number * math.log(1.7) + np.log(1.7 - tilts).sum()
    return value + ((tau - sigma) * np.log(tilts) - orders * np.log(tilts + tilt)).sum()


@pytest.mark.parametrize("name", MEASURES)
def test_density_is_the_published_one(name):
    measure, counts, tilt = MEASURES[name](), [5, 2, 1], 0.8
    points = np.array([0.3, -1.2, 0.7])
    if name == "beta prime":
        tilts, log_jacobian = np.exp(points), points.sum()
    else:
        tilts = 1.7 * expit(points)
        log_jacobian = np.log(tilts * (1.7 - tilts) / 1.7).sum()
    values = torch.from_numpy(tilts)
    found = log_joint_given_cluster_tilts(measure, counts, torch.tensor(tilt), values)
    found = found + cluster_tilt_distribution(measure).log_prob(values).sum() + log_jacobian
    assert float(found) == pytest.approx(published(name, counts, tilt, points), abs=1e-8)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("size", [1, 3, 9])
def test_integral_over_a_tilt_is_the_joint_density_without_it(name, size):
    measure, tilt = MEASURES[name](), torch.tensor(0.7)
    fn, end = cluster_tilt_distribution(measure), 1.7 if name == "generalized BFRY" else np.inf

    def integrand(value):
        tilts = torch.tensor([value])
        density = log_joint_given_cluster_tilts(measure, [size], tilt, tilts)
        return math.exp(float(density + fn.log_prob(tilts)))

    found = quad(integrand, 0.0, end, limit=200)[0]
    expected = measure.normalize().log_joint([size], tilt).exp()
    assert found == pytest.approx(float(expected), rel=1e-8)


@pytest.mark.parametrize("name", MEASURES)
def test_gradients_are_those_of_finite_differences(name):
    def density(mass, discount, tail_index, tilt, tilts):
        measure = type(MEASURES[name]())(mass, discount, tail_index)
        fn = cluster_tilt_distribution(measure).log_prob(tilts).sum()
        return fn + log_joint_given_cluster_tilts(measure, [4, 2, 1], tilt, tilts)

    numbers = (1.5, 0.4, 2.3, 0.8, [0.3, 0.6, 0.9])
    inputs = [torch.tensor(number, requires_grad=True) for number in numbers]
    torch.autograd.gradcheck(density, inputs, eps=1e-6, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_a_tilt_of_the_measure_adds_to_those_of_the_clusters(name):
    measure, tilts = MEASURES[name]().exponential_tilt(0.5), torch.tensor([0.2, 1.1])
    found = log_joint_given_cluster_tilts(measure, [3, 1], torch.tensor(0.4), tilts)
    whole = log_joint_given_cluster_tilts(MEASURES[name](), [3, 1], torch.tensor(0.9), tilts)
    # Tilting takes psi(0.5) off the exponent, and leaves the powers of u as they are.
    expected = whole + 3.0 * math.log(0.4 / 0.9) + MEASURES[name]().laplace_exponent(0.5)
    torch.testing.assert_close(found, expected)


def test_other_measures_are_refused():
    measure = GeneralizedGammaProcess(1.0, 0.4, 1.0)
    with pytest.raises(TypeError, match="measure must be a generalized BFRY or a beta prime"):
        cluster_tilt_distribution(measure)
    with pytest.raises(TypeError, match="without batch shape"):
        cluster_tilt_distribution(BetaPrimeProcess(torch.ones(2), 0.4, 2.0))
    with pytest.raises(ValueError, match="counts must be nonnegative integers"):
        log_joint_given_cluster_tilts(
            MEASURES["beta prime"](), [1.5], torch.tensor(1.0), torch.ones(1)
        )
