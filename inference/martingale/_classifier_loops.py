"""Compiled loops of the copula recursion for probabilities of a binary response.

Points are the last dimension of all arrays, as in the loops for densities.
"""

import math

import numpy as np
import numpy.typing as npt

from pyro_ext._lib.compiled import compiled
from pyro_ext.inference.martingale._copula_loops import FAST, LEAST_RATE, MOST_RATE, covariate_rates

_LEAST, _MOST = 5e-5, 1.0 - 5e-5  # probability

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@compiled(fastmath=FAST, error_model="numpy")
def _update(
    probability: Floats, label: int, seen: float, weights: Floats, a: float, rho: float
) -> None:
    """Take in one label, which had the probability ``seen`` to be one, with weights of points."""
    inverse = 1.0 / seen if label == 1 else 1.0 / (1.0 - seen)
    for k in range(probability.size):
        p = probability[k]
        part = min(p, seen) if label == 1 else max(p - seen, 0.0)
        top = a * weights[k]
        rate = min(max(top / (1.0 - a + top), LEAST_RATE), MOST_RATE)
        p += rate * rho * (part * inverse - p)
        probability[k] = min(max(p, _LEAST), _MOST)


@compiled(fastmath=FAST, error_model="numpy")
def follow_labels(
    probability: Floats,
    labels: Integers,
    seen: Floats,
    rates: Floats,
    bandwidth: float,
    rows: Integers,
    kernel: Floats,
) -> None:
    """Take labels into distributions, and follow points through them.

    Shapes: probability (num_distributions, num_points); labels (num_distributions, num_steps); seen
    as labels; rates (num_steps,); rows as labels; kernel (num_rows, num_points).
    """
    for distribution in range(probability.shape[0]):
        for step in range(rates.size):
            _update(
                probability[distribution],
                labels[distribution, step],
                seen[distribution, step],
                kernel[rows[distribution, step]],
                rates[step],
                bandwidth,
            )


@compiled(fastmath=FAST, error_model="numpy")
def resample_labels(
    probability: Floats,
    uniforms: Floats,
    rates: Floats,
    bandwidth: float,
    rows: Integers,
    kernel: Floats,
) -> None:
    """Draw labels and take them in, one after the other.

    Shapes: probability (num_distributions, num_rows + num_points); uniforms (num_distributions,
    num_steps); rates (num_steps,); rows as uniforms; kernel (num_rows, num_rows + num_points).
    """
    for distribution in range(probability.shape[0]):
        for step in range(rates.size):
            row = rows[distribution, step]
            seen = probability[distribution, row]
            label = 1 if uniforms[distribution, step] < seen else 0
            _update(probability[distribution], label, seen, kernel[row], rates[step], bandwidth)


@compiled(fastmath=FAST, error_model="numpy")
def predict_labels(
    order: Integers,
    labels: Integers,
    covariates: Floats,
    rates: Floats,
    bandwidth: float,
    covariate_bandwidth: Floats,
    directions: Floats,
    covariate_directions: Floats,
    log_predicted: Floats,
    gradient: Floats,
    seen: Floats,
) -> None:
    """Predict each label from those before it, with derivatives in the bandwidths.

    Shapes: order (num_orders, n); labels (n,); covariates (num_covariates, n); rates (n,);
    covariate_bandwidth (num_covariates,); directions (num_directions,); covariate_directions
    (num_directions, num_covariates); log_predicted as order; gradient (num_orders, num_directions);
    seen as order.
    """
    num_orders, n = order.shape
    number = directions.size
    x, p, dp = np.empty((covariates.shape[0], n)), np.empty(n), np.empty((number, n))
    rate, dlogit, work = np.empty(n), np.empty((number, n)), np.empty(n)
    target, by_point, by_seen = np.empty(n), np.empty(n), np.empty(n)
    for distribution in range(num_orders):
        for k in range(n):
            for j in range(covariates.shape[0]):
                x[j, k] = covariates[j, order[distribution, k]]
        p[:] = 0.5
        dp[:] = 0.0
        gradient[distribution] = 0.0
        for i in range(n):
            q, label = p[i], labels[order[distribution, i]]
            seen[distribution, i] = q
            log_predicted[distribution, i] = math.log(q) if label == 1 else math.log(1.0 - q)
            weight = 1.0 / q if label == 1 else -1.0 / (1.0 - q)
            for t in range(number):
                gradient[distribution, t] += weight * dp[t, i]
            size = n - i - 1
            now, dnow = p[i + 1 :], dp[:, i + 1 :]
            dlogit[:, :size] = 0.0
            covariate_rates(
                x[:, i + 1 :],
                x[:, i],
                rates[i],
                covariate_bandwidth,
                covariate_directions,
                rate,
                dlogit,
                work,
            )
            inverse = 1.0 / q if label == 1 else 1.0 / (1.0 - q)
            for k in range(size):
                # The part of the point's probability that goes with the label, and its derivatives.
                if label == 1:
                    target[k] = min(now[k], q) * inverse
                    below = 1.0 if now[k] < q else 0.0
                    by_point[k], by_seen[k] = below * inverse, -below * now[k] * inverse * inverse
                else:
                    target[k] = max(now[k] - q, 0.0) * inverse
                    above = 1.0 if now[k] > q else 0.0
                    by_point[k] = above * inverse
                    by_seen[k] = above * ((now[k] - q) * inverse - 1.0) * inverse
            for t in range(number):
                for k in range(size):
                    gap = bandwidth * (target[k] - now[k])
                    dgap = directions[t] * (target[k] - now[k])
                    dgap += bandwidth * ((by_point[k] - 1.0) * dnow[t, k] + by_seen[k] * dp[t, i])
                    dnow[t, k] += rate[k] * (dgap + (1.0 - rate[k]) * dlogit[t, k] * gap)
            for k in range(size):
                new = now[k] + rate[k] * bandwidth * (target[k] - now[k])
                now[k] = min(max(new, _LEAST), _MOST)
                work[k] = 1.0 if now[k] == new else 0.0
            for t in range(number):
                for k in range(size):
                    dnow[t, k] *= work[k]
