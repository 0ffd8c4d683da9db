"""Distances between partitions, and their averages over a posterior."""

from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.diagnostics.partitions.labels import Labels, check_draws, check_labels

Loss: TypeAlias = Literal["variation_of_information", "binder"]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def variation_of_information(first: Labels, second: Labels) -> Tensor:
    r"""Variation of information between partitions [1], in nats.

    :math:`2 H(a, b) - H(a) - H(b)`, where :math:`H` is the entropy of the cluster of a random
    point; between 0 and :math:`\log n`. It is a metric.

    :param first: label vectors. **Shape:** ``(*batch, n)``.
    :param second: others, of a shape that broadcasts with that.
    :returns: distances, in float64. **Shape:** ``batch``.
    :raises TypeError: if labels are not integers.
    :raises ValueError: where shapes do not fit.

    [1] M. Meila (2007), *Comparing clusterings: an information based distance*, Journal of
    Multivariate Analysis 98, 873-895.

    Example::

        >>> pair, joined = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 0])
        >>> variation_of_information(pair, torch.stack([joined, pair + 3]))
        tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    return _paired(first, second, "variation_of_information")


def binder_loss(first: Labels, second: Labels) -> Tensor:
    r"""Binder loss between partitions [1], as a fraction of all ordered pairs of points.

    With equal costs: :math:`n^{-2}` times the number of ordered pairs that one of the partitions
    joins and the other separates; between 0 and :math:`1 - 1/n`. Half of :math:`n^2` times as much
    counts unordered pairs, and ``n / (n - 1)`` times as much is one minus the Rand index. It is a
    metric.

    :param first: label vectors. **Shape:** ``(*batch, n)``.
    :param second: others, of a shape that broadcasts with that.
    :returns: distances, in float64. **Shape:** ``batch``.
    :raises TypeError: if labels are not integers.
    :raises ValueError: where shapes do not fit.

    [1] D. A. Binder (1978), *Bayesian cluster analysis*, Biometrika 65, 31-38.

    Example::

        >>> pair, joined = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 0])
        >>> binder_loss(pair, torch.stack([joined, pair + 3]))
        tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    return _paired(first, second, "binder")


def expected_loss(
    candidate: Labels, labels: Labels, loss: Loss = "variation_of_information"
) -> Tensor:
    """Average over the posterior of the loss of a candidate partition.

    :param candidate: label vectors. **Shape:** ``(*batch, n)``.
    :param labels: draws of labels. **Shape:** ``(num_draws, n)`` or
        ``(num_chains, num_draws, n)``.
    :param str loss: ``"variation_of_information"``, see :func:`variation_of_information`, or
        ``"binder"``, see :func:`binder_loss`.
    :returns: averages, in float64. **Shape:** ``batch``.
    :raises TypeError: if labels are not integers.
    :raises ValueError: if shapes do not fit, or for an unknown loss.

    Example::

        >>> draws = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]])
        >>> expected_loss(torch.tensor([0, 0, 1, 1]), draws, "binder")
        tensor(0.2500, dtype=torch.float64)
    """
    checks.choice("loss", loss, get_args(Loss))
    draws = check_draws("labels", labels).flatten(0, -2)
    tried = check_labels("candidate", candidate)
    if tried.shape[-1] != draws.shape[-1]:
        raise ValueError(
            f"candidate must have a label for each of {draws.shape[-1]} points, got "
            f"{tried.shape[-1]}"
        )
    rows = tried.reshape(-1, draws.shape[-1]).numpy()
    return torch.from_numpy(mean_distances(rows, draws.numpy(), loss)).reshape(tried.shape[:-1])


def increments(loss: Loss, num_points: int) -> Floats:
    r"""Return the increases of :math:`\sum_c f(c)` if a point joins a cluster, by size before.

    Both losses are :math:`\sum_i f(a_i) + \sum_j f(b_j) - 2 \sum_{ij} f(n_{ij})` of the sizes of
    clusters and of their intersections, divided by a constant: :math:`f(c) = c \log c` and
    :math:`n` for the variation of information, :math:`c^2` and :math:`n^2` for the Binder loss.
    """
    sizes = np.arange(num_points + 1, dtype=np.float64)
    if loss == "binder":
        return np.diff(sizes**2)
    return np.diff(sizes * np.log(np.maximum(sizes, 1.0)))


def distances_to(center: Integers, draws: Integers, loss: Loss) -> Floats:
    """Distance of each draw from one partition."""
    from pyro_ext.diagnostics.partitions import _loops

    centers = np.tile(center, (len(draws), 1))
    table = increments(loss, center.size)
    return _loops.paired_distances(centers, draws, table) / _scale(loss, center.size)


def mean_distances(candidates: Integers, draws: Integers, loss: Loss) -> Floats:
    """Distance of each candidate from the draws, on average."""
    from pyro_ext.diagnostics.partitions import _loops

    num_points = draws.shape[-1]
    table = increments(loss, num_points)
    rows, others = np.ascontiguousarray(candidates), np.ascontiguousarray(draws)
    return _loops.mean_distances(rows, others, table) / _scale(loss, num_points)


def _scale(loss: Loss, num_points: int) -> float:
    return float(num_points**2 if loss == "binder" else num_points)


def _paired(first: Labels, second: Labels, loss: Loss) -> Tensor:
    one, other = check_labels("first", first), check_labels("second", second)
    try:
        if one.shape[-1] != other.shape[-1]:
            raise RuntimeError
        one, other = torch.broadcast_tensors(one, other)
    except RuntimeError:
        raise ValueError(
            "first and second must have as many labels and shapes that broadcast, got "
            f"{tuple(one.shape)} and {tuple(other.shape)}"
        ) from None
    from pyro_ext.diagnostics.partitions import _loops

    num_points = one.shape[-1]
    # Loops are compiled anew for arrays of each memory layout.
    rows, others = (x.reshape(-1, num_points).contiguous().numpy() for x in (one, other))
    distances = _loops.paired_distances(rows, others, increments(loss, num_points))
    return torch.from_numpy(distances / _scale(loss, num_points)).reshape(one.shape[:-1])
