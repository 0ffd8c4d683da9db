"""Numbers in float64, and logarithms that survive where the number itself underflows."""

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from pyro_ext._checks import as_tensor
from pyro_ext.special import log_exprel, log_upper_gamma

__all__ = [
    "as_double",
    "log_if_positive",
    "log_sum",
    "log_upper_gamma_at_log",
    "survives",
]

_LARGEST_LOG = 700.0
_LEAST_LOG = -690.0


def as_double(value: Any, argument: str = "value") -> Tensor:
    """Return a number, a list or a tensor in float64."""
    if isinstance(value, Real):
        return torch.as_tensor(value, dtype=torch.float64)
    return as_tensor(argument, value, allow_empty=True, dtype=torch.float64)


def log_if_positive(value: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of a number, zero where it is not positive, and whether it is."""
    is_positive = value > 0
    return torch.where(is_positive, value, 1.0).log(), is_positive


def log_sum(log_value: Tensor, value: Tensor) -> Tensor:
    r""":math:`\log(e^l + x)`, with a gradient also where :math:`x` is zero."""
    log_other, is_positive = log_if_positive(value)
    return torch.where(is_positive, torch.logaddexp(log_value, log_other), log_value)


def survives(weight: Tensor, tilt: Tensor) -> Tensor:
    """Whether a weight is kept, which an exponential tilt does with probability exp(-tilt w)."""
    return -torch.log1p(-torch.rand_like(weight)) > tilt * weight


def log_upper_gamma_at_log(power: Tensor, log_value: Tensor) -> Tensor:
    r""":math:`\log \Gamma(a, x)` at :math:`\log x`, also where :math:`x` underflows."""
    inside = log_value.clamp(min=_LEAST_LOG, max=_LARGEST_LOG)
    value = log_upper_gamma(power, inside.exp())
    is_below = log_value < _LEAST_LOG
    # What is missing is the integral of a power between the two places.
    depth = torch.where(is_below, inside - log_value, 1.0)
    rest = power * inside + depth.log() + log_exprel(-power * depth)
    return torch.where(is_below, torch.logaddexp(value, rest), value)
