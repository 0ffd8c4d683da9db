r"""Sums over all partitions of a set, by power series.

With :math:`A(z) = \sum_i x_i z^i / i!`, the sum over the partitions of :math:`n` elements into
:math:`k` blocks of the product of :math:`x` at the sizes is :math:`n! \, [z^n] A(z)^k / k!`, and
over all partitions :math:`n! \, [z^n] e^{A(z)}`. All terms are positive. Series are scaled by
powers of a number that keeps them within the range of their type.
"""

import math

import torch
from torch import Tensor

__all__ = ["log_sums_by_blocks", "log_sums_over_partitions", "scaled_series"]


def scaled_series(log_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Coefficients of :math:`A`, scaled.

    :param Tensor log_values: :math:`\log x_i` for :math:`i = 1, \dots, n`.
        **Shape:** ``(*batch, n)``.
    :returns: coefficients, of which the largest is one; the logarithm of what they are multiplied
        by; and the logarithm of what each power of :math:`z` is multiplied by.
    """
    number = log_values.shape[-1]
    order = torch.arange(1, number + 1, dtype=log_values.dtype, device=log_values.device)
    logs = log_values - (order + 1.0).lgamma()
    if number > 1:
        log_power = (logs[..., :1] - logs[..., -1:]) / (number - 1)
    else:
        log_power = torch.zeros_like(logs)
    logs = logs + log_power * order
    log_factor = logs.amax(-1, keepdim=True)
    return (logs - log_factor).exp(), log_factor.squeeze(-1), log_power.squeeze(-1)


def log_sums_by_blocks(log_values: Tensor) -> Tensor:
    r"""Logarithms of the sums over partitions of all elements into 1 to n blocks.

    :param Tensor log_values: :math:`\log x_i` for :math:`i = 1, \dots, n`.
        **Shape:** ``(*batch, n)``.
    :returns: the logarithms. **Shape:** ``(*batch, n)``, over the number of blocks.
    """
    series, log_factor, log_power = scaled_series(log_values)
    number = series.shape[-1]
    # Row i, column j of the matrix is the coefficient of order j - i.
    gap = torch.arange(number, device=series.device)
    gap = gap[None, :] - gap[:, None] - 1
    matrix = torch.where(gap >= 0, series[..., gap.clamp(min=0)], 0.0)
    power, log_scale, results = series, torch.zeros_like(log_factor), []
    for block in range(1, number + 1):
        if block > 1:
            power = (power[..., None, :] @ matrix).squeeze(-2)
            largest = power.amax(-1).clamp(min=1e-300)
            power, log_scale = power / largest[..., None], log_scale + largest.log()
        results.append(power[..., -1].log() + log_scale + block * log_factor)
    blocks = torch.arange(1, number + 1, dtype=series.dtype, device=series.device)
    value = torch.stack(results, -1) - (blocks + 1.0).lgamma()
    return value + math.lgamma(number + 1.0) - (number * log_power)[..., None]


def log_sums_over_partitions(log_values: Tensor) -> Tensor:
    r"""Logarithms of the coefficients :math:`[z^m] e^{A(z)}` for :math:`m = 0, \dots, n`.

    :param Tensor log_values: :math:`\log x_i` for :math:`i = 1, \dots, n`.
        **Shape:** ``(*batch, n)``.
    :returns: the logarithms. **Shape:** ``(*batch, n + 1)``.
    """
    series, log_factor, log_power = scaled_series(log_values)
    number = series.shape[-1]
    order = torch.arange(1, number + 1, dtype=series.dtype, device=series.device)
    log_slopes = series.log() + order.log() + log_factor[..., None]
    logs = [torch.zeros_like(log_factor)]
    for total in range(1, number + 1):
        earlier = torch.stack(logs[::-1], -1)
        logs.append((log_slopes[..., :total] + earlier).logsumexp(-1) - order[total - 1].log())
    places = torch.arange(number + 1, dtype=series.dtype, device=series.device)
    return torch.stack(logs, -1) - places * log_power[..., None]
