"""Truncated distributions against SciPy, far in the tails, and as a prior."""

import mpmath
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import truncnorm

from pyro_ext.distributions import BFRY, TruncatedDistribution, TruncatedNormal
from pyro_ext.inference import MCMC, NUTS


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 2.0), (None, -0.5), (0.7, None), (None, None), (-30.0, -9.0), (8.0, 9)]
)
def test_against_scipy(low, high):
    found = TruncatedNormal(0.3, 1.4, low, high)
    ends = [
        np.inf * sign if end is None else (end - 0.3) / 1.4 for end, sign in ((low, -1), (high, 1))
    ]
    expected = truncnorm(*ends, loc=0.3, scale=1.4)
    ranks = np.array([1e-6, 0.1, 0.5, 0.9, 1.0 - 1e-6])
    x = expected.ppf(ranks)
    np.testing.assert_allclose(found.icdf(torch.tensor(ranks)), x, rtol=1e-8)
    np.testing.assert_allclose(found.log_prob(torch.tensor(x)), expected.logpdf(x), rtol=1e-8)
    np.testing.assert_allclose(found.cdf(torch.tensor(x)), ranks, rtol=1e-6)
    np.testing.assert_allclose(found.mean, expected.mean(), rtol=1e-8)
    if None not in (low, high):  # SciPy multiplies by infinite ends
        np.testing.assert_allclose(found.entropy(), expected.entropy(), rtol=1e-5)
    draws = found.sample((2000,))
    assert bool(found.support.check(draws).all())
    assert abs(float(draws.mean() - found.mean)) < 5.0 * float(draws.std()) / 2000**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_a_normal_number_never_is(dtype):
    """A hundred standard deviations out, where the mass is 1e-2173."""
    low = torch.tensor(100.0, dtype=dtype, requires_grad=True)
    found = TruncatedNormal(torch.zeros((), dtype=dtype), 1.0, low)
    exact = mpmath.log(mpmath.ncdf(-100)) + 0.5 * mpmath.log(2 * mpmath.pi) + 100.01**2 / 2
    density = found.log_prob(torch.tensor(100.01, dtype=dtype)).detach()
    assert density.item() == pytest.approx(float(-exact), rel=1e-3)
    draws = found.rsample((500,))
    assert (draws > 100.0).all() and (draws < 100.2).all()
    (slope,) = torch.autograd.grad(draws.mean(), low)
    assert slope == pytest.approx(1.0, abs=0.01)


@pytest.mark.slow
def test_as_a_prior():
    def model():
        pyro.sample("x", TruncatedNormal(0.0, 1.0, low=0.5, high=3.0))

    mcmc = MCMC(NUTS(model, backend="trace"), 400, num_chains=4, seed=0, progress=False)
    draws = mcmc.run().get_samples()["x"]
    exact = TruncatedNormal(0.0, 1.0, 0.5, 3.0)
    assert float(draws.mean()) == pytest.approx(float(exact.mean), abs=0.06)


def test_ends_must_be_in_order():
    with pytest.raises(ValueError, match="high of TruncatedNormal must be > low, got 1"):
        TruncatedNormal(0.0, 1.0, 2.0, 1.0, validate_args=True)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("base", "low", "high"),
    [
        (dist.Gamma(2.0, 0.5), 3.0, None),
        (dist.LogNormal(0.0, 1.0), None, 1.5),
        (dist.Weibull(2.0, 1.5), -1.0, 4.0),
        (dist.Kumaraswamy(2.0, 3.0), 0.2, 7.0),
        (BFRY(torch.tensor(0.4)), 0.1, 2.0),
        (dist.Cauchy(torch.tensor([0.0, 1.0]), 2.0), -3.0, None),
    ],
)
def test_any_base(base, low, high):
    """Density and distribution function against the integral, quantiles and draws in between."""
    law = TruncatedDistribution(base, low, high)
    ranks = torch.linspace(0.05, 0.95, 7)[:, None].expand(7, *law.batch_shape or (1,))
    x = law.icdf(ranks)
    torch.testing.assert_close(law.cdf(x), ranks.expand_as(x))
    assert bool(law.support.check(x).all())
    for row in range(6):
        points = torch.linspace(0.0, 1.0, 2001)[:, None] * (x[row + 1] - x[row]) + x[row]
        mass = torch.trapezoid(law.log_prob(points).exp(), points, dim=0)
        torch.testing.assert_close(
            mass, (ranks[row + 1] - ranks[row]).expand_as(mass), rtol=1e-5, atol=0
        )
    draws = law.expand([2, *law.batch_shape]).sample((300,))
    assert draws.shape == (300, 2, *law.batch_shape) and bool(law.support.check(draws).all())


def test_refused_bases():
    with pytest.raises(ValueError, match="base must be a continuous univariate distribution"):
        TruncatedDistribution(dist.Poisson(3.0), 1.0)
    with pytest.raises(ValueError, match="base must have probability between low and high"):
        TruncatedDistribution(dist.Normal(0.0, 1.0), 40.0)
    with pytest.raises(ValueError, match="base must have a cdf"):
        TruncatedDistribution(dist.StudentT(3.0), 0.0)
    with pytest.raises(ValueError, match="low or high must be given"):
        TruncatedDistribution(dist.Normal(0.0, 1.0))
