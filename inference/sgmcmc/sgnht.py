r"""Stochastic gradient Nose-Hoover thermostat.

With step size :math:`h`, friction :math:`A`, mass :math:`M` and a thermostat :math:`\zeta` started
at :math:`A`,

.. math:: p \leftarrow p - h g - h \zeta p + \sqrt{2 A h M T} \, \xi, \quad
          \theta \leftarrow \theta + h p / M, \quad
          \zeta \leftarrow \zeta + h (p^\top M^{-1} p / D - T) .

Gradient noise of constant, unknown variance :math:`V` heats the momentum. The thermostat rises by
about :math:`h V / (2 M T)` and removes this heat.

N. Ding, Y. Fang, R. Babbush, C. Chen, R. D. Skeel, H. Neven (2014), Bayesian sampling using
stochastic gradient thermostats.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.sgmcmc.kernel import HEAT, KernelOptions, SGMCMCKernel, noise_scale
from pyro_ext.inference.sgmcmc.mass import Mass, check_mass
from pyro_ext.inference.vectorized import Info, ValueAndGradient
from pyro_ext.random import normal

__all__ = ["SGNHT", "SGNHTState", "init", "step"]

_MOMENTUM_STREAM = 1
_LARGEST_STEP = 0.1  # by default, in standard deviations


class SGNHTState(NamedTuple):
    """State of chains. **Shape:** ``(..., size)`` each, of the thermostat ``(..., 1)``."""

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
    """Take one step; further arguments as of :func:`pyro_ext.inference.sgmcmc.sghmc.step`.

    :param friction: strength of the injected noise, a scalar or ``(size,)``.
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


class SGNHT(SGMCMCKernel):
    r"""Stochastic gradient Nose-Hoover thermostat [1], which absorbs unknown gradient noise.

    :math:`p \leftarrow p - h g - h \zeta p + \sqrt{2 A h M T}\, \xi`,
    :math:`\theta \leftarrow \theta + h p / M`,
    :math:`\zeta \leftarrow \zeta + h (p^\top M^{-1} p / D - T)`.
    Momenta start from their stationary distribution, and the thermostat :math:`\zeta` at :math:`A`.

    :param model: a Pyro model, or ``None`` with a ``potential_fn``.
    :param float friction: :math:`A`, positive. By default one, or :math:`\sqrt N` if the step size
        is also left to its default, which depends on the number of data :math:`N`.
    :param mass: :math:`M`: a number, numbers or tensors by site, or ``"laplace"``, see
        :class:`SGHMC`. With ``"laplace"``, the default step size is at most 0.1.
    :param options: step size, temperature and other options of all kernels, see
        :class:`SGMCMCKernel`.
    :raises ValueError: for arguments out of range.

    [1] N. Ding, Y. Fang, R. Babbush, C. Chen, R. D. Skeel, H. Neven (2014),
    Bayesian sampling using stochastic gradient thermostats.
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        friction: float | None = None,
        mass: Mass = 1.0,
        **options: Unpack[KernelOptions],
    ) -> None:
        self.mass = check_mass(mass)
        super().__init__(model, **options)
        self.friction = checks.optional(checks.number, "friction", friction, above=0)
        self._friction = 1.0 if friction is None else friction

    def _stable_step_size(self, curvature: float, noise: float) -> float:
        return min(_LARGEST_STEP, math.sqrt(2.0 * HEAT / noise)) / math.sqrt(curvature)

    def _prepare(self) -> None:
        super()._prepare()
        if self.friction is None and self.step_size is None:
            self._friction = math.sqrt(self._expected_curvature() or 1.0)

    def _init(self, position: Tensor, keys: Tensor) -> SGNHTState:
        momentum = normal(
            keys,
            torch.zeros((), dtype=torch.int64, device=position.device),
            position.shape[-1],
            stream=_MOMENTUM_STREAM,
            dtype=position.dtype,
        )
        scale = torch.as_tensor(self._masses * self.temperature).sqrt().to(momentum)
        return init(position, momentum * scale, self._friction)

    def _step(self, *now: Any, **schedules: Any) -> tuple[SGNHTState, Info]:
        return step(*now, friction=self._friction, mass=self._masses, **schedules)

    def _statistics(self, state: SGNHTState) -> dict[str, Tensor]:
        return {
            "kinetic_temperature": (state.momentum.square() / self._masses).mean(-1),
            "thermostat": state.thermostat[..., 0],
        }
