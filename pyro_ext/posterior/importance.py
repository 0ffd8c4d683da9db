"""Pareto-smoothed importance weights, and what they reveal about an approximation.

[1] A. Vehtari, D. Simpson, A. Gelman, Y. Yao, J. Gabry (2024), Pareto smoothed importance sampling.
"""

import math
from typing import NamedTuple

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from pyro_ext._lib import checks

MOST_K_HAT = 0.7
_FEWEST_IN_TAIL = 5


class SmoothedWeights(NamedTuple):
    """Importance weights whose largest values are smoothed by a generalized Pareto distribution.

    :param Tensor log_weights: logarithms of the weights, which sum to one. **Shape:** ``(n,)``.
    :param float k_hat: the shape of the Pareto distribution. Up to 0.7, you can trust weighted
        means. Above that, the draws are too far from the posterior to be weighted, and only useful
        for starting chains. It is minus infinity where all weights are the same.
    :param float effective_sample_size: the effective sample size of the weighted draws.
    """

    log_weights: Tensor
    k_hat: float
    effective_sample_size: float


def smoothed_weights(log_weights: Tensor) -> SmoothedWeights:
    """Smooth importance weights [1].

    :param Tensor log_weights: logarithms of the target density over the density of the draws.
        Neither needs to be normalized; NaN means that a draw has no density. **Shape:** ``(n,)``.
    :raises ValueError: if no weight is positive.

    Example::

        >>> q, p = dist.Normal(0.0, 1.0), dist.Normal(0.0, 0.5)
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch...>
        >>> x = q.sample((1000,))
        >>> found = smoothed_weights(p.log_prob(x) - q.log_prob(x))
        >>> found.k_hat < 0.5, round(float((found.log_weights.exp() * x.double()).sum()), 1)
        (True, -0.0)
    """
    log_weights = checks.as_tensor("log_weights", log_weights, "(n,)").detach()
    values = log_weights.double().cpu()
    values = torch.where(values.isnan(), -torch.inf, values)
    largest = values.max()
    if not bool(largest.isfinite()):
        raise ValueError(f"log_weights must have a finite maximum, got {float(largest)}")
    ordered, order = (values - largest).sort()
    n = len(values)
    number = min(math.ceil(min(0.2 * n, 3.0 * math.sqrt(n))), n - 1)
    cutoff = max(float(ordered[-number - 1]), math.log(torch.finfo(torch.float64).tiny))
    tail = ordered > cutoff
    k_hat = -math.inf if bool(ordered[0] == ordered[-1]) else math.inf  # equal ones have no tail
    if int(tail.sum()) >= _FEWEST_IN_TAIL:
        excess = ordered[tail].exp() - math.exp(cutoff)
        k_hat, scale = fit_generalized_pareto(excess)
        if math.isfinite(k_hat):
            ranks = (torch.arange(len(excess), dtype=torch.float64) + 0.5) / len(excess)
            log_survival = torch.log1p(-ranks)
            quantiles = -scale * log_survival
            if k_hat:
                quantiles = scale * torch.expm1(-k_hat * log_survival) / k_hat
            ordered[tail] = (quantiles + math.exp(cutoff)).log().clamp(max=0.0)
    smoothed = torch.empty_like(ordered)
    smoothed[order] = ordered - ordered.logsumexp(0)
    size = float((2.0 * smoothed).exp().sum().reciprocal())
    return SmoothedWeights(smoothed.to(log_weights.device), float(k_hat), size)
