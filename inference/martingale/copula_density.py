"""A density estimate by the copula recursion: both a distribution and a predictive rule."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.martingale.copula_distribution import (
    NUMBERS_AT_ONCE,
    CopulaDistribution,
    CopulaState,
    Future,
    ScoreMap,
    followed,
    future_knots,
    future_numbers,
    is_same,
    standardization,
    table_scores,
)
from pyro_ext.inference.martingale.copula_recursion import (
    Prequential,
    checked_bandwidth,
    follow,
    maximize_over_bandwidths,
    mean_over_orders,
    normal_start,
    observation_orders,
    predict_in_turn,
    rates,
    spread,
    warn_of_narrow_posterior,
)
from pyro_ext.inference.martingale.predictive_rule import PredictiveRule, Resampled, single_tensor
from pyro_ext.inference.martingale.weighted_sample import WeightedSample
from pyro_ext.random import fresh_seed

_START = 0.9


class CopulaDensity(CopulaDistribution, PredictiveRule):
    r"""Density estimate by the copula recursion [1, 2], a distribution of numbers or vectors.

    A new object is the standard normal distribution :math:`P_0`; :meth:`fit` returns :math:`P_n`
    given data. With the normal copula, whose correlation :math:`\rho` is the bandwidth,

    .. math:: p_i(y) = p_{i-1}(y) [1 - \alpha_i + \alpha_i c_\rho\{P_{i-1}(y), P_{i-1}(y_i)\}],
              \quad \alpha_i = \frac{2 - 1/i}{i + 1} .

    Coordinates of vectors are taken in turn, each given those before it. The estimate is the mean
    of estimates from several random orders of the data. (In a conditional given earlier
    coordinates, orders are weighted by their densities at these coordinates, as in any mixture; the
    code of [2] weights them equally.) If no bandwidth is given, it maximizes the mean over orders
    of the prequential log likelihood :math:`\sum_i \log p_{i-1}(y_i)`. Data that look normal get a
    bandwidth near zero. This gives a good density, but observations hardly change it, so the
    posterior is too narrow; a warning says so, and you should pass a bandwidth.

    The density is also a rule for
    :class:`MartingalePosterior <pyro_ext.inference.MartingalePosterior>`. As in [2], the mean over
    orders is taken first, and future observations are added to that one distribution. ``log_prob``
    and ``cdf`` of a population are exact, and take about 10 ns for each step, draw, point and
    dimension. ``icdf``, ``mean`` and ``variance`` interpolate: for bandwidths up to 0.9, their
    error is below 1e-3 in probability for three observations, and below 1e-5 for a hundred. Vectors
    have none of these three; functionals use their :meth:`weighted_points`.

    Arithmetic is in float64 on the CPU; results have the type and the device of the data.

    :param bandwidth: :math:`\rho` in (0, 1): a number, a vector with one value for each dimension,
        or ``None`` to fit a single value for all dimensions.
    :param int num_permutations: number of random orders. With zero, the data keep their order.
    :param bool standardize: whether to standardize the data first; densities are on the original
        scale in any case. Otherwise the data must be on the scale of standard normal numbers.
    :param int seed: seed of the random orders.

    [1] P. R. Hahn, R. Martin, S. G. Walker (2018), On recursive Bayesian predictive distributions.

    [2] E. Fong, C. Holmes, S. G. Walker (2023), Martingale posterior distributions.

    Example::

        >>> data = torch.cat([torch.linspace(-3, -1, 30), torch.linspace(1, 2, 20)])
        >>> distribution = CopulaDensity(bandwidth=0.95).fit(data)
        >>> distribution.cdf(torch.tensor([-2.5, 0.0, 1.5]))
        tensor([0.1652, 0.5850, 0.7845])
    """

    def __init__(
        self,
        bandwidth: Tensor | float | None = None,
        num_permutations: int = 10,
        *,
        standardize: bool = True,
        seed: int = 0,
        validate_args: bool | None = None,
    ) -> None:
        self._wanted_bandwidth = checked_bandwidth("bandwidth", bandwidth)
        self.num_permutations = checks.integer("num_permutations", num_permutations, 0)
        self.standardize = bool(standardize)
        self.seed = fresh_seed(seed)
        self.data: Tensor | None = None
        self._dtype, self._device = torch.get_default_dtype(), torch.device("cpu")
        self._set_distribution(torch.zeros(1, 0, 1, dtype=torch.float64), torch.full((1,), _START))
        self._loc, self._scale = torch.zeros(1).double(), torch.ones(1).double()
        self._log_predicted = torch.zeros(1, 0, dtype=torch.float64)
        super().__init__(torch.Size(), torch.Size(), validate_args=validate_args)

    def _set_distribution(self, seen: Tensor, bandwidth: Tensor) -> None:
        self._seen, self._bandwidths = seen, bandwidth.double()
        self._width = len(bandwidth)  # uniform numbers of a step, also where some are left out
        self._own_shape, self._num_queries = torch.Size(), 1
        self._future: Future | None = None
        self._table: ScoreMap | None = None
        # Populations share it with the distribution that they come from.
        self._points: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def bandwidth(self) -> Tensor | None:
        r""":math:`\rho`: for each dimension after a fit, and as given before it."""
        value = self._wanted_bandwidth if self.data is None else self._bandwidths
        return None if value is None else self._given(value)

    @property
    def num_observed(self) -> int:
        """Number of observations in the data."""
        return self._seen.shape[1]

    @property
    def prequential_log_prob(self) -> Tensor:
        r"""Prequential log likelihood :math:`\sum_i \log p_{i-1}(y_i)`, averaged over orders."""
        value = self._log_predicted.sum(1).mean() - self.num_observed * self._scale.log().sum()
        return self._given(value)

    def fit(self, data: Tensor) -> "CopulaDensity":
        """Fit the distribution to data.

        :param Tensor data: **Shape:** ``(n,)`` for numbers, ``(n, dimension)`` for vectors.
        :returns: a new distribution.
        """
        data = checks.as_tensor("data", data, "(n, ...)", finite=True)
        data = single_tensor((data,), type(self).__name__)
        if data.dim() > 2 or data.shape[-1] == 0:
            raise ValueError(
                f"data must have the shape (n,) or (n, dimension), got {tuple(data.shape)}"
            )
        new = copy.copy(self)
        rows = data.detach().cpu().double().reshape(len(data), -1)
        loc, scale = standardization(rows, self.standardize, "data")
        points = (rows - loc) / scale
        orders = observation_orders(len(data), self.num_permutations, self.seed)
        bandwidth, predicted = self._fitted(points, orders)
        new._set_distribution(predicted.uniforms, bandwidth)
        new._loc, new._scale, new.data = loc, scale, data
        new._dtype, new._device = data.dtype, data.device
        new._log_predicted = predicted.log_density
        new._batch_shape, new._event_shape = torch.Size(), data.shape[1:]
        return new

    def _fitted(self, points: Tensor, orders: Tensor) -> tuple[Tensor, Prequential]:
        """The bandwidth of each dimension, and what it predicts."""
        dimension = points.shape[1]
        if self._wanted_bandwidth is not None:
            bandwidth = spread("bandwidth", self._wanted_bandwidth, dimension)
            return bandwidth, predict_in_turn(points, orders, bandwidth)
        directions = torch.ones(1, dimension, dtype=torch.float64)
        best: Prequential | None = None

        def objective(bandwidth: Tensor, wanted: Tensor) -> tuple[float, Tensor]:
            nonlocal best
            predicted = predict_in_turn(points, orders, bandwidth @ directions, wanted)
            if best is None or predicted.mean > best.mean:
                best = predicted
            return predicted.mean, predicted.mean_gradient

        start = torch.full((1,), _START, dtype=torch.float64)
        bandwidth = maximize_over_bandwidths(objective, start, directions) @ directions
        assert best is not None
        return bandwidth, best

    def prepare(self, data: tuple[Tensor, ...], seed: int = 0) -> "CopulaDensity":
        """Fit the distribution to data, unless it already is fitted.

        :param tuple data: one tensor, as :meth:`fit` takes it.
        """
        values = single_tensor(data, type(self).__name__)
        return self if self._future is None and is_same(self.data, values) else self.fit(values)

    def begin(self, data: tuple[Tensor, ...], keys: Tensor) -> Resampled:
        """Start populations that hold only the observations.

        :param tuple data: one tensor, as for :meth:`fit`. The distribution is fitted to it, unless
            it already is fitted.
        """
        distribution = self.prepare(data)
        values = distribution.data
        assert values is not None
        if self._wanted_bandwidth is None:
            warn_of_narrow_posterior(float(distribution._bandwidths.min()), type(self).__name__)
        knots = future_knots(float(distribution._bandwidths[0]), len(values))
        if distribution.event_shape:
            knots = knots[:0]
        cdfs = torch.special.ndtr(knots).expand(len(keys), 1, -1)
        state = CopulaState(distribution, cdfs, torch.zeros_like(cdfs))
        return Resampled(keys, len(values), len(values), state)

    def advance(self, state: Resampled, num_steps: int) -> Resampled:
        """Extend each population by further observations."""
        return followed(state, num_steps)

    def population(self, state: Resampled) -> "CopulaDensity":
        """The distribution of each population, with batch shape ``(num_draws,)``."""
        value: CopulaState = state.value
        own: CopulaDensity = value.distribution
        maps = None
        if not own.event_shape:
            own._base_map()  # once for all populations
            knots = future_knots(float(own._bandwidths[0]), state.num_observed)
            maps = ScoreMap.of_distribution(knots, value.cdfs[:, 0], value.log_ratio[:, 0])
        new = copy.copy(own)
        new._future = Future(state.keys, state.num_observed, state.size, maps)
        new._own_shape = new._batch_shape = torch.Size((len(state.keys),))
        return new

    def weighted_points(self, num_points: int = 500) -> WeightedSample:
        """Points that represent populations, by importance sampling from the data's distribution.

        All populations share the points, but each has its own weights.

        :param int num_points: number of points.
        :returns: weights of **shape** ``(num_draws, num_points)``, with one draw for a distribution
            without batch shape.
        """
        points, log_density = self._points_of_data(checks.integer("num_points", num_points, 1))
        ratio = self.log_prob(points if not self._own_shape else points[:, None]) - log_density
        weights = ratio.reshape(num_points, -1).double().mT.softmax(-1)
        return WeightedSample((points,), weights)

    def _points_of_data(self, num_points: int) -> tuple[Tensor, Tensor]:
        """Points of the distribution of the data, and a column of its log densities there."""
        if num_points not in self._points:
            own = copy.copy(self)
            own._set_distribution(self._seen, self._bandwidths)
            own._batch_shape = torch.Size()
            engine = torch.quasirandom.SobolEngine(len(self._bandwidths), True, self.seed)
            least = 0.5 / num_points**2
            uniform = engine.draw(num_points, dtype=torch.float64).clamp(least, 1.0 - least)
            points = own._by_inversion(uniform) if self.event_shape else own.icdf(uniform[:, 0])
            self._points[num_points] = points, own.log_prob(points)
        points, log_density = self._points[num_points]
        return points, log_density if not self._own_shape else log_density[:, None]

    def _table_scores(self) -> Tensor:
        return table_scores(float(self._bandwidths[0]))

    def _base(self, points: Tensor) -> tuple[Tensor, Tensor]:
        flat = points[:, 0]
        pieces = []
        for part in flat.split(max(NUMBERS_AT_ONCE // len(self._seen), 1)):
            start, log_start = normal_start(part)
            shape = (len(self._seen), *part.T.shape)
            cdfs, log_density = follow(
                start.T.expand(shape),
                log_start.T.expand(shape),
                self._seen,
                rates(1, self.num_observed),
                self._bandwidths,
            )
            pieces.append(mean_over_orders(cdfs.mT, log_density.mT))
        cdfs, log_density = (torch.cat(several) for several in zip(*pieces, strict=True))
        return cdfs[:, None], log_density[:, None]

    def _steps(self, future: Future, size: int) -> Iterator[tuple[slice, Tensor, dict[str, Any]]]:
        for part, numbers in future_numbers(future, size, self._width):
            yield part, numbers[..., : len(self._bandwidths)], {}
