"""Bandwidths that predict each observation best from those before it."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext._checks import check_number

__all__ = ["checked_bandwidth", "maximize_over_bandwidths", "spread"]
__all__ += ["warn_of_narrow_posterior"]

_LOWEST, _HIGHEST = -12.0, 6.0  # logits: bandwidths between 6e-6 and 0.9975
_NARROW = 0.1
_TOLERANCE = 1e-7
_SMALL = (0.02, 0.1, 0.3)

_STEEPER = 10.0  # the search starts from a unit curvature, and that of mean log densities is small

Objective = Callable[[Tensor, Tensor], tuple[float, Tensor]]


def checked_bandwidth(argument: str, value: Tensor | float | None) -> Tensor | None:
    """Check a bandwidth, a number or a vector with one for each dimension.

    :param str argument: its name.
    :param value: what the caller got.
    :raises ValueError: for numbers that are not in (0, 1).

    Example::

        >>> checked_bandwidth("bandwidth", 1.5)
        Traceback (most recent call last):
        ValueError: bandwidth must be a finite number > 0 and < 1, got 1.5
    """
    if value is None:
        return None
    if not isinstance(value, Tensor):
        return torch.tensor(
            check_number(argument, value, above=0.0, below=1.0), dtype=torch.float64
        )
    if value.dim() > 1 or not bool(((value > 0.0) & (value < 1.0)).all()):
        raise ValueError(
            f"{argument} must be a number in (0, 1) or a vector of them, one for each dimension, "
            f"got {value!r:.80}"
        )
    return value.detach().cpu().double()


def spread(argument: str, value: Tensor, dimension: int) -> Tensor:
    """Give each dimension its bandwidth.

    :param str argument: its name.
    :param Tensor value: a number, or a vector of them.
    :param int dimension: how many are wanted.
    :raises ValueError: for a vector of another length.
    """
    if value.dim() and len(value) not in (1, dimension):
        raise ValueError(
            f"{argument} must be a number or a vector of {dimension}, one for each dimension, got "
            f"{len(value)} of them"
        )
    return value.reshape(-1).expand(dimension).clone()


def warn_of_narrow_posterior(bandwidth: float, name: str, stacklevel: int = 3) -> None:
    """Warn where new observations hardly change a law, so that populations hardly vary.

    :param float bandwidth: as fitted.
    :param str name: of the rule.
    :param int stacklevel: of the warning.
    """
    if bandwidth < _NARROW:
        warnings.warn(
            f"{name} fits the data best with a bandwidth of {bandwidth:.2g}, with which "
            "observations hardly change the law: its populations hardly vary, and the posterior is "
            "too narrow; pass a larger bandwidth",
            RuntimeWarning,
            stacklevel=stacklevel,
        )


def maximize_over_bandwidths(objective: Objective, start: Tensor, directions: Tensor) -> Tensor:
    """Maximize over the logits of bandwidths.

    There may be a second maximum, where observations hardly change the law: a few small bandwidths
    are looked at, too, and where one is better, the search goes on from there.

    :param objective: maps bandwidths, and directions or none of them, to a value and its slopes in
        these directions.
    :param Tensor start: bandwidths. **Shape:** ``(num_bandwidths,)``.
    :param Tensor directions: one for each bandwidth. **Shape:** ``(num_bandwidths, size)``.
    :returns: the best that were seen. **Shape:** ``(num_bandwidths,)``.
    """
    best, best_value = start, -math.inf

    def look(bandwidth: Tensor, wanted: Tensor) -> tuple[float, Tensor]:
        nonlocal best, best_value
        value, slopes = objective(bandwidth, wanted)
        if value > best_value:
            best, best_value = bandwidth, value
        return value, slopes

    def steepened(logits: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        bandwidth = torch.sigmoid(torch.from_numpy(np.clip(logits, _LOWEST, _HIGHEST)))
        value, slopes = look(bandwidth, directions)
        return -_STEEPER * value, -_STEEPER * (slopes * bandwidth * (1.0 - bandwidth)).numpy()

    _minimize(steepened, start)
    found = best
    for small in _SMALL:
        look(torch.full_like(start, small), directions[:0])
    if best is not found:
        _minimize(steepened, best)
    return best


def _minimize(function: Callable[..., Any], start: Tensor) -> None:
    from scipy.optimize import minimize

    minimize(
        function,
        torch.logit(start.double()).numpy(),
        jac=True,
        method="SLSQP",
        bounds=[(_LOWEST, _HIGHEST)] * len(start),
        options={"ftol": _STEEPER * _TOLERANCE, "maxiter": 100},
    )
