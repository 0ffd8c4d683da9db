"""Counts of clusters, with zeros for padding, and label vectors."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_ext._checks import shown
from pyro_ext.random_measures._logarithms import as_double
from pyro_ext.random_measures._roots import holds_everywhere, may_hold_everywhere

__all__ = ["ClusterSizes", "canonical_labels", "check_counts", "cluster_sizes", "counts_of_labels"]


class ClusterSizes(NamedTuple):
    """Sizes that occur, and how often they do, in float64.

    :param Tensor values: positive sizes. **Shape:** ``(*batch, num_sizes)``.
    :param Tensor multiplicity: number of clusters of each, zero for padding.
    """

    values: Tensor
    multiplicity: Tensor

    @property
    def total(self) -> Tensor:
        """Number of samples. **Shape:** ``batch``."""
        return (self.values * self.multiplicity).sum(-1)

    @property
    def number(self) -> Tensor:
        """Number of clusters. **Shape:** ``batch``."""
        return self.multiplicity.sum(-1)


def check_counts(counts: Any, name: str = "counts") -> Tensor:
    """Return cluster sizes in float64.

    :raises ValueError: where they are not nonnegative integers, or have no axis.
    """
    sizes = as_double(counts, name)
    if sizes.dim() == 0:
        raise ValueError(
            f"{name} must have at least one axis, the last over clusters, got {shown(counts)}"
        )
    if not may_hold_everywhere((sizes >= 0) & (sizes == sizes.floor())):
        raise ValueError(
            f"{name} must be nonnegative integers, with zeros for padding, got "
            f"{sizes.tolist()!r:.80}"
        )
    return sizes


def cluster_sizes(counts: Any, multiplicity: Any = None) -> ClusterSizes:
    """Sizes of clusters, equal ones together where that is possible.

    :param counts: sizes, zeros for padding. **Shape:** ``(*batch, num_clusters)``.
    :param multiplicity: number of clusters of each size, one by default.
    :raises ValueError: where either is no nonnegative integer.
    """
    sizes = check_counts(counts)
    if multiplicity is not None:
        times = check_counts(multiplicity, "multiplicity")
        if times.shape[-1] not in (1, sizes.shape[-1]):
            raise ValueError(
                f"multiplicity must have a number for each of {sizes.shape[-1]} counts, got "
                f"{shown(multiplicity)}"
            )
        times = torch.where(sizes > 0, times, 0.0)
        return ClusterSizes(sizes.clamp(min=1.0), times.expand_as(sizes))
    # What a recorded graph would find depends on values that it does not know.
    if sizes.dim() == 1 and holds_everywhere(sizes >= 0):
        values, times = sizes[sizes > 0].unique(return_counts=True)
        return ClusterSizes(values, times.double())
    return ClusterSizes(sizes.clamp(min=1.0), (sizes > 0).double())


def canonical_labels(labels: Tensor) -> Tensor:
    """Renumber labels in the order of their first occurrence.

    :param Tensor labels: integers. **Shape:** ``(*batch, n)``.
    """
    rows = labels.reshape(-1, labels.shape[-1])
    renumbered = [_canonical(row) for row in rows]
    return torch.stack(renumbered).view(labels.shape) if renumbered else labels.long()


def counts_of_labels(labels: Tensor) -> Tensor:
    """Cluster sizes in the order of first occurrence, padded with zeros to the number of labels.

    :param Tensor labels: integers. **Shape:** ``(*batch, n)``.
    """
    canonical = canonical_labels(labels)
    counts = torch.zeros(canonical.shape, dtype=torch.float64, device=labels.device)
    return counts.scatter_add(-1, canonical, torch.ones_like(counts))


def _canonical(row: Tensor) -> Tensor:
    _, first, inverse = np.unique(row.cpu().numpy(), return_index=True, return_inverse=True)
    return torch.from_numpy(first.argsort().argsort()[inverse]).to(row.device)
