"""Sizes of clusters, tables of how many clusters have each size, and label vectors."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.random_measures._numerics import as_double
from pyro_ext.special.operations import holds_everywhere, may_hold_everywhere


class ClusterSizes(NamedTuple):
    """Sizes that occur, and how often they do, in float64."""

    values: Tensor  # positive sizes, (*batch, num_sizes)
    multiplicity: Tensor  # number of clusters of each, zero for padding

    @property
    def total(self) -> Tensor:
        """Number of samples. **Shape:** ``batch``."""
        return (self.values * self.multiplicity).sum(-1)

    @property
    def number(self) -> Tensor:
        """Number of clusters. **Shape:** ``batch``."""
        return self.multiplicity.sum(-1)


def check_counts(counts: Any, name: str = "counts") -> Tensor:
    """Return cluster sizes in float64."""
    sizes = as_double(counts, name)
    if sizes.dim() == 0:
        raise ValueError(
            f"{name} must have at least one axis, the last over clusters, "
            f"got {checks.shown(counts)}"
        )
    if not may_hold_everywhere((sizes >= 0) & (sizes == sizes.floor())):
        raise ValueError(
            f"{name} must be nonnegative integers, with zeros for padding, got "
            f"{sizes.tolist()!r:.80}"
        )
    return sizes


def cluster_sizes(counts: Any, multiplicity: Any = None) -> ClusterSizes:
    """Return cluster sizes, with equal sizes grouped if possible.

    Shapes: counts (*batch, num_clusters).
    """
    sizes = check_counts(counts)
    if multiplicity is not None:
        times = check_counts(multiplicity, "multiplicity")
        if times.shape[-1] not in (1, sizes.shape[-1]):
            raise ValueError(
                f"multiplicity must have one number for each of {sizes.shape[-1]} counts, got "
                f"{checks.shown(multiplicity)}"
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
    """Cluster sizes in the order of first occurrence, padded with zeros to the number of labels."""
    canonical = canonical_labels(labels)
    counts = torch.zeros(canonical.shape, dtype=torch.float64, device=labels.device)
    return counts.scatter_add(-1, canonical, torch.ones_like(counts))


def _canonical(row: Tensor) -> Tensor:
    _, first, inverse = np.unique(row.cpu().numpy(), return_index=True, return_inverse=True)
    return torch.from_numpy(first.argsort().argsort()[inverse]).to(row.device)


def as_table(argument: str, value: Any) -> Tensor:
    """Take sizes and numbers of clusters as a tensor of integers, each size in one row."""
    table = checks.as_tensor(argument, value, "(*batch, num_rows, 2)")
    if not may_hold_everywhere((table >= 0) & (table == table.floor())):
        raise ValueError(f"{argument} must contain integers >= 0, got {table.tolist()!r:.80}")
    ordered = torch.where(table.prod(-1) > 0, table[..., 0], 0).sort(-1).values
    if not may_hold_everywhere((ordered.diff(dim=-1) > 0) | (ordered[..., 1:] == 0)):
        raise ValueError(f"{argument} must list each size in one row, got {table.tolist()!r:.80}")
    return table


def log_num_partitions(table: Tensor) -> Tensor:
    r"""Logarithm of the number of partitions with given cluster sizes.

    It is :math:`\log (n! / \prod_i (i!)^{m_i} m_i!)` with :math:`m_i` clusters of size :math:`i`.

    :param Tensor table: rows of a size and the number of clusters of this size. **Shape:**
        ``(*batch, num_rows, 2)``.
    :returns: the logarithm, in float64. **Shape:** ``batch``.

    Example::

        >>> log_num_partitions(torch.tensor([[1, 1], [2, 1]])).exp()
        tensor(3.0000, dtype=torch.float64)
    """
    sizes, numbers = as_table("table", table).double().unbind(-1)
    total = (sizes * numbers).sum(-1)
    terms = numbers * (sizes + 1.0).lgamma() + (numbers + 1.0).lgamma()
    return (total + 1.0).lgamma() - terms.sum(-1)


def frequency_table(counts: Any, num_rows: int | None = None) -> Tensor:
    """Count clusters of each size.

    :param counts: cluster sizes in any order, padded with zeros. **Shape:** ``(n,)``.
    :param int num_rows: the number of rows. Default: the number of distinct sizes.
    :returns: rows of a size and the number of clusters of this size, in increasing order, padded
        with zeros. **Shape:** ``(num_rows, 2)``.
    :raises ValueError: if counts are not nonnegative integers, are all zero, or have more distinct
        sizes than there are rows.

    Example::

        >>> frequency_table([3, 1, 1])
        tensor([[1, 2],
                [3, 1]])
    """
    sizes = checks.as_tensor("counts", counts, "(n,)")
    if not bool(((sizes >= 0) & (sizes == sizes.long())).all()):
        raise ValueError(f"counts must be a vector of nonnegative integers, got {counts!r:.80}")
    if not bool((sizes > 0).any()):
        raise ValueError(f"counts must contain a positive number, got {counts!r:.80}")
    table = torch.stack(sizes[sizes > 0].long().unique(return_counts=True), -1)
    missing = 0 if num_rows is None else checks.integer("num_rows", num_rows, 1) - len(table)
    if missing < 0:
        raise ValueError(
            f"num_rows must be at least {len(table)}, the number of different sizes, got {num_rows}"
        )
    return torch.nn.functional.pad(table, (0, 0, 0, missing))


def split_frequencies(table: Tensor, num_samples: int, seed: int | None = None) -> Tensor:
    """Pick some of the samples at random, without replacement, and return their table.

    If the partition is exchangeable, the picked samples are a draw from the same model.

    :param Tensor table: rows of a size and the number of clusters of this size. **Shape:**
        ``(num_rows, 2)``.
    :param int num_samples: the number of samples to pick.
    :param int seed: seed of the choice. Default: use PyTorch's global generator.
    :returns: the table of the picked samples. **Shape:** ``(num_sizes, 2)``.
    :raises ValueError: if there are fewer samples.

    Example::

        >>> split_frequencies(torch.tensor([[1, 40], [10, 6]]), 50, seed=0).prod(-1).sum()
        tensor(50)
    """
    table = checks.as_tensor("table", as_table("table", table), "(num_rows, 2)").long()
    sizes = table[:, 0].repeat_interleave(table[:, 1])
    total = int(sizes.sum())
    if checks.integer("num_samples", num_samples, 1) > total:
        raise ValueError(f"num_samples must be at most {total}, got {num_samples}")
    generator = (
        None
        if seed is None
        else torch.Generator(table.device).manual_seed(checks.integer("seed", seed, 0))
    )
    order = torch.randperm(total, generator=generator, device=table.device)
    labels = torch.arange(len(sizes), device=table.device).repeat_interleave(sizes)
    return frequency_table(labels[order[:num_samples]].bincount())
