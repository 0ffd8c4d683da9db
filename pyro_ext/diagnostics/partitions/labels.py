"""Checks of label vectors, and summaries of their draws."""

from typing import Any, TypeAlias

import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext.posterior.draws import to_array
from pyro_ext.random_measures import cluster_counts

Labels: TypeAlias = Tensor | npt.NDArray[Any]


def check_labels(argument: str, labels: Any) -> Tensor:
    """Return label vectors renumbered in the order of first occurrence."""
    array = to_array(labels, argument)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{argument} must contain integers, got {array.dtype}")
    if array.ndim < 1 or array.size == 0:
        raise ValueError(
            f"{argument} must have the shape (*batch, n) and at least one label, got {array.shape}"
        )
    return cluster_counts.canonical_labels(torch.as_tensor(array.astype("int64")))


def check_draws(argument: str, labels: Any) -> Tensor:
    """Return draws of label vectors renumbered in the order of first occurrence."""
    canonical = check_labels(argument, labels)
    if canonical.dim() not in (2, 3):
        raise ValueError(
            f"{argument} must have the shape (num_draws, n) or (num_chains, num_draws, n), got "
            f"{tuple(canonical.shape)}"
        )
    return canonical


def check_partition(argument: str, labels: Any, num_points: int) -> Tensor:
    """Return a single label vector renumbered in the order of first occurrence."""
    canonical = check_labels(argument, labels)
    if canonical.shape != (num_points,):
        raise ValueError(
            f"{argument} must have the shape ({num_points},), got {tuple(canonical.shape)}"
        )
    return canonical


def canonical_labels(labels: Labels) -> Tensor:
    """Renumber labels in the order of first occurrence, so that equal partitions compare equal.

    :param labels: integers. **Shape:** ``(*batch, n)``.
    :returns: integers from zero. **Shape:** that of the labels.
    :raises TypeError: if labels are not integers.
    :raises ValueError: if there are no labels.

    Example::

        >>> canonical_labels(torch.tensor([[7, 2, 7, 5], [0, 0, 1, 0]]))
        tensor([[0, 1, 0, 2],
                [0, 0, 1, 0]])
    """
    return check_labels("labels", labels)


def num_clusters(labels: Labels) -> Tensor:
    """Count the clusters of each partition.

    :param labels: integers. **Shape:** ``(*batch, n)``.
    :returns: integers. **Shape:** ``batch``.
    :raises TypeError: if labels are not integers.
    :raises ValueError: if there are no labels.

    Example::

        >>> num_clusters(torch.tensor([[7, 2, 7, 5], [0, 0, 1, 0]]))
        tensor([3, 2])
    """
    return check_labels("labels", labels).amax(-1) + 1


def num_clusters_distribution(labels: Labels) -> Tensor:
    """Posterior probability of each number of clusters.

    :param labels: draws of labels. **Shape:** ``(num_draws, n)`` or
        ``(num_chains, num_draws, n)``.
    :returns: the probability of k clusters at index k, from zero to the largest number that
        occurs, in float64. **Shape:** ``(largest + 1,)``.
    :raises TypeError: if labels are not integers.
    :raises ValueError: if labels have another shape.

    Example::

        >>> num_clusters_distribution(torch.tensor([[7, 2, 7], [0, 0, 1], [0, 0, 0], [0, 1, 1]]))
        tensor([0.0000, 0.2500, 0.7500], dtype=torch.float64)
    """
    numbers = check_draws("labels", labels).amax(-1).flatten() + 1
    return numbers.bincount().double() / numbers.numel()


def cluster_sizes(labels: Labels) -> Tensor:
    """Sizes of the clusters of each partition, the largest first.

    :param labels: integers. **Shape:** ``(*batch, n)``.
    :returns: integers, padded with zeros. **Shape:** ``(*batch, largest number of clusters)``.
    :raises TypeError: if labels are not integers.
    :raises ValueError: if there are no labels.

    Example::

        >>> cluster_sizes(torch.tensor([[7, 2, 7, 5], [0, 0, 1, 0]]))
        tensor([[2, 1, 1],
                [3, 1, 0]])
    """
    canonical = check_labels("labels", labels)
    sizes = cluster_counts.counts_of_labels(canonical)[..., : int(canonical.max()) + 1]
    return sizes.long().sort(-1, descending=True).values


def partition_quantities(labels: Labels) -> dict[str, Tensor]:
    r"""Compute label-invariant summaries of each draw, for R-hat and trace plots.

    They are ``num_clusters``; ``largest_cluster_size``; ``entropy``, the entropy
    :math:`-\sum_k (n_k / n) \log (n_k / n)` of the label of a random point; and
    ``num_singletons``, the number of clusters with one point. R-hat of the labels themselves is
    meaningless, since the names of clusters are arbitrary.

    :param labels: draws of labels. **Shape:** ``(num_draws, n)`` or
        ``(num_chains, num_draws, n)``.
    :returns: summaries by name; integers, except for the entropy in float64. **Shape:**
        ``(num_draws,)`` or ``(num_chains, num_draws)`` each.
    :raises TypeError: if labels are not integers.
    :raises ValueError: if labels have another shape.

    Example::

        >>> quantities = partition_quantities(torch.tensor([[[7, 2, 7, 5], [0, 0, 1, 0]]]))
        >>> quantities["num_clusters"], quantities["num_singletons"]
        (tensor([[3, 2]]), tensor([[2, 1]]))
    """
    canonical = check_draws("labels", labels)
    sizes = cluster_sizes(canonical)
    return {
        "num_clusters": canonical.amax(-1) + 1,
        "largest_cluster_size": sizes.amax(-1),
        "entropy": torch.special.entr(sizes.double() / canonical.shape[-1]).sum(-1),
        "num_singletons": (sizes == 1).sum(-1),
    }


def co_clustering(labels: Labels) -> Tensor:
    """Posterior probability that two points share a cluster.

    It needs memory only for the result, however many draws there are.

    :param labels: draws of labels. **Shape:** ``(num_draws, n)`` or
        ``(num_chains, num_draws, n)``.
    :returns: a symmetric matrix with ones on the diagonal, in float64. **Shape:** ``(n, n)``.
    :raises TypeError: if labels are not integers.
    :raises ValueError: if labels have another shape.

    Example::

        >>> co_clustering(torch.tensor([[0, 0, 1], [0, 1, 1]]))
        tensor([[1.0000, 0.5000, 0.0000],
                [0.5000, 1.0000, 0.5000],
                [0.0000, 0.5000, 1.0000]], dtype=torch.float64)
    """
    from pyro_ext.diagnostics.partitions import _loops

    draws = check_draws("labels", labels).flatten(0, -2)
    return torch.from_numpy(_loops.co_clustering(draws.int().numpy()))
