"""Coordinates of searches: unit curvature on any scales."""

import pytest
import torch
from torch import Tensor

from pyro_ext.inference.optimization import factor_at

pytestmark = pytest.mark.usefixtures("float64")


def test_unit_curvature_on_different_scales() -> None:
    """Curvatures of 1e10 and 1e-2, correlated: a part of the largest would hide one."""
    scales = torch.tensor([1e5, 0.1])
    curvature = scales[:, None] * torch.tensor([[1.0, 0.6], [0.6, 1.0]]) * scales

    def objective(position: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        gradient = position @ curvature
        return 0.5 * (position * gradient).sum(-1), gradient

    factor = factor_at(objective, torch.zeros(2))
    assert factor is not None
    found = factor @ curvature @ factor.mT
    torch.testing.assert_close(found, torch.eye(2), rtol=1e-6, atol=1e-6)


def test_no_curvature() -> None:
    def objective(position: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return position.sum(-1), torch.ones_like(position)

    assert factor_at(objective, torch.zeros(2)) is None
