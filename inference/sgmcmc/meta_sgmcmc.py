r"""Stochastic gradient dynamics with learned diffusion and curl.

With the energy :math:`H = U + |p|^2 / 2` and diagonal :math:`Q` and :math:`D` that depend on the
state,

.. math:: d\theta = Q p \, dt + T \Gamma^\theta dt, \quad
          dp = -(Q g + D p) \, dt + T \Gamma^p dt + \sqrt{2 T D} \, dW,

.. math:: \Gamma^\theta_i = -\frac{\partial Q_i}{\partial p_i}, \quad
          \Gamma^p_i = \frac{\partial Q_i}{\partial \theta_i} + \frac{\partial D_i}{\partial p_i} .

For any :math:`Q` and :math:`D`, these dynamics leave :math:`e^{-H / T}` invariant; in steps of size
:math:`h`, up to an error of order :math:`h`. Momenta move first, and positions then move with
:math:`Q` at the new momenta, so that constant :math:`Q` and :math:`D` give the step of
:mod:`~pyro_ext.inference.sgmcmc.sghmc`.

Y. Ma, T. Chen, E. B. Fox (2015), A complete recipe for stochastic gradient MCMC.
W. Gong, Y. Li, J. M. Hernandez-Lobato (2019), Meta-learning for stochastic gradient MCMC.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.inference.sgmcmc.kernel import noise_scale
from pyro_ext.inference.sgmcmc.learned import LearnedKernel, LearnedKernelOptions
from pyro_ext.inference.sgmcmc.sghmc import SGHMCState, init
from pyro_ext.inference.vectorized import Info, ValueAndGradient

__all__ = [
    "Diffusion",
    "LearnedDiffusion",
    "MetaSGMCMC",
    "MetaSGMCMCState",
    "RecipeMatrices",
    "init",
    "step",
]


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


MetaSGMCMCState = SGHMCState


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
    """Take one step; further arguments as of :func:`pyro_ext.inference.sgmcmc.sghmc.step`.

    :param Tensor momentum_decay: step size times the unit of the diffusion, a scalar or
        ``(size,)``.
    :param diffusion: curl and diffusion with their derivatives, evaluated twice.
    :param data_size: number of data, by which the mean energy is less than the potential.
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


class _Layer(nn.Module):
    """A network with one hidden layer of tangents, that knows its derivatives by its inputs."""

    def __init__(
        self, num_inputs: int, num_hidden: int, output_scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()

        def normal(*shape: int, scale: float) -> nn.Parameter:
            values = scale * torch.randn(*shape, generator=generator, device="cpu")
            return nn.Parameter(values.to(torch.get_default_device()))

        self.inner = normal(num_hidden, num_inputs, scale=1.0 / math.sqrt(num_inputs))
        self.bias = nn.Parameter(torch.zeros(num_hidden, 1))
        self.outer = normal(1, num_hidden, scale=output_scale / math.sqrt(num_hidden))
        self.constant = nn.Parameter(torch.zeros(1, 1))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``(..., size)`` and derivatives ``(..., num_inputs, size)`` at inputs."""
        features = torch.stack(torch.broadcast_tensors(*inputs), -2)
        inner, outer = self.inner.to(features), self.outer.to(features)
        hidden = torch.tanh(inner @ features + self.bias.to(features))
        values = outer @ hidden + self.constant.to(features)
        slopes = inner.mT @ (outer.mT * (1.0 - hidden.square()))
        return values.squeeze(-2), slopes


class LearnedDiffusion(nn.Module):
    r"""Learned curl and diffusion [1].

    With the mean energy :math:`u = U / N` and momentum :math:`p_i`,

    .. math:: Q_i = 1 + f_Q(u, p_i), \quad
              D_i = C \min(\max(Q_i^2 + f_D(u, p_i, \partial u / \partial \theta_i), 0), m) .

    The networks :math:`f_Q` and :math:`f_D` start near zero, so the sampler starts near SGHMC with
    friction :math:`C`.

    :param int num_hidden: number of hidden units of each network.
    :param float max_diffusion: :math:`m`; its product with the kernel's momentum decay should be
        at most one.
    :param float output_scale: factor of the last layers' initial weights.
    :param int seed: seed of the initial weights.
    :raises ValueError: for arguments out of range.

    [1] W. Gong, Y. Li, J. M. Hernandez-Lobato (2019), Meta-learning for stochastic gradient MCMC.

    Example::

        >>> matrices = LearnedDiffusion()(torch.zeros(1), torch.randn(5), torch.randn(5))
        >>> matrices.diffusion.shape
        torch.Size([5])
    """

    def __init__(
        self,
        num_hidden: int = 10,
        max_diffusion: float = 5.0,
        output_scale: float = 0.01,
        seed: int = 0,
    ) -> None:
        checks.integer("seed", seed, 0)
        super().__init__()
        checks.integer("num_hidden", num_hidden, 1)
        self.max_diffusion = checks.number("max_diffusion", max_diffusion, above=0)
        checks.number("output_scale", output_scale, least=0)
        generator = torch.Generator().manual_seed(seed)
        self.curl = _Layer(2, num_hidden, output_scale, generator)
        self.diffusion = _Layer(3, num_hidden, output_scale, generator)

    def forward(self, energy: Tensor, slope: Tensor, momentum: Tensor) -> RecipeMatrices:
        """Curl, diffusion and their derivatives.

        :param Tensor energy: mean energy. **Shape:** ``(..., 1)``.
        :param Tensor slope: gradient of the mean energy. **Shape:** ``(..., size)``.
        :param Tensor momentum: **Shape:** ``(..., size)``.
        """
        added, by_input = self.curl(energy, momentum)
        curl = 1.0 + added
        by_energy, by_momentum = by_input.unbind(-2)
        more, slopes = self.diffusion(energy, momentum, slope)
        raw = curl.square() + more
        is_inside = (raw > 0) & (raw < self.max_diffusion)
        raw_by_momentum = 2.0 * curl * by_momentum + slopes.select(-2, 1)
        return RecipeMatrices(
            curl,
            raw.clamp(0.0, self.max_diffusion),
            by_energy * slope,
            by_momentum,
            torch.where(is_inside, raw_by_momentum, 0.0),
        )


class MetaSGMCMC(LearnedKernel):
    r"""Stochastic gradient dynamics with learned diffusion and curl [1].

    The dynamics are those of :mod:`~pyro_ext.inference.sgmcmc.meta_sgmcmc`. They include the exact
    corrections for matrices that depend on the state, so that the posterior is invariant up to an
    error of the order of the step size. Untrained, the kernel is nearly
    :class:`~pyro_ext.inference.SGHMC`; train it with :class:`~pyro_ext.inference.MetaTrainer`.

    :param model: a Pyro model, or ``None`` with a ``potential_fn``.
    :param diffusion: a :class:`~pyro_ext.inference.sgmcmc.LearnedDiffusion`, or another function as
        described in :mod:`~pyro_ext.inference.sgmcmc.meta_sgmcmc`; by default an untrained
        ``LearnedDiffusion``.
    :param step_size: :math:`h`; by default :math:`\sqrt{0.05 / N}` for :math:`N` data.
    :param friction: unit of the diffusion: a number, or numbers by pattern of site names.
    :param momentum_decay: step size times friction, instead of friction; 0.1 by default.
    :param options: temperature and other options of all kernels, see :class:`SGMCMCKernel`.
    :raises ValueError: for arguments out of range, or a pattern that fits no site.

    [1] W. Gong, Y. Li, J. M. Hernandez-Lobato (2019), Meta-learning for stochastic gradient MCMC.
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        diffusion: Diffusion | None = None,
        **options: Unpack[LearnedKernelOptions],
    ) -> None:
        super().__init__(model, **options)
        if diffusion is not None:
            checks.function(
                "diffusion", diffusion, "LearnedDiffusion or a function", or_class=False
            )
        self.diffusion = LearnedDiffusion() if diffusion is None else diffusion

    def _init(self, position: Tensor, keys: Tensor) -> MetaSGMCMCState:
        return init(position)

    def _step(self, *now: Any, **schedules: Any) -> tuple[MetaSGMCMCState, Info]:
        return step(
            *now,
            momentum_decay=self._decay(schedules["step_size"]),
            diffusion=self.diffusion,
            data_size=self.potential.data_size,
            **schedules,
        )
