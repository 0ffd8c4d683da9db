"""Series of a measure's weights: their draws, their lengths and the mass that they lose."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.random import seeded
from pyro_ext.random_measures.arrivals import (
    DeterministicArrivals,
    ExponentialArrivals,
    arrival_process,
    check_family,
)
from pyro_ext.random_measures.levy_measure import (
    ArrivalFamily,
    ArrivalProcess,
    LevyMeasure,
    SeriesMethod,
)

_BLOCK = 32
_MOST_JUMPS = 10**7


class Series(NamedTuple):
    """The first weights of a series."""

    weights: Tensor  # in the order of their arrival, (*batch, num_jumps)
    arrivals: Tensor  # their arrival times, (*batch, num_jumps)
    lost_mass: Tensor  # expected mass of the weights that come later, batch


class ArrivalSeries:
    """The series of a family of arrival times."""

    def __init__(self, process: ArrivalProcess) -> None:
        self._process = process

    def sample(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Times at which the mean number of arrivals is that of the points, and their weights."""
        log_time = self._process.log_time(points.log())
        return self._process.sample_weight(log_time), log_time

    def log_later(self, point: Tensor, order: float) -> Tensor:
        """Moment of the weights that arrive after the time of a point."""
        return self._process.log_later(self._process.log_time(point.log()), order)


_FAMILIES: dict[str, ArrivalFamily] = {
    "size_biased": ExponentialArrivals(),
    "inverse_levy": DeterministicArrivals(),
}


def named_family(measure: LevyMeasure, method: str | ArrivalFamily) -> ArrivalFamily:
    """Return the arrival family of a name, or the family itself."""
    if not isinstance(method, str):
        check_family("method", method)
        return method
    if method not in _FAMILIES:
        known = ", ".join(map(repr, [*_FAMILIES, *measure._series_methods()]))
        raise ValueError(f"method must be {known} or an arrival family, got {method!r}")
    return _FAMILIES[method]


def series_method(measure: LevyMeasure, method: str | ArrivalFamily) -> SeriesMethod:
    """Return the method of a name or of a family."""
    own = measure._series_methods()
    if isinstance(method, str) and method in own:
        return own[method]()
    return ArrivalSeries(arrival_process(measure, named_family(measure, method)))


def draw_series(
    measure: LevyMeasure,
    num_jumps: int | None,
    method: str | ArrivalFamily,
    seed: int | None,
    tolerance: float | None,
    sample_shape: torch.Size,
) -> Series:
    """Draw a series of given length, or of the length that a tolerance asks for."""
    if (num_jumps is None) == (tolerance is None):
        raise ValueError(
            "exactly one of num_jumps and tolerance must be given, got "
            f"num_jumps={num_jumps!r}, tolerance={tolerance!r}"
        )
    shape = sample_shape + measure.batch_shape
    along = series_method(measure._unsqueezed(), method)
    way = series_method(measure, method)
    with seeded(seed):
        if tolerance is None:
            points = poisson_points(shape, checks.integer("num_jumps", num_jumps, 1), measure)
            log_weights, log_times = along.sample(points)
        else:
            fraction = checks.number("tolerance", tolerance, above=0, below=1)
            points, log_weights, log_times = _draw_until(way, along, measure, shape, fraction)
    lost = way.log_later(points[..., -1], 1.0).exp()
    results = (log_weights.exp(), log_times.exp(), lost)
    return Series(*(result.to(measure.dtype) for result in results))


def shortest_series(measure: LevyMeasure, tolerance: float, method: str | ArrivalFamily) -> int:
    """Least number of jumps whose expected loss is within a tolerance."""
    fraction = checks.number("tolerance", tolerance, above=0, below=1)
    mean = measure.mean.double()
    if not bool(mean.isfinite().all()):
        raise ValueError(
            "tolerance must be a fraction of a finite mean total mass, which is infinite here"
        )
    way = series_method(measure, method)

    def is_enough(count: int) -> bool:
        point = measure._filled(float(count))
        return bool((way.log_later(point, 1.0).exp() <= fraction * mean).all())

    high = 1
    while not is_enough(high):
        high *= 2
        if high > _MOST_JUMPS:
            raise ValueError(
                f"tolerance {tolerance:g} would take more than {_MOST_JUMPS} jumps: "
                "use a larger tolerance or a smaller discount"
            )
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def draw_above(
    measure: LevyMeasure, level: Tensor, seed: int | None, method: str, sample_shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """Draw all weights above a level, by inversion of the tail at Poisson points or otherwise."""
    shape, own = sample_shape + level.shape, measure._methods_above()
    if isinstance(method, str) and method in own:
        with seeded(seed):
            weights = own[method](level.expand(shape)).sort(-1, descending=True).values
        return weights.to(measure.dtype), weights > 0
    if method != "inversion":
        known = ", ".join(map(repr, ["inversion", *own]))
        raise ValueError(f"method must be one of {known}, got {method!r}")
    log_count = measure._log_tail(level.log()).expand(shape)
    with seeded(seed):
        number = torch.poisson(log_count.detach().exp())
        largest = int(number.max()) if number.numel() else 0
        points = torch.rand((*shape, largest), dtype=torch.float64, device=level.device)
    mask = torch.arange(largest, device=level.device) < number[..., None]
    # Uniform numbers that are not used sort behind the others.
    ordered = torch.where(mask, points, 2.0).sort(-1).values
    ordered = torch.where(mask, ordered, 0.5).clamp(min=1e-300)
    unsqueezed = measure._unsqueezed()
    weights = unsqueezed._inverse_tail(log_count[..., None] + ordered.log()).exp()
    return torch.where(mask, weights, 0.0).to(measure.dtype), mask


def poisson_points(shape: torch.Size, number: int, measure: LevyMeasure) -> Tensor:
    """Points of Poisson processes of unit rate. **Shape:** ``(*shape, number)``."""
    device = measure._filled(0.0).device
    steps = torch.rand((*shape, number), dtype=torch.float64, device=device)
    return (-torch.log1p(-steps)).clamp(min=1e-300).cumsum(-1)


def _draw_until(
    way: SeriesMethod, along: SeriesMethod, measure: LevyMeasure, shape: torch.Size, fraction: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw blocks of growing length until the expected rest is small enough."""
    points = poisson_points(shape, _BLOCK, measure)
    log_weights, log_times = along.sample(points)
    while True:
        rest = way.log_later(points[..., -1], 1.0).exp()
        if bool((rest <= fraction * log_weights.exp().sum(-1)).all()):
            return points, log_weights, log_times
        number = points.shape[-1]
        if number > _MOST_JUMPS:
            raise ValueError(
                f"tolerance {fraction:g} is not reached after {number} jumps: use a larger one"
            )
        new_points = points[..., -1:] + poisson_points(shape, number, measure)
        new_weights, new_times = along.sample(new_points)
        points = torch.cat([points, new_points], -1)
        log_weights = torch.cat([log_weights, new_weights], -1)
        log_times = torch.cat([log_times, new_times], -1)
