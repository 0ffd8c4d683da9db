r"""Stochastic gradient Hamiltonian Monte Carlo.

With step size :math:`h`, decay :math:`a = h \gamma` and mass :math:`M`,

.. math:: m \leftarrow (1 - a) m - h g + \sqrt{2 a M T - h^2 V} \, \xi, \quad
          \theta \leftarrow \theta + h m / M .

:math:`V` estimates the variance of the stochastic gradient :math:`g`. It is subtracted from the
injected noise because the gradient brings this noise along, whatever the temperature.
At temperature zero, this is stochastic gradient descent with momentum :math:`1 - a` and learning
rate :math:`h^2 / M`; with :math:`a = 1` it is Langevin dynamics with step size :math:`h^2`. On
:math:`U = \lambda \theta^2 / 2`, with the full gradient and unit mass, the stationary variance of
:math:`\theta` is :math:`2 T (2 - a) / (\lambda (4 - 2 a - h^2 \lambda))`.

T. Chen, E. B. Fox, C. Guestrin (2014), Stochastic gradient Hamiltonian Monte Carlo.
H. Kim, G. Nam, C. Yun, H. Yang, J. Lee (2025), Parameter expanded stochastic gradient Markov chain
Monte Carlo: the form with step size and friction.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self, Unpack

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.sgmcmc.kernel import HEAT, KernelOptions, SGMCMCKernel, noise_scale
from pyro_ext.inference.sgmcmc.mass import Mass, check_mass, smallest_mass
from pyro_ext.inference.vectorized import Info, ValueAndGradient

__all__ = ["FrictionKernel", "SGHMC", "SGHMCState", "init", "step"]

_LARGEST_STEP = 0.2  # by default, in standard deviations


class SGHMCState(NamedTuple):
    """State of chains. **Shape:** ``(..., size)`` each."""

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
    :param Tensor decay: fraction of the momentum lost in a step, a scalar or ``(size,)``.
    :param mass: the mass, a scalar or ``(size,)``.
    :param noise_estimate: estimated variance of the gradient's noise, a scalar or ``(size,)``.
    :returns: the next state, and what the step saw.
    """
    value, gradient = value_and_gradient(state.position)
    scale = noise_scale(2.0 * decay * mass * temperature - step_size**2 * noise_estimate)
    # The noise has the sign of the gradient, as a gradient's own noise does.
    momentum = (1.0 - decay) * state.momentum - step_size * gradient - scale * noise
    return SGHMCState(state.position + step_size * momentum / mass, momentum), Info(value)


class FrictionKernel(SGMCMCKernel):
    """A kernel whose momentum decays: at a friction times the step size, or at a rate of its own.

    Arguments are those of :class:`SGHMC`.
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        friction: float | Mapping[str, float] | None = None,
        momentum_decay: float | Mapping[str, float] | None = None,
        **options: Unpack[KernelOptions],
    ) -> None:
        super().__init__(model, **options)
        if friction is not None and momentum_decay is not None:
            raise ValueError(
                "either friction or momentum_decay must be given, and not both, got "
                f"friction={friction!r:.80}, momentum_decay={momentum_decay!r:.80}"
            )
        if friction is None and momentum_decay is None:
            momentum_decay = 0.1
        self.friction = friction
        self.momentum_decay = momentum_decay
        self._least_and_most()
        if self.step_size is not None:
            self._smallest_decay()

    def _smallest_decay(self) -> float:
        """Least fraction of the momentum that the largest step takes; checks friction."""
        least, most = self._least_and_most()
        if self.momentum_decay is not None:
            return least
        largest = self.schedule.max_step_size
        if most * largest > 1.0:
            raise ValueError(
                "friction times the largest step_size must be at most 1, got "
                f"{most!r} * {largest!r} = {most * largest!r}"
            )
        return least * largest

    def _given(self) -> tuple[str, float | Mapping[str, float]]:
        """Whichever of the two arguments is given, and its name."""
        if self.friction is not None:
            return "friction", self.friction
        assert self.momentum_decay is not None
        return "momentum_decay", self.momentum_decay

    def _least_and_most(self) -> tuple[float, float]:
        """The smallest and the largest friction or momentum decay of all sites."""
        argument, value = self._given()
        most = 1 if self.friction is None else None
        if not isinstance(value, Mapping):
            numbers = [checks.number(argument, value, above=0, most=most)]
        elif value:
            numbers = [
                checks.number(f"{argument}[{k!r}]", v, above=0, most=most) for k, v in value.items()
            ]
        else:
            raise ValueError(
                f"{argument} must be a number or a number by site, got an empty mapping"
            )
        return min(numbers), max(numbers)

    def replace(self, **changes: Any) -> Self:
        """Return a new kernel with other settings; friction or momentum decay puts out the other.

        See :meth:`SGMCMCKernel.replace`.
        """
        if "friction" in changes:
            changes.setdefault("momentum_decay", None)
        elif "momentum_decay" in changes:
            changes["friction"] = None
        return super().replace(**changes)

    def __getstate__(self) -> dict[str, Any]:
        return {name: v for name, v in super().__getstate__().items() if name != "_rate"}

    def _prepare(self) -> None:
        super()._prepare()
        argument, value = self._given()
        self._rate = self.potential.layout.expand(value, argument)
        self._smallest_decay()

    def _decay(self, step_size: Tensor) -> Tensor:
        """Fraction of the momentum that a step takes. **Shape:** ``(size,)``."""
        return self._rate if self.friction is None else step_size * self._rate


class SGHMC(FrictionKernel):
    r"""Stochastic gradient Hamiltonian Monte Carlo [1], in the form of [2].

    With :math:`a = h \gamma`: :math:`m \leftarrow (1 - a) m - h g + \sqrt{2 a M T - h^2 V}\, \xi`,
    :math:`\theta \leftarrow \theta + h m / M`. In terms of a learning rate :math:`\eta` and a
    momentum :math:`\mu` of stochastic gradient descent, :math:`h = \sqrt{\eta}` and
    :math:`a = 1 - \mu`.

    :param model: a Pyro model, or ``None`` with a ``potential_fn``.
    :param friction: :math:`\gamma`: a number, or numbers by pattern of site names such as
        ``{"weight*": 100.0, "default": 1.0}``. Its product with the largest step size must be at
        most one.
    :param momentum_decay: :math:`a` itself, instead of friction: a number or numbers by site, 0.1
        by default. It does not follow the schedule of the step size.
    :param mass: :math:`M`: a number; numbers by pattern of site names, or tensors of the sites'
        unconstrained shapes; a tensor for the flat vector of all parameters; or ``"laplace"``, the
        second derivatives of the potential at a mode. The mode is found before the first step, from
        gradients over all of the data, and these masses stay fixed. The step size is then in units
        of the posterior's standard deviations, along each parameter, and defaults to 0.2, or to
        what the noise of the minibatches allows.
    :param float noise_estimate: :math:`V`, the variance of the stochastic gradient, if it is known.
    :param options: step size, temperature and other options of all kernels, see
        :class:`SGMCMCKernel`.
    :raises ValueError: for arguments out of range, or a pattern that fits no site.

    [1] T. Chen, E. B. Fox, C. Guestrin (2014), Stochastic gradient Hamiltonian Monte Carlo.
    [2] H. Kim, G. Nam, C. Yun, H. Yang, J. Lee (2025),
    Parameter expanded stochastic gradient Markov chain Monte Carlo.
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        friction: float | Mapping[str, float] | None = None,
        momentum_decay: float | Mapping[str, float] | None = None,
        mass: Mass = 1.0,
        noise_estimate: float = 0.0,
        **options: Unpack[KernelOptions],
    ) -> None:
        self.mass = check_mass(mass)
        super().__init__(model, friction=friction, momentum_decay=momentum_decay, **options)
        self.noise_estimate = checks.number("noise_estimate", noise_estimate, least=0)
        if self.step_size is not None and not isinstance(mass, str):
            self._check_noise(mass)

    def _most_noise(self, mass: Mass) -> float:
        return 2.0 * self._smallest_decay() * smallest_mass(mass) / self.schedule.max_step_size**2

    def _stable_step_size(self, curvature: float, noise: float) -> float:
        least, most = self._least_and_most()
        deviation = 1.0 / math.sqrt(curvature)
        if self.momentum_decay is not None:
            return min(_LARGEST_STEP, math.sqrt(2.0 * HEAT * least / noise)) * deviation
        quietest = 2.0 * HEAT * least * deviation**2 / noise
        return min(_LARGEST_STEP * deviation, 1.0 / most, quietest)

    def _init(self, position: Tensor, keys: Tensor) -> SGHMCState:
        return init(position)

    def _step(self, *now: Any, **schedules: Any) -> tuple[SGHMCState, Info]:
        return step(
            *now,
            decay=self._decay(schedules["step_size"]),
            mass=self._masses,
            noise_estimate=self.noise_estimate,
            **schedules,
        )

    def _statistics(self, state: SGHMCState) -> dict[str, Tensor]:
        return {"kinetic_temperature": (state.momentum.square() / self._masses).mean(-1)}
