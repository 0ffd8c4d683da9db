"""Convergence of a functional to its limit, as a population grows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_ext._lib import checks


class Drift(NamedTuple):
    """Drift of a functional as the population grew, averaged over draws and elements.

    :param Tensor sizes: sizes of the population. **Shape:** ``(num_checks + 1,)``; the first is
        that of the data.
    :param dict from_data: by name the mean absolute distance from the value on the data alone. It
        levels off where the horizon is long enough. **Shape:** ``(num_checks + 1,)`` each.
    :param dict to_end: by name that to the value of the last population, which falls to zero.
        **Shape:** ``(num_checks + 1,)`` each.
    """

    sizes: Tensor
    from_data: dict[str, Tensor]
    to_end: dict[str, Tensor]


class Moves(NamedTuple):
    """Moves of a functional in some draws."""

    from_data: Tensor  # mean absolute distance over elements (num_checks + 1, num_draws)
    to_end: Tensor  # that to the last value
    number: Tensor  # of finite moves over the last doubling (*event)
    total: Tensor  # their sum
    squares: Tensor  # sum of their squares


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


def moves(values: Sequence[Tensor], half: int) -> Moves:
    """Measure moves from the data to each check, and from the check numbered ``half`` on."""
    path = torch.stack([value.double() for value in values])
    doubled = path[-1] - path[half]
    finite = doubled.isfinite()
    doubled = doubled.where(finite, 0.0)
    from_data, to_end = ((path - path[i]).abs()[..., None].flatten(2) for i in (0, -1))
    return Moves(
        from_data.mean(2),
        to_end.mean(2),
        finite.double().sum(0),
        doubled.sum(0),
        (doubled**2).sum(0),
    )


def joined(parts: Sequence[Moves]) -> Moves:
    """Moves of several batches of draws together."""
    from_data, to_end, *sums = zip(*parts, strict=True)
    return Moves(
        torch.cat(from_data, 1), torch.cat(to_end, 1), *(torch.stack(part).sum(0) for part in sums)
    )


def remaining_fractions(values: Tensor, moved: Moves, half: int, size: int) -> Tensor:
    r"""Fraction of the variance in the limit that a population of some size lacks, by element.

    Increments of a martingale are uncorrelated. Where their variance falls as that of a mean does,
    with the inverse square of the size, what is still to come after the size :math:`N` is
    :math:`C / N`, and what came from :math:`M` on :math:`C / M - C / N`, from which :math:`C`
    follows.
    """
    if len(values) < 2:
        return values.new_full(values.shape[1:], math.nan, dtype=torch.float64)
    spread = moved.squares - moved.total**2 / moved.number
    remaining = spread / (moved.number - 1.0) * (half / (size - half))
    return remaining / (remaining + values.double().var(0))


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

    The mean over points of :math:`|p_N(y) - p_n(y)|`, at each of them exact. It settles as
    predictive resampling converges.

    :param population: distributions of populations, with the batch shape ``(num_draws,)``.
    :param distribution: that of the data.
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
