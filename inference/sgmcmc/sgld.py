r"""Stochastic gradient Langevin dynamics.

.. math:: \theta \leftarrow \theta - s g / M + \sqrt{2 s T / M - s^2 V / M^2} \, \xi

with the stochastic gradient :math:`g` of the potential, the temperature :math:`T`, a mass :math:`M`
that divides the step size of each parameter, standard normal :math:`\xi`, and an estimate :math:`V`
of the variance of :math:`g`, which is subtracted from the noise. On
:math:`U = \lambda \theta^2 / 2`, with the full gradient and unit mass, the stationary variance is
:math:`T / (\lambda (1 - s \lambda / 2))`.

M. Welling, Y. W. Teh (2011), Bayesian learning via stochastic gradient Langevin dynamics.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.sgmcmc.kernel import HEAT, KernelOptions, SGMCMCKernel, noise_scale
from pyro_ext.inference.sgmcmc.mass import Mass, check_mass, smallest_mass
from pyro_ext.inference.vectorized import Info, ValueAndGradient

__all__ = ["SGLD", "SGLDState", "init", "step"]

_LARGEST_STEP = 0.05  # by default, where the curvature is one


class SGLDState(NamedTuple):
    """State of chains. **Shape:** ``(..., size)``."""

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
    """Take one step; arguments as of :func:`pyro_ext.inference.sgmcmc.sghmc.step`."""
    value, gradient = value_and_gradient(state.position)
    own_step_size = step_size / mass
    scale = noise_scale(2.0 * own_step_size * temperature - own_step_size**2 * noise_estimate)
    return SGLDState(state.position - own_step_size * gradient + scale * noise), Info(value)


class SGLD(SGMCMCKernel):
    r"""Stochastic gradient Langevin dynamics [1].

    :math:`\theta \leftarrow \theta - s g / M + \sqrt{2 s T / M - s^2 V / M^2}\, \xi`

    :param model: a Pyro model, or ``None`` with a ``potential_fn``.
    :param mass: :math:`M`, which divides the step size: a number, numbers or tensors by site, or
        ``"laplace"``, see :class:`SGHMC`. With ``"laplace"``, the default step size is at most
        0.05.
    :param float noise_estimate: :math:`V`, the variance of the stochastic gradient, if it is known.
    :param options: step size, temperature and other options of all kernels, see
        :class:`SGMCMCKernel`.
    :raises ValueError: for arguments out of range.

    [1] M. Welling, Y. W. Teh (2011),
    Bayesian learning via stochastic gradient Langevin dynamics.

    Example::

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
        model: Callable[..., Any] | None = None,
        *,
        mass: Mass = 1.0,
        noise_estimate: float = 0.0,
        **options: Unpack[KernelOptions],
    ) -> None:
        self.mass = check_mass(mass)
        super().__init__(model, **options)
        self.noise_estimate = checks.number("noise_estimate", noise_estimate, least=0)
        if self.step_size is not None and not isinstance(mass, str):
            self._check_noise(mass)

    def _most_noise(self, mass: Mass) -> float:
        return 2.0 * smallest_mass(mass) / self.schedule.max_step_size

    def _stable_step_size(self, curvature: float, noise: float) -> float:
        return min(_LARGEST_STEP, 2.0 * HEAT / noise) / curvature

    def _init(self, position: Tensor, keys: Tensor) -> SGLDState:
        return init(position)

    def _step(self, *now: Any, **schedules: Any) -> tuple[SGLDState, Info]:
        return step(*now, mass=self._masses, noise_estimate=self.noise_estimate, **schedules)
