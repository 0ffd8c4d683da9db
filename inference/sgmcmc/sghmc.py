r"""Stochastic gradient Hamiltonian Monte Carlo.

With step size :math:`h`, decay :math:`a = h \gamma` and mass :math:`M`,

.. math:: m \leftarrow (1 - a) m + h g + \sqrt{2 a M T - h^2 V} \, \xi, \quad
          \theta \leftarrow \theta - h m / M .

:math:`V` estimates the variance of the stochastic gradient :math:`g` and is subtracted from the
noise: the gradient brings it along whatever the temperature.
At temperature zero it is stochastic gradient descent with momentum :math:`1 - a` and learning rate
:math:`h^2 / M`; with :math:`a = 1` it is Langevin dynamics with step size :math:`h^2`. On
:math:`U = \lambda \theta^2 / 2`, full gradient and unit mass, the stationary variance of
:math:`\theta` is :math:`2 T (2 - a) / (\lambda (4 - 2 a - h^2 \lambda))`.

T. Chen, E. B. Fox, C. Guestrin (2014), Stochastic gradient Hamiltonian Monte Carlo.
H. Kim, G. Nam, C. Yun, H. Yang, J. Lee (2025), Parameter expanded stochastic gradient Markov chain
Monte Carlo: the form with step size and friction.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext.inference.sgmcmc.core import Info, ValueAndGradient, noise_scale

__all__ = ["SGHMCState", "init", "step"]


class SGHMCState(NamedTuple):
    """State of chains.

    :param Tensor position: **Shape:** ``(..., size)``.
    :param Tensor momentum: **Shape:** ``(..., size)``.
    """

    position: Tensor
    momentum: Tensor


def init(position: Tensor) -> SGHMCState:
    """Start chains at rest at the given positions. **Shape:** ``(..., size)``."""
    return SGHMCState(position, torch.zeros_like(position))


def step(
    state: SGHMCState,
    value_and_gradient: ValueAndGradient,
    noise: Tensor,
    *,
    step_size: Tensor,
    temperature: Tensor,
    decay: Tensor,
    mass: float | Tensor = 1.0,
    noise_estimate: float | Tensor = 0.0,
) -> tuple[SGHMCState, Info]:
    """Take one step.

    :param SGHMCState state: the state.
    :param value_and_gradient: stochastic potential and gradient at a position.
    :param Tensor noise: standard normal numbers. **Shape:** ``(..., size)``.
    :param Tensor step_size: the step size, a scalar.
    :param Tensor temperature: the temperature, a scalar.
    :param Tensor decay: share of the momentum lost in a step, a scalar or ``(size,)``.
    :param mass: the mass, a scalar or ``(size,)``.
    :param noise_estimate: estimated variance of the gradient's noise, a scalar or ``(size,)``.
    :returns: the next state, and what the step saw.
    """
    value, gradient = value_and_gradient(state.position)
    scale = noise_scale(2.0 * decay * mass * temperature - step_size**2 * noise_estimate)
    momentum = (1.0 - decay) * state.momentum + step_size * gradient + scale * noise
    return SGHMCState(state.position - step_size * momentum / mass, momentum), Info(value)
