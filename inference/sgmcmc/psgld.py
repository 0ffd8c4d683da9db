r"""Preconditioned stochastic gradient Langevin dynamics.

.. math:: v \leftarrow \alpha v + (1 - \alpha) (g / N)^2, \quad G = 1 / (\lambda + \sqrt{v}), \quad
          \theta \leftarrow \theta - s G g + \sqrt{2 s T G} \, \xi

elementwise, with :math:`N` the number of data, so that :math:`g / N` is of the size of one
observation's gradient whatever the amount of data. The average :math:`v` starts at the square of
the first gradient. The correction :math:`\Gamma_i = \partial G_i / \partial \theta_i` of the drift
is left out, as is usual: the bias it leaves vanishes as :math:`\alpha` goes to one.

C. Li, C. Chen, D. Carlson, L. Carin (2016), Preconditioned stochastic gradient Langevin dynamics
for deep neural networks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext.inference.sgmcmc.core import Info, ValueAndGradient, noise_scale

__all__ = ["PSGLDState", "init", "step"]


class PSGLDState(NamedTuple):
    """State of chains.

    :param Tensor position: **Shape:** ``(..., size)``.
    :param Tensor square_average: moving average of the squared gradient.
        **Shape:** ``(..., size)``.
    :param Tensor num_averaged: number of gradients in it. **Shape:** ``(..., 1)``.
    """

    position: Tensor
    square_average: Tensor
    num_averaged: Tensor


def init(position: Tensor) -> PSGLDState:
    """Start chains at the given positions. **Shape:** ``(..., size)``."""
    num_averaged = torch.zeros_like(position[..., :1], dtype=torch.int64)
    return PSGLDState(position, torch.zeros_like(position), num_averaged)


def step(
    state: PSGLDState,
    value_and_gradient: ValueAndGradient,
    noise: Tensor,
    *,
    step_size: Tensor,
    temperature: Tensor,
    decay: float = 0.99,
    regularization: float = 1e-5,
    data_size: int = 1,
) -> tuple[PSGLDState, Info]:
    r"""Take one step.

    :param PSGLDState state: the state.
    :param value_and_gradient: stochastic potential and gradient at a position.
    :param Tensor noise: standard normal numbers. **Shape:** ``(..., size)``.
    :param Tensor step_size: the step size, a scalar.
    :param Tensor temperature: the temperature, a scalar.
    :param float decay: :math:`\alpha`, weight of the past in the moving average.
    :param float regularization: :math:`\lambda`, bounds the preconditioner by its inverse.
    :param int data_size: :math:`N`.
    :returns: the next state, and what the step saw.
    """
    value, gradient = value_and_gradient(state.position)
    squared = (gradient / data_size) ** 2
    average = torch.where(
        state.num_averaged == 0,
        squared,
        decay * state.square_average + (1.0 - decay) * squared,
    )
    preconditioner = 1.0 / (regularization + average.sqrt())
    drift = step_size * preconditioner * gradient
    scale = noise_scale(2.0 * step_size * temperature * preconditioner)
    position = state.position - drift + scale * noise
    return PSGLDState(position, average, state.num_averaged + 1), Info(value)
