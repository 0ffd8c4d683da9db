"""Atoms of beta prime and stable beta processes and rectified gamma variables."""

import itertools
import math

import mpmath
import pytest
import torch

from pyro_ext.distributions import (
    BetaPrimeBFRY,
    GeneralizedBFRY,
    RectifiedGamma,
    StableBetaBFRY,
    TiltedBFRY,
    TruncatedBFRY,
)

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.slow
def test_beta_prime_density_is_that_of_a_quotient():
    """Of a tilted BFRY variable and a gamma variable, by quadrature over the latter."""
    cases = itertools.product([0.0, 0.4, 0.99], [0.01, 1.9], [1e-3, 30.0])
    with mpmath.workdps(25):
        for discount, gap, level in cases:
            s, t, tau, c = (mpmath.mpf(v) for v in (discount, level, discount + gap, 2.0))
            width = mpmath.log(1 + t) if s == 0 else ((1 + t) ** s - 1) / s
            constant = c**tau / (mpmath.gamma(1 - s) * mpmath.gamma(tau) * width)
            fn = BetaPrimeBFRY(discount, discount + gap, level, 2.0)
            for point in (1e-4, 0.3, 50.0):
                x = mpmath.mpf(point)

                def integrand(z, s=s, t=t, tau=tau, c=c, x=x):
                    b = mpmath.exp(z)
                    kernel = mpmath.exp(-b * x) * -mpmath.expm1(-t * b * x)
                    return b ** (tau - s) * kernel * mpmath.exp(-c * b)

                panels = [-60, -30, -15, -8, -4, -2, 0, 1, 2, 3, 4, 5, 6]
                exact = mpmath.log(constant * x ** (-1 - s) * mpmath.quad(integrand, panels))
                value = fn.log_prob(torch.tensor(point)).item()
                assert abs(value - exact) < 1e-11 * max(1, abs(exact)), (fn, point)


def test_odds_of_a_stable_beta_atom():
    point = torch.tensor([1e-9, 0.2, 0.7, 0.999])
    fn, odds = StableBetaBFRY(0.4, 1.5, 30.0), BetaPrimeBFRY(0.4, 1.9, 30.0)
    density = odds.log_prob(point / (1 - point)) - 2 * torch.log1p(-point)
    torch.testing.assert_close(fn.log_prob(point), density)
    torch.testing.assert_close(fn.cdf(point), odds.cdf(point / (1 - point)))
    probability = torch.tensor([1e-3, 0.5, 0.99])
    torch.testing.assert_close(fn.cdf(fn.icdf(probability)), probability)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_stay_inside(dtype):
    """At a concentration near zero half of the odds overflow, and nearly all of them underflow."""
    torch.manual_seed(0)
    small, large = (torch.tensor(value, dtype=dtype) for value in (1e-6, 0.999))
    draws = torch.cat(
        [
            StableBetaBFRY(small, small, log_level=10.0 * large).sample((10_000,)),
            StableBetaBFRY(large, small, 1e6 * large).sample((10_000,)),
        ]
    )
    assert draws.dtype == dtype and ((draws > 0) & (draws < 1)).all()
    weights = RectifiedGamma(small, large, 1e3 * large).sample((10_000,))
    assert weights.dtype == dtype and (weights > 0).all()


def test_rectified_gamma_quantiles_and_atom():
    fn = RectifiedGamma(2.0, 1.0, 3.0)
    atom = 4.0 * math.exp(-3.0)
    assert fn.log_prob(torch.tensor(3.0)).exp().item() == pytest.approx(atom, rel=1e-13)
    assert fn.cdf(torch.tensor(3.0)).item() == 1.0
    assert fn.cdf(torch.tensor(2.999999)).item() == pytest.approx(1 - atom, abs=1e-6)
    quantiles = fn.icdf(torch.tensor([0.3, 1 - atom - 1e-4, 1 - atom + 1e-4]))
    torch.testing.assert_close(fn.cdf(quantiles[:2]), torch.tensor([0.3, 1 - atom - 1e-4]))
    assert quantiles[2] == 3.0 and quantiles[1] < 3.0


def test_rectified_gamma_has_no_path_gradient_at_the_atom():
    torch.manual_seed(0)
    values = [torch.full((1_000,), number, requires_grad=True) for number in (2.0, 1.0, 3.0)]
    draws = RectifiedGamma(*values).rsample()
    at_atom = draws == 3.0
    in_shape, in_rate, in_high = torch.autograd.grad(draws.sum(), values)
    assert (in_shape[at_atom] == 0).all() and (in_shape[~at_atom] > 0).all()
    assert (in_rate[at_atom] == 0).all() and (in_rate[~at_atom] < 0).all()
    assert torch.equal(in_high, at_atom.double())


def test_huge_levels():
    """Far above the knee, levels change a density by a constant."""
    point = torch.tensor([1e-3, 0.1, 0.7])
    for make, others in ((StableBetaBFRY, (1.5,)), (BetaPrimeBFRY, (2.3,))):
        low, high = (make(0.3, *others, log_level=level) for level in (600.0, 8_000.0))
        ratio = low.log_prob(point) - high.log_prob(point)
        torch.testing.assert_close(ratio, torch.full_like(ratio, 0.3 * 7_400.0))
        limit = make(0.0, *others, log_level=600.0).log_prob(point)
        near = make(1e-9, *others, log_level=600.0).log_prob(point)
        torch.testing.assert_close(near, limit, rtol=0, atol=2e-6)


def test_left_tails_are_powers_down_to_the_least_number(float64, subtests):
    """Densities and distribution functions, also where the level makes products smaller."""
    points = torch.tensor([-600.0, -690.0, -700.0, -708.0])
    for discount, level in itertools.product((0.05, 0.99), (1e-12, 1e3, 1e12)):
        for fn in (
            TiltedBFRY(discount, level, 1.0),
            GeneralizedBFRY(discount, 2.0, level),
            BetaPrimeBFRY(discount, 2.0, level),
            StableBetaBFRY(discount, 1.5, level),
            TruncatedBFRY(discount, 1.0),
            RectifiedGamma(1.0 - discount, 1.0, 2.0),
        ):
            with subtests.test(type(fn).__name__, discount=discount, level=level):
                fall = points - points[0]
                log_cdf, log_density = fn.cdf(points.exp()).log(), fn.log_prob(points.exp())
                torch.testing.assert_close(log_cdf - log_cdf[0], (1.0 - discount) * fall)
                torch.testing.assert_close(log_density - log_density[0], -discount * fall)


def test_quantiles_in_a_left_tail(float64):
    for fn in (BetaPrimeBFRY(0.99, 2.0, 1e3), StableBetaBFRY(0.99, 1.5, 1e3)):
        share = torch.tensor([1e-3, 0.5])
        torch.testing.assert_close(fn.cdf(fn.icdf(share)), share)
