"""Special functions against arbitrary precision, and their derivatives too."""

import itertools

import mpmath
import pytest
import torch
from torch import Tensor

from pyro_ext import special

PLACES = [1e-12, 1e-6, 1e-3, 0.1, 0.7, 0.999, 1.0, 1.99, 2.5, 4.0, 7.5, 20.0, 60.0, 300.0, 700.0]
NEGATIVE = [-7.3, -3.0, -2.2, -1.0, -0.99, -0.5, -1e-7, 0.0]
POSITIVE = [1e-4, 0.01, 0.3, 0.99, 1.0, 1.7, 1.9999, 2.0, 2.5, 5.0, 13.3, 60.0, 400.0]


def tensor(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def relative_error(actual: Tensor, exact: mpmath.mpf) -> float:
    return abs(actual.item() - float(exact)) / max(1.0, abs(float(exact)))


@pytest.mark.parametrize(
    "function, limits, shapes",
    [
        (special.log_upper_gamma, lambda z: (z, mpmath.inf), NEGATIVE),
        (special.log_upper_gamma, lambda z: (z, mpmath.inf), POSITIVE),
        (special.log_lower_gamma, lambda z: (0, z), POSITIVE),
    ],
    ids=["upper, negative", "upper", "lower"],
)
def test_incomplete_gamma(function, limits, shapes):
    with mpmath.workdps(40):
        for shape, point in itertools.product(shapes, PLACES):
            a, z = tensor(shape), tensor(point)
            value = function(a, z)
            in_shape, in_place = torch.autograd.grad(value, (a, z))
            bounds = limits(mpmath.mpf(point))
            exact = mpmath.log(mpmath.gammainc(shape, *bounds))
            assert relative_error(value, exact) < 2e-13, (shape, point)
            slope = mpmath.diff(lambda a, b=bounds: mpmath.log(mpmath.gammainc(a, *b)), shape)
            assert relative_error(in_shape, slope) < 1e-11, (shape, point)
            density = mpmath.mpf(point) ** shape * mpmath.exp(-mpmath.mpf(point) - exact)
            sign = -1 if function is special.log_upper_gamma else 1
            assert relative_error(point * in_place, sign * density) < 1e-11, (shape, point)


@pytest.mark.parametrize(
    "name, exact, points",
    [
        ("exprel", lambda x: mpmath.expm1(x) / x if x else mpmath.mpf(1), (-700.0, 700.0)),
        ("log_exprel", lambda x: mpmath.log(mpmath.expm1(x) / x) if x else 0, (-1e5, 1e5)),
        ("expm1mx", lambda x: mpmath.expm1(x) - x, (-700.0, 700.0)),
        ("log1prel", lambda x: mpmath.log1p(x) / x if x else mpmath.mpf(1), (-0.999999, 1e10)),
    ],
)
def test_quotients(name, exact, points):
    with mpmath.workdps(40):
        for point in (0.0, *(s * 10.0**k for s in (-1, 1) for k in range(-14, 1)), *points):
            if point <= -1.0 and name == "log1prel":
                continue
            x = tensor(point)
            value = getattr(special, name)(x)
            (slope,) = torch.autograd.grad(value, x)
            truth = exact(mpmath.mpf(point))
            assert abs(value.item() - truth) <= 4e-15 * abs(truth), point
            slope_truth = mpmath.diff(exact, mpmath.mpf(point) if point else mpmath.mpf(10) ** -15)
            assert abs(slope.item() - slope_truth) <= 2e-13 * abs(slope_truth) + 1e-14, point


def test_log1mexp_and_log_sinc():
    with mpmath.workdps(40):
        for point in [1e-300, 1e-12, 1e-3, 0.3, 0.6931, 0.6932, 1.0, 30.0, 500.0]:
            x = mpmath.mpf(point)
            exact = mpmath.log(-mpmath.expm1(-x)) if x < 1 else mpmath.log1p(-mpmath.exp(-x))
            value = special.log1mexp(tensor(point))
            assert abs(value.item() - exact) <= 4e-15 * abs(exact)
        for point in [0.0, 1e-9, 1e-3, 0.5, 0.8999, 0.9, 1.5, 3.0]:
            exact = mpmath.log(mpmath.sinc(mpmath.mpf(point)))
            rest = torch.pi - tensor(point)
            assert abs(special.log_sinc(tensor(point), rest).item() - exact) <= 4e-14 * abs(exact)
        for rest in [1e-20, 1e-9, 1e-3]:
            exact = mpmath.log(mpmath.sin(mpmath.mpf(rest)) / (mpmath.pi - rest))
            value = special.log_sinc(torch.pi - tensor(rest), tensor(rest))
            assert abs(value.item() - exact) <= 4e-14 * abs(exact)


def test_gauss_legendre_is_exact_for_polynomials():
    nodes, weights = special.gauss_legendre(7)
    for degree in range(14):
        assert abs((weights * nodes**degree).sum().item() - 1 / (degree + 1)) < 1e-15


def test_in_double_returns_the_type_of_its_arguments():
    seen = []

    @special.in_double
    def function(x: Tensor, y: Tensor, order: int) -> Tensor:
        seen.append((x.dtype, y.dtype, order))
        return x + y

    half, single = torch.ones(2, dtype=torch.float16), torch.ones(2)
    assert function(half, half, 3).dtype == torch.float16
    assert function(half, single, 3).dtype == torch.float32
    assert seen == [(torch.float64, torch.float64, 3)] * 2


@pytest.mark.parametrize("name", ["log_upper_gamma", "log_lower_gamma"])
def test_incomplete_gamma_vectorizes(name):
    function = getattr(special, name)
    a = torch.tensor([0.3, 1.5, 5.0], dtype=torch.float64)
    z = torch.tensor([[0.2], [3.0], [9.0]], dtype=torch.float64)
    whole = function(a, z)
    by_hand = torch.stack([torch.stack([function(x, y) for x in a]) for y in z[:, 0]])
    torch.testing.assert_close(whole, by_hand, rtol=1e-14, atol=0)
    torch.testing.assert_close(torch.vmap(function)(a.expand(3, 3), z), whole, rtol=1e-14, atol=0)
