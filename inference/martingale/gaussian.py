"""Predictive rules for normal observations with known or unknown variance."""

import math
from abc import abstractmethod
from typing import NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.martingale.predictive_rule import (
    PredictiveRule,
    Resampled,
    normals,
    single_tensor,
    uniforms,
)
from pyro_ext.inference.martingale.weighted_sample import WeightedSample

_STEPS, _LIMIT, _VARIANCES = range(3)  # streams of random numbers


class GaussianState(NamedTuple):
    """Populations of a normal rule."""

    values: Tensor  # the observations, and those drawn (num_draws, size, *event)
    loc: Tensor  # where the next observation is expected (num_draws, *event)
    rate: Tensor  # of the posterior of the variance, zero where that is known


class GaussianRule(PredictiveRule):
    """Base class of the rules, for one tensor of observations with independent elements."""

    _least = 1

    def begin(self, data: tuple[Tensor, ...], keys: Tensor) -> Resampled:
        """Populations that hold the observations alone."""
        values = single_tensor(data, type(self).__name__, self._least)
        shape = (len(keys), *values.shape[1:])
        loc, rate = (part.expand(shape) for part in self._posterior(values))
        state = GaussianState(values.expand(len(keys), *values.shape), loc, rate)
        return Resampled(keys, len(values), len(values), state)

    def population(self, state: Resampled) -> WeightedSample:
        """The points of each population, with equal weights."""
        values: Tensor = state.value.values
        weights = values.new_full((1, 1), 1.0 / state.size).expand(len(values), state.size)
        return WeightedSample((values,), weights, is_shared=False)

    @abstractmethod
    def _posterior(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Location of the next observation, and the rate, from the data."""

    def _extended(
        self, state: Resampled, values: Tensor, loc: Tensor, rate: Tensor | None = None
    ) -> Resampled:
        old: GaussianState = state.value
        rate = old.rate if rate is None else rate
        new = GaussianState(torch.cat([old.values, values], 1), loc, rate)
        return state._replace(size=state.size + values.shape[1], value=new)


def _sizes_before(state: Resampled, num_steps: int) -> Tensor:
    """Sizes of the population before each step. **Shape:** ``(num_steps,)``."""
    sizes = torch.arange(state.size, state.size + num_steps, dtype=torch.float64)
    return sizes.to(state.value.loc.device)


def _along(numbers: Tensor, loc: Tensor) -> Tensor:
    """Numbers of the steps, to broadcast with what has the shape ``(num_draws, steps, *event)``."""
    return numbers.reshape(1, -1, *[1] * (loc.dim() - 1))


def _limit_normals(state: Resampled) -> Tensor:
    """Standard normal numbers for the limit. **Shape:** ``(num_draws, *event)``."""
    loc: Tensor = state.value.loc
    return normals(state.keys, 0, loc[0].numel(), stream=_LIMIT).reshape(loc.shape).to(loc)


class KnownVarianceRule(GaussianRule):
    """A rule of known variance, whose location moves a part of the way to each observation."""

    scale: float

    @abstractmethod
    def _moves(self, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Standard deviation of the next observation, and the part of the way, by size."""

    @abstractmethod
    def _limit_scale(self, size: Tensor) -> Tensor:
        """Standard deviation of the location in the limit, given so many observations."""

    def advance(self, state: Resampled, num_steps: int) -> Resampled:
        """Draw observations from the predictive, one after the other."""
        if not num_steps:
            return state
        loc: Tensor = state.value.loc
        scale, gain = self._moves(_sizes_before(state, num_steps))
        size = loc[0].numel()
        stop = (state.size + num_steps) * size
        noise = normals(state.keys, state.size * size, stop, stream=_STEPS)
        steps = _along(scale, loc) * noise.reshape(len(loc), num_steps, *loc.shape[1:])
        path = loc.double()[:, None] + (_along(gain, loc) * steps).cumsum(1)
        before = torch.cat([loc.double()[:, None], path[:, :-1]], 1)
        return self._extended(state, (before + steps).to(loc.dtype), path[:, -1].to(loc.dtype))

    def predictive(self, state: Resampled) -> TorchDistributionMixin:
        """Distribution of the next observation, with the batch shape ``(num_draws, *event)``."""
        return dist.Normal(state.value.loc, float(self._moves(_sizes_before(state, 1))[0]))

    def limit(self, state: Resampled) -> TorchDistributionMixin:
        """Normal distributions around draws of the limit of the locations."""
        scale = float(self._limit_scale(_sizes_before(state, 1)))
        return dist.Normal(state.value.loc + scale * _limit_normals(state), self.scale)


class NormalPredictive(KnownVarianceRule):
    r"""Bayesian prediction of normal observations with known variance.

    Their mean has the conjugate prior :math:`\mathcal N(m_0, t^2)` and, given :math:`i`
    observations, the posterior :math:`\mathcal N(m_i, v_i)`, so that
    :math:`P_i = \mathcal N(m_i, \sigma^2 + v_i)`. With the flat prior, the default, :math:`m_i` is
    the mean of the observations and :math:`v_i = \sigma^2 / i`. The martingale posterior of the
    mean is the Bayesian posterior. Under the flat prior, resampling up to size :math:`N` gives the
    variance :math:`\sigma^2 (1/n - 1/N)`.

    :param float scale: :math:`\sigma`, the known standard deviation of an observation.
    :param float loc: :math:`m_0`, the mean of the prior.
    :param float loc_scale: :math:`t`, the standard deviation of the prior; infinite for a flat
        prior.

    Example::

        >>> from pyro_ext.random import chain_keys
        >>> rule = NormalPredictive(scale=1.0)
        >>> state = rule.begin((torch.tensor([1.0, 3.0]),), chain_keys(0, range(4)))
        >>> predictive = rule.predictive(state)
        >>> predictive.mean, predictive.variance
        (tensor([2., 2., 2., 2.]), tensor([1.5000, 1.5000, 1.5000, 1.5000]))
    """

    def __init__(self, scale: float = 1.0, loc: float = 0.0, loc_scale: float = math.inf) -> None:
        self.scale = checks.number("scale", scale, above=0.0)
        self.loc = checks.number("loc", loc)
        if loc_scale != math.inf:
            checks.number("loc_scale", loc_scale, above=0.0)
        self.loc_scale = float(loc_scale)

    def _moves(self, sizes: Tensor) -> tuple[Tensor, Tensor]:
        variance = self._variance(sizes)
        total = self.scale**2 + variance
        return total.sqrt(), variance / total

    def _limit_scale(self, size: Tensor) -> Tensor:
        return self._variance(size).sqrt()

    def _posterior(self, values: Tensor) -> tuple[Tensor, Tensor]:
        variance = float(self._variance(torch.tensor(float(len(values)), dtype=torch.float64)))
        mean = values.mean(0)
        loc = self.loc + len(values) * variance / self.scale**2 * (mean - self.loc)
        return loc, torch.zeros_like(loc)

    def _variance(self, sizes: Tensor) -> Tensor:
        """Posterior variance of the mean given so many observations."""
        return 1.0 / (sizes / self.scale**2 + 1.0 / self.loc_scale**2)


class PlugInNormal(KnownVarianceRule):
    r"""Normal prediction around the mean of the observations, as if it were the true mean.

    No prior gives :math:`P_i = \mathcal N(\bar y_i, \sigma^2)`. Up to size :math:`N`, the variance
    of the mean is :math:`\sigma^2 (\psi'(n + 1) - \psi'(N + 1))`, with the trigamma function
    :math:`\psi'`: slightly less than with :class:`NormalPredictive`. The mean is a martingale,
    although the predictive distribution is not: later observations are more widely spread than the
    next one.

    :param float scale: :math:`\sigma`, the standard deviation of an observation.

    Example::

        >>> from pyro_ext.random import chain_keys
        >>> rule = PlugInNormal(scale=2.0)
        >>> state = rule.begin((torch.tensor([1.0, 3.0]),), chain_keys(0, range(4)))
        >>> rule.predictive(state).variance
        tensor([4., 4., 4., 4.])
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = checks.number("scale", scale, above=0.0)

    def _moves(self, sizes: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(sizes, self.scale), 1.0 / (sizes + 1.0)

    def _limit_scale(self, size: Tensor) -> Tensor:
        scale: Tensor = self.scale * torch.special.polygamma(1, size + 1.0).sqrt()
        return scale

    def _posterior(self, values: Tensor) -> tuple[Tensor, Tensor]:
        loc = values.mean(0)
        return loc, torch.zeros_like(loc)


class StudentTPredictive(GaussianRule):
    r"""Bayesian prediction of normal observations with unknown mean and variance.

    The prior is conjugate: :math:`\sigma^2 \sim \mathrm{InverseGamma}(a_0, b_0)` and
    :math:`\mu \mid \sigma^2 \sim \mathcal N(m_0, \sigma^2 / \kappa_0)`. The next observation has
    a Student t distribution with :math:`2 a_i` degrees of freedom, location :math:`m_i` and squared
    scale :math:`b_i (\kappa_i + 1) / (a_i \kappa_i)`. The default is the reference prior,
    proportional to :math:`1 / \sigma^2`, for which :math:`m_i` is the mean, :math:`\kappa_i = i`,
    :math:`a_i = (i - 1) / 2`, and :math:`b_i` is half of the sum of squares around the mean.

    :param float loc: :math:`m_0`.
    :param float loc_precision: :math:`\kappa_0 \ge 0`, the number of observations that ``loc``
        counts for.
    :param float concentration: :math:`a_0`, :math:`-1/2` or more.
    :param float rate: :math:`b_0 \ge 0`.

    Example::

        >>> from pyro_ext.random import chain_keys
        >>> rule = StudentTPredictive()
        >>> state = rule.begin((torch.tensor([1.0, 2.0, 3.0]),), chain_keys(0, range(2)))
        >>> predictive = rule.predictive(state)
        >>> predictive.df, predictive.loc, predictive.scale**2
        (tensor([2., 2.]), tensor([2., 2.]), tensor([1.3333, 1.3333]))
    """

    def __init__(
        self,
        loc: float = 0.0,
        loc_precision: float = 0.0,
        concentration: float = -0.5,
        rate: float = 0.0,
    ) -> None:
        self.loc = checks.number("loc", loc)
        self.loc_precision = checks.number("loc_precision", loc_precision, least=0.0)
        self.concentration = checks.number("concentration", concentration, least=-0.5)
        self.rate = checks.number("rate", rate, least=0.0)
        # Half of the number of observations is added to the concentration, which must be positive.
        self._least = math.floor(-2.0 * self.concentration) + 1 if self.concentration <= 0 else 1

    def begin(self, data: tuple[Tensor, ...], keys: Tensor) -> Resampled:
        """Start populations of the observations, which must vary unless the prior has a rate."""
        state = super().begin(data, keys)
        if not bool((state.value.rate > 0.0).all()):
            raise ValueError(
                "data must vary in each element of an observation if the rate of the prior is "
                f"{self.rate:g}, got the same value in all {state.num_observed} observations"
            )
        return state

    def advance(self, state: Resampled, num_steps: int) -> Resampled:
        """Draw observations from the predictive distribution, one after the other."""
        if not num_steps:
            return state
        old: GaussianState = state.value
        sizes = _sizes_before(state, num_steps)
        degrees = _along(2.0 * self.concentration + sizes, old.loc)
        precision = _along(self.loc_precision + sizes, old.loc)
        size = 2 * old.loc[0].numel()
        stop = (state.size + num_steps) * size
        numbers = uniforms(state.keys, state.size * size, stop, stream=_STEPS)
        shape = (len(state.keys), num_steps, *old.loc.shape[1:], 2)
        first, second = numbers.reshape(shape).unbind(-1)
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

    def predictive(self, state: Resampled) -> TorchDistributionMixin:
        """Distribution of the next observation, with batch shape ``(num_draws, *event)``."""
        concentration, precision = self._numbers_of(state)
        scale = state.value.rate * (precision + 1.0) / (concentration * precision)
        degrees = 2.0 * concentration
        predictive: TorchDistributionMixin = dist.StudentT(degrees, state.value.loc, scale.sqrt())
        return predictive

    def limit(self, state: Resampled) -> TorchDistributionMixin:
        """Normal distributions with means and variances drawn from their posterior."""
        from scipy.special import gammaincinv  # slow to import

        concentration, precision = self._numbers_of(state)
        old: GaussianState = state.value
        number = uniforms(state.keys, 0, old.loc[0].numel(), stream=_VARIANCES).cpu()
        gamma = torch.from_numpy(gammaincinv(concentration, number.numpy()))
        gamma = gamma.reshape(old.loc.shape).to(old.loc)
        scale = (old.rate / gamma).sqrt()
        return dist.Normal(old.loc + scale / math.sqrt(precision) * _limit_normals(state), scale)

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
