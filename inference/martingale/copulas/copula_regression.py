"""Regression that learns by the copula recursion."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_ext._checks import as_tensor, check_integer
from pyro_ext.inference.martingale.copulas._bandwidth_fit import (
    checked_bandwidth,
    maximize_over_bandwidths,
    warn_of_narrow_posterior,
)
from pyro_ext.inference.martingale.copulas._copula_law import (
    Future,
    future_knots,
    is_same,
    standardization,
)
from pyro_ext.inference.martingale.copulas._copula_recursion import (
    observation_orders,
    predict_in_turn,
)
from pyro_ext.inference.martingale.copulas._covariates import (
    check_pairs,
    check_queries,
    joint_bandwidths,
    observed_covariates,
)
from pyro_ext.inference.martingale.copulas._score_map import ScoreMap
from pyro_ext.inference.martingale.copulas.conditional_copula import (
    ConditionalCopula,
    RegressionFit,
)
from pyro_ext.inference.martingale.predictive_rule import PredictiveRule, Resampled
from pyro_ext.random import fresh_seed

__all__ = ["CopulaRegression", "CopulaRegressionState"]

_PER_SCALE = 4.0  # knots; fewer than for a density, since each query has its own


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
        places = future_knots(float(fit.bandwidth[0]), len(y), _PER_SCALE)
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
        places = future_knots(float(law._fit.bandwidth[0]), state.num_observed, _PER_SCALE)
        shape = (-1, len(places))
        maps = ScoreMap.of_law(places, value.cdfs.reshape(shape), value.log_ratio.reshape(shape))
        return law.completed(state.keys, state.num_observed, state.size, maps)

    def _fitted(self, what: str) -> RegressionFit:
        if self._fit is None:
            raise RuntimeError(f"{what} needs data: call fit(x, y), which returns a new rule")
        return self._fit
