"""The BFRY family against quadrature in arbitrary precision, and its draws against that."""

import itertools

import mpmath
import pytest
import torch

from pyro_ext.distributions import BetaPrimeBFRY, GeneralizedBFRY, TiltedBFRY, TruncatedBFRY, _bfry
from pyro_ext.testing.distributions import check_draws

pytestmark = pytest.mark.usefixtures("float64")

PLACES = [1e-12, 1e-6, 1e-2, 0.5, 1.0, 3.0, 50.0, 1e6, 1e12]
DISCOUNTS = [0.0, 0.01, 0.3, 0.8, 0.99]


def tilted_density(discount, level, tilt):
    """By the definition, without any of the library's functions."""
    s, t, tau = (mpmath.mpf(value) for value in (discount, level, tilt))
    width = mpmath.log(1 + t / tau) if s == 0 else ((t + tau) ** s - tau**s) / s
    constant = 1 / (mpmath.gamma(1 - s) * width)
    return lambda x: constant * x ** (-1 - s) * mpmath.exp(-tau * x) * -mpmath.expm1(-t * x)


def integrate(density, high, discount, power=0):
    """Integral over the logarithm, in panels that become longer to the left."""
    end = mpmath.log(mpmath.mpf(high))
    lengths = [0, 1, 2, 4, 8, 16, 32, 64]
    panels = [end - length for length in lengths] + [end - 80 / (1 - mpmath.mpf(discount))]
    return mpmath.quad(
        lambda point: density(mpmath.exp(point)) * mpmath.exp((1 + power) * point), sorted(panels)
    )


@pytest.mark.slow
def test_tilted_density_and_cdf():
    cases = itertools.product(DISCOUNTS, [1e-6, 0.05, 1.0, 1e8], [0.0, 1e-4, 1.0, 1e3])
    with mpmath.workdps(25):
        for discount, level, tilt in cases:
            if discount == tilt == 0:
                continue
            fn, density = TiltedBFRY(discount, level, tilt), tilted_density(discount, level, tilt)
            values = fn.log_prob(torch.tensor(PLACES))
            for point, value in zip(PLACES, values.tolist(), strict=True):
                exact = mpmath.log(density(mpmath.mpf(point)))
                assert abs(value - exact) < 1e-12 * max(1, abs(exact)), (fn, point)
            for point in (1e-3, 3.0):
                exact = integrate(density, point, discount)
                assert abs(fn.cdf(torch.tensor(point)).item() / exact - 1) < 1e-11, (fn, point)


def test_normalizers_of_far_ends_are_those_of_any(float64):
    """The closed form for large ends, and its gradient, against the general one."""
    discount = torch.tensor([2e-4, 1e-3, 0.3, 0.9, 0.999])[:, None].requires_grad_()
    high = torch.tensor([41.0, 1e4, 1e10])
    found = TruncatedBFRY(discount, high).log_normalizer
    expected = _bfry.log_partial_integral(high.log(), -discount)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    gradients = [torch.autograd.grad(value.sum(), discount)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-7)


def test_truncated_density_integrates_to_one_with_its_mean():
    with mpmath.workdps(25):
        for discount, high in itertools.product([0.0, 0.3, 0.9], [1e-3, 1.0, 1e4]):
            fn = TruncatedBFRY(discount, high)
            mass = fn.log_normalizer.item()
            s = mpmath.mpf(discount)

            def density(x, s=s, mass=mass):
                return x ** (-1 - s) * -mpmath.expm1(-x) * mpmath.exp(-mass)

            assert abs(integrate(density, high, discount) - 1) < 1e-12
            assert abs(integrate(density, high, discount, 1) / fn.mean.item() - 1) < 1e-12
            end = torch.tensor(high)
            assert fn.log_prob(end).item() == pytest.approx(float(mpmath.log(density(end.item()))))
            assert fn.cdf(end).item() == pytest.approx(1.0, abs=1e-13)


def test_generalized_density_and_cdf():
    cases = itertools.product([0.0, 0.4, 0.99], [0.01, 0.7, 40.0], [1e-6, 0.05, 3.0, 1e6])
    for discount, gap, level in cases:
        fn = GeneralizedBFRY(discount, discount + gap, level, 2.0)
        with mpmath.workdps(80):
            s, t, tau = mpmath.mpf(discount), mpmath.mpf(level), mpmath.mpf(discount + gap)
            k = tau - s
            width = mpmath.log(1 + t) if s == 0 else ((1 + t) ** s - 1) / s

            def log_density(x, s=s, t=t, tau=tau, k=k, width=width):
                y = x / 2
                bracket = mpmath.gammainc(k, 0, y) - (1 + t) ** -k * mpmath.gammainc(
                    k, 0, (1 + t) * y
                )
                constant = tau / (2 * mpmath.gamma(1 - s) * width)
                return mpmath.log(constant * y ** (-1 - tau) * bracket)

            for point in (1e-12, 1e-5, 0.5, 3.0, 50.0, 1e6):
                exact = log_density(mpmath.mpf(point))
                value = fn.log_prob(torch.tensor(point)).item()
                assert abs(value - exact) < 1e-11 * max(1, abs(exact)), (fn, point)
    # The distribution function has the density for a derivative.
    fn = GeneralizedBFRY(0.4, 2.3, 30.0, 2.0)
    points = torch.logspace(-6, 6, 40).requires_grad_()
    (slope,) = torch.autograd.grad(fn.cdf(points).sum(), points)
    torch.testing.assert_close(slope, fn.log_prob(points).exp(), rtol=1e-6, atol=1e-14)


@pytest.mark.statistical
def test_draws_of_a_huge_level():
    """A level of 1e260; fails for one seed in 100,000."""
    check_draws(TiltedBFRY(0.05, log_level=600.0, tilt=1.0))


def test_bad_parameters_are_named():
    for make in (GeneralizedBFRY, BetaPrimeBFRY):
        with pytest.raises(ValueError, match=f"tail_index of {make.__name__} must be > discount"):
            make(0.5, 0.4, 1.0, 1.0)


def test_generalized_density_for_narrow_levels_and_steep_tails(subtests):
    """By mpmath's incomplete gamma functions, whose difference cancels where the level is small."""
    cases = itertools.product([1e-6, 1.9, 1000.0], [1e-8, 0.05, 30.0], [1e-10, 0.9, 8.0, 999.0])
    for power, level, point in cases:
        with subtests.test(power=power, level=level, point=point), mpmath.workdps(60):
            fn = GeneralizedBFRY(0.4, 0.4 + power, level)
            s, tau, t, y = map(mpmath.mpf, (0.4, fn.tail_index.item(), level, point))
            k = mpmath.mpf((fn.tail_index - fn.discount).item())
            part = mpmath.gammainc(k, 0, y) - (1 + t) ** -k * mpmath.gammainc(k, 0, (1 + t) * y)
            constant = tau * s / (mpmath.gamma(1 - s) * ((1 + t) ** s - 1))
            exact = float(mpmath.log(constant * y ** (-1 - tau) * part))
            assert fn.log_prob(torch.tensor(point)).item() == pytest.approx(exact, rel=1e-8)
