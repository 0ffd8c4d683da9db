r"""Stochastic gradient dynamics whose kinetic energy is learned.

With step size :math:`h`, friction :math:`C` and two functions :math:`\alpha, \beta` in place of the
gradients of a kinetic energy with respect to position and momentum,

.. math:: r \leftarrow r - h (g + \alpha(\theta, r)) - h C \beta(\theta, r) + \sqrt{2 h C T} \, \xi,
          \quad \theta \leftarrow \theta + h \beta(\theta, r) .

:math:`\alpha = 0` and :math:`\beta = r` are the kinetic energy :math:`|r|^2 / 2`, and the step is
that of :mod:`~pyro_ext.inference.sgmcmc.sghmc` with momentum :math:`-r` and unit mass. Diffusion
and curl are constant, so there are no terms to correct; but :math:`\alpha` and :math:`\beta` need
not be gradients of a common function, and where they are not, what the chain converges to is not
exactly the posterior.

The functions see each parameter's gradient, value, momentum and moving averages of the gradient,
each divided by its root mean square over the site, as
:class:`~pyro_ext.inference.sgmcmc.LearnedKinetics` does.

S. Kim, S. Jung, S. Kim, J. Lee (2024), Learning to explore for stochastic gradient MCMC.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext.inference.sgmcmc.core import Info, ValueAndGradient, noise_scale

__all__ = ["KineticGradients", "Kinetics", "L2EState", "SiteMean", "init", "quadratic", "step"]


class KineticGradients(NamedTuple):
    r"""What takes the place of the gradients of a kinetic energy.

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

    :param Tensor features: not used. **Shape:** ``(..., num_features, size)``.
    :param Tensor momentum: **Shape:** ``(..., size)``.
    :param Tensor normalized_momentum: not used. **Shape:** ``(..., size)``.
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
    r"""Take one step.

    :param L2EState state: the state.
    :param value_and_gradient: stochastic potential and gradient at a position.
    :param Tensor noise: standard normal numbers. **Shape:** ``(..., size)``.
    :param Tensor step_size: :math:`h`, a scalar.
    :param Tensor temperature: the temperature, a scalar.
    :param Tensor momentum_decay: :math:`h C`, a scalar or ``(size,)``.
    :param kinetics: :math:`\alpha` and :math:`\beta`, evaluated twice.
    :param Tensor decays: weight of the past in each moving average. **Shape:**
        ``(num_averages,)``.
    :param site_mean: means over the elements of each site.
    :param data_size: number of data, by which the gradient of the mean loss is less.
    :param float regularization: added to mean squares before a feature is divided by their root.
    :returns: the next state, and what the step saw.
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
