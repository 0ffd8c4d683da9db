"""A target whose optimal control is known: modes with a quadratic energy."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from pyro_ext.distributions import DirichletOU

RATE, VARIANCE = 2.1, 1.3**2 * 0.7 / (2 * 2.1)


def one_mode(variance: float = VARIANCE, rate: float = RATE) -> DirichletOU:
    """A single mode with the given invariant variance."""
    return DirichletOU(math.pi, 1, 1, noise=math.sqrt(variance), rate=rate)


def quadratic(stiffness: float) -> Callable[[Tensor, Tensor], Tensor]:
    r"""The energy :math:`\kappa / 2 \sum x_k^2` of paths from zero to zero."""
    return partial(_quadratic, stiffness)


def _quadratic(stiffness: float, path: Tensor, grid: Tensor) -> Tensor:
    return 0.5 * stiffness * torch.trapezoid(path.square().sum(-1), grid, dim=-1)


def optimal_coefficient(t: Tensor, stiffness: float, rate: float = RATE) -> Tensor:
    """What the optimal control of one mode multiplies the whitened state by."""
    left = -torch.expm1(-2.0 * rate * (1.0 - t))
    gain = stiffness * VARIANCE - 1.0 / -math.expm1(-2.0 * rate) + 1.0
    return -math.sqrt(2.0 * rate) * gain * torch.exp(-2.0 * rate * (1.0 - t)) / (1.0 + gain * left)


class Perturbed(nn.Module):
    """A linear control with what can be added to it in each third of the time."""

    def __init__(self, coefficient: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.coefficient = coefficient
        self.added = nn.Parameter(torch.zeros(3))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Control of states."""
        added = self.added[(3.0 * t).long().clamp(max=2)]
        return (self.coefficient(t) + added).reshape(-1, *[1] * (x.dim() - 1)) * x


def gradients_at_optimum(sampler, draw: Callable[[int], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean gradient of the loss in what is added to the control, and its standard error."""
    rows = []
    for _ in range(100):
        end = draw(4000)
        loss = sampler.matching_loss(end, sampler.terminal_gradient(end))
        rows.append(torch.autograd.grad(loss, sampler.control.added)[0])
    table = torch.stack(rows)
    return table.mean(0), table.std(0) / 10.0
