"""Checks of label vectors."""

from typing import Any, TypeAlias

import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext.posterior.draws import to_array
from pyro_ext.random_measures import cluster_counts

__all__ = ["Labels", "check_draws", "check_labels", "check_partition"]

Labels: TypeAlias = Tensor | npt.NDArray[Any]


def check_labels(argument: str, labels: Any) -> Tensor:
    """Return label vectors renumbered in the order of first occurrence.

    Shapes: labels (*batch, n); returns as the labels.
    """
    array = to_array(labels, argument)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{argument} must hold integers, got {array.dtype}")
    if array.ndim < 1 or array.size == 0:
        raise ValueError(
            f"{argument} must have the shape (*batch, n) and a label at least, got {array.shape}"
        )
    return cluster_counts.canonical_labels(torch.as_tensor(array.astype("int64")))


def check_draws(argument: str, labels: Any) -> Tensor:
    """Return draws of label vectors renumbered in the order of first occurrence.

    Shapes: returns (num_draws, n) or (num_chains, num_draws, n).
    """
    canonical = check_labels(argument, labels)
    if canonical.dim() not in (2, 3):
        raise ValueError(
            f"{argument} must have the shape (num_draws, n) or (num_chains, num_draws, n), got "
            f"{tuple(canonical.shape)}"
        )
    return canonical


def check_partition(argument: str, labels: Any, num_points: int) -> Tensor:
    """Return a single label vector renumbered in the order of first occurrence.

    Shapes: returns (n,).
    """
    canonical = check_labels(argument, labels)
    if canonical.shape != (num_points,):
        raise ValueError(
            f"{argument} must have the shape ({num_points},), got {tuple(canonical.shape)}"
        )
    return canonical
