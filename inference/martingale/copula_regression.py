"""Regression and binary classification that learn by the copula recursion."""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
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
    array_of,
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
    distribution functions are exact. Quantiles and moments interpolate, with an error of up to 1e-4
    in probability if covariates nearly determine the response.
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
        """The distributions of populations, and maps from these distributions to them."""
        new = copy.copy(self)
        new._future = Future(keys, num_observed, size, maps)
        new._own_shape = new._batch_shape = torch.Size((len(keys), self._num_queries))
        return new


class CopulaRegression(CovariateRule):
    r"""Regression by the conditional copula recursion [1].

    The distribution of a response :math:`y` at covariates :math:`x` is updated as in
    :class:`CopulaDensity`, more strongly the closer :math:`x` is to the observation's covariates:

    .. math:: p_i(y \mid x) = p_{i-1}(y \mid x) [1 - \alpha_i(x) + \alpha_i(x)
              c_\rho\{P_{i-1}(y \mid x), P_{i-1}(y_i \mid x_i)\}], \quad
              \alpha_i(x) = \frac{\alpha_i k_i(x)}{1 - \alpha_i + \alpha_i k_i(x)} ,

    where :math:`k_i(x) = \prod_j c_{\rho_j}\{\Phi(x_j), \Phi(x_{ij})\}` and :math:`\alpha_i(x)` is
    clipped to :math:`[10^{-5}, 1 - 10^{-5}]`. The distribution is the mean of those from several
    random orders of the data. Bandwidths that are not given maximize the prequential log likelihood
    :math:`\sum_i \log p_{i-1}(y_i \mid x_i)`, averaged over orders.

    In predictive resampling, as in [1], future covariates are drawn from the observed ones by the
    Bayesian bootstrap, and populations are computed at the queries only. Each query takes as long
    as a density.

    :param bandwidth: :math:`\rho` of the response in (0, 1), or ``None`` to fit it.
    :param covariate_bandwidth: :math:`\rho_j`: a number, a vector with one value for each
        covariate, or ``None`` to fit them.
    :param int num_permutations: number of random orders. With zero, the data keep their order.
    :param Tensor queries: covariates at which to compute populations; by default the observed ones.
        **Shape:** ``(num_queries,)`` or ``(num_queries, num_covariates)``.
    :param bool standardize: whether to standardize covariates and response first.
    :param int seed: seed of the random orders.

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
        """Distributions of the response, with batch shape ``(num_queries,)``.

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
        """Extend each population by further observations."""
        return followed(state, num_steps)

    def population(self, state: Resampled) -> ConditionalCopula:
        """Distributions of the response, with batch shape ``(num_draws, num_queries)``."""
        value: CopulaState = state.value
        own: ConditionalCopula = value.distribution
        own._base_map()  # once for all populations
        knots = future_knots(float(own._fit.bandwidth), state.num_observed, _KNOTS_PER_SCALE)
        cdfs, ratio = (part.reshape(-1, len(knots)) for part in (value.cdfs, value.log_ratio))
        maps = ScoreMap.of_distribution(knots, cdfs, ratio)
        return own.completed(state.keys, state.num_observed, state.size, maps)


class CopulaClassifierState(NamedTuple):
    """Populations of a copula classifier."""

    probability: Tensor  # at the covariates of the data, then queries (num_draws, n + num_queries)
    kernel: Tensor  # of covariates (n, n + num_queries)
    bandwidth: float
    like: Tensor  # of the type and on the device of results


class CopulaClassifier(CovariateRule):
    r"""Binary classification by the copula recursion [1].

    The probability of the label one at covariates :math:`x` starts at one half. With
    :math:`p = p_{i-1}(1 \mid x)` and :math:`q = p_{i-1}(1 \mid x_i)`, it becomes

    .. math:: p \{1 - \alpha_i(x) + \alpha_i(x) (1 - \rho + \rho f)\}, \quad
              f = \frac{\min(p, q)}{p q} \text{ if } y_i = 1, \quad
              f = \frac{1}{1 - q} - \frac{\min(p, q)}{p (1 - q)} \text{ otherwise,}

    where :math:`\alpha_i(x)` is as in :class:`CopulaRegression`. Probabilities are clipped to
    :math:`[5 \cdot 10^{-5}, 1 - 5 \cdot 10^{-5}]` and averaged over several random orders of the
    data. Bandwidths that are not given maximize the prequential log likelihood of the labels.

    Arguments and predictive resampling are as in :class:`CopulaRegression`, except that only
    covariates are standardized.

    [1] E. Fong, C. Holmes, S. G. Walker (2023), Martingale posterior distributions.

    Example::

        >>> x = torch.linspace(-2, 2, 50)
        >>> classifier = CopulaClassifier(0.9, 0.9).fit(x, x > 0.5)
        >>> classifier.probabilities(torch.tensor([-1.5, 0.5, 1.5]))
        tensor([0.0040, 0.5746, 0.9965])
    """

    def _response(
        self, x: Tensor, y: Tensor, covariates: Covariates, orders: Tensor
    ) -> tuple[Response, Predict]:
        if not bool(((y == 0) | (y == 1)).all()):
            wrong = y[(y != 0) & (y != 1)][0].item()
            raise ValueError(f"y must hold the labels 0 and 1, got {wrong!r}")
        like = x if x.is_floating_point() else x.to(torch.get_default_dtype())

        def predict(both: Tensor, wanted: Tensor) -> Prequential:
            return _predict_labels(orders, y, covariates, both, wanted)

        return Response(y, torch.zeros(1), torch.ones(1), like[:0]), predict

    def probabilities(self, x: Tensor) -> Tensor:
        """Probability of the label one.

        :param Tensor x: covariates. **Shape:** ``(num_queries,)`` or ``(num_queries,
            num_covariates)``.
        :returns: **Shape:** ``(num_queries,)``.
        """
        fit = self._fitted("probabilities")
        kernel = fit.covariates.kernel(fit.covariates.standardized(x), fit.covariate_bandwidth)
        return fit.given(_follow_labels(fit, kernel))

    def _start(self, fit: CovariateFit, queries: Tensor, num_draws: int) -> CopulaClassifierState:
        # Labels are drawn at the covariates of the data, so populations are followed there too.
        both = torch.cat([fit.covariates.scores, fit.covariates.standardized(queries)])
        kernel = fit.covariates.kernel(both, fit.covariate_bandwidth)
        probability = _follow_labels(fit, kernel).expand(num_draws, -1)
        return CopulaClassifierState(probability, kernel, float(fit.bandwidth), fit.response.like)

    def advance(self, state: Resampled, num_steps: int) -> Resampled:
        """Extend each population by further observations."""
        from pyro_ext.inference.martingale._classifier_loops import resample_labels

        value: CopulaClassifierState = state.value
        if num_steps == 0:
            return state
        size = state.size + num_steps
        probability = value.probability.clone(memory_format=torch.contiguous_format)
        kernel = value.kernel.numpy()
        rate = rates(state.size + 1, size).numpy()
        future = Future(state.keys, state.num_observed, size, None)
        for part, numbers, rows in future_steps(future, state.size):
            own, picked = probability[part].numpy(), array_of(numbers[..., 0])
            resample_labels(own, picked, rate, value.bandwidth, rows.numpy(), kernel)
        return state._replace(size=size, value=value._replace(probability=probability))

    def population(self, state: Resampled) -> dist.Bernoulli:
        """Distributions of the label, with batch shape ``(num_draws, num_queries)``."""
        value: CopulaClassifierState = state.value
        probability = value.probability[:, state.num_observed :]
        return dist.Bernoulli(probability.to(value.like))


def _predict_labels(
    orders: Tensor, y: Tensor, covariates: Covariates, both: Tensor, directions: Tensor
) -> Prequential:
    """Predict each label from those before it, with derivatives in the bandwidths."""
    from pyro_ext.inference.martingale._classifier_loops import predict_labels

    shape = tuple(orders.shape)
    log_predicted, seen = np.empty(shape), np.empty(shape)
    gradient = np.empty((len(orders), len(directions)))
    predict_labels(
        orders.numpy(),
        array_of(y, torch.int64),
        array_of(covariates.scores.T),
        rates(1, len(y)).numpy(),
        float(both[0]),
        array_of(both[1:]),
        array_of(directions[:, 0]),
        array_of(directions[:, 1:]),
        log_predicted,
        gradient,
        seen,
    )
    return Prequential(*map(torch.from_numpy, (log_predicted, gradient, seen)))


def _follow_labels(fit: CovariateFit, kernel: Tensor) -> Tensor:
    """Probability at points with this kernel, mean over orders. **Shape:** ``(num_points,)``."""
    from pyro_ext.inference.martingale._classifier_loops import follow_labels

    probability = np.full((len(fit.orders), kernel.shape[1]), 0.5)
    follow_labels(
        probability,
        array_of(fit.response.values, torch.int64)[fit.orders.numpy()],
        fit.seen.numpy(),
        rates(1, len(fit.x)).numpy(),
        float(fit.bandwidth),
        fit.orders.numpy(),
        array_of(kernel),
    )
    return torch.from_numpy(probability.mean(0))
