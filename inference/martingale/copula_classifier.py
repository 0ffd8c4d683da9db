"""Binary classification that learns by the copula recursion."""

from typing import NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ext.inference.martingale.copula_distribution import Future
from pyro_ext.inference.martingale.copula_recursion import Prequential, array_of, rates
from pyro_ext.inference.martingale.covariate_rule import (
    CovariateFit,
    CovariateRule,
    Covariates,
    Predict,
    Response,
    future_steps,
)
from pyro_ext.inference.martingale.predictive_rule import Resampled


class CopulaClassifierState(NamedTuple):
    """What a copula classifier keeps of its populations."""

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

    where :math:`\alpha_i(x)` is that of :class:`CopulaRegression`. Probabilities are clipped to
    :math:`[5 \cdot 10^{-5}, 1 - 5 \cdot 10^{-5}]`, and are means over several random orders of the
    data. Bandwidths that are not given maximize the prequential log likelihood of the labels.

    Arguments and predictive resampling are those of :class:`CopulaRegression`; only covariates are
    standardized.

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
            return _predict(orders, y, covariates, both, wanted)

        return Response(y, torch.zeros(1), torch.ones(1), like[:0]), predict

    def probabilities(self, x: Tensor) -> Tensor:
        """Probability of the label one.

        :param Tensor x: covariates. **Shape:** ``(num_queries,)`` or ``(num_queries,
            num_covariates)``.
        :returns: **Shape:** ``(num_queries,)``.
        """
        fit = self._fitted("probabilities")
        kernel = fit.covariates.kernel(fit.covariates.standardized(x), fit.covariate_bandwidth)
        return fit.given(_followed(fit, kernel))

    def _start(self, fit: CovariateFit, queries: Tensor, num_draws: int) -> CopulaClassifierState:
        # Labels are drawn at the covariates of the data, so populations are followed there too.
        both = torch.cat([fit.covariates.scores, fit.covariates.standardized(queries)])
        kernel = fit.covariates.kernel(both, fit.covariate_bandwidth)
        probability = _followed(fit, kernel).expand(num_draws, -1)
        return CopulaClassifierState(probability, kernel, float(fit.bandwidth), fit.response.like)

    def advance(self, state: Resampled, num_steps: int) -> Resampled:
        """Complete each population by some more observations."""
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
        """Distributions of the label, with the batch shape ``(num_draws, num_queries)``."""
        value: CopulaClassifierState = state.value
        probability = value.probability[:, state.num_observed :]
        return dist.Bernoulli(probability.to(value.like))


def _predict(
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


def _followed(fit: CovariateFit, kernel: Tensor) -> Tensor:
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
