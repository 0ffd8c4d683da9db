"""Hamiltonian Monte Carlo side by side: what chains do where there is no density."""

import pytest
import torch
from torch import Tensor

from pyro_ext.inference.hmc.transitions import (
    finite_starts,
    hamiltonian_transition,
    hamiltonian_transitions,
)

pytestmark = pytest.mark.usefixtures("float64")


def half(z: Tensor) -> tuple[Tensor, Tensor]:
    """A standard normal distribution without a density above three."""
    value = 0.5 * z.square().sum(-1)
    return torch.where(z[:, 0] > 3.0, torch.nan, value), z


def walls(z: Tensor) -> tuple[Tensor, Tensor]:
    """The same where gradients are NaN there as well, so that nothing leads out."""
    value, gradient = half(z)
    return value, torch.where(value.isnan()[:, None], torch.nan, gradient)


def test_chains_leave_where_there_is_no_density() -> None:
    position = torch.full((200, 1), 5.0)
    value, gradient = half(position)
    torch.manual_seed(0)
    after = hamiltonian_transition(
        position,
        value,
        gradient,
        torch.randn(200, 1),
        torch.rand(200).log(),
        half,
        torch.eye(1),
        step_size=torch.full((200, 1), 0.3),
        num_steps=6,
    )
    assert bool(after.is_taken.any())
    assert torch.equal(after.is_taken, after.value.isfinite())


@pytest.mark.parametrize("density", [half, walls])
def test_starts_without_a_density(density: object) -> None:
    assert callable(density)
    starts = torch.tensor([[5.0], [1.0], [4.0]])
    moved, value, gradient = finite_starts(starts, density, torch.tensor([0.5]))
    torch.testing.assert_close(moved, torch.tensor([[0.5], [1.0], [0.5]]))
    torch.testing.assert_close((value, gradient), density(moved))
    torch.manual_seed(0)
    ends, rate = hamiltonian_transitions(starts, density, torch.zeros(1), torch.eye(1), 20)
    assert bool((ends < 3.0).all())
    assert float(rate) > 0.8
