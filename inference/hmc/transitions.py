"""Hamiltonian Monte Carlo for many chains side by side, in coordinates of a given covariance."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from pyro_ext.posterior.modes import ValueAndGradient, finite_starts

_LEAPFROG_STEPS = 6
_LENGTH = 1.2
"""Length of a trajectory, in standard deviations of a Gaussian: nearly a quarter of a period."""


class Transition(NamedTuple):
    """State of chains after a transition.

    :param Tensor position: **Shape:** ``(num_chains, size)``.
    :param Tensor value: :math:`U` there. **Shape:** ``(num_chains,)``.
    :param Tensor gradient: of :math:`U` there. **Shape:** ``(num_chains, size)``.
    :param Tensor is_taken: whether the proposal was taken. **Shape:** ``(num_chains,)``.
    """

    position: Tensor
    value: Tensor
    gradient: Tensor
    is_taken: Tensor


def hamiltonian_transition(
    position: Tensor,
    value: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    log_uniform: Tensor,
    value_and_gradient: ValueAndGradient,
    factor: Tensor,
    *,
    step_size: Tensor,
    num_steps: int,
) -> Transition:
    r"""Take a transition of each chain that leaves :math:`\exp(-U)` as it is, exactly.

    Shapes: position, gradient, momentum (num_chains, size); value, log_uniform (num_chains,);
    factor (size, size); step_size (num_chains, 1).
    """
    new, new_value, new_gradient, velocity = position, value, gradient, momentum
    for _ in range(num_steps):
        velocity = velocity - 0.5 * step_size * (new_gradient @ factor)
        new = new + step_size * linear(velocity, factor)
        new_value, new_gradient = value_and_gradient(new)
        velocity = velocity - 0.5 * step_size * (new_gradient @ factor)
    energies = (momentum.square() - velocity.square()).sum(-1) * 0.5
    # Where U is NaN there is no density: such a point is left, and none is moved to, since a
    # comparison with NaN is false.
    before = torch.where(value.isnan(), torch.inf, value)
    is_taken = log_uniform < before - new_value + energies
    return Transition(
        torch.where(is_taken[:, None], new, position),
        torch.where(is_taken, new_value, value),
        torch.where(is_taken[:, None], new_gradient, gradient),
        is_taken,
    )


def hamiltonian_transitions(
    position: Tensor,
    value_and_gradient: ValueAndGradient,
    center: Tensor,
    factor: Tensor,
    num_transitions: int,
) -> tuple[Tensor, Tensor]:
    r"""Take transitions of each chain that leave :math:`\exp(-U)` as it is, exactly.

    Lengths of steps vary at random by a fifth, so that no chain goes around in circles. Random
    numbers are those of PyTorch's generator.

    Shapes: position (num_chains, size); center (size,); factor (size, size).
    """
    position, value, gradient = finite_starts(position, value_and_gradient, center)
    taken = []
    for _ in range(num_transitions):
        momentum = torch.randn_like(position)
        jitter = 0.8 + 0.4 * torch.rand(len(position), 1).to(position)
        position, value, gradient, is_taken = hamiltonian_transition(
            position,
            value,
            gradient,
            momentum,
            torch.rand_like(value).log(),
            value_and_gradient,
            factor,
            step_size=jitter * _LENGTH / _LEAPFROG_STEPS,
            num_steps=_LEAPFROG_STEPS,
        )
        taken.append(is_taken.to(position).mean())
    return position, torch.stack(taken).mean()
