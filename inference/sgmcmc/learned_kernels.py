"""The samplers whose dynamics are learned, as kernels."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Self, Unpack

import torch
from torch import Tensor

from pyro_ext._checks import check_callable
from pyro_ext.inference.sgmcmc import l2e, meta_sgmcmc
from pyro_ext.inference.sgmcmc.core import Info, ValueAndGradient
from pyro_ext.inference.sgmcmc.friction_kernel import FrictionKernel
from pyro_ext.inference.sgmcmc.kernel import OptionsButStepSize
from pyro_ext.inference.sgmcmc.learned_diffusion import LearnedDiffusion
from pyro_ext.inference.sgmcmc.learned_kinetics import pretrained_kinetics
from pyro_ext.inference.sgmcmc.schedules import Schedule

__all__ = ["L2E", "MetaSGMCMC"]

_LEARNING_RATE = 0.05
_MOMENTUM_DECAY = 0.1


class LearnedKernelOptions(OptionsButStepSize, total=False):
    """Keyword arguments of both kernels besides their networks."""

    step_size: float | Schedule | None
    friction: float | Mapping[str, float] | None
    momentum_decay: float | Mapping[str, float] | None


class _LearnedKernel(FrictionKernel):
    """What both have in common: a step size that goes by the number of data unless it is given."""

    def __init__(
        self,
        model: Callable[..., Any] | None,
        *,
        step_size: float | Schedule | None = None,
        friction: float | Mapping[str, float] | None = None,
        momentum_decay: float | Mapping[str, float] | None = None,
        **options: Unpack[OptionsButStepSize],
    ) -> None:
        if friction is None and momentum_decay is None:
            momentum_decay = _MOMENTUM_DECAY
        super().__init__(model, friction, momentum_decay, step_size=step_size, **options)
        if step_size is not None:
            self._smallest_decay()

    def _default_step_size(self) -> float:
        return math.sqrt(_LEARNING_RATE / self.potential.data_size)

    def _prepare(self) -> None:
        super()._prepare()
        self._smallest_decay()

    def _statistics(self, state: l2e.L2EState | meta_sgmcmc.MetaSGMCMCState) -> dict[str, Tensor]:
        return {"kinetic_temperature": state.momentum.square().mean(-1)}


class L2E(_LearnedKernel):
    r"""Stochastic gradient dynamics with a learned kinetic energy: learning to explore [1].

    With step size :math:`h` and friction :math:`C`: :math:`r \leftarrow r - h (g + \alpha) - h C
    \beta + \sqrt{2 h C T}\, \xi`, :math:`\theta \leftarrow \theta + h \beta`, where :math:`\alpha`
    and :math:`\beta` are outputs of a small network that is trained on other models and applied to
    each parameter alike.

    It is made for few steps: the network that ships with the package was trained so that draws of
    short chains, started anywhere, predict well together. It does not leave the posterior as it is,
    whatever the step size: standard deviations of its draws may be a third of the posterior's, and
    :class:`~pyro_ext.inference.MCMC` warns where they are. Take another kernel, such as
    :class:`~pyro_ext.inference.SGHMC` or :class:`~pyro.infer.NUTS`, where the posterior itself
    matters.

    :param model: a Pyro model, or ``None`` where ``potential_fn`` is given.
    :param kinetics: a :class:`~pyro_ext.inference.sgmcmc.LearnedKinetics`, a
        :class:`~pyro_ext.inference.sgmcmc.ResidualKinetics`, or another function as of
        :mod:`~pyro_ext.inference.sgmcmc.l2e`; by default the residual ones that ship with the
        package.
    :param step_size: :math:`h`; by default :math:`\sqrt{0.05 / N}` for :math:`N` data, the size of
        the largest plate around an observed site. :math:`h^2 N` is the learning rate on the mean
        loss, the number to tune.
    :param friction: :math:`C`, a number, or numbers by pattern of site names.
    :param momentum_decay: :math:`h C` itself, instead of friction; 0.1 by default.
    :param options: temperature and what else all kernels take, see :class:`SGMCMCKernel`.
    :raises ValueError: for arguments out of range, or a pattern that fits no site.

    [1] S. Kim, S. Jung, S. Kim, J. Lee (2024),
    Learning to explore for stochastic gradient MCMC.

    Example::

        >>> from pyro_ext.inference import MCMC
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        ...     with pyro.plate("data", len(x), subsample_size=20) as index:
        ...         pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x[index])
        >>> mcmc = MCMC(L2E.pretrained(model), num_samples=10, warmup_steps=20, num_chains=2,
        ...             progress=False)
        >>> mcmc.run(torch.randn(100, 3)).get_samples()["loc"].shape
        torch.Size([20, 3])
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        kinetics: l2e.Kinetics | None = None,
        **options: Unpack[LearnedKernelOptions],
    ) -> None:
        super().__init__(model, **options)
        if kinetics is not None:
            check_callable("kinetics", kinetics, "LearnedKinetics or a function", or_class=False)
        self.kinetics = pretrained_kinetics() if kinetics is None else kinetics

    @classmethod
    def pretrained(cls, model: Callable[..., Any] | None = None, **options: Any) -> Self:
        """Make the kernel with the kinetics that ship with the package.

        Its draws are an ensemble for predictions, narrower than the posterior.

        :param model: a Pyro model, or ``None`` where ``potential_fn`` is given.
        :param options: what the constructor takes by keyword.
        """
        return cls(model, kinetics=pretrained_kinetics(), **options)

    def _prepare(self) -> None:
        super()._prepare()
        layout = self.potential.layout
        like = torch.empty((), dtype=layout.dtype, device=layout.device)
        self._site_mean = l2e.SiteMean(layout.sizes, like)
        self._decays = torch.tensor(getattr(self.kinetics, "decays", ())).to(like)

    def __getstate__(self) -> dict[str, Any]:
        made = {"_site_mean", "_decays"}
        return {name: v for name, v in super().__getstate__().items() if name not in made}

    def _init(self, position: Tensor, keys: Tensor) -> l2e.L2EState:
        return l2e.init(position, len(self._decays))

    def _step(
        self,
        state: l2e.L2EState,
        value_and_gradient: ValueAndGradient,
        noise: Tensor,
        *,
        step_size: Tensor,
        temperature: Tensor,
    ) -> tuple[l2e.L2EState, Info]:
        return l2e.step(
            state,
            value_and_gradient,
            noise,
            step_size=step_size,
            temperature=temperature,
            momentum_decay=self._decay(step_size),
            kinetics=self.kinetics,
            decays=self._decays,
            site_mean=self._site_mean,
            data_size=self.potential.data_size,
        )


class MetaSGMCMC(_LearnedKernel):
    r"""Stochastic gradient dynamics with learned diffusion and curl [1].

    The dynamics of :mod:`~pyro_ext.inference.sgmcmc.meta_sgmcmc`, with the exact terms that correct
    for matrices that depend on the state: the posterior is left as it is up to an error of the
    order of the step size. Diffusion that is not trained makes it nearly
    :class:`~pyro_ext.inference.SGHMC`; :class:`~pyro_ext.inference.MetaTrainer` trains it.

    :param model: a Pyro model, or ``None`` where ``potential_fn`` is given.
    :param diffusion: a :class:`~pyro_ext.inference.sgmcmc.LearnedDiffusion`, or another function as
        of :mod:`~pyro_ext.inference.sgmcmc.meta_sgmcmc`; by default one that is not trained.
    :param step_size: :math:`h`; by default :math:`\sqrt{0.05 / N}` for :math:`N` data.
    :param friction: unit of the diffusion, a number, or numbers by pattern of site names.
    :param momentum_decay: step size times this unit, instead of friction; 0.1 by default.
    :param options: temperature and what else all kernels take, see :class:`SGMCMCKernel`.
    :raises ValueError: for arguments out of range, or a pattern that fits no site.

    [1] W. Gong, Y. Li, J. M. Hernandez-Lobato (2019), Meta-learning for stochastic gradient MCMC.
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        diffusion: meta_sgmcmc.Diffusion | None = None,
        **options: Unpack[LearnedKernelOptions],
    ) -> None:
        super().__init__(model, **options)
        if diffusion is not None:
            check_callable("diffusion", diffusion, "LearnedDiffusion or a function", or_class=False)
        self.diffusion = LearnedDiffusion() if diffusion is None else diffusion

    def _init(self, position: Tensor, keys: Tensor) -> meta_sgmcmc.MetaSGMCMCState:
        return meta_sgmcmc.init(position)

    def _step(
        self,
        state: meta_sgmcmc.MetaSGMCMCState,
        value_and_gradient: ValueAndGradient,
        noise: Tensor,
        *,
        step_size: Tensor,
        temperature: Tensor,
    ) -> tuple[meta_sgmcmc.MetaSGMCMCState, Info]:
        return meta_sgmcmc.step(
            state,
            value_and_gradient,
            noise,
            step_size=step_size,
            temperature=temperature,
            momentum_decay=self._decay(step_size),
            diffusion=self.diffusion,
            data_size=self.potential.data_size,
        )
