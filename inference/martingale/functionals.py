"""Functionals of a population: what a martingale posterior is a posterior of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ext._checks import check_integer, check_number
from pyro_ext.inference.martingale._population_points import points_of

__all__ = ["Expectation", "Mean", "Quantile", "Variance"]

_NUM_POINTS = 500


@dataclass(frozen=True)
class Mean:
    """The mean of a population.

    Example::

        >>> Mean()(dist.Normal(torch.tensor([0.0, 1.0]), 1.0))
        tensor([0., 1.])
    """

    def __call__(self, population: Any) -> Tensor:
        """Mean of each law. **Shape:** ``(num_draws, *event)``."""
        mean: Tensor = _with_moments(population).mean
        return mean


@dataclass(frozen=True)
class Variance:
    """The variance of a population, element by element.

    Example::

        >>> Variance()(dist.Normal(torch.zeros(2), 3.0))
        tensor([9., 9.])
    """

    def __call__(self, population: Any) -> Tensor:
        """Variance of each law. **Shape:** ``(num_draws, *event)``."""
        variance: Tensor = _with_moments(population).variance
        return variance


@dataclass(frozen=True)
class Quantile:
    """Quantiles of a population, element by element.

    :param probability: a probability, or several of them, which become the last dimension.
    :raises ValueError: for a probability that is not between 0 and 1.

    Example::

        >>> Quantile(0.5)(dist.Normal(torch.tensor([0.0, 1.0]), 1.0))
        tensor([0., 1.])
        >>> Quantile((0.1, 0.9))(dist.Normal(torch.zeros(2), 1.0)).shape
        torch.Size([2, 2])
    """

    probability: float | Sequence[float]

    def __post_init__(self) -> None:
        several = isinstance(self.probability, Sequence)
        for value in self.probability if isinstance(self.probability, Sequence) else ():
            check_number("probability", value, above=0.0, below=1.0)
        if not several:
            check_number("probability", self.probability, above=0.0, below=1.0)
        elif not self.probability:
            raise ValueError("probability must be a number or a sequence of some, got an empty one")

    def __call__(self, population: Any) -> Tensor:
        """Quantiles of each law.

        **Shape:** ``(num_draws, *event)``, or ``(num_draws, *event, num_probabilities)``.
        """
        if not isinstance(self.probability, Sequence):
            return self._one(population, self.probability)
        return torch.stack([self._one(population, value) for value in self.probability], -1)

    @staticmethod
    def _one(population: Any, probability: float) -> Tensor:
        population = _with_moments(population)
        try:
            value: Tensor = population.icdf(torch.tensor(probability, dtype=torch.float64))
        except NotImplementedError as error:
            raise TypeError(
                "Quantile takes points, or laws that have quantiles, which "
                f"{type(population).__name__} has not"
            ) from error
        return value


@dataclass(frozen=True)
class Expectation:
    """The mean of a function of an observation.

    :param function: of an observation, or of its parts where the data are several tensors, point by
        point: its arguments and its result have leading dimensions for points and draws.
    :param int num_points: at how many points the function is evaluated where the population is a
        continuous law. For a number these are quantiles, whose plain mean is taken, the midpoint
        rule, which is off by no more than the variation of the function over ``2 * num_points``.
        Populations that are points need no such approximation.
    :raises TypeError: for a function that is not callable.

    Example::

        >>> population = dist.Normal(torch.zeros(2), 1.0)
        >>> Expectation(lambda y: (y > 0.0).float())(population)
        tensor([0.5000, 0.5000])
    """

    function: Callable[..., Tensor]
    num_points: int = 1000

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function must be callable, got {self.function!r:.80}")
        check_integer("num_points", self.num_points, 1)

    def __call__(self, population: Any) -> Tensor:
        """Mean of the function under each law. **Shape:** ``(num_draws, *result)``."""
        return points_of(population, self.num_points).expectation(self.function)


def _with_moments(population: Any) -> Any:
    """The population, or points for a law of vectors that has no moments in closed form."""
    if getattr(population, "event_shape", ()) and hasattr(population, "weighted_points"):
        return points_of(population, _NUM_POINTS)
    return population
