"""The stochastic-gradient samplers as kernels."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Unpack

import torch
from torch import Tensor

from pyro_ext._checks import check_number
from pyro_ext.inference.sgmcmc import psgld, sghmc, sgld, sgnht
from pyro_ext.inference.sgmcmc.core import Info, ValueAndGradient
from pyro_ext.inference.sgmcmc.friction_kernel import FrictionKernel
from pyro_ext.inference.sgmcmc.kernel import KernelOptions, SGMCMCKernel
from pyro_ext.random import normal

__all__ = ["PSGLD", "SGHMC", "SGLD", "SGNHT"]

Model = Callable[..., Any]

_MOMENTUM_STREAM = 1


class SGLD(SGMCMCKernel):
    r"""Stochastic gradient Langevin dynamics [1].

    :math:`\theta \leftarrow \theta - s g + \sqrt{2 s T - s^2 V}\, \xi`

    :param model: a Pyro model, or ``None`` where ``potential_fn`` is given.
    :param float noise_estimate: :math:`V`, variance of the stochastic gradient if it is known.
    :param options: step size, temperature and what else all kernels take, see
        :class:`SGMCMCKernel`.
    :raises ValueError: for arguments out of range.

    [1] M. Welling, Y. W. Teh (2011),
    Bayesian learning via stochastic gradient Langevin dynamics.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_ext.inference import MCMC
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x), subsample_size=20) as index:
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])
        >>> kernel = SGLD(model, step_size=1e-3)
        >>> mcmc = MCMC(kernel, num_samples=100, warmup_steps=50, num_chains=2, progress=False)
        >>> mcmc.run(torch.randn(200)).get_samples()["loc"].shape
        torch.Size([200])
    """

    def __init__(
        self,
        model: Model | None = None,
        *,
        noise_estimate: float = 0.0,
        **options: Unpack[KernelOptions],
    ) -> None:
        super().__init__(model, **options)
        _check_noise_estimate(
            noise_estimate, 2.0 * self.temperature / self.schedule.max_step_size, self.temperature
        )
        self.noise_estimate = noise_estimate

    def _init(self, position: Tensor, keys: Tensor) -> sgld.SGLDState:
        return sgld.init(position)

    def _step(
        self,
        state: sgld.SGLDState,
        value_and_gradient: ValueAndGradient,
        noise: Tensor,
        *,
        step_size: Tensor,
        temperature: Tensor,
    ) -> tuple[sgld.SGLDState, Info]:
        return sgld.step(
            state,
            value_and_gradient,
            noise,
            step_size=step_size,
            temperature=temperature,
            noise_estimate=self.noise_estimate,
        )


class PSGLD(SGMCMCKernel):
    r"""Preconditioned stochastic gradient Langevin dynamics [1].

    :math:`v \leftarrow \alpha v + (1 - \alpha) (g / N)^2`, :math:`G = 1 / (\lambda + \sqrt{v})`,
    :math:`\theta \leftarrow \theta - s G g + \sqrt{2 s T G}\, \xi`, elementwise, without the drift
    :math:`\Gamma`, and with :math:`v` started at its first term; :math:`N` is the size of the
    largest plate around an observed site, one for a ``potential_fn``.

    :param model: a Pyro model, or ``None`` where ``potential_fn`` is given.
    :param float decay: :math:`\alpha`, in [0, 1).
    :param float regularization: :math:`\lambda`, positive.
    :param options: step size, temperature and what else all kernels take, see
        :class:`SGMCMCKernel`.
    :raises ValueError: for arguments out of range.

    [1] C. Li, C. Chen, D. Carlson, L. Carin (2016), Preconditioned stochastic gradient Langevin
    dynamics for deep neural networks.
    """

    def __init__(
        self,
        model: Model | None = None,
        *,
        decay: float = 0.99,
        regularization: float = 1e-5,
        **options: Unpack[KernelOptions],
    ) -> None:
        super().__init__(model, **options)
        self.decay = check_number("decay", decay, least=0, below=1)
        self.regularization = check_number("regularization", regularization, above=0)

    def _init(self, position: Tensor, keys: Tensor) -> psgld.PSGLDState:
        return psgld.init(position)

    def _step(
        self,
        state: psgld.PSGLDState,
        value_and_gradient: ValueAndGradient,
        noise: Tensor,
        *,
        step_size: Tensor,
        temperature: Tensor,
    ) -> tuple[psgld.PSGLDState, Info]:
        return psgld.step(
            state,
            value_and_gradient,
            noise,
            step_size=step_size,
            temperature=temperature,
            decay=self.decay,
            regularization=self.regularization,
            data_size=self.potential.data_size,
        )


class SGHMC(FrictionKernel):
    r"""Stochastic gradient Hamiltonian Monte Carlo [1], in the form of [2].

    With :math:`a = h \gamma`: :math:`m \leftarrow (1 - a) m + h g + \sqrt{2 a M T - h^2 V}\, \xi`,
    :math:`\theta \leftarrow \theta - h m / M`. In terms of a learning rate :math:`\eta` and a
    momentum :math:`\mu` of stochastic gradient descent, :math:`h = \sqrt{\eta}` and
    :math:`a = 1 - \mu`.

    :param model: a Pyro model, or ``None`` where ``potential_fn`` is given.
    :param friction: :math:`\gamma`, a number, or numbers by pattern of site names such as
        ``{"weight*": 100.0, "default": 1.0}``. Its product with the largest step size must be at
        most one.
    :param momentum_decay: :math:`a` itself, instead of friction, 0.1 by default; it then does not
        follow the schedule of the step size. Like friction a number or numbers by site.
    :param float mass: :math:`M`.
    :param float noise_estimate: :math:`V`, variance of the stochastic gradient if it is known.
    :param options: step size, temperature and what else all kernels take, see
        :class:`SGMCMCKernel`.
    :raises ValueError: for arguments out of range, or a pattern that fits no site.

    [1] T. Chen, E. B. Fox, C. Guestrin (2014), Stochastic gradient Hamiltonian Monte Carlo.
    [2] H. Kim, G. Nam, C. Yun, H. Yang, J. Lee (2025),
    Parameter expanded stochastic gradient Markov chain Monte Carlo.
    """

    def __init__(
        self,
        model: Model | None = None,
        *,
        friction: float | Mapping[str, float] | None = None,
        momentum_decay: float | Mapping[str, float] | None = None,
        mass: float = 1.0,
        noise_estimate: float = 0.0,
        **options: Unpack[KernelOptions],
    ) -> None:
        if friction is None and momentum_decay is None:
            momentum_decay = 0.1
        super().__init__(model, friction, momentum_decay, **options)
        self.mass = check_number("mass", mass, above=0)
        injected = 2.0 * self._smallest_decay() * self.mass * self.temperature
        largest = injected / self.schedule.max_step_size**2
        _check_noise_estimate(noise_estimate, largest, self.temperature)
        self.noise_estimate = noise_estimate

    def _init(self, position: Tensor, keys: Tensor) -> sghmc.SGHMCState:
        return sghmc.init(position)

    def _step(
        self,
        state: sghmc.SGHMCState,
        value_and_gradient: ValueAndGradient,
        noise: Tensor,
        *,
        step_size: Tensor,
        temperature: Tensor,
    ) -> tuple[sghmc.SGHMCState, Info]:
        return sghmc.step(
            state,
            value_and_gradient,
            noise,
            step_size=step_size,
            temperature=temperature,
            decay=self._decay(step_size),
            mass=self.mass,
            noise_estimate=self.noise_estimate,
        )

    def _statistics(self, state: sghmc.SGHMCState) -> dict[str, Tensor]:
        return {"kinetic_temperature": state.momentum.square().mean(-1) / self.mass}


class SGNHT(SGMCMCKernel):
    r"""Stochastic gradient Nose-Hoover thermostat [1], which absorbs unknown gradient noise.

    :math:`p \leftarrow p - h g - h \zeta p + \sqrt{2 A h T}\, \xi`,
    :math:`\theta \leftarrow \theta + h p`, :math:`\zeta \leftarrow \zeta + h (p^\top p / D - T)`.
    Momenta start from their stationary law, the thermostat :math:`\zeta` at :math:`A`.

    :param model: a Pyro model, or ``None`` where ``potential_fn`` is given.
    :param float friction: :math:`A`, positive.
    :param options: step size, temperature and what else all kernels take, see
        :class:`SGMCMCKernel`.
    :raises ValueError: for arguments out of range.

    [1] N. Ding, Y. Fang, R. Babbush, C. Chen, R. D. Skeel, H. Neven (2014),
    Bayesian sampling using stochastic gradient thermostats.
    """

    def __init__(
        self,
        model: Model | None = None,
        *,
        friction: float = 1.0,
        **options: Unpack[KernelOptions],
    ) -> None:
        super().__init__(model, **options)
        self.friction = check_number("friction", friction, above=0)

    def _init(self, position: Tensor, keys: Tensor) -> sgnht.SGNHTState:
        momentum = normal(
            keys,
            torch.zeros((), dtype=torch.int64, device=position.device),
            position.shape[-1],
            stream=_MOMENTUM_STREAM,
            dtype=position.dtype,
        )
        return sgnht.init(position, momentum * math.sqrt(self.temperature), self.friction)

    def _step(
        self,
        state: sgnht.SGNHTState,
        value_and_gradient: ValueAndGradient,
        noise: Tensor,
        *,
        step_size: Tensor,
        temperature: Tensor,
    ) -> tuple[sgnht.SGNHTState, Info]:
        return sgnht.step(
            state,
            value_and_gradient,
            noise,
            step_size=step_size,
            temperature=temperature,
            friction=self.friction,
        )

    def _statistics(self, state: sgnht.SGNHTState) -> dict[str, Tensor]:
        return {
            "kinetic_temperature": state.momentum.square().mean(-1),
            "thermostat": state.thermostat[..., 0],
        }


def _check_noise_estimate(value: float, largest: float, temperature: float) -> None:
    """The noise that a gradient brings along can at most be all of the noise of a step."""
    check_number("noise_estimate", value, least=0)
    if temperature > 0 and value > largest:
        raise ValueError(
            f"noise_estimate must be at most {largest:.4g} for this step size and temperature, got "
            f"{value!r}: the gradient alone would bring more noise than a step may have"
        )
