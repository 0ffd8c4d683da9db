r"""Stochastic gradient Nose-Hoover thermostat.

With step size :math:`h`, friction :math:`A`, mass :math:`M` and a thermostat :math:`\zeta` started
at :math:`A`,

.. math:: p \leftarrow p - h g - h \zeta p + \sqrt{2 A h M T} \, \xi, \quad
          \theta \leftarrow \theta + h p / M, \quad
          \zeta \leftarrow \zeta + h (p^\top M^{-1} p / D - T) .

Gradient noise of constant unknown variance :math:`V` heats the momentum; the thermostat rises by
about :math:`h V / (2 M T)` and takes the heat away.

N. Ding, Y. Fang, R. Babbush, C. Chen, R. D. Skeel, H. Neven (2014), Bayesian sampling using
stochastic gradient thermostats.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext.inference.sgmcmc.core import Info, ValueAndGradient, noise_scale

__all__ = ["SGNHTState", "init", "step"]


class SGNHTState(NamedTuple):
    """State of chains.

    :param Tensor position: **Shape:** ``(..., size)``.
    :param Tensor momentum: **Shape:** ``(..., size)``.
    :param Tensor thermostat: **Shape:** ``(..., 1)``.
    """

    position: Tensor
    momentum: Tensor
    thermostat: Tensor


def init(position: Tensor, momentum: Tensor, friction: float) -> SGNHTState:
    """Start chains at the given positions and momenta. **Shape:** ``(..., size)``."""
    return SGNHTState(position, momentum, torch.full_like(position[..., :1], friction))


def step(
    state: SGNHTState,
    value_and_gradient: ValueAndGradient,
    noise: Tensor,
    *,
    step_size: Tensor,
    temperature: Tensor,
    friction: float | Tensor,
    mass: float | Tensor = 1.0,
) -> tuple[SGNHTState, Info]:
    """Take one step.

    :param SGNHTState state: the state.
    :param value_and_gradient: stochastic potential and gradient at a position.
    :param Tensor noise: standard normal numbers. **Shape:** ``(..., size)``.
    :param Tensor step_size: the step size, a scalar.
    :param Tensor temperature: the temperature, a scalar.
    :param friction: strength of the injected noise, a scalar or ``(size,)``.
    :param mass: the mass, a scalar or ``(size,)``.
    :returns: the next state, and what the step saw.
    """
    value, gradient = value_and_gradient(state.position)
    scale = noise_scale(2.0 * friction * step_size * mass * temperature)
    momentum = (
        state.momentum
        - step_size * gradient
        - step_size * state.thermostat * state.momentum
        + scale * noise
    )
    position = state.position + step_size * momentum / mass
    kinetic_temperature = (momentum.square() / mass).mean(-1, keepdim=True)
    thermostat = state.thermostat + step_size * (kinetic_temperature - temperature)
    return SGNHTState(position, momentum, thermostat), Info(value)
