r"""Stochastic gradient dynamics with a learned kinetic energy.

With step size :math:`h`, friction :math:`C` and two functions :math:`\alpha, \beta` in place of the
gradients of a kinetic energy with respect to position and momentum,

.. math:: r \leftarrow r - h (g + \alpha(\theta, r)) - h C \beta(\theta, r) + \sqrt{2 h C T} \, \xi,
          \quad \theta \leftarrow \theta + h \beta(\theta, r) .

With :math:`\alpha = 0` and :math:`\beta = r`, the kinetic energy is :math:`|r|^2 / 2`, and the step
is that of :mod:`~pyro_ext.inference.sgmcmc.sghmc` with momentum :math:`r` and unit mass. Diffusion
and curl are constant, so there are no terms to correct. However, :math:`\alpha` and :math:`\beta`
need not be gradients of a common function; if they are not, the chain does not converge exactly to
the posterior.

The functions see each parameter's gradient, value, momentum and moving averages of the gradient,
each divided by its root mean square over the site. In
:class:`~pyro_ext.inference.sgmcmc.LearnedKinetics`, a small network maps these nine features to two
numbers :math:`o_\alpha, o_\beta`. All parameters share one network, so it applies to models of any
size.

S. Kim, S. Jung, S. Kim, J. Lee (2024), Learning to explore for stochastic gradient MCMC.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, Unpack

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.checkpoint.files import read_tensors, write_tensors
from pyro_ext.inference.sgmcmc.kernel import noise_scale
from pyro_ext.inference.sgmcmc.learned import (
    ElementwiseNetwork,
    LearnedKernel,
    LearnedKernelOptions,
)
from pyro_ext.inference.vectorized import Info, ValueAndGradient

__all__ = [
    "KineticGradients",
    "Kinetics",
    "L2E",
    "L2EState",
    "LearnedKinetics",
    "ResidualKinetics",
    "SiteMean",
    "init",
    "pretrained_kinetics",
    "quadratic",
    "step",
]

_DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


class KineticGradients(NamedTuple):
    r"""Learned replacements for the gradients of a kinetic energy.

    :param Tensor force: :math:`\alpha`, added to the gradient of the potential.
        **Shape:** ``(..., size)``.
    :param Tensor drag: what friction is proportional to: :math:`\beta`, or a part of
        :math:`\alpha` in units of the friction besides. **Shape:** ``(..., size)``.
    :param Tensor velocity: :math:`\beta`. **Shape:** ``(..., size)``.
    """

    force: Tensor
    drag: Tensor
    velocity: Tensor


Kinetics = Callable[[Tensor, Tensor, Tensor], KineticGradients]
"""Maps features ``(..., 2 + num_averages, size)``, the momentum and the normalized momentum ``(...,
size)`` to :class:`KineticGradients`. The features are normalized gradient, position, averages."""


class L2EState(NamedTuple):
    """State of chains.

    :param Tensor position: **Shape:** ``(..., size)``.
    :param Tensor momentum: **Shape:** ``(..., size)``.
    :param Tensor averages: moving averages of the gradient of the mean loss.
        **Shape:** ``(..., num_averages, size)``.
    """

    position: Tensor
    momentum: Tensor
    averages: Tensor


class SiteMean:
    """Means over the elements of each site, at each of the elements.

    :param Sequence sizes: number of elements of each site, in the order of the flat vector.
    :param Tensor like: a tensor of the type and device to work in.

    Example::

        >>> SiteMean([2, 1], torch.zeros(()))(torch.tensor([1.0, 3.0, 5.0]))
        tensor([2., 2., 5.])
    """

    def __init__(self, sizes: Sequence[int], like: Tensor) -> None:
        counts = torch.tensor(sizes, device=like.device)
        self._site = torch.repeat_interleave(torch.arange(len(sizes), device=like.device), counts)
        belongs = torch.nn.functional.one_hot(self._site, len(sizes))
        self._weights = belongs.to(like) / counts

    def __call__(self, values: Tensor) -> Tensor:
        """Average. **Shape:** ``(..., size)`` to the same."""
        return (values @ self._weights).index_select(-1, self._site)


def quadratic(features: Tensor, momentum: Tensor, normalized_momentum: Tensor) -> KineticGradients:
    """Gradients of the usual kinetic energy, half the square of the momentum.

    :param Tensor features: not used.
    :param Tensor momentum: **Shape:** ``(..., size)``.
    :param Tensor normalized_momentum: not used.
    """
    return KineticGradients(torch.zeros_like(momentum), momentum, momentum)


def init(position: Tensor, num_averages: int) -> L2EState:
    """Start chains at rest at the given positions. **Shape:** ``(..., size)``."""
    averages = torch.zeros_like(position).unsqueeze(-2).repeat_interleave(num_averages, -2)
    return L2EState(position, torch.zeros_like(position), averages)


def step(
    state: L2EState,
    value_and_gradient: ValueAndGradient,
    noise: Tensor,
    *,
    step_size: Tensor,
    temperature: Tensor,
    momentum_decay: Tensor,
    kinetics: Kinetics,
    decays: Tensor,
    site_mean: Callable[[Tensor], Tensor],
    data_size: int | Tensor = 1,
    regularization: float = 1e-5,
) -> tuple[L2EState, Info]:
    r"""Take one step; further arguments as of :func:`pyro_ext.inference.sgmcmc.sghmc.step`.

    :param Tensor momentum_decay: :math:`h C`, a scalar or ``(size,)``.
    :param kinetics: :math:`\alpha` and :math:`\beta`, evaluated twice.
    :param Tensor decays: weight of the past in each moving average. **Shape:**
        ``(num_averages,)``.
    :param site_mean: means over the elements of each site.
    :param data_size: number of data, by which the gradient of the mean loss is less.
    :param float regularization: added to mean squares before a feature is divided by their root.
    """

    def normalized(values: Tensor) -> Tensor:
        return values * torch.rsqrt(site_mean(values.square()) + regularization)

    value, gradient = value_and_gradient(state.position)
    of_mean_loss = (gradient / data_size).unsqueeze(-2)
    weights = decays.unsqueeze(-1)
    averages = weights * state.averages + (1.0 - weights) * of_mean_loss
    features = normalized(torch.cat([of_mean_loss, state.position.unsqueeze(-2), averages], -2))
    before = kinetics(features, state.momentum, normalized(state.momentum))
    momentum = (
        state.momentum
        - step_size * (gradient + before.force)
        - momentum_decay * before.drag
        + noise_scale(2.0 * momentum_decay * temperature) * noise
    )
    after = kinetics(features, momentum, normalized(momentum))
    return L2EState(state.position + step_size * after.velocity, momentum, averages), Info(value)


class _Kinetics(nn.Module):
    """Base class of both parametrizations: the network, and its files."""

    def __init__(
        self,
        hidden_sizes: Sequence[int],
        decays: Sequence[float],
        force_scale: float,
        velocity_scale: float,
        output_scale: float,
        seed: int,
    ) -> None:
        super().__init__()
        checks.integer("seed", seed, 0)
        hidden_sizes = checks.sequence(
            "hidden_sizes", hidden_sizes, "a list of numbers of units", 0
        )
        decays = checks.sequence("decays", decays, "a list of numbers", 0)
        self.hidden_sizes = tuple(checks.integer("hidden_sizes", n, 1) for n in hidden_sizes)
        self.decays = tuple(checks.number("decays", decay, least=0, below=1) for decay in decays)
        self.force_scale = checks.number("force_scale", force_scale, least=0)
        self.velocity_scale = checks.number("velocity_scale", velocity_scale, above=0)
        self.output_scale = checks.number("output_scale", output_scale, least=0)
        self.seed = seed
        sizes = (len(self.decays) + 3, *self.hidden_sizes, 2)
        self.network = ElementwiseNetwork(sizes, output_scale, seed)

    def _outputs(self, features: Tensor, normalized_momentum: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.network(torch.cat([features, normalized_momentum.unsqueeze(-2)], -2))
        return outputs.select(-2, 0), outputs.select(-2, 1)

    def _options(self) -> dict[str, Any]:
        """Arguments of the constructor by name."""
        names = ("hidden_sizes", "decays", "force_scale", "velocity_scale", "seed")
        return {name: getattr(self, name) for name in names}

    def save(self, path: str | Path, **about: Any) -> None:
        """Write it to a file of the format safetensors."""
        content = {"type": type(self).__name__, "options": self._options(), "about": about}
        write_tensors(Path(path), self.state_dict(), content)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote; nothing in the file is executed."""
        tensors, content, _ = read_tensors(Path(path))
        if content.get("type") != cls.__name__:
            raise ValueError(f"{path} holds {content.get('type')!r}, wanted a {cls.__name__}")
        kinetics = cls(**content["options"])
        kinetics.load_state_dict(tensors)
        return kinetics


class LearnedKinetics(_Kinetics):
    r"""Kinetic gradients in the published form [1].

    :math:`\alpha = s_\alpha o_\alpha`, :math:`\beta = s_\beta o_\beta`. With the published scales,
    an untrained network hardly moves the parameters: training spends its first thousands of updates
    on making the outputs larger. :class:`ResidualKinetics` starts from dynamics that work.

    The authors use friction 0.1, step size :math:`h = \sqrt{m / 50000}` with a multiplier
    :math:`m` from 0.5 to 5, and noise of variance :math:`0.2 \nu` with :math:`\nu` from 0.001 to 1,
    which is a temperature of :math:`\nu / h`.

    :param Sequence hidden_sizes: sizes of the hidden layers, which have rectified linear units.
    :param Sequence decays: weight of the past in each moving average of the gradient.
    :param float force_scale: :math:`s_\alpha`.
    :param float velocity_scale: :math:`s_\beta`.
    :param int seed: seed of the initial weights.
    :raises ValueError: for arguments out of range.

    [1] S. Kim, S. Jung, S. Kim, J. Lee (2024),
    Learning to explore for stochastic gradient MCMC.

    Example::

        >>> kinetics = LearnedKinetics()
        >>> sum(parameter.numel() for parameter in kinetics.parameters())
        1442
        >>> kinetics(torch.randn(8, 5), torch.randn(5), torch.randn(5)).velocity.shape
        torch.Size([5])
    """

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (32, 32),
        decays: Sequence[float] = _DECAYS,
        force_scale: float = 1e-3,
        velocity_scale: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__(hidden_sizes, decays, force_scale, velocity_scale, 1.0, seed)

    def forward(
        self, features: Tensor, momentum: Tensor, normalized_momentum: Tensor
    ) -> KineticGradients:
        """Kinetic gradients of each element.

        :param Tensor features: **Shape:** ``(..., 2 + num_averages, size)``.
        :param Tensor momentum: **Shape:** ``(..., size)``.
        :param Tensor normalized_momentum: **Shape:** ``(..., size)``.
        """
        force, velocity = self._outputs(features, normalized_momentum)
        velocity = self.velocity_scale * velocity
        return KineticGradients(self.force_scale * force, velocity, velocity)


class ResidualKinetics(_Kinetics):
    r"""Kinetic gradients as a learned correction to those of a normalized momentum.

    With :math:`\bar r` for the momentum divided by its root mean square over its site,

    .. math:: \beta = s_\beta (\bar r + o_\beta), \quad
              \alpha + C \beta = C (r + s_\alpha o_\alpha) .

    The momentum decays as in SGHMC, but toward :math:`-s_\alpha o_\alpha` instead of zero. A
    network that starts near zero gives nearly the dynamics of SGHMC, with steps :math:`s_\beta`
    times as long, once the noise has built up the momentum; until then it is no faster. The
    dynamics are those of :class:`LearnedKinetics`. This parametrization is ours, for training with
    a small budget.

    :param Sequence hidden_sizes: sizes of the hidden layers, which have rectified linear units.
    :param Sequence decays: weight of the past in each moving average of the gradient.
    :param float force_scale: :math:`s_\alpha`.
    :param float velocity_scale: :math:`s_\beta`.
    :param float output_scale: factor of the last layer's initial weights.
    :param int seed: seed of the initial weights.
    :raises ValueError: for arguments out of range.
    """

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (32, 32),
        decays: Sequence[float] = _DECAYS,
        force_scale: float = 3.0,
        velocity_scale: float = 1.0,
        output_scale: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__(hidden_sizes, decays, force_scale, velocity_scale, output_scale, seed)

    def forward(
        self, features: Tensor, momentum: Tensor, normalized_momentum: Tensor
    ) -> KineticGradients:
        """Kinetic gradients of each element; shapes as for :class:`LearnedKinetics`."""
        force, velocity = self._outputs(features, normalized_momentum)
        return KineticGradients(
            torch.zeros_like(momentum),
            momentum + self.force_scale * force,
            self.velocity_scale * (normalized_momentum + velocity),
        )

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"output_scale": self.output_scale}


def pretrained_kinetics() -> ResidualKinetics:
    """The kinetic gradients that ship with the package.

    ``python -m tools.pretrain_l2e`` trains them, from its seed and on the tasks that it lists.

    Example::

        >>> pretrained_kinetics().hidden_sizes
        (16,)
    """
    return ResidualKinetics.load(Path(__file__).with_name("l2e.safetensors"))


class L2E(LearnedKernel):
    r"""Stochastic gradient dynamics with a learned kinetic energy: learning to explore [1].

    The dynamics are those of :mod:`~pyro_ext.inference.sgmcmc.l2e`. A small network computes
    :math:`\alpha` and :math:`\beta`; it is trained on other models and applied to each parameter in
    the same way.

    The kernel is made for few steps: the network that ships with the package was trained so that
    draws of short chains, started anywhere, predict well together. Whatever the step size, the
    posterior is not stationary: draws may have a third of its standard deviations, and
    :class:`~pyro_ext.inference.MCMC` warns if they do. If the posterior itself matters, use another
    kernel, such as :class:`~pyro_ext.inference.SGHMC` or :class:`~pyro_ext.inference.NUTS`.

    :param model: a Pyro model, or ``None`` with a ``potential_fn``.
    :param kinetics: a :class:`~pyro_ext.inference.sgmcmc.LearnedKinetics`, a
        :class:`~pyro_ext.inference.sgmcmc.ResidualKinetics`, or another function as described in
        :mod:`~pyro_ext.inference.sgmcmc.l2e`; by default the residual kinetics that ship with the
        package.
    :param step_size: :math:`h`; by default :math:`\sqrt{0.05 / N}` for :math:`N` data, the size of
        the largest plate around an observed site. Tune :math:`h^2 N`, the learning rate on the mean
        loss.
    :param friction: :math:`C`, a number, or numbers by pattern of site names.
    :param momentum_decay: :math:`h C` itself, instead of friction; 0.1 by default.
    :param options: temperature and other options of all kernels, see :class:`SGMCMCKernel`.
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
        kinetics: Kinetics | None = None,
        **options: Unpack[LearnedKernelOptions],
    ) -> None:
        super().__init__(model, **options)
        if kinetics is not None:
            checks.function("kinetics", kinetics, "LearnedKinetics or a function", or_class=False)
        self.kinetics = pretrained_kinetics() if kinetics is None else kinetics

    @classmethod
    def pretrained(cls, model: Callable[..., Any] | None = None, **options: Any) -> Self:
        """Make the kernel with the kinetics that ship with the package.

        Its draws form an ensemble for predictions, and are narrower than the posterior.

        :param model: a Pyro model, or ``None`` with a ``potential_fn``.
        :param options: keyword arguments of the constructor.
        """
        return cls(model, kinetics=pretrained_kinetics(), **options)

    def _prepare(self) -> None:
        super()._prepare()
        layout = self.potential.layout
        like = torch.empty((), dtype=layout.dtype, device=layout.device)
        self._site_mean = SiteMean(layout.sizes, like)
        self._decays = like.new_tensor(getattr(self.kinetics, "decays", ()))

    def __getstate__(self) -> dict[str, Any]:
        made = {"_site_mean", "_decays"}
        return {name: v for name, v in super().__getstate__().items() if name not in made}

    def _init(self, position: Tensor, keys: Tensor) -> L2EState:
        return init(position, len(self._decays))

    def _step(self, *now: Any, **schedules: Any) -> tuple[L2EState, Info]:
        return step(
            *now,
            momentum_decay=self._decay(schedules["step_size"]),
            kinetics=self.kinetics,
            decays=self._decays,
            site_mean=self._site_mean,
            data_size=self.potential.data_size,
            **schedules,
        )
