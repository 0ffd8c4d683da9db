"""The predictive rule of normal observations of unknown mean and variance."""

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_ext._checks import check_number
from pyro_ext.inference.martingale._gaussian_rule import (
    GaussianRule,
    GaussianState,
    along,
    limit_normals,
    sizes_before,
    step_uniforms,
)
from pyro_ext.inference.martingale._numbers import uniforms
from pyro_ext.inference.martingale.predictive_rule import Resampled

__all__ = ["StudentTPredictive"]

_VARIANCES = 2  # a stream besides those of the steps and of the means in the limit


class StudentTPredictive(GaussianRule):
    r"""Bayesian prediction of normal observations of unknown mean and variance.

    The prior is conjugate: :math:`\sigma^2 \sim \mathrm{InverseGamma}(a_0, b_0)` and
    :math:`\mu \mid \sigma^2 \sim \mathcal N(m_0, \sigma^2 / \kappa_0)`. The next observation has
    Student's law with :math:`2 a_i` degrees of freedom around :math:`m_i`, of the squared scale
    :math:`b_i (\kappa_i + 1) / (a_i \kappa_i)`. By default the prior is the reference prior,
    proportional to :math:`1 / \sigma^2`, for which :math:`m_i` is the mean, :math:`\kappa_i = i`,
    :math:`a_i = (i - 1) / 2`, and :math:`b_i` half of the sum of squares around the mean.

    :param float loc: :math:`m_0`.
    :param float loc_precision: :math:`\kappa_0 \ge 0`, how many observations ``loc`` counts for.
    :param float concentration: :math:`a_0`, :math:`-1/2` or more.
    :param float rate: :math:`b_0 \ge 0`.
    :raises ValueError: for numbers out of range.

    Example::

        >>> from pyro_ext.random import chain_keys
        >>> rule = StudentTPredictive()
        >>> state = rule.begin((torch.tensor([1.0, 2.0, 3.0]),), chain_keys(0, range(2)))
        >>> law = rule.law(state)
        >>> law.df, law.loc, law.scale**2
        (tensor([2., 2.]), tensor([2., 2.]), tensor([1.3333, 1.3333]))
    """

    def __init__(
        self,
        loc: float = 0.0,
        loc_precision: float = 0.0,
        concentration: float = -0.5,
        rate: float = 0.0,
    ) -> None:
        self.loc = check_number("loc", loc)
        self.loc_precision = check_number("loc_precision", loc_precision, least=0.0)
        self.concentration = check_number("concentration", concentration, least=-0.5)
        self.rate = check_number("rate", rate, least=0.0)
        # Half of the number of observations is added to the concentration, which must be positive.
        self._least = math.floor(-2.0 * self.concentration) + 1 if self.concentration <= 0 else 1

    def begin(self, data: tuple[Tensor, ...], keys: Tensor) -> Resampled:
        """Populations that hold the observations alone.

        :param tuple data: one tensor of numbers, or of vectors with independent elements.
            **Shape:** ``(n, *event)``.
        :param Tensor keys: of the draws' random streams. **Shape:** ``(num_draws, 2)``.
        :raises ValueError: for other data, too few, or such as do not vary.
        """
        state = super().begin(data, keys)
        if not bool((state.value.rate > 0.0).all()):
            raise ValueError(
                "data must vary in each element of an observation where the rate of the prior is "
                f"{self.rate:g}, got the same value in all {state.num_observed} observations"
            )
        return state

    def advance(self, state: Resampled, num_steps: int) -> Resampled:
        """Draw observations from the predictive, one after the other.

        :param Resampled state: where the populations are.
        :param int num_steps: how many.
        """
        if not num_steps:
            return state
        old: GaussianState = state.value
        sizes = sizes_before(state, num_steps)
        degrees = along(2.0 * self.concentration + sizes, old.loc)
        precision = along(self.loc_precision + sizes, old.loc)
        first, second = step_uniforms(state, num_steps)
        # Squares of Student's variables over their degrees of freedom: the polar method of Bailey
        # (1994), exact for any degrees of freedom, in which the second number is the angle.
        square = torch.expm1(-2.0 * first.log() / degrees)
        cosine = torch.cos(2.0 * math.pi * second)
        growth = torch.log1p(square * cosine**2).cumsum(1)
        before = torch.cat([torch.zeros_like(growth[:, :1]), growth[:, :-1]], 1)
        start = old.rate.double()[:, None]
        # With scale ** 2 = rate * (precision + 1) / (concentration * precision):
        rates = start * before.exp()
        noise = (2.0 * rates * (precision + 1.0) / precision * square).sqrt() * cosine
        path = (noise / (precision + 1.0)).cumsum(1)
        loc = old.loc.double()[:, None]
        values = loc + torch.cat([torch.zeros_like(path[:, :1]), path[:, :-1]], 1) + noise
        return self._extended(
            state,
            values.to(old.loc.dtype),
            (loc[:, 0] + path[:, -1]).to(old.loc.dtype),
            (start[:, 0] * growth[:, -1].exp()).to(old.loc.dtype),
        )

    def law(self, state: Resampled) -> TorchDistributionMixin:
        """Law of the next observation, with the batch shape ``(num_draws, *event)``.

        :param Resampled state: where the populations are.
        """
        concentration, precision = self._numbers_of(state)
        scale = state.value.rate * (precision + 1.0) / (concentration * precision)
        law: TorchDistributionMixin = dist.StudentT(
            2.0 * concentration, state.value.loc, scale.sqrt()
        )
        return law

    def update(self, state: Resampled, observation: Tensor) -> Resampled:
        """Take an observation into each population.

        :param Resampled state: where the populations are.
        :param Tensor observation: **Shape:** ``(num_draws, *event)``.
        """
        old: GaussianState = state.value
        _, precision = self._numbers_of(state)
        shift = observation - old.loc
        rate = old.rate + 0.5 * precision / (precision + 1.0) * shift**2
        return self._extended(
            state, observation[:, None], old.loc + shift / (precision + 1.0), rate
        )

    def limit(self, state: Resampled) -> TorchDistributionMixin:
        """Normal laws with means and variances drawn from the posterior given the population.

        :param Resampled state: where the populations are.
        """
        from scipy.special import gammaincinv  # slow to import

        concentration, precision = self._numbers_of(state)
        old: GaussianState = state.value
        number = uniforms(state.keys, 0, old.loc[0].numel(), stream=_VARIANCES).cpu()
        gamma = torch.from_numpy(gammaincinv(concentration, number.numpy()))
        gamma = gamma.reshape(old.loc.shape).to(old.loc)
        scale = (old.rate / gamma).sqrt()
        return dist.Normal(old.loc + scale / math.sqrt(precision) * limit_normals(state), scale)

    def _posterior(self, values: Tensor) -> tuple[Tensor, Tensor]:
        number, mean = len(values), values.mean(0)
        precision = self.loc_precision + number
        loc = (self.loc_precision * self.loc + number * mean) / precision
        squares = ((values - mean) ** 2).sum(0)
        spread = self.loc_precision * number / precision * (mean - self.loc) ** 2
        return loc, self.rate + 0.5 * (squares + spread)

    def _numbers_of(self, state: Resampled) -> tuple[float, float]:
        """Concentration and precision at the size of the populations."""
        return self.concentration + 0.5 * state.size, self.loc_precision + state.size
