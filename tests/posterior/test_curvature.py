"""Factors of the inverse of second derivatives: exact, on any scales, at saddles, where flat."""

import pytest
import torch
from torch import Tensor

from pyro_ext.posterior.modes import whitening_factor

EPS = torch.finfo(torch.float64).eps


def positive_definite(size: int = 4) -> Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return root @ root.mT + 0.1 * torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("spread", [0.0, 4.0, 8.0])
def test_inverse_on_any_scales(spread: float) -> None:
    """Scales of as many powers of ten either way, which make condition numbers of up to 1e32."""
    scales = torch.logspace(-spread, spread, 4, dtype=torch.float64)
    hessian = positive_definite()
    factor = whitening_factor(scales[:, None] * hessian * scales, 4 * EPS)
    covariance = scales[:, None] * (factor @ factor.mT) * scales
    torch.testing.assert_close(covariance, hessian.inverse(), rtol=1e-9, atol=1e-9)


def test_signs_do_not_matter() -> None:
    saddle = torch.tensor([[3.0, 0.0], [0.0, -0.25]])
    factor = whitening_factor(saddle, 1e-6)
    torch.testing.assert_close(factor @ factor.mT, torch.tensor([[1 / 3, 0.0], [0.0, 4.0]]))


def test_a_saddle_with_a_vanishing_diagonal_leaves_the_others_alone() -> None:
    """A scale taken from the diagonal alone is 1e6 here, and its square hides the last entry."""
    hessian = torch.zeros(3, 3)
    hessian[0, 0], hessian[0, 1], hessian[1, 0], hessian[2, 2] = 1e-12, 1.0, 1.0, 1.0
    factor = whitening_factor(hessian, 1e-6)
    torch.testing.assert_close(factor @ factor.mT, torch.eye(3))


def test_flat_directions() -> None:
    """What no derivative tells of stays as it is; what is rounding is taken as that much."""
    free = whitening_factor(torch.tensor([[4.0, 0.0], [0.0, 0.0]]), 1e-6)
    torch.testing.assert_close(free, torch.tensor([[0.5, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(whitening_factor(torch.zeros(2, 2), 1e-6), torch.eye(2))
    equal = torch.ones(2, 2, dtype=torch.float64)  # curvatures 2 and 0, of which 0 is taken as 2e-6
    factor = whitening_factor(equal, 1e-6)
    sizes = torch.linalg.svdvals(factor)
    torch.testing.assert_close(sizes, torch.tensor([2e-6, 2.0], dtype=torch.float64).rsqrt())


def test_equal_curvatures_do_not_turn_coordinates() -> None:
    noise = 1e-14 * torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double()
    factor = whitening_factor(torch.eye(5, dtype=torch.float64) + noise, 5 * EPS)
    torch.testing.assert_close(factor, torch.eye(5, dtype=torch.float64))
