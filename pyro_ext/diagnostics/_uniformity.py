"""Are ranks uniform? An exact test by their empirical distribution function, and its bands."""

import functools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, bdtrc, gammaln

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SLACK = 1e-9  # values that rounding has parted count as equal
_ROUNDING = 1e-11
_HALVINGS = 40


def ecdf_statistic(ranks: Ints, num_draws: int) -> Floats:
    r"""Smallest pointwise tail probability of empirical distribution functions of ranks [1].

    Under uniformity the number :math:`R_k` of ranks up to :math:`k` is binomial. The statistic is
    :math:`\gamma = \min_k 2 \min\{P(R \le R_k), P(R \ge R_k)\}` over :math:`k = 0, \dots, L - 1`.

    [1] T. Säilynoja, P.-C. Bürkner, A. Vehtari (2022), Graphical test for discrete uniformity and
    its applications in goodness-of-fit evaluation and multiple sample comparison.
    """
    tails = _tails(_cumulative(ranks, num_draws), len(ranks), num_draws)
    smallest: Floats = tails.min(0)
    return smallest


def ecdf_difference(ranks: Ints, num_draws: int) -> Floats:
    """Empirical distribution functions of ranks minus uniform ones, ``(num_draws, n)``."""
    uniform = np.arange(1, num_draws + 1)[:, None] / (num_draws + 1)
    return _cumulative(ranks, num_draws) / len(ranks) - uniform


def ecdf_p_value(statistic: float, num_ranks: int, num_draws: int) -> float:
    """Probability that independent uniform ranks have a statistic as small as this or smaller."""
    outside = 1.0 - _coverage(statistic * (1.0 + _SLACK), num_ranks, num_draws)
    # Small differences are rounding errors. What takes their place is a bound too: the statistic is
    # twice one of `num_draws` pairs of tail probabilities.
    return float(min(1.0, num_draws * statistic, max(outside, 0.0) + _ROUNDING))


@functools.lru_cache(maxsize=64)
def ecdf_band(num_ranks: int, num_draws: int, prob: float) -> tuple[Floats, Floats]:
    """Narrowest band that holds all of a function of uniform ranks with a probability."""
    low, high = (1.0 - prob) / num_draws / 2.0, 2.0  # coverage at `low` is large enough
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if _coverage(middle, num_ranks, num_draws) >= prob:
            low = middle
        else:
            high = middle
    least, most = _limits(low, num_ranks, num_draws)
    uniform = np.arange(1, num_draws + 1) / (num_draws + 1)
    return least / num_ranks - uniform, most / num_ranks - uniform


def holm(p_values: Floats) -> Floats:
    """Adjust p-values for their number, after Holm, whatever their dependence."""
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted


def _cumulative(ranks: Ints, num_draws: int) -> Ints:
    """Count the ranks up to k, for each k below the largest. **Shape:** ``(num_draws, n)``."""
    num_columns = ranks.shape[1]
    cells = ranks + (num_draws + 1) * np.arange(num_columns)
    counts = np.bincount(cells.ravel(), minlength=num_columns * (num_draws + 1))
    return counts.reshape(num_columns, num_draws + 1).cumsum(1)[:, :-1].T


def _tails(counts: Ints, num_ranks: int, num_draws: int) -> Floats:
    """Twice the smaller tail probability of each count. **Shape:** ``(num_draws, n)``."""
    uniform = np.arange(1, num_draws + 1)[:, None] / (num_draws + 1)
    below = bdtr(counts.astype(float), num_ranks, uniform)
    # The other tail, P(R >= count); the function asks for a count that is not negative.
    above = bdtrc(np.maximum(counts - 1, 0).astype(float), num_ranks, uniform)
    tails: Floats = 2.0 * np.minimum(below, np.where(counts > 0, above, 1.0))
    return tails


def _limits(statistic: float, num_ranks: int, num_draws: int) -> tuple[Ints, Ints]:
    """Least and largest count at each k whose tail probability is above a statistic."""
    uniform = np.arange(1, num_draws + 1) / (num_draws + 1)
    half = statistic / 2.0

    def first(holds: Callable[[Ints], npt.NDArray[np.bool_]]) -> Ints:
        """First count from 0 on at which a condition holds that then holds for all."""
        low, high = np.zeros(num_draws, dtype=np.int64), np.full(num_draws, num_ranks + 1)
        while (low < high).any():
            middle = (low + high) // 2
            found = holds(middle)
            high = np.where(found, middle, high)
            low = np.where(found, low, np.minimum(middle + 1, high))
        return low

    least = first(lambda count: bdtr(np.minimum(count, num_ranks) * 1.0, num_ranks, uniform) > half)
    # P(R >= count + 1), which falls below the bound at the largest count that is allowed.
    most = first(
        lambda count: bdtrc(np.minimum(count, num_ranks) * 1.0, num_ranks, uniform) <= half
    )
    return least, most


def _coverage(statistic: float, num_ranks: int, num_draws: int) -> float:
    """Probability that uniform ranks have a larger statistic: a sum over a Markov chain's paths."""
    least, most = _limits(statistic, num_ranks, num_draws)
    if (least > most).any():
        return 0.0
    mean = num_ranks / (num_draws + 1)
    log_factorials = gammaln(np.arange(num_ranks + 1) + 1.0)

    def poisson(counts: Ints) -> Floats:
        inside = np.clip(counts, 0, num_ranks)
        values = np.exp(inside * math.log(mean) - mean - log_factorials[inside])
        return np.where(counts >= 0, values, 0.0)

    path = poisson(np.arange(least[0], most[0] + 1))
    for k in range(1, num_draws):
        # Every step that leads from where the path may be to where it may go.
        steps = poisson(np.arange(least[k] - most[k - 1], most[k] - least[k - 1] + 1))
        path = np.convolve(path, steps, mode="valid")
    last = poisson(num_ranks - np.arange(least[-1], most[-1] + 1))
    log_total = num_ranks * math.log(num_ranks) - num_ranks - log_factorials[-1]
    return float(path @ last / math.exp(log_total))
