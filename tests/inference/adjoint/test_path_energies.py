"""Potentials against published numbers and finite differences, path energies in closed form."""

import pytest
import torch
from torch import Tensor

from pyro_ext.distributions import DirichletOU
from pyro_ext.inference.adjoint import DoubleWell1D, DoubleWell2D, MullerBrown, OnsagerMachlup

pytestmark = pytest.mark.usefixtures("float64")

MULLER_BROWN = [
    ((-0.558224, 1.441726), -146.6995, 4478.73),
    ((0.623499, 0.028038), -108.1667, 3549.23),
    ((-0.050011, 0.466694), -80.7678, None),
    ((-0.822002, 0.624313), -40.6648, None),
    ((0.212487, 0.292988), -72.2489, None),
]


def test_minima_and_saddles_of_muller_brown():
    potential = MullerBrown()
    for point, value, laplacian in MULLER_BROWN:
        x = torch.tensor(point)
        assert float(potential(x)) == pytest.approx(value, abs=5e-5)
        assert float(potential.gradient(x).abs().max()) < 5e-3  # six digits of a place
        if laplacian is not None:
            assert float(potential.laplacian(x)) == pytest.approx(laplacian, abs=5e-3)
    for well in (potential.first, potential.last):
        assert well.tolist() in [pytest.approx(point) for point, *_ in MULLER_BROWN[:2]]


def test_wells_and_saddles_of_the_double_wells():
    plane = DoubleWell2D()
    points = torch.tensor([[5**0.5 / 2, 0.0], [-(5**0.5) / 2, 0.0], [0.0, 1.0], [0.0, -1.0]])
    torch.testing.assert_close(plane(points), torch.tensor([-1 / 12, -1 / 12, 1.0, 1.0]))
    torch.testing.assert_close(plane.gradient(points), torch.zeros(4, 2))
    assert float(plane(torch.zeros(2))) == 2.0
    line = DoubleWell1D(height=1.7)
    assert line(torch.tensor([[-1.0], [0.0], [1.0]])).tolist() == [0.0, 1.7, 0.0]


@pytest.mark.parametrize("potential", [DoubleWell1D(1.7), DoubleWell2D(), MullerBrown()])
def test_derivatives(potential):
    x = 0.7 * torch.randn(20, potential.dim)
    step = 1e-4 * torch.eye(potential.dim)
    above, below = potential(x[:, None] + step), potential(x[:, None] - step)
    scale = float(above.abs().max())
    slopes = (above - below) / 2e-4
    torch.testing.assert_close(potential.gradient(x), slopes, rtol=1e-6, atol=1e-5 * scale)
    second = (above + below - 2.0 * potential(x)[:, None]).sum(-1) / 1e-8
    torch.testing.assert_close(potential.laplacian(x), second, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("potential", [DoubleWell1D(1.7), DoubleWell2D(), MullerBrown()])
def test_energy_of_a_plain_function(potential):
    path, grid = 0.5 * torch.randn(3, 9, potential.dim), torch.linspace(0.0, 1.0, 9)
    plain = OnsagerMachlup(lambda x: potential(x), 0.7)
    torch.testing.assert_close(plain(path, grid), OnsagerMachlup(potential, 0.7)(path, grid))


def harmonic(x: Tensor) -> Tensor:
    """A well of stiffness 3."""
    return 1.5 * x.square().sum()


@pytest.mark.parametrize("num_points", [7, 31])
def test_energy_in_a_harmonic_well(num_points):
    r"""There :math:`U = k^2 / (2 \xi^2) \sum_j x_j^2 - k d L / 2` in the modes, on any grid."""
    length, noise, stiffness = 2.0, 0.8, 3.0
    reference = DirichletOU(length, 4, 2, noise=noise)
    grid = torch.linspace(0.0, length, num_points)
    z = torch.randn(5, 4, 2, requires_grad=True)
    scale = noise * length / (torch.pi * torch.arange(1.0, 5.0))[:, None]
    energy = OnsagerMachlup(harmonic, noise)(reference.synthesis(z, grid), grid)
    precision = (stiffness / noise) ** 2
    expected = 0.5 * precision * (scale * z).square().sum((-1, -2)) - stiffness * length
    torch.testing.assert_close(energy, expected)
    gradient = torch.autograd.grad(energy.sum(), z)[0]
    torch.testing.assert_close(gradient, precision * scale.square() * z)


def test_errors():
    with pytest.raises(ValueError, match=r"x must have the shape \(\*batch, 2\), got \(3,\)"):
        MullerBrown()(torch.zeros(3))
