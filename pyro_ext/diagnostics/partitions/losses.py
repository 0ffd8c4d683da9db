"""Distances between partitions, and their averages over a posterior."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext.diagnostics.partitions.labels import Labels, check_draws, check_labels

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def variation_of_information(first: Labels, second: Labels) -> Tensor:
    r"""Variation of information between partitions [1], in nats.

    :math:`2 H(a, b) - H(a) - H(b)`, where :math:`H` is the entropy of the cluster of a random
    point; between 0 and :math:`\log n`. It is a metric.

    :param first: label vectors. **Shape:** ``(*batch, n)``.
    :param second: label vectors. **Shape:** one that broadcasts with that of ``first``.
    :returns: distances, in float64. **Shape:** ``batch``.
    :raises TypeError: if labels are not integers.
    :raises ValueError: if shapes do not match.

    [1] M. Meila (2007), *Comparing clusterings: an information based distance*, Journal of
    Multivariate Analysis 98, 873-895.

    Example::

        >>> pair, joined = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 0])
        >>> variation_of_information(pair, torch.stack([joined, pair + 3]))
        tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    one, other = check_labels("first", first), check_labels("second", second)
    try:
        if one.shape[-1] != other.shape[-1]:
            raise RuntimeError
        one, other = torch.broadcast_tensors(one, other)
    except RuntimeError:
        raise ValueError(
            "first and second must have equally many labels and shapes that broadcast, got "
            f"{tuple(one.shape)} and {tuple(other.shape)}"
        ) from None
    # Loops are compiled anew for arrays of each memory layout.
    rows, others = (x.reshape(-1, x.shape[-1]).contiguous().numpy() for x in (one, other))
    return torch.from_numpy(paired_distances(rows, others)).reshape(one.shape[:-1])


def expected_loss(candidate: Labels, labels: Labels) -> Tensor:
    """Posterior mean of the variation of information from a candidate partition.

    :param candidate: label vectors. **Shape:** ``(*batch, n)``.
    :param labels: draws of labels. **Shape:** ``(num_draws, n)`` or
        ``(num_chains, num_draws, n)``.
    :returns: averages, in float64. **Shape:** ``batch``.
    :raises TypeError: if labels are not integers.
    :raises ValueError: if shapes do not match.

    Example::

        >>> draws = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]])
        >>> expected_loss(torch.tensor([0, 0, 1, 1]), draws)
        tensor(0.3466, dtype=torch.float64)
    """
    draws = check_draws("labels", labels).flatten(0, -2)
    tried = check_labels("candidate", candidate)
    if tried.shape[-1] != draws.shape[-1]:
        raise ValueError(
            f"candidate must have a label for each of {draws.shape[-1]} points, got "
            f"{tried.shape[-1]}"
        )
    rows = tried.reshape(-1, draws.shape[-1]).numpy()
    return torch.from_numpy(mean_distances(rows, draws.numpy())).reshape(tried.shape[:-1])


def increments(num_points: int) -> Floats:
    r"""Return the increases of :math:`\sum_c f(c)` if a point joins a cluster, by size before.

    The loss is :math:`\sum_i f(a_i) + \sum_j f(b_j) - 2 \sum_{ij} f(n_{ij})` of the sizes of
    clusters and of their intersections, divided by :math:`n`, with :math:`f(c) = c \log c`.
    """
    sizes = np.arange(num_points + 1, dtype=np.float64)
    return np.diff(sizes * np.log(np.maximum(sizes, 1.0)))


def paired_distances(first: Integers, second: Integers) -> Floats:
    """Distance of each row from the other at the same index."""
    from pyro_ext.diagnostics.partitions import _loops

    num_points = first.shape[-1]
    totals = _loops.paired_distances(first, second, increments(num_points))
    return np.asarray(totals / num_points)


def mean_distances(candidates: Integers, draws: Integers) -> Floats:
    """Distance of each candidate from the draws, on average."""
    from pyro_ext.diagnostics.partitions import _loops

    num_points = draws.shape[-1]
    rows, others = np.ascontiguousarray(candidates), np.ascontiguousarray(draws)
    totals = _loops.mean_distances(rows, others, increments(num_points))
    return np.asarray(totals / num_points)
