"""Arguments that several parts of this room take, with errors that name them."""

from typing import Any

import torch
from torch import Tensor

from pyro_ext._checks import as_tensor, check_instance, shown
from pyro_ext.random_measures._roots import may_hold_everywhere

__all__ = ["as_table", "check_family", "check_law", "check_measure"]

_METHODS = ("log_density", "log_cdf", "log_survival")


def check_measure(argument: str, value: object) -> None:
    """Check that a value is a completely random measure."""
    from pyro_ext.random_measures._measure import CompletelyRandomMeasure

    check_instance(argument, value, CompletelyRandomMeasure, "a completely random measure")


def check_law(argument: str, value: object) -> None:
    """Check that a value is the law of a random probability measure, as a partition has one."""
    methods = ("log_eppf", "_sample_labels", "_element")
    if isinstance(value, type) or not all(hasattr(value, name) for name in methods):
        raise TypeError(
            f"{argument} must be a normalized measure, a PitmanYor or a DirichletProcess, got "
            f"{shown(value)}"
        )


def check_family(argument: str, value: object) -> None:
    """Check that a value has the methods of a family of arrival times."""
    if isinstance(value, type) or not all(hasattr(value, name) for name in _METHODS):
        raise TypeError(
            f"{argument} must be a family of arrival times, such as GammaArrivals(2.0), got "
            f"{shown(value)}"
        )


def as_table(argument: str, value: Any) -> Tensor:
    """Take sizes and numbers of clusters as a tensor of integers, each size in one row.

    **Shape:** ``(*batch, num_rows, 2)``; rows of zeros are padding.
    """
    table = as_tensor(argument, value, "(*batch, num_rows, 2)")
    if not may_hold_everywhere((table >= 0) & (table == table.floor())):
        raise ValueError(f"{argument} must hold integers >= 0, got {table.tolist()!r:.80}")
    ordered = torch.where(table.prod(-1) > 0, table[..., 0], 0).sort(-1).values
    if not may_hold_everywhere((ordered.diff(dim=-1) > 0) | (ordered[..., 1:] == 0)):
        raise ValueError(f"{argument} must hold each size in one row, got {table.tolist()!r:.80}")
    return table
