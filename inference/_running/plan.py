"""Which steps of a run are kept."""

from dataclasses import dataclass

import numpy as np

from pyro_ext.inference.sgmcmc import Schedule

__all__ = ["KeptSteps", "Plan"]


@dataclass(frozen=True)
class Plan:
    """How long chains warm up, and how often a draw is kept after that.

    :param int warmup_steps: steps before the first kept ones.
    :param int thinning: steps between two kept draws.
    """

    warmup_steps: int
    thinning: int


class KeptSteps:
    """Numbers of steps after which a draw is kept.

    A draw is kept every ``thinning`` steps after the warm-up, where its step samples.

    :param Plan plan: how long to warm up, and how often to keep a draw.
    :param Schedule schedule: which steps sample.
    :raises ValueError: where no such step ever samples.
    """

    def __init__(self, plan: Plan, schedule: Schedule) -> None:
        # Whether the candidates sample repeats itself after a period's worth of them.
        candidates = plan.warmup_steps + plan.thinning * np.arange(1, schedule.period + 1)
        sampling = schedule.is_sampling(candidates - 1)
        if not sampling.any():
            raise ValueError(
                f"no draw would be kept: after {plan.warmup_steps} warm-up steps, every "
                f"{plan.thinning}th step explores in a cycle of {schedule.period} steps; choose "
                "warmup_steps and thinning so that some of these steps fall into the sampling stage"
            )
        self._first = [int(step) for step in candidates[sampling]]
        self._shift = plan.thinning * schedule.period

    def __call__(self, draw: int) -> int:
        """Return the number of steps after which a draw, counted from zero, is kept."""
        periods, place = divmod(draw, len(self._first))
        return self._first[place] + periods * self._shift
