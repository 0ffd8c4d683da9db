"""Quantiles by bisection, for distribution functions without a closed inverse."""

import math
from collections.abc import Callable

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

__all__ = ["invert_cdf", "solve_increasing"]

_NUM_HALVINGS = 64


def solve_increasing(
    function: Callable[[Tensor], Tensor], target: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Solve an equation with an increasing function by bisection.

    :param function: maps numbers to numbers, elementwise.
    :param Tensor target: its value that is sought.
    :param Tensor low: a number at most as large as the solution. **Shape:** that of ``target``.
    :param Tensor high: a number at least as large. **Shape:** that of ``target``.
    :returns: the solution, without a gradient.
    """
    with torch.no_grad():
        for _ in range(_NUM_HALVINGS):
            middle = 0.5 * (low + high)
            is_below = function(middle) < target
            low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
        return 0.5 * (low + high)


def invert_cdf(distribution: TorchDistribution, probability: Tensor) -> Tensor:
    """Quantiles of a positive random number, with gradients by implicit differentiation.

    :param distribution: its law, with a ``cdf`` that is differentiable.
    :param Tensor probability: numbers in (0, 1).
    :returns: the quantiles. **Shape:** that of the batch shape and the probabilities together.
    """
    if distribution._validate_args and not bool(((probability > 0) & (probability < 1)).all()):
        raise ValueError(f"probabilities must lie in (0, 1), got {probability!r:.80}")
    shape = torch.broadcast_shapes(probability.shape, distribution.batch_shape)
    probability = probability.expand(shape)
    limits = torch.finfo(probability.dtype)
    support = distribution.support
    end = torch.as_tensor(getattr(support, "upper_bound", limits.max)).to(probability).expand(shape)
    low, high = torch.full_like(probability, math.log(limits.tiny)), end.log()
    log_quantile = solve_increasing(
        lambda place: distribution.cdf(torch.minimum(place.exp(), end)), probability, low, high
    )
    quantile = torch.minimum(log_quantile.exp(), end)
    value = distribution.cdf(quantile)
    if not (value.requires_grad or probability.requires_grad):
        return quantile
    density = distribution.log_prob(quantile).exp().detach()
    residual = probability - value
    return quantile + (residual - residual.detach()) / density
