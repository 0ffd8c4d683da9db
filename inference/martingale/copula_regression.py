"""Regression that learns by the copula recursion: distributions of a response given covariates."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_ext._checks import as_tensor, check_finite, check_integer
from pyro_ext.inference.martingale.copula_distribution import (
    CopulaLaw,
    Future,
    ScoreMap,
    future_knots,
    is_same,
    standardization,
    table_places,
)
from pyro_ext.inference.martingale.copula_recursion import (
    checked_bandwidth,
    follow,
    log_covariate_kernel,
    maximize_over_bandwidths,
    normal_start,
    observation_orders,
    predict_in_turn,
    rates,
    spread,
    warn_of_narrow_posterior,
)
from pyro_ext.inference.martingale.predictive_rule import (
    PredictiveRule,
    Resampled,
    check_data,
    uniforms,
)
from pyro_ext.random import fresh_seed

__all__ = [
    "ConditionalCopula",
    "CopulaRegression",
    "CopulaRegressionState",
    "Covariates",
    "RegressionFit",
    "check_pairs",
    "check_queries",
    "future_rows",
    "joint_bandwidths",
    "observed_covariates",
]

START = 0.8
_WEIGHTS = 1


class Covariates(NamedTuple):
    """Covariates of the data.

    :param Tensor scores: standardized. **Shape:** ``(n, num_covariates)``.
    :param Tensor loc: **Shape:** ``(num_covariates,)``.
    :param Tensor scale: **Shape:** ``(num_covariates,)``.
    :param bool is_vector: whether they were given as vectors.
    """

    scores: Tensor
    loc: Tensor
    scale: Tensor
    is_vector: bool

    def standardized(self, queries: Tensor) -> Tensor:
        """Rows of covariates on the scale of the scores. **Shape:** ``(num_queries, ...)``."""
        queries = check_queries("x", queries)
        if queries.dim() == 2 and queries.shape[1] != len(self.loc):
            raise ValueError(
                f"x must have {len(self.loc)} columns, as the data have, got the shape "
                f"{tuple(queries.shape)}"
            )
        if queries.dim() == 1 and len(self.loc) != 1:
            raise ValueError(
                f"x must have the shape (num_queries, {len(self.loc)}), got {tuple(queries.shape)}"
            )
        rows = queries.detach().cpu().double().reshape(len(queries), -1)
        return (rows - self.loc) / self.scale

    def kernel(self, queries: Tensor, bandwidth: Tensor) -> Tensor:
        """Kernel of observations and standardized queries. **Shape:** ``(n, num_queries)``."""
        log_kernel = torch.zeros(len(self.scores), len(queries), dtype=torch.float64)
        for column in range(len(self.loc)):
            log_kernel += log_covariate_kernel(
                queries[:, column], self.scores[:, column, None], bandwidth[column]
            )
        return log_kernel.exp()


def check_pairs(data: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Check that data are covariates and a response, as ``(x, y)``.

    :raises ValueError: where they are not.
    """
    if len(data) != 2:
        raise ValueError(f"data must be two tensors, x and y, got {len(data)}")
    check_data(data)
    x, y = data
    if x.dim() > 2 or y.dim() != 1:
        raise ValueError(
            "data must be x of the shape (n,) or (n, num_covariates) and y of the shape (n,), got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    return x, y


def check_queries(argument: str, queries: Tensor) -> Tensor:
    """Check covariates at which predictions are wanted.

    :raises ValueError: where they do not fit.
    """
    queries = as_tensor(argument, queries)
    if queries.dim() not in (1, 2) or not len(queries):
        got = tuple(queries.shape)
        raise ValueError(
            f"{argument} must be a tensor of the shape (num_queries,) or (num_queries, "
            f"num_covariates), got {got}"
        )
    check_finite(argument, queries)
    return queries


def observed_covariates(x: Tensor, standardize: bool) -> Covariates:
    """Covariates of the data, on the scale of scores."""
    rows = x.detach().cpu().double().reshape(len(x), -1)
    loc, scale = standardization(rows, standardize, "x")
    return Covariates((rows - loc) / scale, loc, scale, x.dim() == 2)


def joint_bandwidths(
    bandwidth: Tensor | None,
    covariate_bandwidth: Tensor | None,
    num_covariates: int,
    is_shared: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """How free parameters make the bandwidths of a response and of covariates.

    :returns: ``base`` and ``directions``, so that the bandwidths are ``base + free @ directions``,
        that of the response first, and where the free parameters start. **Shape:** ``(1 +
        num_covariates,)``, ``(num_free, 1 + num_covariates)`` and ``(num_free,)``.
    """
    base = torch.zeros(1 + num_covariates, dtype=torch.float64)
    rows = []
    unit = torch.eye(1 + num_covariates, dtype=torch.float64)
    if bandwidth is None:
        rows.append(unit[0])
    else:
        base[0] = spread("bandwidth", bandwidth, 1)[0]
    if covariate_bandwidth is not None:
        base[1:] = spread("covariate_bandwidth", covariate_bandwidth, num_covariates)
    elif is_shared:
        rows.append(unit[1:].sum(0))
    else:
        rows.extend(unit[1:])
    directions = torch.stack(rows) if rows else torch.zeros(0, 1 + num_covariates).double()
    return base, directions, torch.full((len(rows),), START, dtype=torch.float64)


def future_rows(keys: Tensor, picks: Tensor, num_observed: int) -> Tensor:
    """Rows of the data whose covariates come next, by the Bayesian bootstrap.

    Each draw has weights of its own from a flat Dirichlet law, and rows are picked by them: in law
    the Polya urn, without its history.

    :param Tensor keys: of the draws' random streams. **Shape:** ``(num_draws, 2)``.
    :param Tensor picks: uniform numbers. **Shape:** ``(num_draws, num_steps)``.
    :param int num_observed: number of rows.
    :returns: **Shape:** ``(num_draws, num_steps)``.
    """
    weights = -uniforms(keys.cpu(), 0, num_observed, stream=_WEIGHTS).log()
    reached = weights.cumsum(1)
    rows = torch.searchsorted(reached, (picks * reached[:, -1:]).contiguous())
    return rows.clamp(max=num_observed - 1)


_NUMBERS_AT_ONCE = 2**21
# Fewer than for a density, since each query has its own.
_TABLE_PER_SCALE, _KNOTS_PER_SCALE = 20.0, 4.0


class RegressionFit(NamedTuple):
    """What a regression has learned: its bandwidths, its data and what it saw of these."""

    x: Tensor
    y: Tensor
    covariates: Covariates
    loc: Tensor
    scale: Tensor
    bandwidth: Tensor
    covariate_bandwidth: Tensor
    orders: Tensor
    seen: Tensor
    log_predicted: Tensor


class ConditionalCopula(CopulaLaw):
    """Laws of a response given covariates.

    :class:`~pyro_ext.inference.CopulaRegression` learns them.

    Batch shape: ``(num_queries,)``, and ``(num_draws, num_queries)`` for populations. Densities and
    distribution functions are exact; quantiles and moments interpolate, with an error of up to
    1e-4 of probability where covariates leave little of the response open.
    """

    def __init__(self, fit: RegressionFit, x: Tensor) -> None:
        self._fit = fit
        self._loc, self._scale = fit.loc, fit.scale
        self._dtype, self._device = fit.y.dtype, fit.y.device
        queries = fit.covariates.standardized(x)
        self._kernel = fit.covariates.kernel(queries, fit.covariate_bandwidth)
        self._num_queries, self._future, self._table = len(queries), None, None
        self._own_shape = torch.Size((len(queries),))
        super().__init__(self._own_shape, torch.Size())

    def _table_places(self) -> Tensor:
        return table_places(float(self._fit.bandwidth[0]), _TABLE_PER_SCALE)

    def _base(self, points: Tensor) -> tuple[Tensor, Tensor]:
        fit = self._fit
        group = len(points)
        pieces = []
        width = max(_NUMBERS_AT_ONCE // (group * len(fit.seen)), 1)
        for start in range(0, self._num_queries, width):
            part = points[:, start : start + width, 0].T.reshape(1, -1)
            cdfs, log_start = normal_start(part[..., None])
            shape = (len(fit.seen), 1, part.shape[1])
            cdfs, log_density = follow(
                cdfs.mT.expand(shape),
                log_start.mT.expand(shape),
                fit.seen,
                rates(1, len(fit.y)),
                fit.bandwidth,
                rows=fit.orders,
                kernel=self._kernel[:, start : start + width],
                group=group,
            )
            number = torch.tensor(float(len(fit.seen)), dtype=torch.float64)
            mean = cdfs.mean(0), log_density.logsumexp(0) - number.log()
            pieces.append(torch.stack([value.reshape(-1, group).T for value in mean]))
        cdfs, log_density = torch.cat(pieces, 2)[..., None]
        return cdfs, log_density

    def _resampled(self, cdfs: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        assert self._future is not None
        number = len(cdfs)
        shape = (cdfs.shape[1], 1, -1)
        done = self._added(
            cdfs[..., 0].permute(1, 2, 0).reshape(shape),
            log_density[..., 0].permute(1, 2, 0).reshape(shape),
            self._future,
            self._future.num_observed,
        )
        back = [
            value.reshape(len(value), self._num_queries, number).permute(2, 0, 1)[..., None]
            for value in done
        ]
        return back[0], back[1]

    def _added(
        self, cdfs: Tensor, log_density: Tensor, future: Future, size: int
    ) -> tuple[Tensor, Tensor]:
        """Add to populations what they have not got yet, some draws at a time.

        :param Tensor cdfs: points of a query side by side. **Shape:** ``(num_draws, 1, num_queries
            * num_points)``.
        """
        num_steps = future.size - size
        if num_steps == 0:
            return cdfs, log_density
        rate = rates(size + 1, future.size)
        group = cdfs.shape[-1] // self._num_queries
        done = []
        at_once = max(_NUMBERS_AT_ONCE // (2 * num_steps), 1)
        for start in range(0, len(future.keys), at_once):
            part = slice(start, start + at_once)
            keys = future.keys[part].cpu()
            numbers = uniforms(keys, 2 * size, 2 * future.size).reshape(-1, num_steps, 2)
            rows = future_rows(keys, numbers[..., 1], future.num_observed)
            done.append(
                follow(
                    cdfs[part],
                    log_density[part],
                    numbers[..., :1],
                    rate,
                    self._fit.bandwidth,
                    rows=rows,
                    kernel=self._kernel,
                    group=group,
                )
            )
        cdfs, log_density = (torch.cat(several) for several in zip(*done, strict=True))
        return cdfs, log_density

    def completed(
        self, keys: Tensor, num_observed: int, size: int, maps: ScoreMap
    ) -> "ConditionalCopula":
        """The laws of populations.

        :param Tensor keys: of the draws' random streams. **Shape:** ``(num_draws, 2)``.
        :param int num_observed: the number of observations in the data.
        :param int size: that each population has reached.
        :param maps: what turns these laws into theirs, draw by draw and query by query.
        """
        new = ConditionalCopula.__new__(ConditionalCopula)
        new.__dict__.update(self.__dict__)
        new._future = Future(keys, num_observed, size, maps)
        new._own_shape = new._batch_shape = torch.Size((len(keys), self._num_queries))
        return new


class CopulaRegressionState(NamedTuple):
    """What a copula regression keeps of its populations.

    :param ConditionalCopula law: that of the data at the queries.
    :param Tensor cdfs: distribution functions of the populations at knots, where the law of the
        data has given normal scores, query by query. **Shape:** ``(num_draws, 1, num_queries *
        num_knots)``.
    :param Tensor log_ratio: log densities of the populations over that of the law there. **Shape:**
        as ``cdfs``.
    """

    law: ConditionalCopula
    cdfs: Tensor
    log_ratio: Tensor


class CopulaRegression(PredictiveRule):
    r"""Regression by the conditional copula recursion [1].

    The law of a response :math:`y` at covariates :math:`x` is updated as that of
    :class:`CopulaDensity`, the more, the closer :math:`x` is to those of the observation:

    .. math:: p_i(y \mid x) = p_{i-1}(y \mid x) [1 - \alpha_i(x) + \alpha_i(x)
              c_\rho\{P_{i-1}(y \mid x), P_{i-1}(y_i \mid x_i)\}], \quad
              \alpha_i(x) = \frac{\alpha_i k_i(x)}{1 - \alpha_i + \alpha_i k_i(x)} ,

    where :math:`k_i(x) = \prod_j c_{\rho_j}\{\Phi(x_j), \Phi(x_{ij})\}` and :math:`\alpha_i(x)` is
    clipped to :math:`[10^{-5}, 1 - 10^{-5}]`. The law is the mean of those from several random
    orders of the data. Bandwidths that are not given maximize the prequential log likelihood
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
    :raises ValueError: for an argument that does not fit.

    [1] E. Fong, C. Holmes, S. G. Walker (2023), Martingale posterior distributions.

    Example::

        >>> x = torch.linspace(-2, 2, 50)
        >>> regression = CopulaRegression(0.9, 0.9).fit(x, x.sin())
        >>> regression.conditional(torch.tensor([-1.5, 0.0, 1.5])).mean
        tensor([-0.9786,  0.0015,  0.9654])
    """

    def __init__(
        self,
        bandwidth: Tensor | float | None = None,
        covariate_bandwidth: Tensor | float | None = None,
        num_permutations: int = 10,
        *,
        queries: Tensor | None = None,
        shared_bandwidth: bool = False,
        standardize: bool = True,
        seed: int = 0,
    ) -> None:
        self._wanted = (
            checked_bandwidth("bandwidth", bandwidth),
            checked_bandwidth("covariate_bandwidth", covariate_bandwidth),
        )
        self.num_permutations = check_integer("num_permutations", num_permutations, 0)
        self.queries = None if queries is None else check_queries("queries", queries)
        self.shared_bandwidth, self.standardize = bool(shared_bandwidth), bool(standardize)
        self.seed = fresh_seed(seed)
        self._fit: RegressionFit | None = None

    @property
    def bandwidth(self) -> Tensor | None:
        r""":math:`\rho` of the response: as fitted, and as it was given before."""
        return self._wanted[0] if self._fit is None else self._fit.bandwidth[0].to(self._fit.y)

    @property
    def covariate_bandwidth(self) -> Tensor | None:
        r""":math:`\rho_j`: of each covariate as fitted, and as it was given before."""
        fit = self._fit
        return self._wanted[1] if fit is None else fit.covariate_bandwidth.to(fit.y)

    @property
    def prequential_log_prob(self) -> Tensor:
        r"""The prequential log likelihood :math:`\sum_i \log p_{i-1}(y_i \mid x_i)`."""
        fit = self._fitted("prequential_log_prob")
        value = fit.log_predicted.sum(1).mean() - len(fit.y) * fit.scale.log().sum()
        return value.to(fit.y)

    def fit(self, x: Tensor, y: Tensor) -> "CopulaRegression":
        """The regression given data.

        :param Tensor x: covariates. **Shape:** ``(n,)`` or ``(n, num_covariates)``.
        :param Tensor y: responses. **Shape:** ``(n,)``.
        :returns: a new rule.
        :raises ValueError: for data that do not fit.
        """
        x = as_tensor("x", x, "(n, ...)", finite=True)
        y = as_tensor("y", y, f"({len(x)},)", finite=True)
        x, y = check_pairs((x, y))
        y = y if y.is_floating_point() else y.to(torch.get_default_dtype())
        covariates = observed_covariates(x, self.standardize)
        rows = y.detach().cpu().double()[:, None]
        loc, scale = standardization(rows, self.standardize, "y")
        points = (rows - loc) / scale
        orders = observation_orders(len(y), self.num_permutations, self.seed)
        base, directions, start = joint_bandwidths(
            *self._wanted, covariates.scores.shape[1], self.shared_bandwidth
        )

        def predict(both: Tensor, wanted: Tensor) -> Any:
            return predict_in_turn(
                points,
                orders,
                both[:1],
                wanted[:, :1],
                covariates=covariates.scores,
                covariate_bandwidth=both[1:],
                covariate_directions=wanted[:, 1:],
            )

        def objective(free: Tensor, wanted: Tensor) -> tuple[float, Tensor]:
            predicted = predict(base + free @ directions, wanted)
            number = predicted.log_density.numel()
            return float(predicted.log_density.mean()), predicted.gradient.sum(0) / number

        both = base
        if len(directions):
            both = base + maximize_over_bandwidths(objective, start, directions) @ directions
        predicted = predict(both, directions[:0])
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._fit = RegressionFit(
            x,
            y,
            covariates,
            loc,
            scale,
            both[:1],
            both[1:],
            orders,
            predicted.uniforms,
            predicted.log_density,
        )
        return new

    def conditional(self, x: Tensor) -> ConditionalCopula:
        """Laws of the response, with the batch shape ``(num_queries,)``.

        :param Tensor x: covariates. **Shape:** ``(num_queries,)`` or ``(num_queries,
            num_covariates)``.
        :raises RuntimeError: before :meth:`fit`.
        """
        return ConditionalCopula(self._fitted("conditional"), x)

    def prepare(self, data: tuple[Tensor, ...], seed: int = 0) -> "CopulaRegression":
        """The rule fitted to data, itself where it has been.

        :param tuple data: ``(x, y)``, as :meth:`fit` takes them.
        :param int seed: not used, since the rule has its own.
        :raises ValueError: for data that do not fit.
        """
        x, y = check_pairs(data)
        fit = self._fit
        if fit is not None and is_same(fit.x, x) and is_same(fit.y, y.to(fit.y.dtype)):
            return self
        return self.fit(x, y)

    def begin(self, data: tuple[Tensor, ...], keys: Tensor) -> Resampled:
        """Populations that hold the observations alone.

        :param tuple data: ``(x, y)``, as :meth:`fit` takes them. The rule is fitted to them, unless
            it has been.
        :param Tensor keys: of the draws' random streams. **Shape:** ``(num_draws, 2)``.
        :raises ValueError: for data that do not fit.
        """
        fit = self.prepare(data)._fitted("begin")
        x, y = fit.x, fit.y
        if self._wanted[0] is None:
            warn_of_narrow_posterior(float(fit.bandwidth[0]), type(self).__name__)
        law = ConditionalCopula(fit, x if self.queries is None else self.queries)
        places = future_knots(float(fit.bandwidth[0]), len(y), _KNOTS_PER_SCALE)
        cdfs = torch.special.ndtr(places).repeat(law._num_queries).expand(len(keys), 1, -1)
        state = CopulaRegressionState(law, cdfs, torch.zeros_like(cdfs))
        return Resampled(keys, len(y), len(y), state)

    def advance(self, state: Resampled, num_steps: int) -> Resampled:
        """Complete each population by some more observations.

        :param Resampled state: where the populations are.
        :param int num_steps: how many observations each gets.
        """
        value: CopulaRegressionState = state.value
        size = state.size + num_steps
        future = Future(state.keys, state.num_observed, size, None)
        cdfs, ratio = value.law._added(value.cdfs, value.log_ratio, future, state.size)
        return state._replace(size=size, value=value._replace(cdfs=cdfs, log_ratio=ratio))

    def population(self, state: Resampled) -> ConditionalCopula:
        """Laws of the response, with the batch shape ``(num_draws, num_queries)``.

        :param Resampled state: where the populations are.
        """
        value: CopulaRegressionState = state.value
        law = value.law
        law._base_map()  # once for all populations
        places = future_knots(float(law._fit.bandwidth[0]), state.num_observed, _KNOTS_PER_SCALE)
        shape = (-1, len(places))
        maps = ScoreMap.of_law(places, value.cdfs.reshape(shape), value.log_ratio.reshape(shape))
        return law.completed(state.keys, state.num_observed, state.size, maps)

    def _fitted(self, what: str) -> RegressionFit:
        if self._fit is None:
            raise RuntimeError(f"{what} needs data: call fit(x, y), which returns a new rule")
        return self._fit
