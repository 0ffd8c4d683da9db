"""Distributions with a level, which may be given as its logarithm."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_ext._checks import as_parameter, shown
from pyro_ext.distributions._base import UnivariateDistribution

__all__ = ["LevelDistribution", "log_level_of"]


class LevelDistribution(UnivariateDistribution):
    """Distribution whose level is stored as its logarithm, and so may exceed all numbers."""

    log_level: Tensor

    @property
    def level(self) -> Tensor:
        r""":math:`t`, infinite where it exceeds the numbers of its type."""
        return self.log_level.exp()


def log_level_of(level: Any, log_level: Any, validate_args: bool | None) -> Any:
    """Return the logarithm of a level, whichever of the two is given.

    :raises ValueError: where both or none are given, or the level is not positive. The latter is
        looked at only where arguments are validated: a graph cannot branch on a value.
    """
    if (level is None) == (log_level is None):
        raise ValueError(
            "exactly one of level and log_level must be given, got "
            f"level={shown(level)}, log_level={shown(log_level)}"
        )
    if log_level is not None:
        return log_level
    level = torch.as_tensor(as_parameter("level", level))
    if not level.is_floating_point():
        level = level.to(torch.get_default_dtype())
    if validate_args is None:
        validate_args = Distribution._validate_args
    is_valid = (level > 0) & level.isfinite()
    if validate_args and not bool(is_valid.all()):
        bad = level[~is_valid].flatten()[0].item()
        raise ValueError(f"level must be finite and > 0, got {bad:g}")
    return level.log()
