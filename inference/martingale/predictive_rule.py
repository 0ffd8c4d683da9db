"""Interface of a rule that predicts the next observation, for martingale posteriors."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.random import normal, uniform

_PER_BLOCK = 16


class Resampled(NamedTuple):
    r"""State of predictive resampling, for some draws side by side.

    :param Tensor keys: keys of the draws' random streams, from :func:`pyro_ext.random.chain_keys`.
        **Shape:** ``(num_draws, 2)``.
    :param int num_observed: :math:`n`, the number of observations in the data.
    :param int size: :math:`N \ge n`, the current size of each population.
    :param value: what the rule keeps of the populations: tensors with a leading draw dimension.
    """

    keys: Tensor
    num_observed: int
    size: int
    value: Any


class PredictiveRule(ABC):
    r"""Base class of rules that predict the next observation, :math:`P_i(\cdot \mid y_{1:i})`.

    A rule completes the population: it draws :math:`Y_{i+1} \sim P_i`, adds it to the observations,
    and continues. Rules are immutable: :meth:`begin` and :meth:`advance` return states and change
    nothing. The random numbers of a draw are functions of its key and of the size of its
    population, so that a draw comes out the same alone or among others, in one call of
    :meth:`advance` or in many.
    """

    @abstractmethod
    def begin(self, data: tuple[Tensor, ...], keys: Tensor) -> Resampled:
        """Start populations that hold only the observations.

        :param tuple data: the arguments of :meth:`MartingalePosterior.run()
            <pyro_ext.inference.MartingalePosterior.run>`. **Shape:** ``(n, *event)`` each.
        :param Tensor keys: keys of the draws' random streams. **Shape:** ``(num_draws, 2)``.
        """

    @abstractmethod
    def advance(self, state: Resampled, num_steps: int) -> Resampled:
        """Extend each population by further observations.

        :param Resampled state: the current state of the populations.
        :param int num_steps: number of observations to add to each population.
        """

    @abstractmethod
    def population(self, state: Resampled) -> Any:
        """Distributions to pass to a functional, with batch shape ``(num_draws,)``.

        They have ``mean``, ``variance`` and ``icdf`` if these exist, like Pyro's distributions.

        :param Resampled state: the current state of the populations.
        """


@runtime_checkable
class KnowsLimit(Protocol):
    """A rule that can draw the whole infinite population, for ``horizon=math.inf``."""

    def limit(self, state: Resampled) -> Any:
        """Return the limit of the populations, in the form of :meth:`PredictiveRule.population`.

        :param Resampled state: the current state of the populations.
        """
        ...


@runtime_checkable
class NeedsPreparation(Protocol):
    """A rule with work to do once in each run, before the first draw, such as MCMC."""

    def prepare(self, data: tuple[Tensor, ...], seed: int) -> PredictiveRule:
        """Return the rule to resample from.

        :param tuple data: the observations. **Shape:** ``(n, *event)`` each.
        :param int seed: seed of what is drawn here.
        """
        ...


def check_data(data: tuple[Tensor, ...], least: int = 1) -> int:
    """Check that data are finite tensors with as many rows each, and return how many."""
    if not data:
        raise ValueError("data must be at least one tensor of observations, got none")
    for index, value in enumerate(data):
        checks.instance(f"data[{index}]", value, Tensor, "a tensor")
        checks.as_tensor(f"data[{index}]", value, allow_empty=True)
        if value.dim() == 0 or len(value) < least:
            raise ValueError(
                f"data[{index}] must have the shape (n, *event) with n >= {least}, got "
                f"{tuple(value.shape)}"
            )
        if len(value) != len(data[0]):
            raise ValueError(
                f"data[{index}] has {len(value)} rows, but data[0] {len(data[0])}; wanted one row "
                "of each for an observation"
            )
        checks.all_finite(f"data[{index}]", value)
    return len(data[0])


def single_tensor(data: tuple[Tensor, ...], rule: str, least: int = 1) -> Tensor:
    """Return data of a rule that takes a single tensor, as floating numbers."""
    check_data(data, least)
    if len(data) != 1:
        raise ValueError(f"data must be one tensor for {rule}, got {len(data)}")
    (value,) = data
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())


# Random numbers: functions of a draw's key and of a position in its population -------------------


def uniforms(keys: Tensor, start: int, stop: int, *, stream: int = 0) -> Tensor:
    """Numbers uniform on the open unit interval, ``(num_draws, stop - start)``."""
    return _between(uniform, keys, start, stop, stream)


def normals(keys: Tensor, start: int, stop: int, *, stream: int = 0) -> Tensor:
    """Standard normal numbers, as :func:`uniforms`, with which they share streams."""
    return _between(normal, keys, start, stop, stream)


def seed_generator(key: Tensor, *numbers: int) -> None:
    """Seed PyTorch's own generator from the key of one draw, and what tells its seeds apart."""
    words = np.random.SeedSequence([*key.tolist(), *numbers]).generate_state(1, np.uint64)
    seed = int(words[0] >> np.uint64(1))
    if key.device.type == "cpu":
        torch.default_generator.manual_seed(seed)  # many times faster than to seed all devices
    else:
        torch.manual_seed(seed)


def _between(
    draw: Callable[..., Tensor], keys: Tensor, start: int, stop: int, stream: int
) -> Tensor:
    first = start // _PER_BLOCK
    blocks = torch.arange(first, -(-stop // _PER_BLOCK), device=keys.device)
    numbers = draw(keys, blocks, _PER_BLOCK, stream=stream, dtype=torch.float64)
    rows = numbers.transpose(0, 1).flatten(1)
    offset = first * _PER_BLOCK
    return rows[:, start - offset : stop - offset]
