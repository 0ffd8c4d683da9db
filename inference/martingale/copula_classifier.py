"""Binary classification that learns by the copula recursion."""

from typing import NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ext._checks import as_tensor, check_integer
from pyro_ext.inference.martingale.copula_distribution import is_same
from pyro_ext.inference.martingale.copula_recursion import (
    checked_bandwidth,
    maximize_over_bandwidths,
    observation_orders,
    rates,
    warn_of_narrow_posterior,
)
from pyro_ext.inference.martingale.copula_regression import (
    Covariates,
    check_pairs,
    check_queries,
    future_rows,
    joint_bandwidths,
    observed_covariates,
)
from pyro_ext.inference.martingale.predictive_rule import PredictiveRule, Resampled, uniforms
from pyro_ext.random import fresh_seed

__all__ = [
    "CopulaClassifier",
    "CopulaClassifierState",
]

_NUMBERS_AT_ONCE = 2**21


class _Fit(NamedTuple):
    """What a classifier has learned: its bandwidths, its data and what it saw of these."""

    x: Tensor
    y: Tensor
    covariates: Covariates
    bandwidth: Tensor
    covariate_bandwidth: Tensor
    orders: Tensor
    seen: Tensor
    log_predicted: Tensor


class CopulaClassifierState(NamedTuple):
    """What a copula classifier keeps of its populations.

    :param Tensor probability: of the label one, at the covariates of the data and then at the
        queries. **Shape:** ``(num_draws, n + num_queries)``.
    :param Tensor kernel: of covariates. **Shape:** ``(n, n + num_queries)``.
    :param float bandwidth: of the response.
    :param torch.dtype dtype: of results.
    :param torch.device device: of results.
    """

    probability: Tensor
    kernel: Tensor
    bandwidth: float
    dtype: torch.dtype
    device: torch.device


class CopulaClassifier(PredictiveRule):
    r"""Binary classification by the copula recursion [1].

    The probability of the label one at covariates :math:`x` starts at one half. With
    :math:`p = p_{i-1}(1 \mid x)` and :math:`q = p_{i-1}(1 \mid x_i)`, it becomes

    .. math:: p \{1 - \alpha_i(x) + \alpha_i(x) (1 - \rho + \rho f)\}, \quad
              f = \frac{\min(p, q)}{p q} \text{ if } y_i = 1, \quad
              f = \frac{1}{1 - q} - \frac{\min(p, q)}{p (1 - q)} \text{ otherwise,}

    where :math:`\alpha_i(x)` is that of :class:`CopulaRegression`. Probabilities are clipped to
    :math:`[5 \cdot 10^{-5}, 1 - 5 \cdot 10^{-5}]`, and are means over several random orders of the
    data. Bandwidths that are not given maximize the prequential log likelihood of the labels.

    In predictive resampling future covariates come from the observed ones by the Bayesian
    bootstrap, and populations are followed at the covariates of the data and at the queries.

    :param bandwidth: :math:`\rho` of the response in (0, 1), or ``None`` to fit it.
    :param covariate_bandwidth: :math:`\rho_j`, a number, a vector with one for each covariate, or
        ``None`` to fit them.
    :param int num_permutations: number of random orders. Zero takes the data in the order they
        have.
    :param Tensor queries: covariates at which populations are wanted, ``None`` for the observed.
        **Shape:** ``(num_queries,)`` or ``(num_queries, num_covariates)``.
    :param bool shared_bandwidth: whether a fitted bandwidth is the same for all covariates.
    :param bool standardize: whether covariates are standardized first.
    :param int seed: of the orders.
    :raises ValueError: for an argument that does not fit.

    [1] E. Fong, C. Holmes, S. G. Walker (2023), Martingale posterior distributions.

    Example::

        >>> x = torch.linspace(-2, 2, 50)
        >>> classifier = CopulaClassifier(0.9, 0.9).fit(x, x > 0.5)
        >>> classifier.probabilities(torch.tensor([-1.5, 0.5, 1.5]))
        tensor([0.0040, 0.5746, 0.9965])
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
        self._fit: _Fit | None = None

    @property
    def bandwidth(self) -> Tensor | None:
        r""":math:`\rho` of the response: as fitted, and as it was given before."""
        fit = self._fit
        return self._wanted[0] if fit is None else _given(fit.bandwidth, fit.x)

    @property
    def covariate_bandwidth(self) -> Tensor | None:
        r""":math:`\rho_j`: of each covariate as fitted, and as it was given before."""
        fit = self._fit
        return self._wanted[1] if fit is None else _given(fit.covariate_bandwidth, fit.x)

    @property
    def prequential_log_prob(self) -> Tensor:
        r"""The prequential log likelihood :math:`\sum_i \log p_{i-1}(y_i \mid x_i)`."""
        fit = self._fitted("prequential_log_prob")
        return _given(fit.log_predicted.sum(1).mean(), fit.x)

    def fit(self, x: Tensor, y: Tensor) -> "CopulaClassifier":
        """The classifier given data.

        :param Tensor x: covariates. **Shape:** ``(n,)`` or ``(n, num_covariates)``.
        :param Tensor y: labels, zeros and ones. **Shape:** ``(n,)``.
        :returns: a new rule.
        :raises ValueError: for data that do not fit.
        """
        x = as_tensor("x", x, "(n, ...)", finite=True)
        y = as_tensor("y", y, f"({len(x)},)", finite=True)
        x, y = check_pairs((x, y))
        if not bool(((y == 0) | (y == 1)).all()):
            wrong = y[(y != 0) & (y != 1)][0].item()
            raise ValueError(f"y must hold the labels 0 and 1, got {wrong!r}")
        covariates = observed_covariates(x, self.standardize)
        orders = observation_orders(len(y), self.num_permutations, self.seed)
        base, directions, start = joint_bandwidths(
            *self._wanted, covariates.scores.shape[1], self.shared_bandwidth
        )

        def objective(free: Tensor, wanted: Tensor) -> tuple[float, Tensor]:
            both = base + free @ directions
            log_predicted, gradient, _ = _predict(orders, y, covariates, both, wanted)
            return float(log_predicted.mean()), gradient.sum(0) / log_predicted.numel()

        both = base
        if len(directions):
            both = base + maximize_over_bandwidths(objective, start, directions) @ directions
        log_predicted, _, seen = _predict(orders, y, covariates, both, directions[:0])
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._fit = _Fit(x, y, covariates, both[0], both[1:], orders, seen, log_predicted)
        return new

    def probabilities(self, x: Tensor) -> Tensor:
        """Probability of the label one.

        :param Tensor x: covariates. **Shape:** ``(num_queries,)`` or ``(num_queries,
            num_covariates)``.
        :returns: **Shape:** ``(num_queries,)``.
        :raises RuntimeError: before :meth:`fit`.
        """
        fit = self._fitted("probabilities")
        kernel = fit.covariates.kernel(fit.covariates.standardized(x), fit.covariate_bandwidth)
        return _given(_followed(fit, kernel), fit.x)

    def prepare(self, data: tuple[Tensor, ...], seed: int = 0) -> "CopulaClassifier":
        """The rule fitted to data, itself where it has been.

        :param tuple data: ``(x, y)``, as :meth:`fit` takes them.
        :param int seed: not used, since the rule has its own.
        :raises ValueError: for data that do not fit.
        """
        x, y = check_pairs(data)
        fit = self._fit
        return self if fit and is_same(fit.x, x) and is_same(fit.y, y) else self.fit(x, y)

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
            warn_of_narrow_posterior(float(fit.bandwidth), type(self).__name__)
        queries = fit.covariates.standardized(x if self.queries is None else self.queries)
        both = torch.cat([fit.covariates.scores, queries])
        kernel = fit.covariates.kernel(both, fit.covariate_bandwidth)
        probability = _followed(fit, kernel).expand(len(keys), -1)
        state = CopulaClassifierState(probability, kernel, float(fit.bandwidth), *_kind_of(x))
        return Resampled(keys, len(y), len(y), state)

    def advance(self, state: Resampled, num_steps: int) -> Resampled:
        """Complete each population by some more observations.

        :param Resampled state: where the populations are.
        :param int num_steps: how many observations each gets.
        """
        from pyro_ext.inference.martingale._classifier_loops import resample_labels

        value: CopulaClassifierState = state.value
        if num_steps == 0:
            return state
        size = state.size + num_steps
        probability = value.probability.clone(memory_format=torch.contiguous_format)
        kernel = value.kernel.numpy()
        rate = rates(state.size + 1, size).numpy()
        at_once = max(_NUMBERS_AT_ONCE // (2 * num_steps), 1)
        for start in range(0, len(probability), at_once):
            part = slice(start, start + at_once)
            keys = state.keys[part].cpu()
            numbers = uniforms(keys, 2 * state.size, 2 * size).reshape(-1, num_steps, 2)
            rows = future_rows(keys, numbers[..., 1], state.num_observed)
            picked = numbers[..., 0].contiguous().numpy()
            resample_labels(
                probability[part].numpy(), picked, rate, value.bandwidth, rows.numpy(), kernel
            )
        return state._replace(size=size, value=value._replace(probability=probability))

    def population(self, state: Resampled) -> dist.Bernoulli:
        """Laws of the label, with the batch shape ``(num_draws, num_queries)``.

        :param Resampled state: where the populations are.
        """
        value: CopulaClassifierState = state.value
        probability = value.probability[:, state.num_observed :]
        return dist.Bernoulli(probability.to(value.device, value.dtype))

    def _fitted(self, what: str) -> _Fit:
        if self._fit is None:
            raise RuntimeError(f"{what} needs data: call fit(x, y), which returns a new rule")
        return self._fit


def _kind_of(x: Tensor) -> tuple[torch.dtype, torch.device]:
    """Type and device of results."""
    return x.dtype if x.is_floating_point() else torch.get_default_dtype(), x.device


def _given(result: Tensor, x: Tensor) -> Tensor:
    dtype, device = _kind_of(x)
    return result.to(device, dtype)


def _predict(
    orders: Tensor, y: Tensor, covariates: Covariates, both: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Predict each label from those before it, with derivatives in the bandwidths."""
    from pyro_ext.inference.martingale._classifier_loops import predict_labels

    shape = tuple(orders.shape)
    log_predicted, seen = np.empty(shape), np.empty(shape)
    gradient = np.empty((len(orders), len(directions)))
    predict_labels(
        orders.numpy(),
        y.detach().cpu().long().contiguous().numpy(),
        covariates.scores.T.contiguous().numpy(),
        rates(1, len(y)).numpy(),
        float(both[0]),
        both[1:].contiguous().numpy(),
        directions[:, 0].contiguous().numpy(),
        directions[:, 1:].contiguous().numpy(),
        log_predicted,
        gradient,
        seen,
    )
    return torch.from_numpy(log_predicted), torch.from_numpy(gradient), torch.from_numpy(seen)


def _followed(fit: _Fit, kernel: Tensor) -> Tensor:
    """Probability at points with this kernel, mean over orders. **Shape:** ``(num_points,)``."""
    from pyro_ext.inference.martingale._classifier_loops import follow_labels

    probability = np.full((len(fit.orders), kernel.shape[1]), 0.5)
    follow_labels(
        probability,
        fit.y.detach().cpu().long()[fit.orders].contiguous().numpy(),
        fit.seen.numpy(),
        rates(1, len(fit.y)).numpy(),
        float(fit.bandwidth),
        fit.orders.numpy(),
        kernel.contiguous().numpy(),
    )
    return torch.from_numpy(probability.mean(0))
