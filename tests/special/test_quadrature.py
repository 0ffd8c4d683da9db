"""Integrals in logarithms against closed forms, from very narrow to very wide functions."""

import math

import pytest
import torch
from scipy import special
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ext.special import (
    integrate_log,
    num_edges,
    panel_edges,
    panel_nodes,
    point_with_gradient,
    points_of_fall,
    sample_from_panels,
)

pytestmark = pytest.mark.usefixtures("float64")


NONE = torch.empty(0, dtype=torch.float64)


def gamma(shape: float):
    r"""A gamma density over logarithms, :math:`\Gamma(a)` in all."""
    return lambda point: shape * point - point.exp()


@pytest.mark.parametrize("shape", [1e-3, 0.1, 1.0, 30.0, 1e4, 1e8])
def test_gamma_function(shape):
    low, high = torch.tensor(-60.0 / min(shape, 1.0)), torch.tensor(math.log(shape + 200.0) + 3.0)
    edges = panel_edges(gamma(shape), low, high, torch.zeros(1))
    assert edges.shape == (num_edges(1),) and (edges.diff() >= 0).all()
    value = integrate_log(gamma(shape), edges).item()
    assert value == pytest.approx(special.gammaln(shape), rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 20.0])
@pytest.mark.parametrize("height", [-1e4, 0.0, 1e4])
def test_gaussian_of_any_width_and_height(scale, height):
    def log_density(point):
        return height - 0.5 * ((point - 1.5) / scale) ** 2

    peak = torch.tensor(1.5)
    edges = panel_edges(log_density, torch.tensor(-300.0), torch.tensor(300.0), NONE, peak)
    expected = height + math.log(scale) + 0.5 * math.log(2 * math.pi)
    assert integrate_log(log_density, edges).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_peak_is_found():
    """Without its place, of width one in a range of a thousand."""

    def log_density(point):
        return -((point - 123.4) ** 2)

    edges = panel_edges(log_density, torch.tensor(-500.0), torch.tensor(500.0), NONE)
    expected = 0.5 * math.log(math.pi)
    assert integrate_log(log_density, edges).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("end", [-3.0, 0.5])
def test_functions_that_end_where_they_have_not_vanished(end):
    low, high = torch.tensor(-80.0), torch.tensor(end)
    value = integrate_log(gamma(2.0), panel_edges(gamma(2.0), low, high, torch.zeros(1)))
    expected = math.log(special.gammainc(2.0, math.exp(end)))
    assert value.item() == pytest.approx(expected, abs=1e-12)


def test_batches():
    shape = torch.tensor([[0.5], [20.0]])
    scale = torch.tensor([0.0, 1.0, 7.0])

    def log_density(point):
        return shape[..., None] * (point - scale[:, None]) - (point - scale[:, None]).exp()

    low, high = (torch.full((2, 3), x) for x in (-100.0, 20.0))
    edges = panel_edges(log_density, low, high, scale[:, None].expand(2, 3, 1))
    assert edges.shape == (2, 3, num_edges(1))
    points, log_weights = panel_nodes(edges)
    assert points.shape == log_weights.shape == (2, 3, 12 * (num_edges(1) - 1))
    value = integrate_log(log_density, edges)
    torch.testing.assert_close(value, shape.lgamma().expand(2, 3), rtol=1e-12, atol=1e-12)


def test_points_of_fall():
    def log_density(point):
        return -point.square()

    peak, low, high = torch.tensor(0.0), torch.tensor(-2.0), torch.tensor(50.0)
    points = points_of_fall(log_density, peak, low, high, (1.0, 9.0))
    torch.testing.assert_close(points[[0, 2, 3]], torch.tensor([-1.0, 1.0, 3.0]), rtol=0.1, atol=0)
    assert points[1] == -2.0  # the range ends before


def test_gradients():
    def integral(shape, end):
        inner = gamma(shape)
        low = torch.tensor(-80.0)
        edges = panel_edges(inner, low, end.detach(), torch.zeros(1))
        return integrate_log(inner, torch.where(edges >= end, end, edges))

    leaves = [torch.tensor(value, requires_grad=True) for value in (2.0, 0.5)]
    torch.autograd.gradcheck(integral, leaves)
    value = integral(*leaves)
    (slope,) = torch.autograd.grad(value, leaves[1])
    expected = math.exp(2.0 * 0.5 - math.exp(0.5)) / special.gammainc(2.0, math.exp(0.5))
    assert slope.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [0.05, 1.0, 30.0, 1000.0])
def test_draws_are_quantiles(shape):
    """Exactly, at the uniform numbers that come from the seed."""
    low, high = torch.tensor(-60.0 / min(shape, 1.0)), torch.tensor(math.log(shape + 200.0) + 3.0)
    edges = panel_edges(gamma(shape), low, high, torch.zeros(1))
    torch.manual_seed(0)
    draws = sample_from_panels(gamma(shape), edges.expand(1000, -1))
    torch.manual_seed(0)
    uniform = torch.rand(1000)
    level = torch.from_numpy(special.gammainc(shape, draws.exp().numpy()))
    torch.testing.assert_close(level, uniform, rtol=1e-9, atol=1e-10)


def test_gradients_of_draws():
    """Of the quantile, which SciPy inverts."""
    shape = torch.tensor(2.0, requires_grad=True)
    edges = panel_edges(gamma(2.0), torch.tensor(-60.0), torch.tensor(6.0), torch.zeros(1))
    for level in (0.01, 0.5, 0.99):
        point = torch.tensor(special.gammaincinv(2.0, level)).log()
        draw = point_with_gradient(gamma(shape), edges, point)
        assert draw.item() == pytest.approx(point.item(), abs=1e-14)
        (slope,) = torch.autograd.grad(draw, shape)
        high, low = (math.log(special.gammaincinv(2.0 + h, level)) for h in (1e-5, -1e-5))
        assert slope.item() == pytest.approx((high - low) / 2e-5, rel=1e-6)


def test_is_recorded():
    """No branch depends on a value: one graph serves all shapes of functions."""

    def integral(shape):
        inner = gamma(shape)
        low, high = -60.0 / shape.clamp(max=1.0), (shape + 200.0).log() + 3.0
        return integrate_log(inner, panel_edges(inner, low, high, torch.zeros(1)))

    graph = make_fx(integral)(torch.tensor(2.0))
    for shape in (0.1, 2.0, 500.0):
        value = graph(torch.tensor(shape)).item()
        assert value == pytest.approx(special.gammaln(shape), rel=1e-12, abs=1e-12)
    mapped = torch.func.vmap(integral)(torch.tensor([0.1, 2.0, 500.0]))
    expected = torch.tensor([0.1, 2.0, 500.0]).lgamma()
    torch.testing.assert_close(mapped, expected, rtol=1e-12, atol=1e-12)
