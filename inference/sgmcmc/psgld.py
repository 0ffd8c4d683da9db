r"""Preconditioned stochastic gradient Langevin dynamics.

.. math:: v \leftarrow \alpha v + (1 - \alpha) (g / N)^2, \quad G = 1 / (\lambda + \sqrt{v}), \quad
          \theta \leftarrow \theta - s G g + \sqrt{2 s T G} \, \xi

elementwise, where :math:`N` is the number of data, so that :math:`g / N` is of the size of one
observation's gradient however many data there are. The average :math:`v` starts at the square of
the first gradient. The correction :math:`\Gamma_i = \partial G_i / \partial \theta_i` of the drift
is left out, as usual: the resulting bias vanishes as :math:`\alpha` goes to one.

C. Li, C. Chen, D. Carlson, L. Carin (2016), Preconditioned stochastic gradient Langevin dynamics
for deep neural networks.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.sgmcmc.kernel import HEAT, KernelOptions, SGMCMCKernel, noise_scale
from pyro_ext.inference.vectorized import Info, ValueAndGradient

__all__ = ["PSGLD", "PSGLDState", "init", "step"]

_LARGEST_STEP = 0.05  # by default, where the curvature is one


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
    r"""Take one step; further arguments as of :func:`pyro_ext.inference.sgmcmc.sghmc.step`.

    :param float decay: :math:`\alpha`, weight of the past in the moving average.
    :param float regularization: :math:`\lambda`, bounds the preconditioner by its inverse.
    :param int data_size: :math:`N`.
    """
    value, gradient = value_and_gradient(state.position)
    squared = (gradient / data_size) ** 2
    average = torch.where(
        state.num_averaged == 0, squared, decay * state.square_average + (1.0 - decay) * squared
    )
    preconditioner = 1.0 / (regularization + average.sqrt())
    drift = step_size * preconditioner * gradient
    scale = noise_scale(2.0 * step_size * temperature * preconditioner)
    position = state.position - drift + scale * noise
    return PSGLDState(position, average, state.num_averaged + 1), Info(value)


class PSGLD(SGMCMCKernel):
    r"""Preconditioned stochastic gradient Langevin dynamics [1].

    :math:`v \leftarrow \alpha v + (1 - \alpha) (g / N)^2`, :math:`G = 1 / (\lambda + \sqrt{v})`,
    :math:`\theta \leftarrow \theta - s G g + \sqrt{2 s T G}\, \xi`, elementwise, without the drift
    :math:`\Gamma`. The average :math:`v` starts at its first term. :math:`N` is the size of the
    largest plate around an observed site, or one for a ``potential_fn``.

    :param model: a Pyro model, or ``None`` with a ``potential_fn``.
    :param float decay: :math:`\alpha`, in [0, 1).
    :param float regularization: :math:`\lambda`, positive.
    :param options: step size, temperature and other options of all kernels, see
        :class:`SGMCMCKernel`.
    :raises ValueError: for arguments out of range.

    [1] C. Li, C. Chen, D. Carlson, L. Carin (2016), Preconditioned stochastic gradient Langevin
    dynamics for deep neural networks.
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        decay: float = 0.99,
        regularization: float = 1e-5,
        **options: Unpack[KernelOptions],
    ) -> None:
        super().__init__(model, **options)
        self.decay = checks.number("decay", decay, least=0, below=1)
        self.regularization = checks.number("regularization", regularization, above=0)

    def _stable_step_size(self, curvature: float, noise: float) -> float:
        # A minibatch of n data has a gradient of about N over the root of n, which the
        # preconditioner divides by N.
        batch_size = self.potential.data_size / max(self._noise_ratio(), 1.0)
        return min(_LARGEST_STEP, 2.0 * HEAT / noise) / (curvature * math.sqrt(batch_size))

    def _init(self, position: Tensor, keys: Tensor) -> PSGLDState:
        return init(position)

    def _step(self, *now: Any, **schedules: Any) -> tuple[PSGLDState, Info]:
        return step(
            *now,
            decay=self.decay,
            regularization=self.regularization,
            data_size=self.potential.data_size,
            **schedules,
        )
