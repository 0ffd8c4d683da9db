"""What normal predictive rules share."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_ext.inference.martingale._data import single_tensor
from pyro_ext.inference.martingale._numbers import normals, uniforms
from pyro_ext.inference.martingale.predictive_rule import PredictiveRule, Resampled
from pyro_ext.inference.martingale.weighted_sample import WeightedSample

__all__ = [
    "GaussianRule",
    "GaussianState",
    "along",
    "limit_normals",
    "random_walk",
    "sizes_before",
    "step_normals",
    "step_uniforms",
]

_STEPS, _LIMIT = range(2)


class GaussianState(NamedTuple):
    """What a normal rule keeps of its populations.

    :param Tensor values: the observations, and those drawn. **Shape:** ``(num_draws, size,
        *event)``.
    :param Tensor loc: where the next observation is expected. **Shape:** ``(num_draws, *event)``.
    :param Tensor rate: of the posterior of the variance, zero where that is known. **Shape:** as
        ``loc``.
    """

    values: Tensor
    loc: Tensor
    rate: Tensor


class GaussianRule(PredictiveRule):
    """What the rules share: data of one tensor, elements of an observation independent."""

    _least = 1

    def begin(self, data: tuple[Tensor, ...], keys: Tensor) -> Resampled:
        """Populations that hold the observations alone.

        :param tuple data: one tensor of numbers, or of vectors with independent elements.
            **Shape:** ``(n, *event)``.
        :param Tensor keys: of the draws' random streams. **Shape:** ``(num_draws, 2)``.
        :raises ValueError: for other data, or too few.
        """
        values = single_tensor(data, type(self).__name__, self._least)
        loc, rate = self._posterior(values)
        shape = (len(keys), *values.shape[1:])
        state = GaussianState(
            values.expand(len(keys), *values.shape), loc.expand(shape), rate.expand(shape)
        )
        return Resampled(keys, len(values), len(values), state)

    def population(self, state: Resampled) -> WeightedSample:
        """The points of each population, with equal weights.

        :param Resampled state: where the populations are.
        """
        values: Tensor = state.value.values
        weights = values.new_full((1, 1), 1.0 / state.size).expand(len(values), state.size)
        return WeightedSample((values,), weights, is_shared=False)

    @abstractmethod
    def law(self, state: Resampled) -> TorchDistributionMixin:
        """Law of the next observation, with the batch shape ``(num_draws, *event)``.

        :param Resampled state: where the populations are.
        """

    @abstractmethod
    def update(self, state: Resampled, observation: Tensor) -> Resampled:
        """Take an observation into each population.

        :param Resampled state: where the populations are.
        :param Tensor observation: **Shape:** ``(num_draws, *event)``.
        """

    @abstractmethod
    def limit(self, state: Resampled) -> TorchDistributionMixin:
        """Law of the whole infinite population, with the batch shape ``(num_draws, *event)``.

        :param Resampled state: where the populations are.
        """

    @abstractmethod
    def _posterior(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Location of the next observation, and the rate, from the data."""

    def _extended(
        self, state: Resampled, values: Tensor, loc: Tensor, rate: Tensor | None = None
    ) -> Resampled:
        old: GaussianState = state.value
        new = GaussianState(
            torch.cat([old.values, values], 1), loc, old.rate if rate is None else rate
        )
        return state._replace(size=state.size + values.shape[1], value=new)


def sizes_before(state: Resampled, num_steps: int) -> Tensor:
    """Sizes of the population before each step. **Shape:** ``(num_steps,)``."""
    sizes = torch.arange(state.size, state.size + num_steps, dtype=torch.float64)
    return sizes.to(state.value.loc.device)


def along(numbers: Tensor, loc: Tensor) -> Tensor:
    """Numbers of the steps, to broadcast with what has the shape ``(num_draws, steps, *event)``."""
    return numbers.reshape(1, -1, *[1] * (loc.dim() - 1))


def step_normals(state: Resampled, num_steps: int) -> Tensor:
    """Standard normal numbers. **Shape:** ``(num_draws, num_steps, *event)``."""
    event = state.value.loc.shape[1:]
    size = event.numel()
    stop = (state.size + num_steps) * size
    numbers = normals(state.keys, state.size * size, stop, stream=_STEPS)
    return numbers.reshape(len(state.keys), num_steps, *event)


def step_uniforms(state: Resampled, num_steps: int) -> tuple[Tensor, Tensor]:
    """Two uniform numbers a step. **Shape:** ``(num_draws, num_steps, *event)`` each."""
    event = state.value.loc.shape[1:]
    size = 2 * event.numel()
    numbers = uniforms(
        state.keys, state.size * size, (state.size + num_steps) * size, stream=_STEPS
    )
    first, second = numbers.reshape(len(state.keys), num_steps, *event, 2).unbind(-1)
    return first, second


def limit_normals(state: Resampled) -> Tensor:
    """Standard normal numbers for the limit. **Shape:** ``(num_draws, *event)``."""
    loc: Tensor = state.value.loc
    return normals(state.keys, 0, loc[0].numel(), stream=_LIMIT).reshape(loc.shape).to(loc)


def random_walk(
    state: Resampled, noise: Tensor, *, scale: Tensor, gain: Tensor, loc: Tensor
) -> tuple[Tensor, Tensor]:
    """Observations around locations that each of them moves.

    :param Tensor noise: standard normal. **Shape:** ``(num_draws, num_steps, *event)``.
    :param Tensor scale: of an observation around the location. **Shape:** ``(num_steps,)``.
    :param Tensor gain: how much of the way to an observation the location goes. **Shape:** as
        ``scale``.
    :param Tensor loc: where the walk starts. **Shape:** ``(num_draws, *event)``.
    :returns: the observations, and where the walk ends.
    """
    if not noise.shape[1]:
        return noise.to(loc.dtype), loc
    steps = along(scale, loc) * noise
    path = loc.double()[:, None] + (along(gain, loc) * steps).cumsum(1)
    before = torch.cat([loc.double()[:, None], path[:, :-1]], 1)
    return (before + steps).to(loc.dtype), path[:, -1].to(loc.dtype)
