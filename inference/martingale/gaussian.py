"""Normal predictive rules of known variance."""

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_ext._checks import check_number
from pyro_ext.inference.martingale._gaussian_rule import (
    GaussianRule,
    GaussianState,
    limit_normals,
    random_walk,
    sizes_before,
    step_normals,
)
from pyro_ext.inference.martingale.predictive_rule import Resampled

__all__ = ["NormalPredictive", "PlugInNormal"]


class NormalPredictive(GaussianRule):
    r"""Bayesian prediction of normal observations of known variance.

    With the conjugate prior :math:`\mathcal N(m_0, t^2)` of their mean, and the posterior
    :math:`\mathcal N(m_i, v_i)` given :math:`i` observations, :math:`P_i = \mathcal N(m_i,
    \sigma^2 + v_i)`. With the flat prior, the default, these are the mean of the observations and
    :math:`\sigma^2 / i`. The martingale posterior of the mean is the Bayesian one, of which
    resampling up to size :math:`N` gives, under the flat prior, the variance :math:`\sigma^2 (1/n -
    1/N)`.

    :param float scale: :math:`\sigma`, the known standard deviation of an observation.
    :param float loc: :math:`m_0`, the mean of the prior.
    :param float loc_scale: :math:`t`, the standard deviation of the prior, infinite for a flat one.
    :raises ValueError: for numbers out of range.

    Example::

        >>> from pyro_ext.random import chain_keys
        >>> rule = NormalPredictive(scale=1.0)
        >>> state = rule.begin((torch.tensor([1.0, 3.0]),), chain_keys(0, range(4)))
        >>> law = rule.law(state)
        >>> law.mean, law.variance
        (tensor([2., 2., 2., 2.]), tensor([1.5000, 1.5000, 1.5000, 1.5000]))
    """

    def __init__(self, scale: float = 1.0, loc: float = 0.0, loc_scale: float = math.inf) -> None:
        self.scale = check_number("scale", scale, above=0.0)
        self.loc = check_number("loc", loc)
        if loc_scale != math.inf:
            check_number("loc_scale", loc_scale, above=0.0)
        self.loc_scale = float(loc_scale)

    def advance(self, state: Resampled, num_steps: int) -> Resampled:
        """Draw observations from the predictive, one after the other.

        :param Resampled state: where the populations are.
        :param int num_steps: how many.
        """
        old: GaussianState = state.value
        variance = self._variance(sizes_before(state, num_steps))
        values, loc = random_walk(
            state,
            step_normals(state, num_steps),
            scale=(self.scale**2 + variance).sqrt(),
            gain=variance / (self.scale**2 + variance),
            loc=old.loc,
        )
        return self._extended(state, values, loc)

    def law(self, state: Resampled) -> TorchDistributionMixin:
        """Law of the next observation, with the batch shape ``(num_draws, *event)``.

        :param Resampled state: where the populations are.
        """
        scale = math.sqrt(self.scale**2 + float(self._variance(sizes_before(state, 1))))
        return dist.Normal(state.value.loc, scale)

    def update(self, state: Resampled, observation: Tensor) -> Resampled:
        """Take an observation into each population.

        :param Resampled state: where the populations are.
        :param Tensor observation: **Shape:** ``(num_draws, *event)``.
        """
        variance = float(self._variance(sizes_before(state, 1)))
        loc = state.value.loc
        loc = loc + variance / (self.scale**2 + variance) * (observation - loc)
        return self._extended(state, observation[:, None], loc)

    def limit(self, state: Resampled) -> TorchDistributionMixin:
        """Normal laws with means drawn from the posterior given the population.

        :param Resampled state: where the populations are.
        """
        scale = math.sqrt(float(self._variance(sizes_before(state, 1))))
        return dist.Normal(state.value.loc + scale * limit_normals(state), self.scale)

    def _posterior(self, values: Tensor) -> tuple[Tensor, Tensor]:
        variance = float(self._variance(torch.tensor(float(len(values)), dtype=torch.float64)))
        mean = values.mean(0)
        loc = self.loc + len(values) * variance / self.scale**2 * (mean - self.loc)
        return loc, torch.zeros_like(loc)

    def _variance(self, sizes: Tensor) -> Tensor:
        """Posterior variance of the mean given so many observations."""
        return 1.0 / (sizes / self.scale**2 + 1.0 / self.loc_scale**2)


class PlugInNormal(GaussianRule):
    r"""Normal prediction around the mean of the observations, as if that were the true one.

    :math:`P_i = \mathcal N(\bar y_i, \sigma^2)`, which no prior gives. Up to size :math:`N` the
    variance of the mean is :math:`\sigma^2 (\psi'(n + 1) - \psi'(N + 1))`, with the trigamma
    function :math:`\psi'`: a little less than what :class:`NormalPredictive` gives.
    The mean is a martingale, though the predictive law is not: an observation to come is
    more widely spread than the next one.

    :param float scale: :math:`\sigma`, the standard deviation of an observation.
    :raises ValueError: for a scale that is not positive.

    Example::

        >>> from pyro_ext.random import chain_keys
        >>> rule = PlugInNormal(scale=2.0)
        >>> state = rule.begin((torch.tensor([1.0, 3.0]),), chain_keys(0, range(4)))
        >>> rule.law(state).variance
        tensor([4., 4., 4., 4.])
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = check_number("scale", scale, above=0.0)

    def advance(self, state: Resampled, num_steps: int) -> Resampled:
        """Draw observations from the predictive, one after the other.

        :param Resampled state: where the populations are.
        :param int num_steps: how many.
        """
        sizes = sizes_before(state, num_steps)
        values, loc = random_walk(
            state,
            step_normals(state, num_steps),
            scale=torch.full_like(sizes, self.scale),
            gain=1.0 / (sizes + 1.0),
            loc=state.value.loc,
        )
        return self._extended(state, values, loc)

    def law(self, state: Resampled) -> TorchDistributionMixin:
        """Law of the next observation, with the batch shape ``(num_draws, *event)``.

        :param Resampled state: where the populations are.
        """
        return dist.Normal(state.value.loc, self.scale)

    def update(self, state: Resampled, observation: Tensor) -> Resampled:
        """Take an observation into each population.

        :param Resampled state: where the populations are.
        :param Tensor observation: **Shape:** ``(num_draws, *event)``.
        """
        loc = state.value.loc
        loc = loc + (observation - loc) / (state.size + 1)
        return self._extended(state, observation[:, None], loc)

    def limit(self, state: Resampled) -> TorchDistributionMixin:
        """Normal laws around the limit of the means.

        :param Resampled state: where the populations are.
        """
        size = torch.tensor(float(state.size + 1), dtype=torch.float64)
        scale = self.scale * math.sqrt(float(torch.special.polygamma(1, size)))
        return dist.Normal(state.value.loc + scale * limit_normals(state), self.scale)

    def _posterior(self, values: Tensor) -> tuple[Tensor, Tensor]:
        loc = values.mean(0)
        return loc, torch.zeros_like(loc)
