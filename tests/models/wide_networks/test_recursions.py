"""Covariances through ReLU layers against quadrature, and their gradients."""

import math

import pytest
import torch
from scipy import integrate, stats

from pyro_ext.models.wide_networks import (
    input_covariance,
    network_covariance,
    relu_covariance,
    step_covariance,
)

pytestmark = pytest.mark.usefixtures("float64")

CASES = [(0.4, 1.0, 2.0), (-1.1, 1.5, 1.0), (0.0, 0.3, 0.7), (1.2, 1.3, 1.2)]


def positive_part(loc, variance):
    """Mean of the positive part of a Gaussian."""
    scale = math.sqrt(variance)
    return loc * stats.norm.cdf(loc / scale) + scale * stats.norm.pdf(loc / scale)


@pytest.mark.parametrize(("cross", "left", "right"), CASES)
def test_covariances_are_those_of_quadrature(cross, left, right):
    """Over the first variable; given it the second is Gaussian."""
    first = stats.norm(scale=math.sqrt(left))
    rest = right - cross**2 / left

    def product(z):
        return z * positive_part(cross / left * z, rest) * first.pdf(z)

    def both(z):
        return stats.norm.cdf(cross / left * z / math.sqrt(rest)) * first.pdf(z)

    arguments = (torch.tensor(value) for value in (cross, left, right))
    ours = relu_covariance(*arguments)
    assert float(ours) == pytest.approx(integrate.quad(product, 0.0, 12.0)[0], abs=1e-9)
    arguments = (torch.tensor(value) for value in (cross, left, right))
    ours = step_covariance(*arguments)
    assert float(ours) == pytest.approx(integrate.quad(both, 0.0, 12.0)[0], abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_and_their_gradients(dtype):
    """At equal and at opposite nodes, where parts of the formula have infinite slopes."""
    precision = torch.finfo(dtype).eps ** 0.5
    variance = torch.tensor([4.0, 4.0, 0.0], dtype=dtype, requires_grad=True)
    value = relu_covariance(variance * torch.tensor([1.0, -1.0, 1.0]).to(dtype), variance, variance)
    torch.testing.assert_close(
        value, torch.tensor([2.0, 0.0, 0.0], dtype=dtype), atol=10 * precision, rtol=0
    )
    value.sum().backward()
    assert variance.grad.isfinite().all()
    expected = torch.tensor([0.5, 0.0], dtype=dtype)
    torch.testing.assert_close(variance.grad[:2], expected, atol=10 * precision, rtol=0)


def test_equal_nodes_in_float32_have_all_their_digits():
    variance = torch.tensor([0.3, 1.0, 7.7], dtype=torch.float32)
    value = step_covariance(variance, variance, variance)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, torch.full_like(value, 0.5), rtol=2e-7, atol=0)


def test_gradients_are_those_of_differences():
    arguments = [torch.tensor([case[i] for case in CASES], requires_grad=True) for i in range(3)]
    assert torch.autograd.gradcheck(relu_covariance, arguments)
    assert torch.autograd.gradcheck(step_covariance, arguments)


def test_deep_recursion_by_hand():
    inputs = torch.tensor([[1.0, 2.0], [0.5, -1.0], [1.0, 2.0]])
    weight, bias = 1.3, 0.4
    first = bias**2 + weight**2 * inputs @ inputs.T / 2
    torch.testing.assert_close(input_covariance(inputs, weight, bias), first)
    expected = first
    for depth in (1, 2, 3):
        inner = torch.empty(3, 3)
        for i in range(3):
            for j in range(3):
                k1, k2, k12 = expected[i, i], expected[j, j], expected[i, j]
                angle = torch.arccos((k12 / (k1 * k2).sqrt()).clamp(-1.0, 1.0))
                cosines = angle.sin() + (math.pi - angle) * angle.cos()
                inner[i, j] = (k1 * k2).sqrt() * cosines / (2 * math.pi)
        expected = bias**2 + weight**2 * inner
        torch.testing.assert_close(
            network_covariance(inputs, depth, weight, bias), expected, atol=1e-7, rtol=1e-7
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: input_covariance(torch.ones(3)), r"inputs must have the shape \(n, d\), got \(3,"),
        (lambda: network_covariance(torch.ones(1, 1), 0), "num_hidden must be an integer >= 1"),
        (lambda: network_covariance(torch.ones(1, 1), 1, 0.0), "weight_scale must be .* > 0"),
        (lambda: network_covariance(torch.ones(1, 1), 1, 1.0, -1.0), "bias_scale must be .* >= 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
