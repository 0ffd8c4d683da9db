"""The page on series and finite approximations: its parts, a short run, and in full its claims."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.integrate import quad
from scipy.optimize import brentq

PAGE = "crm-series"
pytestmark = pytest.mark.short_page


def levy_density(kind):
    """Lévy densities of the measures of the page, in the logarithm of the size, and their ends."""
    if kind == "generalized gamma":
        scale = 2.0 / math.gamma(0.6)
        return lambda x: scale * math.exp(-0.4 * x - 1.5 * math.exp(x)), 6.0
    scale = 2.0 * math.gamma(2.5) / (math.gamma(0.6) * math.gamma(1.9))
    return lambda x: scale * math.exp(-0.4 * x) * (1.0 - math.exp(x)) ** 0.9, 0.0


def kept_above(candidates, kind, size):
    """Mean number of weights above a size that the rejection series keeps."""

    def integrand(log_point):
        point = torch.tensor(math.exp(log_point), dtype=torch.float64)
        weight, chance = (float(value) for value in candidates(kind, point))
        return weight, chance * math.exp(log_point)

    last = brentq(lambda x: integrand(x)[0] - size, -30.0, 10.0)
    return quad(lambda x: integrand(x)[1], -40.0, last, limit=200)[0]


@pytest.mark.parametrize("kind", ["generalized gamma", "stable beta"])
def test_rejection_series_is_that_of_the_measure(names, kind):
    """Mean number of kept weights above a size, and in the short run what the largest lose."""
    density, end = levy_density(kind)
    for size in (0.01, 0.2, 0.7):
        expected = quad(density, math.log(size), end, limit=200)[0]
        assert kept_above(names["candidates"], kind, size) == pytest.approx(expected, rel=1e-6)
    lost = float(names["losses"][kind][0]["largest first"][100])
    exact = float(names["MEASURES"][kind].lost_mass(torch.tensor(100.0).double(), "inverse_levy"))
    assert lost == pytest.approx(exact, rel=0.1)  # five standard errors of 50 series


def moment(density, power):
    """Moment of a positive random variable, by quadrature over its logarithm."""
    return quad(
        lambda x: math.exp((power + 1.0) * x) * density(math.exp(x)), -60.0, 60.0, limit=400
    )[0]


def test_factors_are_moments_of_arrival_times(names):
    """Exponential times, and Lomax ones of concentration 1.5."""
    densities = {
        "generalized gamma": lambda time: math.exp(-time),
        "stable beta": lambda time: 1.5 * (1.0 + time) ** -2.5,
    }
    for kind, density in densities.items():
        expected = moment(density, 0.6) * moment(density, -0.4) ** 1.5
        assert names["FACTORS"][kind] == pytest.approx(expected, rel=1e-8)


def test_rivals_invert_the_tail_of_the_stable_beta_process(names):
    density, end = levy_density("stable beta")
    sizes = np.array([1e-4, 0.01, 0.3, 0.9])
    tails = names["beta_tail"](sizes)
    expected = [quad(density, math.log(size), end, limit=200)[0] for size in sizes]
    np.testing.assert_allclose(tails, expected, rtol=1e-8)
    np.testing.assert_allclose(names["by_newton"](tails), sizes, rtol=1e-10)
    np.testing.assert_allclose(names["by_table"](tails), sizes, rtol=1e-4)


def test_principal_components_have_variance_one(names):
    train, test = names["train"].double(), names["test"].double()
    assert train.shape == (1200, 10) and test.shape == (597, 10)
    torch.testing.assert_close(train.T.cov(), torch.eye(10).double(), atol=1e-4, rtol=0)
    assert 0.7 < float(test.T.cov().diagonal().mean()) < 1.4


def test_mixture_is_that_of_its_components(names):
    distribution, truncation = names["DISTRIBUTIONS"]["NGGP"]
    images = names["train"][:7]
    atoms, jumps = 0.3 * torch.randn(50, 20), torch.rand(50)
    conditioned = poutine.condition(names["mixture"], {"G_atoms": atoms, "G_jumps": jumps})
    trace = poutine.trace(conditioned).get_trace(images, distribution, truncation)
    trace.compute_log_prob()
    positions, scales = atoms[:, :10], atoms[:, 10:].exp()
    each = dist.Normal(positions, scales).log_prob(images[:, None]).sum(-1)
    expected = (each + (jumps / jumps.sum()).log()).logsumexp(-1)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], expected)
