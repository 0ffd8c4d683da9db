r"""Stochastic gradient dynamics whose diffusion and curl are learned.

With the energy :math:`H = U + |p|^2 / 2` and diagonal :math:`Q` and :math:`D` that depend on the
state,

.. math:: d\theta = Q p \, dt + T \Gamma^\theta dt, \quad
          dp = -(Q g + D p) \, dt + T \Gamma^p dt + \sqrt{2 T D} \, dW,

.. math:: \Gamma^\theta_i = -\frac{\partial Q_i}{\partial p_i}, \quad
          \Gamma^p_i = \frac{\partial Q_i}{\partial \theta_i} + \frac{\partial D_i}{\partial p_i} .

Whatever :math:`Q` and :math:`D` are, these dynamics leave :math:`e^{-H / T}` as it is; in steps of
size :math:`h` they do so up to an error of the order of :math:`h`. Momenta move first, and
positions with what :math:`Q` is at the new ones, so that with constants it is the step of
:mod:`~pyro_ext.inference.sgmcmc.sghmc`.

Y. Ma, T. Chen, E. B. Fox (2015), A complete recipe for stochastic gradient MCMC.
W. Gong, Y. Li, J. M. Hernandez-Lobato (2019), Meta-learning for stochastic gradient MCMC.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext.inference.sgmcmc.core import Info, ValueAndGradient, noise_scale

__all__ = ["Diffusion", "MetaSGMCMCState", "RecipeMatrices", "init", "step"]


class RecipeMatrices(NamedTuple):
    r"""Diagonals of curl and diffusion, and their derivatives. **Shape:** ``(..., size)`` each.

    :param Tensor curl: :math:`Q_i`.
    :param Tensor diffusion: :math:`D_i` in units of the friction.
    :param Tensor curl_by_position: :math:`\partial Q_i / \partial \theta_i`.
    :param Tensor curl_by_momentum: :math:`\partial Q_i / \partial p_i`.
    :param Tensor diffusion_by_momentum: :math:`\partial D_i / \partial p_i`, in the same units.
    """

    curl: Tensor
    diffusion: Tensor
    curl_by_position: Tensor
    curl_by_momentum: Tensor
    diffusion_by_momentum: Tensor


Diffusion = Callable[[Tensor, Tensor, Tensor], RecipeMatrices]
"""Maps the mean energy ``(..., 1)``, its gradient and the momentum ``(..., size)`` to the
matrices."""


class MetaSGMCMCState(NamedTuple):
    """State of chains.

    :param Tensor position: **Shape:** ``(..., size)``.
    :param Tensor momentum: **Shape:** ``(..., size)``.
    """

    position: Tensor
    momentum: Tensor


def init(position: Tensor) -> MetaSGMCMCState:
    """Start chains at rest at the given positions. **Shape:** ``(..., size)``."""
    return MetaSGMCMCState(position, torch.zeros_like(position))


def step(
    state: MetaSGMCMCState,
    value_and_gradient: ValueAndGradient,
    noise: Tensor,
    *,
    step_size: Tensor,
    temperature: Tensor,
    momentum_decay: Tensor,
    diffusion: Diffusion,
    data_size: int | Tensor = 1,
) -> tuple[MetaSGMCMCState, Info]:
    """Take one step.

    :param MetaSGMCMCState state: the state.
    :param value_and_gradient: stochastic potential and gradient at a position.
    :param Tensor noise: standard normal numbers. **Shape:** ``(..., size)``.
    :param Tensor step_size: the step size, a scalar.
    :param Tensor temperature: the temperature, a scalar.
    :param Tensor momentum_decay: step size times the unit of the diffusion, a scalar or
        ``(size,)``.
    :param diffusion: curl and diffusion with their derivatives, evaluated twice.
    :param data_size: number of data, by which the mean energy is less than the potential.
    :returns: the next state, and what the step saw.
    """
    value, gradient = value_and_gradient(state.position)
    energy, slope = value.unsqueeze(-1) / data_size, gradient / data_size
    old = diffusion(energy, slope, state.momentum)
    correction = (
        step_size * old.curl_by_position + momentum_decay * old.diffusion_by_momentum
    ) * temperature
    momentum = (
        state.momentum
        - step_size * old.curl * gradient
        - momentum_decay * old.diffusion * state.momentum
        + correction
        + noise_scale(2.0 * momentum_decay * old.diffusion * temperature) * noise
    )
    new = diffusion(energy, slope, momentum)
    velocity = new.curl * momentum - temperature * new.curl_by_momentum
    return MetaSGMCMCState(state.position + step_size * velocity, momentum), Info(value)
