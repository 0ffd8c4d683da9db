"""Regression that learns by the copula recursion: distributions of a response given covariates."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_ext.inference.martingale.copula_distribution import (
    NUMBERS_AT_ONCE,
    CopulaDistribution,
    CopulaState,
    Future,
    ScoreMap,
    followed,
    future_knots,
    standardization,
    table_scores,
)
from pyro_ext.inference.martingale.copula_recursion import (
    Prequential,
    follow,
    normal_start,
    predict_in_turn,
    rates,
)
from pyro_ext.inference.martingale.covariate_rule import (
    CovariateFit,
    CovariateRule,
    Covariates,
    Predict,
    Response,
    future_steps,
)
from pyro_ext.inference.martingale.predictive_rule import Resampled

# Fewer than for a density, since each query has its own.
_TABLE_PER_SCALE, _KNOTS_PER_SCALE = 20.0, 4.0


class ConditionalCopula(CopulaDistribution):
    """Distributions of a response given covariates.

    :class:`~pyro_ext.inference.CopulaRegression` learns them.

    Batch shape: ``(num_queries,)``, and ``(num_draws, num_queries)`` for populations. Densities and
    distribution functions are exact; quantiles and moments interpolate, with an error of up to
    1e-4 of probability where covariates leave little of the response open.
    """

    def __init__(self, fit: CovariateFit, x: Tensor) -> None:
        self._fit = fit
        self._loc, self._scale = fit.response.loc, fit.response.scale
        self._dtype, self._device = fit.response.like.dtype, fit.response.like.device
        self._bandwidths = fit.bandwidth[None]
        queries = fit.covariates.standardized(x)
        self._kernel = fit.covariates.kernel(queries, fit.covariate_bandwidth)
        self._num_queries, self._future, self._table = len(queries), None, None
        self._own_shape = torch.Size((len(queries),))
        super().__init__(self._own_shape, torch.Size())

    def _table_scores(self) -> Tensor:
        return table_scores(float(self._fit.bandwidth), _TABLE_PER_SCALE)

    def _base(self, points: Tensor) -> tuple[Tensor, Tensor]:
        fit, group, pieces = self._fit, len(points), []
        width = max(NUMBERS_AT_ONCE // (group * len(fit.seen)), 1)
        for start in range(0, self._num_queries, width):
            part = points[:, start : start + width, 0].T.reshape(1, -1)
            cdfs, log_start = normal_start(part[..., None])
            shape = (len(fit.seen), 1, part.shape[1])
            cdfs, log_density = follow(
                cdfs.mT.expand(shape),
                log_start.mT.expand(shape),
                fit.seen,
                rates(1, len(fit.x)),
                self._bandwidths,
                rows=fit.orders,
                kernel=self._kernel[:, start : start + width],
                group=group,
            )
            number = torch.tensor(float(len(fit.seen)), dtype=torch.float64)
            mean = cdfs.mean(0), log_density.logsumexp(0) - number.log()
            pieces.append(torch.stack([value.reshape(-1, group).T for value in mean]))
        cdfs, log_density = torch.cat(pieces, 2)[..., None]
        return cdfs, log_density

    def _steps(self, future: Future, size: int) -> Iterator[tuple[slice, Tensor, dict[str, Any]]]:
        for part, numbers, rows in future_steps(future, size):
            yield part, numbers, {"rows": rows, "kernel": self._kernel}

    def completed(
        self, keys: Tensor, num_observed: int, size: int, maps: ScoreMap
    ) -> "ConditionalCopula":
        """The distributions of populations, and maps that turn these ones into theirs."""
        new = copy.copy(self)
        new._future = Future(keys, num_observed, size, maps)
        new._own_shape = new._batch_shape = torch.Size((len(keys), self._num_queries))
        return new


class CopulaRegression(CovariateRule):
    r"""Regression by the conditional copula recursion [1].

    The distribution of a response :math:`y` at covariates :math:`x` is updated as that of
    :class:`CopulaDensity`, the more, the closer :math:`x` is to those of the observation:

    .. math:: p_i(y \mid x) = p_{i-1}(y \mid x) [1 - \alpha_i(x) + \alpha_i(x)
              c_\rho\{P_{i-1}(y \mid x), P_{i-1}(y_i \mid x_i)\}], \quad
              \alpha_i(x) = \frac{\alpha_i k_i(x)}{1 - \alpha_i + \alpha_i k_i(x)} ,

    where :math:`k_i(x) = \prod_j c_{\rho_j}\{\Phi(x_j), \Phi(x_{ij})\}` and :math:`\alpha_i(x)` is
    clipped to :math:`[10^{-5}, 1 - 10^{-5}]`. The distribution is the mean of those from several
    random orders of the data. Bandwidths that are not given maximize the prequential log likelihood
    :math:`\sum_i \log p_{i-1}(y_i \mid x_i)`, mean over orders.

    In predictive resampling, as in [1], future covariates come from the observed ones by the
    Bayesian bootstrap, and populations are followed at the queries. Its time is that of a density
    for each query.

    :param bandwidth: :math:`\rho` of the response in (0, 1), or ``None`` to fit it.
    :param covariate_bandwidth: :math:`\rho_j`, a number, a vector with one for each covariate, or
        ``None`` to fit them.
    :param int num_permutations: number of random orders. Zero takes the data in the order they
        have.
    :param Tensor queries: covariates at which populations are wanted, ``None`` for the observed.
        **Shape:** ``(num_queries,)`` or ``(num_queries, num_covariates)``.
    :param bool shared_bandwidth: whether a fitted bandwidth is the same for all covariates.
    :param bool standardize: whether covariates and response are standardized first.
    :param int seed: of the orders.

    [1] E. Fong, C. Holmes, S. G. Walker (2023), Martingale posterior distributions.

    Example::

        >>> x = torch.linspace(-2, 2, 50)
        >>> regression = CopulaRegression(0.9, 0.9).fit(x, x.sin())
        >>> regression.conditional(torch.tensor([-1.5, 0.0, 1.5])).mean
        tensor([-0.9786,  0.0015,  0.9654])
    """

    def _response(
        self, x: Tensor, y: Tensor, covariates: Covariates, orders: Tensor
    ) -> tuple[Response, Predict]:
        y = y if y.is_floating_point() else y.to(torch.get_default_dtype())
        rows = y.detach().cpu().double()[:, None]
        loc, scale = standardization(rows, self.standardize, "y")
        points = (rows - loc) / scale

        def predict(both: Tensor, wanted: Tensor) -> Prequential:
            return predict_in_turn(
                points,
                orders,
                both[:1],
                wanted[:, :1],
                covariates=covariates.scores,
                covariate_bandwidth=both[1:],
                covariate_directions=wanted[:, 1:],
            )

        return Response(y, loc, scale, y[:0]), predict

    def conditional(self, x: Tensor) -> ConditionalCopula:
        """Distributions of the response, with the batch shape ``(num_queries,)``.

        :param Tensor x: covariates. **Shape:** ``(num_queries,)`` or ``(num_queries,
            num_covariates)``.
        """
        return ConditionalCopula(self._fitted("conditional"), x)

    def _start(self, fit: CovariateFit, queries: Tensor, num_draws: int) -> CopulaState:
        distribution = ConditionalCopula(fit, queries)
        knots = future_knots(float(fit.bandwidth), len(fit.x), _KNOTS_PER_SCALE)
        cdfs = torch.special.ndtr(knots).repeat(len(queries)).expand(num_draws, 1, -1)
        return CopulaState(distribution, cdfs, torch.zeros_like(cdfs))

    def advance(self, state: Resampled, num_steps: int) -> Resampled:
        """Complete each population by some more observations."""
        return followed(state, num_steps)

    def population(self, state: Resampled) -> ConditionalCopula:
        """Distributions of the response, with the batch shape ``(num_draws, num_queries)``."""
        value: CopulaState = state.value
        own: ConditionalCopula = value.distribution
        own._base_map()  # once for all populations
        knots = future_knots(float(own._fit.bandwidth), state.num_observed, _KNOTS_PER_SCALE)
        cdfs, ratio = (part.reshape(-1, len(knots)) for part in (value.cdfs, value.log_ratio))
        maps = ScoreMap.of_distribution(knots, cdfs, ratio)
        return own.completed(state.keys, state.num_observed, state.size, maps)
