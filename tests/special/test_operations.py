"""A function that is one operation: run plainly, vectorized, differentiated around, recorded."""

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ext.special import opaque

pytestmark = pytest.mark.usefixtures("float64")


def halve(x: Tensor, y: Tensor) -> Tensor:
    """The square root of a sum, and its double, by bisection."""
    low = torch.zeros_like(x + y)
    high = 1.0 + x + y
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = middle * middle < x + y
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.stack([low, 2.0 * low], -1)


roots = opaque("test_roots", 2)(halve)


@opaque("test_twice")
def twice(x: Tensor) -> Tensor:
    return 2.0 * x


def value(x: Tensor, y: Tensor) -> Tensor:
    return (x * roots(x, y).sum(-1)).sum()


def test_plain():
    x, y = torch.rand(4, 1), torch.rand(3)
    assert roots(x, y).shape == (4, 3, 2)
    assert torch.equal(roots(x, y), halve(x, y))
    assert torch.equal(twice(x), 2.0 * x)
    assert not roots(x.requires_grad_(), y).requires_grad
    expected = roots(x.detach(), y).sum((-1, -2), keepdim=True)[..., 0]
    torch.testing.assert_close(torch.autograd.grad(value(x, y), x)[0], expected)


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (1, 0), (0, 1)])
def test_vectorized(in_dims):
    x, y = torch.rand(5, 5), torch.rand(5, 5)
    expected = torch.vmap(halve, in_dims)(x, y)
    assert torch.equal(torch.vmap(roots, in_dims)(x, y), expected)


def test_vectorized_with_different_ranks_and_twice():
    x, y = torch.rand(3, 2, 4), torch.rand(2, 3)
    nested = torch.vmap(torch.vmap(roots, (0, None)), (1, 0))
    expected = torch.vmap(torch.vmap(halve, (0, None)), (1, 0))(x, y[..., None])
    assert torch.equal(nested(x, y[..., None]), expected)
    scalar = torch.vmap(torch.vmap(roots, (0, 0)), (1, 0))(x, y)
    assert torch.equal(scalar, torch.vmap(torch.vmap(halve, (0, 0)), (1, 0))(x, y))


def test_under_grad_and_recorded():
    x, y = torch.rand(3, 4), torch.rand(3, 1)
    function = torch.vmap(torch.func.grad_and_value(value))
    expected = roots(x, y).sum(-1)
    gradient, _ = function(x, y)
    assert torch.equal(gradient, expected)
    graph = make_fx(function)(x, y)
    nodes = [node for node in graph.graph.nodes if "test_roots" in str(node.target)]
    assert len(nodes) == 1 and len(graph.graph.nodes) < 30
    other = torch.rand(3, 4)
    assert torch.equal(graph(other, y)[0], roots(other, y).sum(-1))


@pytest.mark.slow
def test_compiled():
    x, y = torch.rand(3, 4), torch.rand(3, 1)
    function = torch.vmap(torch.func.grad_and_value(value))
    compiled = torch.compile(function, fullgraph=True)
    torch.testing.assert_close(compiled(x, y), function(x, y))
    torch.testing.assert_close(compiled(y, x), function(y, x))
