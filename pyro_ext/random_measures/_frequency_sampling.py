"""Sizes of clusters of a normalized measure, without the labels of the samples."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_ext.random_measures._urn import InverseExponent
from pyro_ext.random_measures.arrivals import ExponentialArrivals

if TYPE_CHECKING:
    from pyro_ext.random_measures._measure import CompletelyRandomMeasure

__all__ = ["ClusterCounts"]

_FIRST_LEVEL = 8.0
_LARGEST_LOG_STEP = 2.0
_SLACK = 1.05
_NUM_POINTS = 300  # so many that the inverse is read from its table
_LOW = -7.0
_REACH = 60.0


class ClusterCounts:
    r"""Draws of the sizes of clusters of a normalized measure, exactly.

    Let every weight :math:`w` have points at the rate :math:`w` over time. The first :math:`n`
    points are samples of the normalized measure. Points of one stretch of time after the other are
    drawn until there are so many, and the last stretch is cut after the last of them. How long a
    stretch is depends on what was drawn before it only, which leaves the law as it is. The number
    of weights that have points is a Poisson process over the values of the Laplace exponent.

    :param measure: a measure without batch shape.
    :param int num_samples: :math:`n`.
    """

    def __init__(self, measure: "CompletelyRandomMeasure", num_samples: int) -> None:
        self._number = num_samples
        self._process = measure._unsqueezed()._arrivals(ExponentialArrivals())
        self._inverse = InverseExponent(measure)
        # One table for the numbers of clusters that are common; it grows where there are more.
        high = torch.tensor(_REACH * num_samples**0.5 + _FIRST_LEVEL).double().log()
        self._device = measure._filled(0.0).device
        self._times(torch.stack([torch.full_like(high, _LOW), high]).to(self._device))

    def sample(self) -> Tensor:
        """Draw once.

        :returns: positive sizes that sum to the number of samples. **Shape:** ``(num_clusters,)``.
        """
        weights = torch.zeros(0, dtype=torch.float64, device=self._device)
        counts = weights.long()
        level, time, done = 0.0, 0.0, 0
        while done < self._number:
            old_level, old_time = level, time
            level, time = self._next(level, time, float(weights.sum()), self._number - done)
            fresh = torch.poisson(weights.new_tensor([level - old_level]))
            places = torch.rand(int(fresh), dtype=torch.float64, device=self._device)
            starts = torch.full_like(weights, old_time)
            if len(places):
                log_times = self._times((old_level + (level - old_level) * places).log())
                weights = torch.cat([weights, self._process.sample_weight(log_times).exp()])
                starts = torch.cat([starts, log_times.exp().clamp(min=old_time, max=time)])
            is_new = torch.arange(len(weights), device=self._device) >= len(counts)
            more = torch.poisson(weights * (time - starts)).long()
            added = int(more.sum()) + len(places)
            if done + added >= self._number:
                kept = self._earliest(starts, more, is_new, time, self._number - done)
            else:
                kept = more + is_new.long()
            counts = torch.nn.functional.pad(counts, (0, len(places))) + kept
            done += int(kept.sum())
        return counts[counts > 0]

    def _next(self, level: float, time: float, total: float, missing: int) -> tuple[float, float]:
        """Where the next stretch ends, as value of the Laplace exponent and as time."""
        if level == 0.0:
            (log_time,) = self._times(torch.tensor([_FIRST_LEVEL]).double().log().to(self._device))
            return _FIRST_LEVEL, float(log_time.exp())
        wanted = time + _SLACK * missing / total if total > 0 else math.inf
        # The exponent grows no faster than the time.
        reach = min(math.log(wanted / time), _LARGEST_LOG_STEP)
        steps = torch.linspace(0.0, reach, _NUM_POINTS + 1, dtype=torch.float64)[1:]
        levels = level * steps.to(self._device).exp()
        times = self._times(levels.log()).exp()
        index = int((times < wanted).sum().clamp(max=_NUM_POINTS - 1))
        return float(levels[index]), float(times[index])

    def _times(self, log_levels: Tensor) -> Tensor:
        """Logarithms of the times at which the Laplace exponent has values."""
        padding = log_levels[:1].expand(_NUM_POINTS)
        times: Tensor = self._inverse(torch.cat([log_levels, padding]))[: len(log_levels)]
        return times

    @staticmethod
    def _earliest(starts: Tensor, more: Tensor, is_new: Tensor, end: float, number: int) -> Tensor:
        """How many of the first points of a stretch each weight has."""
        owners = torch.arange(len(more), device=more.device).repeat_interleave(more)
        places = torch.rand(len(owners), dtype=starts.dtype, device=starts.device)
        points = starts[owners] + places * (end - starts[owners])
        points = torch.cat([points, starts[is_new]])
        owners = torch.cat([owners, torch.nonzero(is_new).squeeze(-1)])
        first = points.topk(number, largest=False, sorted=False).indices
        return owners[first].bincount(minlength=len(more))
