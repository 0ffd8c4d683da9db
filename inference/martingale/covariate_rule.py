"""Base of the copula rules with covariates: their scale, kernel, fit and future."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.martingale.copula_distribution import (
    Future,
    future_numbers,
    is_same,
    standardization,
)
from pyro_ext.inference.martingale.copula_recursion import (
    Prequential,
    checked_bandwidth,
    log_covariate_kernel,
    maximize_over_bandwidths,
    observation_orders,
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

_START = 0.8
_WEIGHTS = 1


class Covariates(NamedTuple):
    """Covariates of the data."""

    scores: Tensor  # standardized (n, num_covariates)
    loc: Tensor
    scale: Tensor

    def standardized(self, queries: Tensor) -> Tensor:
        """Rows of covariates on the scale of the scores. **Shape:** ``(num_queries, ...)``."""
        rows = _matrix(_check_queries("x", queries))
        if rows.shape[1] != len(self.loc):
            raise ValueError(
                f"x must have the shape (num_queries, {len(self.loc)}), as the data have, got "
                f"{tuple(queries.shape)}"
            )
        return (rows - self.loc) / self.scale

    def kernel(self, queries: Tensor, bandwidth: Tensor) -> Tensor:
        """Kernel of observations and standardized queries. **Shape:** ``(n, num_queries)``."""
        log_kernel = torch.zeros(len(self.scores), len(queries), dtype=torch.float64)
        for column in range(len(self.loc)):
            log_kernel += log_covariate_kernel(
                queries[:, column], self.scores[:, column, None], bandwidth[column]
            )
        return log_kernel.exp()


def _matrix(covariates: Tensor) -> Tensor:
    return covariates.detach().cpu().double().reshape(len(covariates), -1)


def _check_pairs(data: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Check that data are covariates and a response, as ``(x, y)``."""
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


def _check_queries(argument: str, queries: Tensor) -> Tensor:
    """Check covariates at which predictions are wanted."""
    queries = checks.as_tensor(argument, queries)
    if queries.dim() not in (1, 2):
        raise ValueError(
            f"{argument} must be a tensor of the shape (num_queries,) or (num_queries, "
            f"num_covariates), got {tuple(queries.shape)}"
        )
    checks.all_finite(argument, queries)
    return queries


def _joint_bandwidths(
    bandwidth: Tensor | None, covariate_bandwidth: Tensor | None, num_covariates: int
) -> tuple[Tensor, Tensor]:
    """Base and directions: ``base + free @ directions`` are the bandwidths, the response first."""
    base = torch.zeros(1 + num_covariates, dtype=torch.float64)
    rows = []
    unit = torch.eye(1 + num_covariates, dtype=torch.float64)
    if bandwidth is None:
        rows.append(unit[0])
    else:
        base[0] = spread("bandwidth", bandwidth, 1)[0]
    if covariate_bandwidth is not None:
        base[1:] = spread("covariate_bandwidth", covariate_bandwidth, num_covariates)
    else:
        rows.extend(unit[1:])
    return base, torch.stack(rows) if rows else unit[:0]


class Response(NamedTuple):
    """A response of the data."""

    values: Tensor
    loc: Tensor
    scale: Tensor
    like: Tensor  # of the type and on the device of results


Predict = Callable[[Tensor, Tensor], Prequential]
"""Maps bandwidths, the response's first, and directions to predictions and their derivatives."""


class CovariateFit(NamedTuple):
    """Fit of a rule: its bandwidths, its data and statistics of these."""

    x: Tensor
    response: Response
    covariates: Covariates
    bandwidth: Tensor
    covariate_bandwidth: Tensor
    orders: Tensor
    seen: Tensor
    log_predicted: Tensor

    def given(self, value: Tensor) -> Tensor:
        """A result in the type and on the device of the data."""
        return value.to(self.response.like)


class CovariateRule(PredictiveRule):
    """A rule that predicts a response from covariates by the copula recursion.

    Its arguments are those of :class:`CopulaRegression`.
    """

    def __init__(
        self,
        bandwidth: Tensor | float | None = None,
        covariate_bandwidth: Tensor | float | None = None,
        num_permutations: int = 10,
        *,
        queries: Tensor | None = None,
        standardize: bool = True,
        seed: int = 0,
    ) -> None:
        self._wanted = (
            checked_bandwidth("bandwidth", bandwidth),
            checked_bandwidth("covariate_bandwidth", covariate_bandwidth),
        )
        self.num_permutations = checks.integer("num_permutations", num_permutations, 0)
        self.queries = checks.optional(_check_queries, "queries", queries)
        self.standardize = bool(standardize)
        self.seed = fresh_seed(seed)
        self._fit: CovariateFit | None = None

    @property
    def bandwidth(self) -> Tensor | None:
        r""":math:`\rho` of the response: as fitted, and as it was given before."""
        return self._wanted[0] if self._fit is None else self._fit.given(self._fit.bandwidth)

    @property
    def covariate_bandwidth(self) -> Tensor | None:
        r""":math:`\rho_j`: of each covariate as fitted, and as it was given before."""
        fit = self._fit
        return self._wanted[1] if fit is None else fit.given(fit.covariate_bandwidth)

    @property
    def prequential_log_prob(self) -> Tensor:
        r"""The prequential log likelihood :math:`\sum_i \log p_{i-1}(y_i \mid x_i)`."""
        fit = self._fitted("prequential_log_prob")
        scales = len(fit.x) * fit.response.scale.log().sum()
        return fit.given(fit.log_predicted.sum(1).mean() - scales)

    def fit(self, x: Tensor, y: Tensor) -> Self:
        """The rule given data.

        :param Tensor x: covariates. **Shape:** ``(n,)`` or ``(n, num_covariates)``.
        :param Tensor y: responses, or labels of zero and one for a classifier. **Shape:** ``(n,)``.
        :returns: a new rule.
        """
        x = checks.as_tensor("x", x, "(n, ...)", finite=True)
        y = checks.as_tensor("y", y, f"({len(x)},)", finite=True)
        x, y = _check_pairs((x, y))
        rows = _matrix(x)
        loc, scale = standardization(rows, self.standardize, "x")
        covariates = Covariates((rows - loc) / scale, loc, scale)
        orders = observation_orders(len(y), self.num_permutations, self.seed)
        response, predict = self._response(x, y, covariates, orders)
        base, directions = _joint_bandwidths(*self._wanted, rows.shape[1])

        def objective(free: Tensor, wanted: Tensor) -> tuple[float, Tensor]:
            predicted = predict(base + free @ directions, wanted)
            return predicted.mean, predicted.mean_gradient

        both = base
        if len(directions):
            start = torch.full((len(directions),), _START, dtype=torch.float64)
            both = base + maximize_over_bandwidths(objective, start, directions) @ directions
        log_predicted, _, seen = predict(both, directions[:0])
        new = copy.copy(self)
        new._fit = CovariateFit(
            x, response, covariates, both[0], both[1:], orders, seen, log_predicted
        )
        return new

    @abstractmethod
    def _response(
        self, x: Tensor, y: Tensor, covariates: Covariates, orders: Tensor
    ) -> tuple[Response, Predict]:
        """The response of data, and how it is predicted in some orders."""

    def prepare(self, data: tuple[Tensor, ...], seed: int = 0) -> Self:
        """The rule fitted to data, itself where it has been."""
        x, y = _check_pairs(data)
        if self._fit is not None and is_same(self._fit.x, x):
            values = self._fit.response.values
            if is_same(values, y.to(values.dtype)):
                return self
        return self.fit(x, y)

    def begin(self, data: tuple[Tensor, ...], keys: Tensor) -> Resampled:
        """Populations that hold the observations alone.

        :param tuple data: ``(x, y)``, as ``fit`` takes them. The rule is fitted to them, unless
            it has been.
        """
        fit = self.prepare(data)._fitted("begin")
        if self._wanted[0] is None:
            warn_of_narrow_posterior(float(fit.bandwidth), type(self).__name__)
        value = self._start(fit, fit.x if self.queries is None else self.queries, len(keys))
        return Resampled(keys, len(fit.x), len(fit.x), value)

    @abstractmethod
    def _start(self, fit: CovariateFit, queries: Tensor, num_draws: int) -> Any:
        """Return the initial state of the populations, which hold only the observations."""

    def _fitted(self, what: str) -> CovariateFit:
        if self._fit is None:
            raise RuntimeError(f"{what} needs data: call fit(x, y), which returns a new rule")
        return self._fit


def future_steps(future: Future, size: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Draws, uniform numbers of the responses, and rows of the covariates, from a size on."""
    for part, numbers in future_numbers(future, size, 2):
        rows = future_rows(future.keys[part], numbers[..., 1], future.num_observed)
        yield part, numbers[..., :1], rows


def future_rows(keys: Tensor, picks: Tensor, num_observed: int) -> Tensor:
    """Rows of the data whose covariates come next, ``(num_draws, num_steps)`` as the picks.

    Each draw has weights of its own from a flat Dirichlet distribution, and rows are picked by
    them: in distribution the Polya urn, without its history.
    """
    weights = -uniforms(keys.cpu(), 0, num_observed, stream=_WEIGHTS).log()
    reached = weights.cumsum(1)
    rows = torch.searchsorted(reached, (picks * reached[:, -1:]).contiguous())
    return rows.clamp(max=num_observed - 1)
