"""Filter response normalization against the formula of its paper, by hand."""

import math

import pytest
import torch

from pyro_ext.nn import FilterResponseNorm


def test_values_by_hand():
    norm = FilterResponseNorm(2, epsilon=0.5)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -1.0]))
        norm.bias.copy_(torch.tensor([0.25, 3.0]))
    x = torch.tensor([[[1.0, 3.0], [2.0, -2.0]]])
    first, second = math.sqrt((1 + 9) / 2 + 0.5), math.sqrt(4 + 0.5)
    wanted = [[0.25 + 2 * 1 / first, 0.25 + 2 * 3 / first], [3 - 2 / second, 3 + 2 / second]]
    torch.testing.assert_close(norm(x), torch.tensor([wanted]))


@pytest.mark.parametrize("spatial", [(7,), (4, 5), (2, 3, 4)])
def test_a_sample_on_its_own_and_a_channel_on_its_own(spatial):
    norm = FilterResponseNorm(3)
    x = torch.randn(4, 3, *spatial)
    y = norm(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y[2:3], norm(x[2:3]))
    torch.testing.assert_close(y.square().mean(tuple(range(2, y.dim()))), torch.ones(4, 3))
    scaled = x * torch.tensor([1.0, 5.0, 0.2]).reshape(3, *[1] * len(spatial))
    torch.testing.assert_close(norm(scaled), y, rtol=1e-3, atol=1e-4)


def test_zeros_have_a_value_and_a_gradient():
    x = torch.zeros(1, 1, 3, requires_grad=True)
    FilterResponseNorm(1)(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
