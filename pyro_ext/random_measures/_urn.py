"""Random partitions, one sample after the other."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext.random_measures._series import poisson_points
from pyro_ext.random_measures.arrivals import ExponentialArrivals

if TYPE_CHECKING:
    from pyro_ext.random_measures._measure import CompletelyRandomMeasure

__all__ = ["seat_by_arrivals", "seat_by_counts"]

_FIRST_BLOCK = 32
_LARGEST_BLOCK = 2**16
_FEW_POINTS = 256
_MOST_POINTS = 5000
_SPACING = 0.02

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def seat_by_arrivals(
    measure: "CompletelyRandomMeasure", num_samples: int, num_draws: int
) -> Tensor:
    r"""Labels of samples of a normalized measure, exactly, without its total mass.

    Let every weight :math:`w` have points at the rate :math:`w` over time. Then the labels of all
    points in the order of time are samples of the normalized measure. The first points of weights
    are the arrival times of the size-biased series; afterwards the weights are known.

    :param measure: a measure without batch shape.
    :param int num_samples: how many labels.
    :param int num_draws: how often.
    :returns: labels in the order of first occurrence. **Shape:** ``(num_draws, num_samples)``.
    """
    labels = np.empty((num_draws, num_samples), np.int64)
    wide = measure._unsqueezed()
    process, inverse = wide._arrivals(ExponentialArrivals()), InverseExponent(measure)
    seats = [_Seats(int(seed)) for seed in torch.randint(2**31 - 1, (num_draws,))]
    last_points = torch.zeros((num_draws, 1), dtype=torch.float64)
    waiting, block = list(range(num_draws)), _FIRST_BLOCK
    while waiting:
        shape = torch.Size((len(waiting),))
        points = last_points[waiting] + poisson_points(shape, block, measure).cpu()
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
    """Inverse of a Laplace exponent at many points, all but a few by interpolation.

    A cubic spline with the derivatives of the exponent goes through exact values, to an error far
    below what any number of draws can tell.
    """

    def __init__(self, measure: "CompletelyRandomMeasure") -> None:
        self._measure = measure
        self._spline: Any = None
        self._low, self._high = np.inf, -np.inf

    def __call__(self, log_targets: Tensor) -> Tensor:
        """Logarithms of the places, of those of the values. **Shape:** that of these."""
        if self._measure._is_closed or log_targets.numel() < _FEW_POINTS:
            return self._measure._inverse_exponent(log_targets)
        low, high = float(log_targets.min()), float(log_targets.max())
        if low < self._low or high > self._high:
            self._extend(min(low, self._low), max(high + 1.0, self._high))
        device = log_targets.device
        return torch.from_numpy(self._spline(log_targets.cpu().numpy())).to(device)

    def _extend(self, low: float, high: float) -> None:
        from scipy.interpolate import CubicHermiteSpline

        ends = self._measure._inverse_exponent(torch.tensor([low, high], dtype=torch.float64))
        start, stop = ends.tolist()
        number = int(min(max((stop - start) / _SPACING, 64), _MOST_POINTS))
        places = torch.linspace(start - 1e-6, stop + 1e-6, number, dtype=torch.float64)
        values = self._measure._log_exponent(places)
        slopes = (
            places + self._measure._log_moment(torch.ones_like(places), places) - values
        ).exp()
        self._spline = CubicHermiteSpline(values.numpy(), places.numpy(), 1.0 / slopes.numpy())
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
    """Labels of samples of a Pitman-Yor process, by its urn.

    A sample joins the cluster of an earlier one, picked at random, with the probability that the
    discount leaves it, and picks again otherwise; so each takes constant time on average.

    :param float discount: in [0, 1).
    :param float concentration: greater than minus the discount.
    :param int num_samples: how many labels.
    :param int num_draws: how often.
    :returns: labels in the order of first occurrence. **Shape:** ``(num_draws, num_samples)``.
    """
    from pyro_ext.random_measures import _seating

    labels = np.empty((num_draws, num_samples), np.int64)
    for row, seed in zip(labels, torch.randint(2**31 - 1, (num_draws,)).tolist(), strict=True):
        _seating.seat_by_counts(row, discount, concentration, seed)
    return torch.from_numpy(labels)
