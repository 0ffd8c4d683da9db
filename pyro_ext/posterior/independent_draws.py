"""Base of posteriors with independent draws: access to the draws and summaries."""

import warnings
from typing import Any

from torch import Tensor

from pyro_ext.posterior.convergence import print_summary

_LEAST_SUMMARIZED = 4


class IndependentDraws:
    """Holds independent draws by name, with the interface of a sampler that has run."""

    def __init__(self) -> None:
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.interrupted = False
        self._samples: dict[str, Tensor] = {}
        self._left_out: list[int] = []

    def get_samples(self, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Return the draws.

        :param bool group_by_chain: whether to add a leading chain dimension of size one.
        :returns: draws by name. **Shape:** ``(num_samples, *event)`` each, or ``(1, num_samples,
            *event)``.
        :raises RuntimeError: before a run.
        """
        if not self._samples:
            raise RuntimeError("there are no draws yet: call run(...) first, and let it draw")
        if group_by_chain:
            return {name: value[None] for name, value in self._samples.items()}
        return dict(self._samples)

    def summary(self, prob: float = 0.9) -> None:
        """Print mean, standard deviation, median, interval, effective sample size and R-hat.

        :param float prob: probability of the interval.
        :raises RuntimeError: before a run, or for fewer than four draws.
        """
        samples = self.get_samples(group_by_chain=True)
        number = next(iter(samples.values())).shape[1]
        if number < _LEAST_SUMMARIZED:
            raise RuntimeError(f"a summary needs at least {_LEAST_SUMMARIZED} draws, got {number}")
        numbers = {name: value for name, value in samples.items() if value.is_floating_point()}
        print_summary(numbers, prob=prob)
        if self._left_out:
            print(f"draws {self._left_out} are left out: they are not finite")

    def _warn_of_left_out(self, what: str, advice: str) -> None:
        """Warn of draws that are not finite, and raise where all are not."""
        if not self._left_out:
            return
        num_finite = len(next(iter(self._samples.values()))) if self._samples else 0
        if not num_finite:
            self._samples = {}
            raise RuntimeError(
                f"{what} is not finite in any of {len(self._left_out)} draws; {advice}"
            )
        warnings.warn(
            f"{what} is not finite in {len(self._left_out)} of "
            f"{len(self._left_out) + num_finite} draws, which are left out: numbers "
            f"{self._left_out[:10]}",
            RuntimeWarning,
            stacklevel=4,
        )
