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
from pyro_ext.inference.sgmcmc.mass import Mass, check_mass, noise_ratio, smallest_mass
from pyro_ext.random import normal

__all__ = ["PSGLD", "SGHMC", "SGLD", "SGNHT"]

Model = Callable[..., Any]

_MOMENTUM_STREAM = 1
# Default steps in standard deviations, and the share of the temperature that noise may add to it.
_LARGEST_STEP = 0.2
_LARGEST_SGNHT_STEP = 0.1
_LARGEST_SGLD_STEP = 0.05
_HEAT = 0.1


class SGLD(SGMCMCKernel):
    r"""Stochastic gradient Langevin dynamics [1].

    :math:`\theta \leftarrow \theta - s g / M + \sqrt{2 s T / M - s^2 V / M^2}\, \xi`

    :param model: a Pyro model, or ``None`` where ``potential_fn`` is given.
    :param mass: :math:`M`, by which the step size is divided: a number, numbers or tensors by site,
        or ``"laplace"``, see :class:`SGHMC`. The step size is then at most 0.05 by default.
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
        mass: Mass = 1.0,
        noise_estimate: float = 0.0,
        **options: Unpack[KernelOptions],
    ) -> None:
        self.mass = check_mass(mass)
        super().__init__(model, **_without_step_size(options, mass))
        self.noise_estimate = check_number("noise_estimate", noise_estimate, least=0)
        if not isinstance(mass, str):
            self._check_noise(mass)

    def _check_noise(self, mass: Mass) -> None:
        injected = 2.0 * self.temperature * smallest_mass(mass)
        largest = injected / self.schedule.max_step_size
        _check_noise_estimate(self.noise_estimate, largest, self.temperature)

    def _default_step_size(self) -> float:
        if not isinstance(self.mass, str):
            return super()._default_step_size()
        return min(_LARGEST_SGLD_STEP, 2.0 * _HEAT / max(noise_ratio(self), _HEAT))

    def _prepare(self) -> None:
        self._set_masses(self.mass)
        self._check_noise(self._masses)

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
            mass=self._masses,
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
    :param mass: :math:`M`, a number; numbers by pattern of site names, or tensors of the sites'
        unconstrained shapes in their place; a tensor for the flat vector of all parameters; or
        ``"laplace"``, the second derivatives of the potential at a mode, found before the first
        step from gradients over all of the data and fixed from then on. The step size is then in
        units of the posterior's standard deviations, along each parameter, and by default 0.2, or
        what the noise of the minibatches allows.
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
        mass: Mass = 1.0,
        noise_estimate: float = 0.0,
        **options: Unpack[KernelOptions],
    ) -> None:
        if friction is None and momentum_decay is None:
            momentum_decay = 0.1
        self.mass = check_mass(mass)
        options = _without_step_size(options, mass)
        super().__init__(model, friction, momentum_decay, **options)
        self.noise_estimate = check_number("noise_estimate", noise_estimate, least=0)
        if self.step_size is not None:
            self._smallest_decay()
        if not isinstance(mass, str):
            self._check_noise(mass)

    def _check_noise(self, mass: Mass) -> None:
        injected = 2.0 * self._smallest_decay() * smallest_mass(mass) * self.temperature
        largest = injected / self.schedule.max_step_size**2
        _check_noise_estimate(self.noise_estimate, largest, self.temperature)

    def _default_step_size(self) -> float:
        if not isinstance(self.mass, str):
            return super()._default_step_size()
        noise = max(noise_ratio(self), _HEAT)
        least, most = self._least_and_most()
        if self.momentum_decay is not None:
            return min(_LARGEST_STEP, math.sqrt(2.0 * _HEAT * least / noise))
        return min(_LARGEST_STEP, 1.0 / most, 2.0 * _HEAT * least / noise)

    def _prepare(self) -> None:
        super()._prepare()
        self._set_masses(self.mass)
        self._check_noise(self._masses)

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
            mass=self._masses,
            noise_estimate=self.noise_estimate,
        )

    def _statistics(self, state: sghmc.SGHMCState) -> dict[str, Tensor]:
        return {"kinetic_temperature": (state.momentum.square() / self._masses).mean(-1)}


class SGNHT(SGMCMCKernel):
    r"""Stochastic gradient Nose-Hoover thermostat [1], which absorbs unknown gradient noise.

    :math:`p \leftarrow p - h g - h \zeta p + \sqrt{2 A h M T}\, \xi`,
    :math:`\theta \leftarrow \theta + h p / M`,
    :math:`\zeta \leftarrow \zeta + h (p^\top M^{-1} p / D - T)`.
    Momenta start from their stationary law, the thermostat :math:`\zeta` at :math:`A`.

    :param model: a Pyro model, or ``None`` where ``potential_fn`` is given.
    :param float friction: :math:`A`, positive.
    :param mass: :math:`M`: a number, numbers or tensors by site, or ``"laplace"``, see
        :class:`SGHMC`. The step size is then at most 0.1 by default.
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
        mass: Mass = 1.0,
        **options: Unpack[KernelOptions],
    ) -> None:
        self.mass = check_mass(mass)
        super().__init__(model, **_without_step_size(options, mass))
        self.friction = check_number("friction", friction, above=0)

    def _default_step_size(self) -> float:
        if not isinstance(self.mass, str):
            return super()._default_step_size()
        return min(_LARGEST_SGNHT_STEP, math.sqrt(2.0 * _HEAT / max(noise_ratio(self), _HEAT)))

    def _prepare(self) -> None:
        self._set_masses(self.mass)

    def _init(self, position: Tensor, keys: Tensor) -> sgnht.SGNHTState:
        momentum = normal(
            keys,
            torch.zeros((), dtype=torch.int64, device=position.device),
            position.shape[-1],
            stream=_MOMENTUM_STREAM,
            dtype=position.dtype,
        )
        scale = torch.as_tensor(self._masses * self.temperature).sqrt().to(momentum)
        return sgnht.init(position, momentum * scale, self.friction)

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
            mass=self._masses,
        )

    def _statistics(self, state: sgnht.SGNHTState) -> dict[str, Tensor]:
        return {
            "kinetic_temperature": (state.momentum.square() / self._masses).mean(-1),
            "thermostat": state.thermostat[..., 0],
        }


def _without_step_size(options: KernelOptions, mass: Mass) -> KernelOptions:
    """Options that leave the default step size to the mass that knows one."""
    return {"step_size": None, **options} if isinstance(mass, str) else options


def _check_noise_estimate(value: float, largest: float, temperature: float) -> None:
    """The noise that a gradient brings along can at most be all of the noise of a step."""
    if temperature > 0 and value > largest:
        raise ValueError(
            f"noise_estimate must be at most {largest:.4g} for this step size and temperature, got "
            f"{value!r}: the gradient alone would bring more noise than a step may have"
        )
