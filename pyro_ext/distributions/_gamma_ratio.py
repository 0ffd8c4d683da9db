"""Ratios of gamma functions, which the evidence of conjugate models is made of."""

import torch
from torch import Tensor

__all__ = ["log_rising"]

_LARGE = 20.0


def log_rising(start: Tensor, number: Tensor) -> Tensor:
    r""":math:`\log \Gamma(a + x) - \log \Gamma(a)`, to an error that does not grow with :math:`a`.

    :param Tensor start: :math:`a > 0`, in float64.
    :param Tensor number: :math:`x \geq 0`.
    """
    is_large = start >= _LARGE
    small = torch.where(is_large, 1.0, start)
    large = torch.where(is_large, start, _LARGE)
    direct = (small + number).lgamma() - small.lgamma()
    by_stirling = (
        (large + number - 0.5) * torch.log1p(number / large)
        + number * (large.log() - 1.0)
        + _rest_of_stirling(large + number)
        - _rest_of_stirling(large)
    )
    return torch.where(is_large, by_stirling, direct)


def _rest_of_stirling(x: Tensor) -> Tensor:
    """What Stirling's formula lacks, to 1e-15 from 20 on."""
    square = x.square()
    series = 1.0 / 12.0 - (1.0 / 360.0 - (1.0 / 1260.0 - 1.0 / (1680.0 * square)) / square) / square
    return series / x
