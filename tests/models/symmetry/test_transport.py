"""Exact solutions of transport equations, and draws of Gaussian processes."""

import math

import pytest
import torch

from pyro_ext.models.symmetry import kernel_fields, transport_fields, transport_step

SIZES = [(8,), (6, 8), (4, 6, 5)]


@pytest.mark.parametrize("sizes", SIZES)
def test_waves_decay_and_move_as_the_equation_says(float64, sizes):
    """cos(2 pi k.x) becomes exp(-kappa |2 pi k|^2 t) cos(2 pi (k.x - c sum(k) t))."""
    modes = [1, -1, 2][: len(sizes)]
    grid = torch.meshgrid(*(torch.arange(n) / n for n in sizes), indexing="ij")
    phase = sum(k * x for k, x in zip(modes, grid, strict=True))
    kappa, c, time = torch.tensor([0.01, 0.02]), torch.tensor([0.3, -0.2]), 0.7
    field = (2 * math.pi * phase).cos()[None, ..., None].expand(2, *sizes, 1)
    found = transport_step(field, kappa, c, time)
    for row in range(2):
        decay = math.exp(-float(kappa[row]) * time * sum((2 * math.pi * k) ** 2 for k in modes))
        moved = (2 * math.pi * (phase - float(c[row]) * time * sum(modes))).cos()
        torch.testing.assert_close(found[row, ..., 0], decay * moved, atol=1e-12, rtol=0)


@pytest.mark.parametrize("sizes", SIZES)
def test_steps_compose_and_commute_with_permutations(float64, sizes):
    field = torch.randn(2, *sizes, 3, generator=torch.Generator().manual_seed(0))
    smooth = transport_step(field, 0.01)  # the highest modes of even axes have no direction
    once = transport_step(smooth, 0.01, 0.1, 2.0)
    order = [0, *range(field.dim() - 2, 0, -1), field.dim() - 1]
    turned = transport_step(smooth.permute(order), 0.01, 0.1, 2.0)
    torch.testing.assert_close(turned, once.permute(order))
    torch.testing.assert_close(transport_step(field, time=3.0), field)
    for axis, size in enumerate(sizes, 1):  # without waves from each point to the next
        wave = (-1.0) ** torch.arange(size).reshape(-1, *[1] * (field.dim() - 1 - axis))
        smooth = smooth - (1 - size % 2) * wave * (wave * smooth).mean(axis, keepdim=True)
    twice = transport_step(transport_step(smooth, 0.01, 0.1), 0.01, 0.1)
    torch.testing.assert_close(twice, transport_step(smooth, 0.01, 0.1, 2.0))


def test_a_whole_cell_is_a_roll(float64):
    field = torch.randn(2, 6, 6, 1, generator=torch.Generator().manual_seed(0))
    found = transport_step(field, velocity=1 / 6)
    torch.testing.assert_close(found, field.roll((1, 1), (1, 2)))
    mean = transport_step(field, 0.3).mean((1, 2))
    torch.testing.assert_close(mean, field.mean((1, 2)))  # heat is kept


@pytest.mark.parametrize("equation", ["heat", "advection"])
def test_histories_follow_the_equation(equation):
    states = transport_fields(50, 2, 8, 3, equation=equation, seed=0)
    assert states.shape == (50, 3, 8, 8, 1)
    norms = states.flatten(2).norm(dim=2) / 8
    torch.testing.assert_close(norms[:, 0], torch.ones(50))
    wave = torch.fft.fftn(states[..., 0], dim=(2, 3))[:, :, 1, 0]
    factor = wave[:, 1:] / wave[:, :-1]
    torch.testing.assert_close(factor[:, 0], factor[:, 1], atol=1e-3, rtol=0)  # the same each time
    size, angle = factor[:, 0].abs(), -factor[:, 0].angle() / (2 * math.pi)
    if equation == "heat":
        assert (size > math.exp(-0.301)).all() and (size < math.exp(-0.049)).all()
        assert angle.abs().max() < 1e-3
    else:
        assert (angle > 0.0199).all() and (angle < 0.0801).all()
        torch.testing.assert_close(norms[:, 2], torch.ones(50), atol=1e-3, rtol=0)


@pytest.mark.statistical
def test_fields_have_their_kernels(float64):
    """Neighbors of standardized fields: of RBF fields none is far from the kernel on average.

    20 seeds had standard deviations of 0.004: a bound of 0.02 is five of them.
    """
    fields, labels = kernel_fields(2000, 2, seed=0)
    assert fields.shape == (2000, 16, 16, 1) and labels.tolist() == [1, 0] * 1000
    rbf = fields[labels == 1, ..., 0].double()
    torch.testing.assert_close(rbf.mean((1, 2)), torch.zeros(1000), atol=1e-5, rtol=0)
    torch.testing.assert_close(rbf.square().mean((1, 2)), torch.ones(1000), atol=1e-5, rtol=0)
    lag = 4 / 15
    length = torch.linspace(0.1, 0.6, 1001)
    for axis in (1, 2):
        first, second = rbf.narrow(axis, 0, 15), rbf.narrow(axis, 1, 15)
        found = (first * second).mean()
        # Standardization takes out the mean, which has a share of a field's variance.
        kernel = torch.exp(-((torch.arange(16) * lag) ** 2) / (2 * length[:, None] ** 2))
        count = torch.cat([torch.tensor([16.0]), 2 * torch.arange(15.0, 0.0, -1)])
        share = ((kernel * count).sum(1) / 256) ** 2
        expected = ((kernel[:, 1] - share) / (1 - share)).mean()
        assert float(found - expected) == pytest.approx(0.0, abs=0.02)


def test_periodic_fields_repeat():
    """A field of the period of two cells has that period, along each axis."""
    fields, labels = kernel_fields(4000, 1, seed=1)
    periodic = fields[labels == 0, :, 0]
    distance = (periodic[:, 2:] - periodic[:, :-2]).abs().amax(1)
    assert distance.min() < 0.05 and distance.max() > 1.0


def test_rates_and_fields_out_of_range_are_refused():
    field = torch.randn(2, 4, 4, 1)
    with pytest.raises(ValueError, match="velocity must be one number, or one for each field"):
        transport_step(field, velocity=torch.zeros(3))
