"""What a martingale posterior needs to know of a rule that predicts the next observation."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["PredictiveRule", "Resampled"]


class Resampled(NamedTuple):
    r"""Where predictive resampling is, for some draws side by side.

    :param Tensor keys: of the draws' random streams, from :func:`pyro_ext.random.chain_keys`.
        **Shape:** ``(num_draws, 2)``.
    :param int num_observed: :math:`n`, the number of observations in the data.
    :param int size: :math:`N \ge n`, the size that each population has reached.
    :param value: what the rule keeps of the populations, tensors with a first dimension for the
        draws.
    """

    keys: Tensor
    num_observed: int
    size: int
    value: Any


class PredictiveRule(ABC):
    r"""A rule that predicts the next observation, :math:`P_i(\cdot \mid y_{1:i})`.

    It completes the population: it draws :math:`Y_{i+1} \sim P_i`, takes it for an observation, and
    goes on. Rules are values: :meth:`begin` and :meth:`advance` return states, and change nothing.
    The random numbers of a draw are functions of its key and of the size of its population, so that
    a draw comes out the same alone and among others, in one call of :meth:`advance` and in many.
    """

    @abstractmethod
    def begin(self, data: tuple[Tensor, ...], keys: Tensor) -> Resampled:
        """Populations that hold the observations alone.

        :param tuple data: what :meth:`MartingalePosterior.run()
            <pyro_ext.inference.MartingalePosterior.run>` got. **Shape:** ``(n, *event)`` each.
        :param Tensor keys: of the draws' random streams. **Shape:** ``(num_draws, 2)``.
        :raises ValueError: for data that do not fit.
        """

    @abstractmethod
    def advance(self, state: Resampled, num_steps: int) -> Resampled:
        """Complete each population by some more observations.

        :param Resampled state: where the populations are.
        :param int num_steps: how many observations each gets.
        """

    @abstractmethod
    def population(self, state: Resampled) -> Any:
        """What a functional takes: a law of the populations, with a batch shape ``(num_draws,)``.

        It has ``mean``, ``variance`` and ``icdf`` where these exist, as Pyro's distributions do.

        :param Resampled state: where the populations are.
        """
