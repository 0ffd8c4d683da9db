"""Distributions that the copula recursion learns, and increasing maps of their normal scores."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.distributions.bases import halved
from pyro_ext.inference.martingale.copula_recursion import follow, rates
from pyro_ext.inference.martingale.predictive_rule import Resampled, uniforms

NUMBERS_AT_ONCE = 2**21

_HALVINGS = 45
_LIMIT = 4.75  # about where the scores of the copula are clipped
_LEAST = 1e-300
_AT_ONCE = 8  # points that a processor takes at once
_SHARPEST = 3.0  # times the slope of a chord: up to that, a cubic between two knots increases


def score_knots(bandwidth: float, per_scale: float) -> Tensor:
    """Equidistant normal scores, dense enough for what a bandwidth lets happen between them."""
    return _equidistant(_LIMIT, bandwidth, per_scale)


def _equidistant(limit: float, bandwidth: float, per_scale: float) -> Tensor:
    number = 2.0 * limit * per_scale / math.sqrt(1.0 - bandwidth**2)
    number = max(math.ceil(number / _AT_ONCE), 1) * _AT_ONCE
    return torch.linspace(-limit, limit, number, dtype=torch.float64)


def to_score(probability: Tensor) -> Tensor:
    """Normal scores of probabilities, finite at zero and one."""
    most = 1.0 - torch.finfo(torch.float64).eps / 2
    score: Tensor = torch.special.ndtri(probability.clamp(_LEAST, most))
    return score


class ScoreMap(NamedTuple):
    r"""Increasing maps :math:`g`, cubic between knots.

    A distribution with the distribution function :math:`F` turns into that with
    :math:`\Phi[g\{\Phi^{-1}(F(y))\}]`. Beyond the knots the maps are linear.
    The cubics increase, since slopes are limited where they must be [1].

    :param Tensor knots: the knots, equidistant. **Shape:** ``(num_knots,)``.
    :param Tensor values: of the maps there. **Shape:** ``(num_maps, num_knots)``.
    :param Tensor slopes: of the maps there. **Shape:** ``(num_maps, num_knots)``.

    [1] F. N. Fritsch, R. E. Carlson (1980), Monotone piecewise cubic interpolation.
    """

    knots: Tensor
    values: Tensor
    slopes: Tensor

    @staticmethod
    def of_distribution(knots: Tensor, cdfs: Tensor, log_ratio: Tensor) -> "ScoreMap":
        """Maps that turn a distribution into others, from those at knots."""
        values = to_score(cdfs)
        slopes = (log_ratio + 0.5 * (values**2 - knots**2)).exp()
        chords = (values[:, 1:] - values[:, :-1]).clamp(min=0.0) / (knots[1] - knots[0])
        least = torch.minimum(
            torch.cat([chords[:, :1], chords], 1), torch.cat([chords, chords[:, -1:]], 1)
        )
        return ScoreMap(knots, values, torch.minimum(slopes, _SHARPEST * least))

    def forward(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Values and slopes of the maps, ``(num_maps, num_points)``, with gradients in scores."""
        scores = scores.expand(len(self.values), -1)
        inside = scores.clamp(self.knots[0], self.knots[-1])
        cell = ((inside.detach() - self.knots[0]) / self._step).long()
        cell = cell.clamp(0, len(self.knots) - 2)
        value, slope = self._cubic(cell, (inside - self.knots[cell]) / self._step)
        return value + slope * (scores - inside), slope

    def inverse(self, values: Tensor) -> Tensor:
        """Scores at which the maps have values ``(num_maps, num_points)``, without gradients."""
        values = values.detach().contiguous()
        inside = torch.minimum(torch.maximum(values, self.values[:, :1]), self.values[:, -1:])
        cell = torch.searchsorted(self.values.contiguous(), inside.contiguous(), right=True) - 1
        cell = cell.clamp(0, self.values.shape[1] - 2)
        ends = torch.zeros_like(values), torch.ones_like(values)
        low, high = halved(lambda x: self._cubic(cell, x)[0] < inside, *ends, _HALVINGS)
        scores = self.knots[cell] + 0.5 * (low + high) * self._step
        tail = torch.where(values > inside, self.slopes[:, -1:], self.slopes[:, :1])
        return scores + (values - inside) / tail.clamp(min=torch.finfo(values.dtype).tiny)

    @property
    def _step(self) -> Tensor:
        return self.knots[1] - self.knots[0]

    def _cubic(self, cell: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
        """Values and slopes in cells, at parts of their length."""
        step = self._step
        left, right = self.values.gather(1, cell), self.values.gather(1, cell + 1)
        first = self.slopes.gather(1, cell) * step
        last = self.slopes.gather(1, cell + 1) * step
        rise = right - left
        quadratic, cubic = 3.0 * rise - 2.0 * first - last, first + last - 2.0 * rise
        value = left + part * (first + part * (quadratic + part * cubic))
        slope = first + part * (2.0 * quadratic + 3.0 * part * cubic)
        return value, slope / step


_REACH = 10.0  # standard deviations in which vectors are sought
_NUMBERS_AT_ONCE = 2**20  # for moments
_TABLE_REACH = 6.5


class Future(NamedTuple):
    """Future observations, which predictive resampling adds to the data."""

    keys: Tensor  # of the draws' random streams
    num_observed: int
    size: int  # that each population has reached
    maps: ScoreMap | None  # of the data's distribution to those of the populations, for numbers


class CopulaState(NamedTuple):
    """Populations of a copula rule, at knots of normal scores; no knots for vectors."""

    distribution: Any  # that of the data, at the queries where there are covariates
    cdfs: Tensor  # (num_draws, 1, num_queries * num_knots)
    log_ratio: Tensor  # log densities over that of the distribution, as ``cdfs``


def followed(state: Resampled, num_steps: int) -> Resampled:
    """Populations with so many more observations, followed at their knots."""
    value: CopulaState = state.value
    size = state.size + num_steps
    if value.cdfs.shape[-1]:
        future = Future(state.keys, state.num_observed, size, None)
        cdfs, ratio = value.distribution._added(value.cdfs, value.log_ratio, future, state.size)
        value = value._replace(cdfs=cdfs, log_ratio=ratio)
    return state._replace(size=size, value=value)


def future_numbers(future: Future, size: int, width: int) -> Iterator[tuple[slice, Tensor]]:
    """Uniform numbers ``(draws, num_steps, width)`` from a size on, some draws at a time."""
    num_steps = future.size - size
    at_once = max(NUMBERS_AT_ONCE // (num_steps * width), 1)
    for start in range(0, len(future.keys), at_once):
        part = slice(start, start + at_once)
        numbers = uniforms(future.keys[part].cpu(), size * width, future.size * width)
        yield part, numbers.reshape(-1, num_steps, width)


def standardization(values: Tensor, standardize: bool, argument: str) -> tuple[Tensor, Tensor]:
    """Location and scale of columns, or zero and one."""
    if not standardize:
        return torch.zeros_like(values[0]), torch.ones_like(values[0])
    scale = values.std(0, correction=0)
    if not bool((scale > 0.0).all()):
        raise ValueError(
            f"{argument} must hold at least two different values in each column to be "
            f"standardized, got standard deviations {scale.tolist()!r:.80}; pass standardize=False "
            "for data that are on the scale of standard normal numbers"
        )
    return values.mean(0), scale


def table_scores(bandwidth: float, per_scale: float = 32.0) -> Tensor:
    """Standardized knots at which a distribution is tabulated."""
    return _equidistant(_TABLE_REACH, bandwidth, per_scale)


def future_knots(bandwidth: float, num_observed: int, per_scale: float = 6.0) -> Tensor:
    """Scores at which maps of the future are followed, more of them for few observations."""
    return score_knots(bandwidth, per_scale * max(1.0, (200.0 / num_observed) ** (1.0 / 3.0)))


def is_same(one: Tensor | None, other: Tensor) -> bool:
    """Tell whether two data sets have the same dtype, shape and values."""
    return one is not None and one.dtype == other.dtype and torch.equal(one, other)


class CopulaDistribution(TorchDistribution):
    """Distributions with dimensions for draws and for queries, each of which may be missing."""

    arg_constraints: dict[str, Any] = {}
    _own_shape: torch.Size  # the batch shape without what was expanded
    _num_queries: int
    _bandwidths: Tensor
    _loc: Tensor
    _scale: Tensor
    _dtype: torch.dtype
    _device: torch.device
    _future: Future | None
    _table: ScoreMap | None

    @constraints.dependent_property
    def support(self) -> Any:
        """The real line or space."""
        return constraints.real_vector if self.event_shape else constraints.real

    @abstractmethod
    def _base(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Both under the distribution of the data, at ``(num_points, num_queries, dimension)``."""

    @abstractmethod
    def _steps(self, future: Future, size: int) -> Iterator[tuple[slice, Tensor, dict[str, Any]]]:
        """Draws, what they see from a size on, and what else ``follow`` takes."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Repeat the distribution over a larger batch shape."""
        new = self._get_checked_instance(type(self), _instance)  # type: ignore[no-untyped-call]
        torch.broadcast_to(torch.empty(self.batch_shape), torch.Size(batch_shape))
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, exact, with a gradient in the value."""
        if self._validate_args:
            self._validate_sample(value)
        result: Tensor = self._evaluate(value)[1][..., -1] - self._scale.log().sum()
        return self._given(result)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function of a number, exact."""
        self._require_number("cdf", "conditional_cdfs has those of each coordinate")
        if self._validate_args:
            self._validate_sample(value)
        return self._given(self._evaluate(value)[0][..., 0])

    def conditional_cdfs(self, value: Tensor) -> Tensor:
        """Distribution function of each coordinate, given those before it; shaped as the value."""
        return self._given(self._evaluate(value)[0])

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles of a number, by interpolation, without gradients."""
        self._require_number("icdf", "sample draws vectors")
        value = torch.as_tensor(value, dtype=torch.float64).detach()
        if not bool(((value > 0.0) & (value < 1.0)).all()):
            raise ValueError(f"value must hold probabilities in (0, 1), got {value!r:.80}")
        flat, restore = self._flatten(to_score(value.cpu())[..., None])
        scores = flat[..., 0].permute(1, 2, 0)
        num_draws, num_queries, number = scores.shape
        if self._future is not None and self._future.maps is not None:
            scores = self._future.maps.inverse(scores.reshape(num_draws * num_queries, number))
        scores = scores.reshape(num_draws, num_queries, number).transpose(0, 1).flatten(1)
        knots = self._base_map().inverse(scores).reshape(num_queries, num_draws, number)
        result: Tensor = restore(knots.permute(2, 1, 0)[..., None])[..., 0]
        return self._given(result * self._scale[0] + self._loc[0])

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with PyTorch's generator, by inversion, one coordinate after the other."""
        shape = self._extended_shape(torch.Size(sample_shape))
        tiny = torch.finfo(torch.float64).eps
        uniform = torch.rand(shape, dtype=torch.float64).clamp(tiny, 1.0 - tiny)
        return self._by_inversion(uniform) if self.event_shape else self.icdf(uniform)

    def _by_inversion(self, uniform: Tensor) -> Tensor:
        """Vectors whose conditional distribution functions are given numbers."""
        shape, scale, loc = uniform.shape, self._scale, self._loc
        value = loc.expand(shape).clone()
        with torch.no_grad():
            for i in range(shape[-1]):
                low = torch.full(shape[:-1], -_REACH, dtype=torch.float64)
                high = -low
                for _ in range(_HALVINGS):
                    middle = 0.5 * (low + high)
                    value[..., i] = loc[i] + scale[i] * middle
                    is_below = self._evaluate(value)[0][..., i] < uniform[..., i]
                    low = torch.where(is_below, middle, low)
                    high = torch.where(is_below, high, middle)
        return self._given(value)

    @property
    def mean(self) -> Tensor:
        """Mean of a number, by quadrature."""
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """Variance of a number, by quadrature."""
        return self._moments()[1]

    def _moments(self) -> tuple[Tensor, Tensor]:
        self._require_number("mean", "take that of draws")
        table = self._base_map()
        knots = table.knots
        middle = 0.5 * (knots[1:] + knots[:-1])
        pieces = []
        width = max(_NUMBERS_AT_ONCE // len(knots), 1)
        for rows in torch.arange(max(self._own_shape.numel(), 1)).split(width):
            scores = table.values[rows % self._num_queries]
            if self._future is not None and self._future.maps is not None:
                maps = self._future.maps
                part = ScoreMap(maps.knots, maps.values[rows], maps.slopes[rows])
                scores = part.forward(scores)[0]
            cdfs = torch.special.ndtr(scores)
            cdfs[:, 0], cdfs[:, -1] = 0.0, 1.0
            mass = cdfs.diff(dim=1)
            mean = (mass * middle).sum(1)  # a matrix product would depend on the other rows
            pieces.append(torch.stack([mean, (mass * (middle - mean[:, None]) ** 2).sum(1)]))
        mean, variance = torch.cat(pieces, 1).reshape(2, *self._own_shape)
        mean, variance = mean * self._scale[0] + self._loc[0], variance * self._scale[0] ** 2
        shape = self.batch_shape
        return self._given(mean.expand(shape)), self._given(variance.expand(shape))

    def _base_map(self) -> ScoreMap:
        """The distribution of the data as a map of the normal distribution, one for each query."""
        if self._table is None:
            knots = self._table_scores()
            points = knots[:, None, None].expand(-1, self._num_queries, 1)
            with torch.no_grad():
                cdfs, log_density = self._base(points)
            constant = torch.log(torch.tensor(2.0 * torch.pi, dtype=torch.float64))
            ratio = log_density[..., 0].T + 0.5 * knots**2 + 0.5 * constant
            self._table = ScoreMap.of_distribution(knots, cdfs[..., 0].T, ratio)
        return self._table

    @abstractmethod
    def _table_scores(self) -> Tensor:
        """Return the standardized points at which the distribution of the data is tabulated."""

    def _evaluate(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Conditional distribution functions and log densities of standardized coordinates."""
        value = value if self.event_shape else value[..., None]
        points, restore = self._flatten((value.double().cpu() - self._loc) / self._scale)
        num_points, num_draws, num_queries, dimension = points.shape
        shared = points
        if num_draws > 1 and bool((points == points[:, :1]).all()):
            shared = points[:, :1]
        cdfs, log_density = self._base(shared.reshape(-1, num_queries, dimension))
        cdfs = cdfs.reshape(shared.shape).expand(points.shape)
        log_density = log_density.reshape(shared.shape).expand(points.shape)
        if self._future is not None:
            cdfs, log_density = (
                part.permute(1, 3, 2, 0).flatten(2) for part in (cdfs, log_density)
            )
            done = self._added(cdfs, log_density, self._future, self._future.num_observed)
            shape = (num_draws, dimension, num_queries, num_points)
            cdfs, log_density = (part.reshape(shape).permute(3, 0, 2, 1) for part in done)
        return restore(cdfs), restore(log_density)

    def _added(
        self, cdfs: Tensor, log_density: Tensor, future: Future, size: int
    ) -> tuple[Tensor, Tensor]:
        """Complete populations ``(num_draws, dimension, num_queries * num_points)``."""
        if future.size == size:
            return cdfs, log_density
        rate, group = rates(size + 1, future.size), cdfs.shape[-1] // self._num_queries
        done = []
        for part, numbers, options in self._steps(future, size):
            points = cdfs[part], log_density[part]
            done.append(follow(*points, numbers, rate, self._bandwidths, group=group, **options))
        cdfs, log_density = (torch.cat(several) for several in zip(*done, strict=True))
        return cdfs, log_density

    def _flatten(self, value: Tensor) -> tuple[Tensor, Any]:
        """As ``(num_points, num_draws, num_queries, dimension)``, and what reverses that."""
        dimension = value.shape[-1]
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        value = value.expand(*shape, dimension)
        own = (1,) * (len(shape) - len(self._own_shape)) + tuple(self._own_shape)
        axes = [axis for axis, size in enumerate(own) if size == 1]
        axes += [axis for axis, size in enumerate(own) if size != 1]
        moved = value.permute(*axes, len(shape))
        num_draws = self._own_shape.numel() // self._num_queries
        back = [axes.index(axis) for axis in range(len(shape))]

        def restore(result: Tensor) -> Tensor:
            result = result.reshape(*moved.shape[:-1], result.shape[-1])
            return result.permute(*back, len(shape))

        return moved.reshape(-1, num_draws, self._num_queries, dimension), restore

    def _given(self, result: Tensor) -> Tensor:
        """The result in the type and on the device of the data."""
        return result.to(self._device, self._dtype)

    def _require_number(self, what: str, instead: str) -> None:
        if self.event_shape:
            raise NotImplementedError(
                f"{what} of vectors with the event shape {tuple(self.event_shape)} has no closed "
                f"form; {instead}"
            )
