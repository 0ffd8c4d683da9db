r"""Random partitions as distributions of label vectors, and algorithms that draw them.

Sums over all partitions of a set use power series. Let :math:`A(z) = \sum_i x_i z^i / i!`, and take
the product of :math:`x` at the block sizes of a partition. Its sum over the partitions of :math:`n`
elements into :math:`k` blocks is :math:`n! \, [z^n] A(z)^k / k!`, and its sum over all partitions
is :math:`n! \, [z^n] e^{A(z)}`. All terms are positive. Series are scaled by powers of a number
that keeps them within the range of their type.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._lib import checks
from pyro_ext.distributions.bases import expanded
from pyro_ext.random_measures.arrivals import ExponentialArrivals, arrival_process
from pyro_ext.random_measures.cluster_counts import ClusterSizes, cluster_sizes, counts_of_labels
from pyro_ext.random_measures.levy_measure import LevyMeasure
from pyro_ext.random_measures.series import poisson_points

_FIRST_BLOCK = 32
_LARGEST_BLOCK = 2**16
_FEW_POINTS = 256
_MOST_POINTS = 5000
_SPACING = 0.02
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
_FIRST_LEVEL = 8.0
_LARGEST_LOG_STEP = 2.0
_SLACK = 1.05
_NUM_POINTS = 300  # so many that the inverse is read from its table
_LOW = -7.0
_REACH = 60.0


class ProbabilityMeasure(ABC):
    """Base class of random probability measures: normalized, Pitman-Yor and Dirichlet processes."""

    @property
    @abstractmethod
    def batch_shape(self) -> torch.Size:
        """Shape of the parameters."""

    @property
    @abstractmethod
    def index_at_zero(self) -> Tensor:
        """Index of the power law of small weights."""

    @property
    @abstractmethod
    def _dtype(self) -> torch.dtype: ...

    def log_eppf(self, counts: Any, multiplicity: Any = None) -> Tensor:
        r"""Log of the exchangeable partition probability function (EPPF).

        This is the probability of one partition of labeled elements with these cluster sizes, so
        that :math:`p(3) + 3 p(2, 1) + p(1, 1, 1) = 1`.

        :param Tensor counts: cluster sizes in any order, padded with zeros.
            **Shape:** ``(*batch, num_clusters)``.
        :param Tensor multiplicity: the number of clusters of each size in ``counts``. Default: one.
            Equal sizes of a single partition are grouped automatically, but not while a graph is
            being recorded for compilation: there, distinct sizes with their multiplicity are
            faster.
        """
        return self._log_eppf(cluster_sizes(counts, multiplicity)).to(self._dtype)

    def partition(self, num_samples: int) -> "RandomPartition":
        """Distribution of the label vector of several samples.

        :param int num_samples: the number of samples.
        """
        return RandomPartition(self, num_samples)

    @abstractmethod
    def _log_eppf(self, sizes: ClusterSizes) -> Tensor:
        """In float64."""

    @abstractmethod
    def _sample_labels(self, num_samples: int, num_draws: int) -> Tensor:
        """Labels of samples, without batch shape."""

    def _sample_sizes(self, num_samples: int, num_draws: int) -> list[Tensor]:
        """Sizes of the clusters of samples, without batch shape."""
        return [self._sample_labels(num_samples, 1)[0].bincount() for _ in range(num_draws)]

    @abstractmethod
    def _element(self, index: int) -> "ProbabilityMeasure":
        """One of the batch."""


def check_probability_measure(argument: str, value: object) -> None:
    """Check that a value is a random probability measure."""
    wanted = "a normalized measure, a PitmanYor or a DirichletProcess"
    checks.instance(argument, value, ProbabilityMeasure, wanted)


class SampleDistribution(TorchDistribution):
    """Base class of distributions of statistics of samples from a random probability measure."""

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self,
        measure: ProbabilityMeasure,
        num_samples: int,
        event_shape: tuple[int, ...],
        validate_args: bool | None,
    ) -> None:
        self.measure, self.num_samples = measure, num_samples
        super().__init__(measure.batch_shape, torch.Size(event_shape), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Repeat the distribution over a larger batch shape."""
        return expanded(self, _instance, torch.Size(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw label vectors or tables, each in time about linear in the number of samples."""
        shape = torch.Size(sample_shape) + self.batch_shape
        own = torch.arange(self.measure.batch_shape.numel()).view(self.measure.batch_shape)
        chosen = own.expand(shape).flatten()
        device = self.measure.index_at_zero.device
        draws = torch.empty((chosen.numel(), *self.event_shape), dtype=torch.long, device=device)
        for index in own.flatten().tolist():
            rows = torch.nonzero(chosen == index).squeeze(-1).to(device)
            draws[rows] = self._draws(self.measure._element(index), rows.numel()).to(device)
        return draws.view(*shape, *self.event_shape)

    def _validate_sample(self, value: Tensor) -> None:
        if value.numel():  # PyTorch's check cannot reshape an empty batch
            super()._validate_sample(value)

    def _log_probs(self, log_prob: Callable[..., Tensor], *parts: Tensor) -> Tensor:
        """Log probabilities, one by one where equal sizes can be taken together."""
        shape = parts[0].shape[:-1]
        if self.measure.batch_shape or not shape:
            return log_prob(*parts)
        rows = zip(*(part.flatten(0, -2) for part in parts), strict=True)
        values = [log_prob(*row) for row in rows]
        if not values:
            return parts[0].new_zeros(shape, dtype=self.measure._dtype)
        return torch.stack(values).view(shape)

    @abstractmethod
    def _draws(self, measure: ProbabilityMeasure, number: int) -> Tensor: ...


class RandomPartition(SampleDistribution):
    """Distribution of the labels of samples from a random probability measure.

    Two samples have the same label if they are equal. Draws number the labels from zero in the
    order of first occurrence. The probability of a label vector is that of its partition, whatever
    the labels are.

    :param measure: a normalized measure, a Pitman-Yor or a Dirichlet process.
    :param int num_samples: the number of labels in a draw.

    Example::

        >>> from pyro_ext.random_measures import DirichletProcess
        >>> partition = DirichletProcess(1.0).partition(3)
        >>> partition.log_prob(torch.tensor([0, 1, 0])).exp()
        tensor(0.1667)
    """

    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self, measure: ProbabilityMeasure, num_samples: int, *, validate_args: bool | None = None
    ) -> None:
        check_probability_measure("measure", measure)
        checks.integer("num_samples", num_samples, 1)
        super().__init__(measure, num_samples, (num_samples,), validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of the partition of a label vector.

        :param Tensor value: labels, any integers from zero. **Shape:** ``(*batch, num_samples)``.
        """
        if self._validate_args:
            self._validate_sample(value)
        result = self._log_probs(self.measure.log_eppf, counts_of_labels(value))
        return result.expand(torch.broadcast_shapes(result.shape, self.batch_shape))

    def _draws(self, measure: ProbabilityMeasure, number: int) -> Tensor:
        return measure._sample_labels(self.num_samples, number)


def seat_by_arrivals(measure: LevyMeasure, num_samples: int, num_draws: int) -> Tensor:
    r"""Draw the labels of samples from a normalized measure exactly, without its total mass.

    Let every weight :math:`w` have points at rate :math:`w` over time. Then all points, in the
    order of time, are samples from the normalized measure. The first points of the weights are the
    arrival times of the size-biased series; from then on, the weights are known.
    """
    labels = np.empty((num_draws, num_samples), np.int64)
    wide = measure._unsqueezed()
    process, inverse = arrival_process(wide, ExponentialArrivals()), InverseExponent(measure)
    seats = [_Seats(int(seed)) for seed in torch.randint(2**31 - 1, (num_draws,))]
    last_points = measure._filled(0.0).new_zeros((num_draws, 1))
    waiting, block = list(range(num_draws)), _FIRST_BLOCK
    while waiting:
        shape = torch.Size((len(waiting),))
        points = last_points[waiting] + poisson_points(shape, block, measure)
        last_points[waiting] = points[:, -1:]
        log_times = inverse(points.log())
        weights = process.sample_weight(log_times).exp().cpu().numpy()
        times = log_times.exp().cpu().numpy()
        for row, draw in enumerate(waiting):
            seats[draw].fill(labels[draw], times[row], weights[row])
        waiting = [draw for draw in waiting if seats[draw].done < num_samples]
        block = min(2 * block, max(_LARGEST_BLOCK // max(len(waiting), 1), _FIRST_BLOCK))
    return torch.from_numpy(labels)


class InverseExponent:
    """Inverse of a Laplace exponent at many points, all but a few by interpolation."""

    def __init__(self, measure: LevyMeasure) -> None:
        self._measure = measure
        self._spline: Any = None
        self._low, self._high = np.inf, -np.inf

    def __call__(self, log_targets: Tensor) -> Tensor:
        """Logarithms of the points, of those of the values. **Shape:** that of these."""
        if self._measure._is_closed or log_targets.numel() < _FEW_POINTS:
            return self._measure._inverse_exponent(log_targets)
        low, high = float(log_targets.min()), float(log_targets.max())
        if low < self._low or high > self._high:
            self._extend(min(low, self._low), max(high + 1.0, self._high))
        device = log_targets.device
        return torch.from_numpy(self._spline(log_targets.cpu().numpy())).to(device)

    def _extend(self, low: float, high: float) -> None:
        from scipy.interpolate import CubicHermiteSpline

        ends = self._measure._inverse_exponent(self._measure._filled(0.0).new_tensor([low, high]))
        start, stop = ends.tolist()
        number = int(min(max((stop - start) / _SPACING, 64), _MOST_POINTS))
        points = torch.linspace(
            start - 1e-6, stop + 1e-6, number, dtype=torch.float64, device=ends.device
        )
        values = self._measure._log_exponent(points)
        slopes = (
            points + self._measure._log_moment(torch.ones_like(points), points) - values
        ).exp()
        self._spline = CubicHermiteSpline(
            values.cpu().numpy(), points.cpu().numpy(), 1.0 / slopes.cpu().numpy()
        )
        self._low, self._high = low, high


class _Seats:
    """One partition as far as it has come."""

    def __init__(self, seed: int) -> None:
        self.done, self._clock, self._seed = 0, 0.0, seed
        self._ends = np.empty(0)

    def fill(self, labels: Integers, times: Floats, weights: Floats) -> None:
        """Go on until all labels are there, or the weights have all been seen."""
        num_seen = self._ends.size
        start = self._ends[-1] if num_seen else 0.0
        self._ends = np.concatenate([self._ends, start + weights.cumsum()])
        from pyro_ext.random_measures import _seating

        self.done, self._clock, self._seed = _seating.seat_by_arrivals(
            labels, self.done, self._clock, times, self._ends, num_seen, self._seed
        )


def seat_by_counts(
    discount: float, concentration: float, num_samples: int, num_draws: int
) -> Tensor:
    """Draw the labels of samples from a Pitman-Yor process, by its urn scheme."""
    from pyro_ext.random_measures import _seating

    labels = np.empty((num_draws, num_samples), np.int64)
    for row, seed in zip(labels, torch.randint(2**31 - 1, (num_draws,)).tolist(), strict=True):
        _seating.seat_by_counts(row, discount, concentration, seed)
    return torch.from_numpy(labels)


class ClusterCounts:
    r"""Exact draws of the cluster sizes of a normalized measure.

    Let every weight :math:`w` have points at rate :math:`w` over time. The first :math:`n` points
    are samples from the normalized measure. Points are drawn in one time interval after another
    until there are :math:`n` of them, and the last interval is cut after the last of these. The
    length of an interval depends only on earlier draws, which leaves the distribution unchanged.
    The number of weights that have points is a Poisson process over the values of the Laplace
    exponent.
    """

    def __init__(self, measure: LevyMeasure, num_samples: int) -> None:
        self._number = num_samples
        self._process = arrival_process(measure._unsqueezed(), ExponentialArrivals())
        self._inverse = InverseExponent(measure)
        # One table for the numbers of clusters that are common; it grows where there are more.
        high = torch.tensor(_REACH * num_samples**0.5 + _FIRST_LEVEL).double().log()
        self._device = measure._filled(0.0).device
        self._times(torch.stack([torch.full_like(high, _LOW), high]).to(self._device))

    def sample(self) -> Tensor:
        """Draw once."""
        weights = torch.zeros(0, dtype=torch.float64, device=self._device)
        counts = weights.long()
        level, time, done = 0.0, 0.0, 0
        while done < self._number:
            old_level, old_time = level, time
            level, time = self._next(level, time, float(weights.sum()), self._number - done)
            fresh = torch.poisson(weights.new_tensor([level - old_level]))
            points = torch.rand(int(fresh), dtype=torch.float64, device=self._device)
            starts = torch.full_like(weights, old_time)
            if len(points):
                log_times = self._times((old_level + (level - old_level) * points).log())
                weights = torch.cat([weights, self._process.sample_weight(log_times).exp()])
                starts = torch.cat([starts, log_times.exp().clamp(min=old_time, max=time)])
            is_new = torch.arange(len(weights), device=self._device) >= len(counts)
            more = torch.poisson(weights * (time - starts)).long()
            added = int(more.sum()) + len(points)
            if done + added >= self._number:
                kept = self._earliest(starts, more, is_new, time, self._number - done)
            else:
                kept = more + is_new.long()
            counts = torch.nn.functional.pad(counts, (0, len(points))) + kept
            done += int(kept.sum())
        return counts[counts > 0]

    def _next(self, level: float, time: float, total: float, missing: int) -> tuple[float, float]:
        """Find where the next stretch ends, as value of the Laplace exponent and as time."""
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
        """Count the first points of a stretch that each weight has."""
        owners = torch.arange(len(more), device=more.device).repeat_interleave(more)
        uniform = torch.rand(len(owners), dtype=starts.dtype, device=starts.device)
        points = starts[owners] + uniform * (end - starts[owners])
        points = torch.cat([points, starts[is_new]])
        owners = torch.cat([owners, torch.nonzero(is_new).squeeze(-1)])
        first = points.topk(number, largest=False, sorted=False).indices
        return owners[first].bincount(minlength=len(more))


def _scaled_series(log_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Coefficients of :math:`A`, the largest of them one; logarithms of factor and power."""
    number = log_values.shape[-1]
    order = torch.arange(1, number + 1, dtype=log_values.dtype, device=log_values.device)
    logs = log_values - (order + 1.0).lgamma()
    if number > 1:
        log_power = (logs[..., :1] - logs[..., -1:]) / (number - 1)
    else:
        log_power = torch.zeros_like(logs)
    logs = logs + log_power * order
    log_factor = logs.amax(-1, keepdim=True)
    return (logs - log_factor).exp(), log_factor.squeeze(-1), log_power.squeeze(-1)


def log_sums_by_blocks(log_values: Tensor) -> Tensor:
    r"""Logarithms of the sums over partitions of all elements into 1 to n blocks."""
    series, log_factor, log_power = _scaled_series(log_values)
    number = series.shape[-1]
    # Row i, column j of the matrix is the coefficient of order j - i.
    gap = torch.arange(number, device=series.device)
    gap = gap[None, :] - gap[:, None] - 1
    matrix = torch.where(gap >= 0, series[..., gap.clamp(min=0)], 0.0)
    power, log_scale, results = series, torch.zeros_like(log_factor), []
    for block in range(1, number + 1):
        if block > 1:
            power = (power[..., None, :] @ matrix).squeeze(-2)
            largest = power.amax(-1).clamp(min=1e-300)
            power, log_scale = power / largest[..., None], log_scale + largest.log()
        results.append(power[..., -1].log() + log_scale + block * log_factor)
    blocks = torch.arange(1, number + 1, dtype=series.dtype, device=series.device)
    value = torch.stack(results, -1) - (blocks + 1.0).lgamma()
    return value + math.lgamma(number + 1.0) - (number * log_power)[..., None]


def log_sums_over_partitions(log_values: Tensor) -> Tensor:
    r"""Logarithms of the coefficients :math:`[z^m] e^{A(z)}` for :math:`m = 0, \dots, n`."""
    series, log_factor, log_power = _scaled_series(log_values)
    number = series.shape[-1]
    order = torch.arange(1, number + 1, dtype=series.dtype, device=series.device)
    log_slopes = series.log() + order.log() + log_factor[..., None]
    logs = [torch.zeros_like(log_factor)]
    for total in range(1, number + 1):
        earlier = torch.stack(logs[::-1], -1)
        logs.append((log_slopes[..., :total] + earlier).logsumexp(-1) - order[total - 1].log())
    points = torch.arange(number + 1, dtype=series.dtype, device=series.device)
    return torch.stack(logs, -1) - points * log_power[..., None]
