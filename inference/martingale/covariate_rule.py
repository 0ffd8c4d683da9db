"""What copula rules with covariates share: their scale, kernel, fit and future."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor

from pyro_ext._checks import as_tensor, check_finite, check_integer
from pyro_ext.inference.martingale.copula_distribution import Future, is_same, standardization
from pyro_ext.inference.martingale.copula_recursion import (
    Prequential,
    checked_bandwidth,
    log_covariate_kernel,
    maximize_over_bandwidths,
    observation_orders,
    spread,
)
from pyro_ext.inference.martingale.predictive_rule import PredictiveRule, check_data, uniforms
from pyro_ext.random import fresh_seed

__all__ = ["CovariateFit", "CovariateRule", "Covariates", "Predict", "Response"]
__all__ += ["NUMBERS_AT_ONCE", "future_rows", "future_steps"]

NUMBERS_AT_ONCE = 2**21

_START = 0.8
_WEIGHTS = 1


class Covariates(NamedTuple):
    """Covariates of the data.

    :param Tensor scores: standardized. **Shape:** ``(n, num_covariates)``.
    :param Tensor loc: **Shape:** ``(num_covariates,)``.
    :param Tensor scale: **Shape:** ``(num_covariates,)``.
    """

    scores: Tensor
    loc: Tensor
    scale: Tensor

    def standardized(self, queries: Tensor) -> Tensor:
        """Rows of covariates on the scale of the scores. **Shape:** ``(num_queries, ...)``."""
        queries = _check_queries("x", queries)
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
    queries = as_tensor(argument, queries)
    if queries.dim() not in (1, 2) or not len(queries):
        got = tuple(queries.shape)
        raise ValueError(
            f"{argument} must be a tensor of the shape (num_queries,) or (num_queries, "
            f"num_covariates), got {got}"
        )
    check_finite(argument, queries)
    return queries


def _joint_bandwidths(
    bandwidth: Tensor | None,
    covariate_bandwidth: Tensor | None,
    num_covariates: int,
    is_shared: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """How free parameters make the bandwidths of a response and of covariates, in this order.

    These are ``base + free @ directions``; the third result is where the free parameters start.
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
    return base, directions, torch.full((len(rows),), _START, dtype=torch.float64)


class Response(NamedTuple):
    """A response of the data.

    :param Tensor values: of the response. **Shape:** ``(n,)``.
    :param Tensor loc: of its own scale. **Shape:** ``(1,)``.
    :param Tensor scale: **Shape:** ``(1,)``.
    :param Tensor like: of the type and on the device of results.
    """

    values: Tensor
    loc: Tensor
    scale: Tensor
    like: Tensor


Predict = Callable[[Tensor, Tensor], Prequential]
"""What bandwidths predict, that of the response first, with derivatives in some directions."""


class CovariateFit(NamedTuple):
    """What a rule has learned: its bandwidths, its data and what it saw of these."""

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
        shared_bandwidth: bool = False,
        standardize: bool = True,
        seed: int = 0,
    ) -> None:
        self._wanted = (
            checked_bandwidth("bandwidth", bandwidth),
            checked_bandwidth("covariate_bandwidth", covariate_bandwidth),
        )
        self.num_permutations = check_integer("num_permutations", num_permutations, 0)
        self.queries = None if queries is None else _check_queries("queries", queries)
        self.shared_bandwidth, self.standardize = bool(shared_bandwidth), bool(standardize)
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
        x = as_tensor("x", x, "(n, ...)", finite=True)
        y = as_tensor("y", y, f"({len(x)},)", finite=True)
        x, y = _check_pairs((x, y))
        rows = x.detach().cpu().double().reshape(len(x), -1)
        loc, scale = standardization(rows, self.standardize, "x")
        covariates = Covariates((rows - loc) / scale, loc, scale)
        orders = observation_orders(len(y), self.num_permutations, self.seed)
        response, predict = self._response(x, y, covariates, orders)
        base, directions, start = _joint_bandwidths(
            *self._wanted, rows.shape[1], self.shared_bandwidth
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
        seen, log_predicted = predicted.uniforms, predicted.log_density
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
        fit = self._fit
        if fit is not None and is_same(fit.x, x):
            values = fit.response.values
            if is_same(values, y.to(values.dtype)):
                return self
        return self.fit(x, y)

    def _fitted(self, what: str) -> CovariateFit:
        if self._fit is None:
            raise RuntimeError(f"{what} needs data: call fit(x, y), which returns a new rule")
        return self._fit


def future_steps(future: Future, size: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """What populations get from a size on, some draws at a time.

    These are the draws, uniform numbers of the responses and rows of the covariates, a column a
    step.
    """
    num_steps = future.size - size
    at_once = max(NUMBERS_AT_ONCE // (2 * num_steps), 1)
    for start in range(0, len(future.keys), at_once):
        part = slice(start, start + at_once)
        keys = future.keys[part].cpu()
        numbers = uniforms(keys, 2 * size, 2 * future.size).reshape(-1, num_steps, 2)
        yield part, numbers[..., 0], future_rows(keys, numbers[..., 1], future.num_observed)


def future_rows(keys: Tensor, picks: Tensor, num_observed: int) -> Tensor:
    """Rows of the data whose covariates come next, by the Bayesian bootstrap.

    Each draw has weights of its own from a flat Dirichlet distribution, and rows are picked by
    them: in distribution the Polya urn, without its history.

    Shapes: keys (num_draws, 2); picks (num_draws, num_steps); returns (num_draws, num_steps).
    """
    weights = -uniforms(keys.cpu(), 0, num_observed, stream=_WEIGHTS).log()
    reached = weights.cumsum(1)
    rows = torch.searchsorted(reached, (picks * reached[:, -1:]).contiguous())
    return rows.clamp(max=num_observed - 1)
