"""Checks of a completely random measure against its Lévy density, and of its partitions.

Each function checks one aspect by quadrature of the Lévy density or by enumeration.
:func:`check_measure` calls all of them except those for series and partitions, which are slow.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from pyro_ext.random import seeded
from pyro_ext.random_measures import CompletelyRandomMeasure
from pyro_ext.testing._comparisons import close, require, same_shape
from pyro_ext.testing._quadrature import Panels
from pyro_ext.testing.distributions import check_density

__all__ = [
    "check_finite_approximation",
    "check_inverses",
    "check_levy_integrals",
    "check_measure",
    "check_partition_draws",
    "check_partitions",
    "check_series",
    "check_tilt_and_scale",
]

_POINTS = (1e-6, 0.03, 0.7, 30.0, 1e5)
_FALSE_ALARMS = 1e-6  # fraction of seeds for which what is correct fails
_CLOSEST = 20.0


def check_measure(measure: CompletelyRandomMeasure, *, tolerance: float = 1e-8) -> None:
    """Check integrals, inverses, tilts, scales and expansion of a measure.

    :param CompletelyRandomMeasure measure: a measure in float64, without a batch shape.
    :param float tolerance: relative tolerance of all integrals.
    :raises AssertionError: if a check fails; the message says which, and by how much.

    Example::

        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> numbers = torch.tensor([2.0, 0.4, 1.5], dtype=torch.float64)
        >>> check_measure(GeneralizedGammaProcess(*numbers))
        >>> class Wrong(GeneralizedGammaProcess):
        ...     def laplace_exponent(self, value):
        ...         return 1.01 * super().laplace_exponent(value)
        >>> check_measure(Wrong(*numbers))
        Traceback (most recent call last):
        AssertionError: laplace_exponent of Wrong and its integral differ: ... (tolerance 1e-08)
    """
    check_levy_integrals(measure, tolerance=tolerance)
    check_inverses(measure)
    check_tilt_and_scale(measure, tolerance=tolerance)
    name, x = type(measure).__name__, torch.tensor([0.3, 0.6, 0.8], dtype=torch.float64)
    wide = measure.expand((2, 1))
    same_shape(f"batch shape of {name}", wide.batch_shape, (2, 1))
    for what, function in _functions(x).items():
        same_shape(f"{what} of {name}", function(wide).shape, (2, 3))
        close(f"{what} of {name} and in a batch", function(wide)[0], function(measure), 1e-9)


def check_levy_integrals(measure: CompletelyRandomMeasure, *, tolerance: float = 1e-8) -> None:
    """Compare Laplace exponent, moments and tail with quadrature of the Lévy density.

    :param CompletelyRandomMeasure measure: a measure in float64, without a batch shape.
    :param float tolerance: relative tolerance.
    """
    name = type(measure).__name__
    points = torch.tensor(_POINTS, dtype=torch.float64)

    def one_minus_exp(w: Tensor, t: float) -> Tensor:
        return -torch.expm1(-t * w)

    def power(w: Tensor, n: float, u: float) -> Tensor:
        """Tilted power over its largest value, so that no number overflows."""
        return (n * (w * (u / n)).log() + n - u * w).exp()

    def weight(w: Tensor, n: float, size: Tensor) -> Tensor:
        return w**n / size

    pairs = [(n, u) for n in (1.0, 2.0, 7.5) for u in (1e-3, 0.7, 30.0)]
    functions: list[Callable[[Tensor], Tensor]]
    functions = [partial(one_minus_exp, t=t) for t in _POINTS]
    functions += [partial(power, n=n, u=u) for n, u in pairs]
    totals = _integrals(measure, functions)
    exponent = measure.laplace_exponent(points)
    what = f"laplace_exponent of {name} and its integral"
    close(what, exponent.log(), totals[: len(points)].log(), tolerance)
    shift = torch.tensor([n * math.log(n / u) - n for n, u in pairs], dtype=torch.float64)
    moments = totals[len(points) :].log() + shift
    kappa = torch.stack([measure.log_kappa(n, u) for n, u in pairs])
    close(f"log_kappa of {name} and its integral", kappa, moments, tolerance)
    for what, order in (("mean", 1.0), ("variance", 2.0)):
        value = getattr(measure, what)
        if bool(value.isfinite()):
            (total,) = _integrals(measure, [partial(weight, n=order, size=value.detach())])
            close(f"{what} of {name} and its integral", torch.ones_like(total), total, tolerance)
        else:
            index = measure.index_at_infinity
            wrong = f"{what} of {name} is {value:g} with an index of {index:g}"
            require(bool(index <= order), wrong)
    low, high = _ends(measure)
    for size in points[(points.log() > low) & (points < math.exp(min(high, 700.0)))]:
        total = _integrals(measure, [torch.ones_like], low=float(size.log()))
        what = f"log_tail of {name} at {size:g} and its integral"
        if bool(total[0] > 1e-250):
            close(what, measure.log_tail(size), total[0].log(), tolerance)
            close(f"tail of {name}", measure.tail(size).log(), total[0].log(), tolerance)


def check_inverses(measure: CompletelyRandomMeasure, *, tolerance: float = 1e-9) -> None:
    """Check that the inverses of exponent and tail are inverses, wherever values exist.

    :param CompletelyRandomMeasure measure: a measure in float64, without a batch shape.
    :param float tolerance: tolerance of logarithms.
    """
    name, number = type(measure).__name__, torch.logspace(-6, 4, 21, dtype=torch.float64)
    inside = number[number < 0.99 * measure.laplace_exponent(1e300)]
    found = measure.laplace_exponent(measure.inverse_laplace_exponent(inside))
    close(f"laplace_exponent of {name} at its inverse", found.log(), inside.log(), tolerance)
    # Up to sizes that are no more the largest size in its type.
    end = getattr(measure.support, "upper_bound", 1e300)
    inside = (number < 0.99 * measure.tail(1e-290)) & (number > measure.tail((1 - 1e-6) * end))
    found = measure.log_tail(measure.inverse_tail(number[inside]))
    close(f"log_tail of {name} at its inverse", found, number[inside].log(), tolerance)


def check_tilt_and_scale(measure: CompletelyRandomMeasure, *, tolerance: float = 1e-8) -> None:
    """Check densities, exponents and moments of the measure tilted, rescaled, and both.

    :param CompletelyRandomMeasure measure: a measure in float64, without a batch shape.
    :param float tolerance: relative tolerance.
    """
    name = type(measure).__name__
    both = measure.exponential_tilt(0.6).rescale(2.5).exponential_tilt(0.3)
    _, high = _ends(measure)
    fractions = torch.tensor([1e-5, 1e-3, 0.1, 0.9], dtype=torch.float64)
    size = fractions * 2.5 * min(1.0, math.exp(high))
    inner = size / 2.5
    t = torch.tensor([0.8, 1e4], dtype=torch.float64)
    density = measure.log_levy_density(inner) - math.log(2.5) - 0.6 * inner - 0.3 * size
    exponent = measure.laplace_exponent(2.5 * (t + 0.3) + 0.6) - measure.laplace_exponent(1.35)
    kappa = 3 * math.log(2.5) + measure.log_kappa(3, 2.5 * 0.5 + 0.6)
    for what, found, exact in (
        ("log_levy_density", both.log_levy_density(size), density),
        ("laplace_exponent", both.laplace_exponent(t), exponent),
        ("log_kappa", both.log_kappa(3, 0.2), kappa),
    ):
        close(f"{what} of {name} tilted and rescaled", found, exact, tolerance)


def check_finite_approximation(
    measure: CompletelyRandomMeasure, num_atoms: int = 12, *, tolerance: float = 1e-7
) -> None:
    """Check the distribution of the weights of a finite approximation, and its stated error.

    :param CompletelyRandomMeasure measure: a measure in float64, without a batch shape.
    :param int num_atoms: number of weights.
    :param float tolerance: relative tolerance.
    """
    name, weight = type(measure).__name__, measure.finite(num_atoms)
    t = 0.7
    error = measure.finite_error(num_atoms, t)
    transform = torch.exp(-(measure.laplace_exponent(t) + error) / num_atoms).item()
    check_density(
        weight,
        expectations=[(lambda w: torch.exp(-t * w), transform)],
        tolerance=tolerance,
        cdf_tolerance=tolerance,
    )
    require(bool(error.isfinite()), f"finite_error of {name} is {error:g}")


def check_series(
    measure: CompletelyRandomMeasure,
    method: Any = "size_biased",
    *,
    num_jumps: int = 12,
    num_draws: int = 1_000,
    seed: int = 0,
) -> None:
    """Check order, seeds and mean of a series, which plus the lost mass is that of the measure.

    :param CompletelyRandomMeasure measure: a measure in float64, without a batch shape and with a
        finite mean.
    :param method: as in :meth:`~pyro_ext.random_measures.CompletelyRandomMeasure.series`.
    :param int num_jumps: number of weights.
    :param int num_draws: number of series.
    :param int seed: seed of the draws.
    """
    name = f"series of {type(measure).__name__} by {method}"
    state = torch.get_rng_state()
    shape = torch.Size([num_draws])
    weights, times, lost = measure.series(num_jumps, method, seed=seed, sample_shape=shape)
    require(torch.equal(torch.get_rng_state(), state), f"{name} with a seed moves the generator")
    again = measure.series(num_jumps, method, seed=seed, sample_shape=shape)
    require(torch.equal(again.weights, weights), f"{name} is not the same with the same seed")
    same_shape(name, weights.shape, (num_draws, num_jumps))
    is_weight = weights.isfinite() & (weights >= 0)
    require(bool(is_weight.all()), f"weights of {name} are not finite or negative")
    require(bool((times.diff(dim=-1) >= 0).all()), f"times of {name} do not rise")
    total = weights.sum(-1) + lost
    error = float(total.std()) / num_draws**0.5
    excess = max(abs(float(total.mean() - measure.mean)) - 1e-9, 0.0)
    z = excess / error if excess else 0.0
    require(
        z < stats.norm.isf(_FALSE_ALARMS / 2.0),
        f"the mean of {name} is {total.mean():.6g}, not {measure.mean:.6g} (z = {z:.3g})",
    )


def check_partitions(measure: Any, num_samples: int = 4, *, tolerance: float = 1e-9) -> None:
    """Check partition probabilities by enumeration: sums, predictions, clusters, and labels.

    :param measure: a normalized measure, or any object with its methods.
    :param int num_samples: number of samples whose partitions are all enumerated. Label vectors are
        enumerated for up to four samples.
    :param float tolerance: absolute tolerance.
    """
    name = type(measure).__name__
    for total in range(1, num_samples + 1):
        every = list(_partitions(total))
        ways = torch.tensor([float(_number_of_set_partitions(sizes)) for sizes in every]).double()
        eppf = torch.stack([measure.log_eppf(sizes) for sizes in every]).exp()
        mass = ways * eppf
        one = torch.ones_like(mass[0])
        close(f"sum of the EPPF of {name} for {total} samples and 1", mass.sum(), one, tolerance)
    number, size = torch.zeros(total).to(mass), torch.zeros(total).to(mass)
    for blocks, probability in zip(every, mass, strict=True):
        number[len(blocks) - 1] += probability
        for count in blocks:
            size[count - 1] += probability
    close(f"log_num_clusters of {name}", measure.log_num_clusters(total).exp(), number, tolerance)
    found = measure.expected_cluster_counts(total)
    close(f"expected_cluster_counts of {name}", found, size, tolerance)
    for sizes in ([1], [2, 1], [4, 4, 1]):
        whole = measure.log_eppf(sizes)
        more = [[*sizes[:j], sizes[j] + 1, *sizes[j + 1 :]] for j in range(len(sizes))]
        logs = [measure.log_eppf(other) - whole for other in [*more, [*sizes, 1]]]
        fractions, found = torch.stack(logs).exp(), measure.predictive(sizes)
        close(f"predictive of {name} after {sizes}", found, fractions, tolerance)
        close(f"sum of the predictive of {name} and 1", fractions.sum(), one, tolerance)
    fewer = min(num_samples, 4)  # of six samples there are 203 vectors of labels
    partition, labels = measure.partition(fewer), _labels(fewer)
    value = partition.log_prob(labels)
    close(f"sum over label vectors of {name} and 1", value.exp().sum(), one.to(value), tolerance)
    for other in (labels.flip(-1), 7 - labels):
        close(f"order and names of labels of {name}", partition.log_prob(other), value, tolerance)


def check_partition_draws(measure: Any, num_draws: int = 500, *, seed: int = 0) -> None:
    """Compare draws of partitions of four samples with their probabilities, by a chi-square test.

    :param measure: a normalized measure, or any object with its methods.
    :param int num_draws: number of draws.
    :param int seed: seed of the draws.
    """
    name, partition, every = type(measure).__name__, measure.partition(4), _labels(4)
    with seeded(seed):
        draws = partition.sample((num_draws,))
    same_shape(f"partitions of {name}", draws.shape, (num_draws, 4))
    require(draws.dtype == torch.long, f"partitions of {name} are {draws.dtype}")
    observed = (draws.unsqueeze(1) == every).all(-1).sum(0).double()
    is_ordered = bool(observed.sum() == num_draws)
    require(is_ordered, f"partitions of {name} are not in order of appearance")
    expected = partition.log_prob(every).exp() * num_draws
    p = stats.chisquare(observed.numpy(), expected.numpy(), sum_check=False).pvalue
    wrong = f"partitions of {name} do not have their probabilities: p = {p:.2g}"
    require(p > _FALSE_ALARMS, wrong)


def _functions(x: Tensor) -> dict[str, Callable[[Any], Tensor]]:
    """Functions of a measure at points."""
    return {
        "laplace_exponent": lambda m: m.laplace_exponent(x),
        "log_kappa": lambda m: m.log_kappa(2, x),
        "log_tail": lambda m: m.log_tail(x),
        "log_levy_density": lambda m: m.log_levy_density(x),
        "inverse_laplace_exponent": lambda m: m.inverse_laplace_exponent(0.01 * x),
        "lost_mass": lambda m: m.lost_mass(x + 1.0),
    }


def _ends(measure: CompletelyRandomMeasure) -> tuple[float, float]:
    """Logarithms of the least and the largest size."""
    support = measure.support
    low = float(torch.as_tensor(getattr(support, "lower_bound", 0.0)).max())
    high = float(torch.as_tensor(getattr(support, "upper_bound", torch.inf)).max())
    return (math.log(low) if low > 0 else -torch.inf), math.log(high)


def _integrals(
    measure: CompletelyRandomMeasure,
    functions: Sequence[Callable[[Tensor], Tensor]],
    low: float = -torch.inf,
) -> Tensor:
    """Integrals of functions of the size times the Lévy density, over logarithms of the size."""
    least, largest = _ends(measure)
    start = max(low, least)
    end = max(300.0, start + 300.0) if largest == torch.inf else largest
    near = torch.logspace(-9, 2.4, 40, dtype=torch.float64)

    def size_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
        if largest == torch.inf:
            return x.exp(), x
        # Towards the largest size over the odds, in which densities fall as exponential functions.
        weight = torch.sigmoid(x)
        return weight * math.exp(largest), x + 2.0 * torch.nn.functional.logsigmoid(-x)

    def integrand(x: Tensor) -> Tensor:
        size, log_slope = size_and_slope(x)
        if largest != torch.inf:
            log_slope = log_slope + largest
        density = (measure.log_levy_density(size) + log_slope).exp()
        return torch.stack([function(size) * density for function in functions])

    if largest == torch.inf:
        first = start if start > -torch.inf else -300.0
        last = end
    else:
        weight = math.exp(start - largest)
        first = math.log(weight / (1.0 - weight)) if start > -torch.inf else -300.0
        last = _CLOSEST
    # The density may jump at what the measure calls corners.
    corners = torch.stack(measure._log_corners()).double().flatten()
    if largest != torch.inf:
        corners = torch.special.logit((corners - largest).exp().clamp(max=0.99))
    edges = torch.linspace(first, last, 41, dtype=torch.float64)
    middle = torch.linspace(-20.0, 20.0, 41, dtype=torch.float64)
    edges = torch.cat([edges, middle, first + near, corners.detach()]).clamp(first, last).unique()
    panels = Panels(integrand, edges)
    is_cut = start > -torch.inf
    return panels.parts.sum(-1) + panels.after + (0.0 if is_cut else panels.before)


def _partitions(total: int, largest: int | None = None) -> Iterator[tuple[int, ...]]:
    """Block sizes of the partitions of a number, in falling order."""
    if total == 0:
        yield ()
    for first in range(min(total, largest or total), 0, -1):
        for rest in _partitions(total - first, first):
            yield (first, *rest)


def _number_of_set_partitions(sizes: Sequence[int]) -> int:
    """Number of partitions of a set into blocks of these sizes."""
    value = math.factorial(sum(sizes))
    for size, repeats in Counter(sizes).items():
        value //= math.factorial(size) ** repeats * math.factorial(repeats)
    return value


def _labels(number: int) -> Tensor:
    """All vectors of labels in order of appearance."""
    rows = [[0]]
    for _ in range(number - 1):
        rows = [[*row, label] for row in rows for label in range(max(row) + 2)]
    return torch.tensor(rows)
