"""Convergence of a functional to its limit, as a population grows."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_ext._lib import checks


class Drift(NamedTuple):
    """Drift of a functional as the population grew, averaged over draws and elements.

    :param Tensor sizes: sizes of the population. **Shape:** ``(num_checks + 1,)``; the first is
        the size of the data.
    :param dict from_data: mean absolute distance from the value on the data alone, by name. It
        levels off if the horizon is long enough. **Shape:** ``(num_checks + 1,)`` each.
    :param dict to_end: mean absolute distance from the value of the last population, by name; it
        falls to zero. **Shape:** ``(num_checks + 1,)`` each.
    """

    sizes: Tensor
    from_data: dict[str, Tensor]
    to_end: dict[str, Tensor]


def check_sizes(num_observed: int, size: int, num_checks: int) -> tuple[list[int], int]:
    """Sizes at which a functional is evaluated, and the one from which the last doubling starts.

    They are spaced evenly on the logarithmic scale up to half of the last size, which follows. With
    fewer than two checks there is no doubling, and the second result is the size of the data.

    Example::

        >>> check_sizes(10, 1000, 4)
        ([37, 136, 500, 1000], 500)
        >>> check_sizes(100, 150, 2)
        ([122, 150], 100)
    """
    if num_checks < 2:
        return [size], num_observed
    half = max(num_observed, size // 2)
    stop, number = (size, num_checks) if half == num_observed else (half, num_checks - 1)
    ratio = stop / num_observed
    spaced = [round(num_observed * ratio ** (step / number)) for step in range(1, number + 1)]
    return sorted({number for number in [*spaced, size] if number > num_observed}), half


def distances(path: Tensor, to: int) -> Tensor:
    """Mean absolute distance over draws and elements, of each check from one of them.

    Draws that are not finite on the way do not count. **Shape** of a path: ``(num_checks + 1,
    num_draws, *event)``.
    """
    return (path - path[to]).abs()[..., None].flatten(2).mean(2).nanmean(1)


def remaining_fractions(path: Tensor, half: int, from_size: int, size: int) -> Tensor:
    r"""Fraction of the variance in the limit that a population of some size lacks, by element.

    Increments of a martingale are uncorrelated. Where their variance falls as that of a mean does,
    with the inverse square of the size, what is still to come after the size :math:`N` is
    :math:`C / N`, and what came from :math:`M` on, at the check numbered ``half``,
    :math:`C / M - C / N`, from which :math:`C` follows.
    """
    last = path[-1]
    if len(last) < 2:
        return last.new_full(last.shape[1:], math.nan)
    moves = last - path[half]
    is_finite = moves.isfinite()
    number = is_finite.double().sum(0)
    moves = moves.where(is_finite, 0.0)
    spread = (moves**2).sum(0) - moves.sum(0) ** 2 / number
    remaining = spread / (number - 1.0) * (from_size / (size - from_size))
    return remaining / (remaining + last.var(0))


def surely_above(fraction: float, tolerance: float, num_draws: int) -> bool:
    """Tell whether a fraction of two variances exceeds a tolerance by more than chance."""
    from scipy.special import fdtri  # slow to import

    if math.isnan(fraction) or tolerance >= 1.0 or fraction <= 0.0:
        return False
    if fraction >= 1.0:
        return True
    ratio = fraction / (1.0 - fraction) / (tolerance / (1.0 - tolerance))
    return ratio > float(fdtri(num_draws - 1, num_draws - 1, 0.975))


def sufficient_size(fraction: float, tolerance: float, size: int) -> int:
    """Size at which no more than a tolerance is missing, rounded up to two figures."""
    wanted = size * fraction / tolerance
    digit = 10.0 ** max(0, math.floor(math.log10(wanted)) - 1)
    return round(math.ceil(wanted / digit) * digit)


def largest_fraction(fractions: Mapping[str, Tensor]) -> tuple[str, float]:
    """The functional that is farthest from its limit, and the fraction it lacks, over elements."""
    means = {name: float(fraction.nanmean()) for name, fraction in fractions.items()}
    return max(means.items(), key=lambda item: -math.inf if math.isnan(item[1]) else item[1])


def density_drift(population: Any, distribution: Any, points: Tensor) -> Tensor:
    r"""Measure how far populations have moved from the distribution of the data.

    This is the mean over points of :math:`|p_N(y) - p_n(y)|`, exact at each point. It settles as
    predictive resampling converges.

    :param population: distributions of populations, with batch shape ``(num_draws,)``.
    :param distribution: the distribution of the data.
    :param Tensor points: **Shape:** ``(num_points, *event)``.
    :returns: **Shape:** ``(num_draws,)``.

    Example::

        >>> wide = dist.Normal(torch.zeros(2), torch.tensor([1.0, 2.0]))
        >>> density_drift(wide, dist.Normal(0.0, 1.0), torch.zeros(1))
        tensor([0.0000, 0.1995])
    """
    for argument, value in (("population", population), ("distribution", distribution)):
        checks.instance(argument, value, TorchDistributionMixin, "a distribution")
    points = checks.as_tensor("points", points, "(num_points, ...)", finite=True)
    there: Tensor = population.log_prob(points[:, None]).exp()
    here: Tensor = distribution.log_prob(points).exp()[:, None]
    return (there - here).abs().mean(0)
