r"""Stochastic gradient Langevin dynamics.

.. math:: \theta \leftarrow \theta - s g / M + \sqrt{2 s T / M - s^2 V / M^2} \, \xi

with the stochastic gradient :math:`g` of the potential, temperature :math:`T`, a mass :math:`M`,
by which the step size of each parameter is divided, standard normal :math:`\xi`, and :math:`V` an
estimate of the variance of :math:`g`, subtracted from the noise. On
:math:`U = \lambda \theta^2 / 2` with the full gradient and unit mass the stationary variance is
:math:`T / (\lambda (1 - s \lambda / 2))`.

M. Welling, Y. W. Teh (2011), Bayesian learning via stochastic gradient Langevin dynamics.
"""

from typing import NamedTuple

from torch import Tensor

from pyro_ext.inference.sgmcmc.core import Info, ValueAndGradient, noise_scale

__all__ = ["SGLDState", "init", "step"]


class SGLDState(NamedTuple):
    """State of chains.

    :param Tensor position: **Shape:** ``(..., size)``.
    """

    position: Tensor


def init(position: Tensor) -> SGLDState:
    """Start chains at the given positions. **Shape:** ``(..., size)``."""
    return SGLDState(position)


def step(
    state: SGLDState,
    value_and_gradient: ValueAndGradient,
    noise: Tensor,
    *,
    step_size: Tensor,
    temperature: Tensor,
    mass: float | Tensor = 1.0,
    noise_estimate: float | Tensor = 0.0,
) -> tuple[SGLDState, Info]:
    """Take one step.

    :param SGLDState state: the state.
    :param value_and_gradient: stochastic potential and gradient at a position.
    :param Tensor noise: standard normal numbers. **Shape:** ``(..., size)``.
    :param Tensor step_size: the step size, a scalar.
    :param Tensor temperature: the temperature, a scalar.
    :param mass: the mass, a scalar or ``(size,)``.
    :param noise_estimate: estimated variance of the gradient's noise, a scalar or ``(size,)``.
    :returns: the next state, and what the step saw.
    """
    value, gradient = value_and_gradient(state.position)
    own_step_size = step_size / mass
    scale = noise_scale(2.0 * own_step_size * temperature - own_step_size**2 * noise_estimate)
    return SGLDState(state.position - own_step_size * gradient + scale * noise), Info(value)
