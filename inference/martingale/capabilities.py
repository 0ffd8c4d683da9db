"""What a predictive rule may know besides the next observation."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from pyro_ext.inference.martingale.predictive_rule import PredictiveRule, Resampled

__all__ = ["KnowsLimit", "NeedsPreparation"]


@runtime_checkable
class KnowsLimit(Protocol):
    """A rule that can draw the whole infinite population, for ``horizon=math.inf``."""

    def limit(self, state: Resampled) -> Any:
        """What a functional takes, as :meth:`PredictiveRule.population` gives it.

        :param Resampled state: where the populations are.
        """
        ...


@runtime_checkable
class NeedsPreparation(Protocol):
    """A rule with work to do once for each run, before the first draw, such as MCMC."""

    def prepare(self, data: tuple[Tensor, ...], seed: int) -> PredictiveRule:
        """Return the rule to resample from.

        :param tuple data: the observations. **Shape:** ``(n, *event)`` each.
        :param int seed: of what is drawn here.
        """
        ...
