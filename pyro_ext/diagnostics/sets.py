"""Distances between sets of points, and metrics that compare generated sets with real sets.

Distances take one set or many on each side. Leading dimensions broadcast: for example,
``chamfer_distance(a[:, None], b)`` compares each set in ``a`` with each in ``b``. Pad sets of
different sizes, and pass a boolean mask that is true for actual points. The values of the padding
do not matter. Gradients flow through distances, along the pairs of points that are compared.

The metrics take distances between sets, of any kind, or the points themselves, and return a Python
float.
"""

import math
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.diagnostics.metrics import ArrayLike, as_numbers

__all__ = [
    "chamfer_distance",
    "coverage",
    "earth_mover_distance",
    "minimum_matching_distance",
    "occupancy_divergence",
    "one_nearest_neighbor_accuracy",
]

Reduction = Literal["sum", "mean"]
Cost = Literal["euclidean", "squared"]


def chamfer_distance(
    a: ArrayLike,
    b: ArrayLike,
    mask_a: ArrayLike | None = None,
    mask_b: ArrayLike | None = None,
    *,
    reduction: Reduction = "sum",
) -> Tensor:
    r"""Squared distances of the points of two sets to the nearest point of the other set.

    .. math::
        \sum_i \min_j \lVert a_i - b_j \rVert^2 + \sum_j \min_i \lVert a_i - b_j \rVert^2.

    It does not measure how many points are at one location.

    :param a: points. **Shape:** ``(*batch, num_a, size)``.
    :param b: points. **Shape:** ``(*batch, num_b, size)``.
    :param mask_a: booleans, true for actual points of ``a``. **Shape:** ``(*batch, num_a)``.
    :param mask_b: booleans, true for actual points of ``b``. **Shape:** ``(*batch, num_b)``.
    :param str reduction: the ``"sum"`` over the points of each set, or the ``"mean"``.
    :returns: **Shape:** ``(*batch,)``.
    :raises ValueError: for sets that are empty, not finite, or in spaces of different dimensions.

    Reference: H. Fan, H. Su, L. Guibas (2017),
    A point set generation network for 3D object reconstruction from a single image.

    Example::

        >>> a = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
        >>> b = torch.tensor([[0.0, 1.0], [1.0, 1.0], [3.0, 0.0]])
        >>> chamfer_distance(a, b)
        tensor(9.)
    """
    checks.choice("reduction", reduction, get_args(Reduction))
    a, mask_a, b, mask_b = _two_sets(a, b, mask_a, mask_b)
    with torch.no_grad():
        gaps = _gaps(a, b)
        nearest_b = gaps.masked_fill(~mask_b[..., None, :], math.inf).argmin(-1)
        nearest_a = gaps.masked_fill(~mask_a[..., None], math.inf).argmin(-2)
    total = a.new_zeros(())
    for points, mask, others, nearest in ((a, mask_a, b, nearest_b), (b, mask_b, a, nearest_a)):
        squares = (points - _taken(others, nearest)).square().sum(-1)
        one = squares.masked_fill(~mask, 0).sum(-1)
        total = total + (one / mask.sum(-1) if reduction == "mean" else one)
    return total


def earth_mover_distance(
    a: ArrayLike,
    b: ArrayLike,
    mask_a: ArrayLike | None = None,
    mask_b: ArrayLike | None = None,
    *,
    cost: Cost = "euclidean",
) -> Tensor:
    r"""Smallest cost of matching the points of two sets of equal size one to one.

    It is :math:`\min_\pi \sum_i c(a_i, b_{\pi(i)})`, computed exactly by
    ``scipy.optimize.linear_sum_assignment``, for one pair of sets after another on the CPU. The
    arguments are those of :func:`chamfer_distance`, except for ``cost``.

    :param str cost: the ``"euclidean"`` distance between two points, or the ``"squared"`` distance.
    :returns: **Shape:** ``(*batch,)``.
    :raises ValueError: as in :func:`chamfer_distance`, or if two sets differ in size.

    Example::

        >>> a = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
        >>> b = torch.tensor([[0.0, 1.0], [1.0, 1.0], [3.0, 0.0]])
        >>> earth_mover_distance(a, b), earth_mover_distance(a, b, cost="squared")
        (tensor(4.4142), tensor(7.))
    """
    from scipy.optimize import linear_sum_assignment

    checks.choice("cost", cost, get_args(Cost))
    a, mask_a, b, mask_b = _two_sets(a, b, mask_a, mask_b)
    sizes = mask_a.sum(-1), mask_b.sum(-1)
    if bool((sizes[0] != sizes[1]).any()):
        first = [int(size[sizes[0] != sizes[1]][0]) for size in sizes]
        raise ValueError(f"b must have as many points as a in each set, {first[0]}, got {first[1]}")
    with torch.no_grad():
        gaps = _gaps(a, b)
        costs = (gaps.square() if cost == "squared" else gaps).cpu().numpy()
    present_a, present_b = mask_a.cpu().numpy(), mask_b.cpu().numpy()
    matched = np.zeros(mask_a.shape, dtype=np.int64)
    for index in np.ndindex(*sizes[0].shape):
        rows, columns = present_a[index].nonzero()[0], present_b[index].nonzero()[0]
        _, order = linear_sum_assignment(costs[index][np.ix_(rows, columns)])
        matched[(*index, rows)] = columns[order]
    differences = a - _taken(b, torch.from_numpy(matched).to(a.device))
    lengths = (
        differences.square().sum(-1)
        if cost == "squared"
        else torch.linalg.vector_norm(differences, dim=-1)
    )
    return lengths.masked_fill(~mask_a, 0).sum(-1)


def minimum_matching_distance(distances: ArrayLike) -> float:
    """Mean distance from a real set to the nearest generated set.

    :param distances: distances between generated sets in rows and real sets in columns. **Shape:**
        ``(num_generated, num_real)``.

    Reference: P. Achlioptas, O. Diamanti, I. Mitliagkas, L. Guibas (2018),
    Learning representations and generative models for 3D point clouds.

    Example::

        >>> minimum_matching_distance(torch.tensor([[1.0, 2.0], [3.0, 1.5]]))
        1.25
    """
    return float(_distances("distances", distances).amin(0).mean())


def coverage(distances: ArrayLike) -> float:
    """Fraction of real sets that are the nearest real set of some generated set.

    :param distances: distances between generated sets in rows and real sets in columns. **Shape:**
        ``(num_generated, num_real)``.

    Reference: see :func:`minimum_matching_distance`.

    Example::

        >>> coverage(torch.tensor([[1.0, 2.0], [0.5, 1.5]]))
        0.5
    """
    matrix = _distances("distances", distances)
    return len(matrix.argmin(1).unique()) / matrix.shape[1]


def one_nearest_neighbor_accuracy(
    generated: ArrayLike, real: ArrayLike, between: ArrayLike
) -> float:
    """Compute the accuracy of a 1-NN classifier of generated and real sets: one half is best.

    Each set is classified like its nearest neighbor among all others. In a tie, the first set
    counts, with generated sets before real sets.

    :param generated: distances between generated sets. **Shape:** ``(num_generated,
        num_generated)``.
    :param real: distances between real sets. **Shape:** ``(num_real, num_real)``.
    :param between: distances between generated sets in rows and real sets in columns. **Shape:**
        ``(num_generated, num_real)``.

    Reference: D. Lopez-Paz, M. Oquab (2017), Revisiting classifier two-sample tests.

    Example::

        >>> x, y = torch.tensor([0.0, 0.1]), torch.tensor([1.0, 1.2])
        >>> gaps = [(a[:, None] - b).abs() for a, b in ((x, x), (y, y), (x, y))]
        >>> one_nearest_neighbor_accuracy(*gaps)
        1.0
    """
    matrix = _distances("between", between)
    num_generated, num_real = matrix.shape
    inner = [
        _distances(name, values, f"({size}, {size})").to(matrix).clone().fill_diagonal_(math.inf)
        for name, values, size in (
            ("generated", generated, num_generated),
            ("real", real, num_real),
        )
    ]
    nearest = torch.cat([torch.cat([inner[0], matrix], 1), torch.cat([matrix.T, inner[1]], 1)])
    is_real = torch.arange(num_generated + num_real, device=matrix.device) >= num_generated
    return float((is_real[nearest.argmin(1)] == is_real).double().mean())


def occupancy_divergence(
    generated: ArrayLike,
    real: ArrayLike,
    generated_mask: ArrayLike | None = None,
    real_mask: ArrayLike | None = None,
    *,
    low: float,
    high: float,
    num_cells: int = 28,
) -> float:
    """Jensen-Shannon divergence, in bits, between the locations of generated and real points.

    Points are counted in the cells of a grid; points outside the grid count in the nearest cell.
    The result is zero if the fractions of points are equal in all cells, and one if no cell has
    points of both.

    :param generated: points. **Shape:** ``(*batch, num_points, size)``.
    :param real: points; their number and batch may differ from those of ``generated``. **Shape:**
        ``(*batch, num_points, size)``.
    :param generated_mask: booleans, true for actual points of ``generated``. **Shape:**
        ``(*batch, num_points)``.
    :param real_mask: booleans, true for actual points of ``real``. **Shape:** likewise.
    :param float low: the lower end of the grid in each dimension.
    :param float high: the upper end of the grid in each dimension.
    :param int num_cells: the number of cells in each dimension.

    Reference: see :func:`minimum_matching_distance`.

    Example::

        >>> x = torch.tensor([[0.1, 0.1], [0.9, 0.9]])
        >>> occupancy_divergence(x, x[:1], low=0.0, high=1.0, num_cells=2)  # doctest: +ELLIPSIS
        0.311...
    """
    from scipy.spatial.distance import jensenshannon

    low, high = checks.number("low", low), checks.number("high", high)
    if high <= low:
        raise ValueError(f"high must be > low = {low:g}, got {high:g}")
    checks.integer("num_cells", num_cells, 1)
    cells = []
    for name, value, mask in (("generated", generated, generated_mask), ("real", real, real_mask)):
        x, present = as_sets(name, as_numbers(name, value), mask, f"{name}_mask")
        position = num_cells * (x[present].double() - low) / (high - low)
        cells.append(position.floor().clamp(0, num_cells - 1).cpu())
    if cells[0].shape[-1] != cells[1].shape[-1]:
        sizes = [one.shape[-1] for one in cells]
        raise ValueError(f"real must have {sizes[0]} coordinates, as generated has, got {sizes[1]}")
    occupied, cell = torch.cat(cells).unique(dim=0, return_inverse=True)
    counts = [
        torch.bincount(one, minlength=len(occupied)) for one in cell.split(list(map(len, cells)))
    ]
    return float(jensenshannon(*counts, base=2.0) ** 2)


def as_sets(
    argument: str,
    value: Any,
    mask: Any,
    mask_argument: str,
    shape: str = "(*batch, num_points, size)",
    like: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return checked sets, with zeros for padding, and a mask of what is there."""
    x = checks.as_tensor(argument, value, shape, like=like)
    if not x.is_floating_point():
        x = x.to(torch.get_default_dtype() if like is None else like.dtype)
    if mask is None:
        mask = x.new_ones(x.shape[:-1], dtype=torch.bool)
    else:
        mask = checks.as_tensor(mask_argument, mask, kind="booleans").to(x.device)
        if mask.shape != x.shape[:-1]:
            raise ValueError(
                f"{mask_argument} must have the shape {tuple(x.shape[:-1])}, that of {argument} "
                f"without the last dimension, got {tuple(mask.shape)}"
            )
        x = x.masked_fill(~mask[..., None], 0)
        if not bool(mask.any(-1).all()):
            where = tuple((~mask.any(-1)).nonzero()[0].tolist())
            raise ValueError(
                f"{mask_argument} must be true for at least one point of each set, got none at "
                f"{where}"
            )
    checks.all_finite(argument, x)
    return x, mask


def _two_sets(a: Any, b: Any, mask_a: Any, mask_b: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Checked sets and masks, expanded to a common batch shape."""
    a, mask_a = as_sets("a", a, mask_a, "mask_a")
    b, mask_b = as_sets("b", b, mask_b, "mask_b", f"(*batch, num_points, {a.shape[-1]})", a)
    try:
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"b must have leading dimensions that broadcast with those of a, {tuple(a.shape)}, "
            f"got the shape {tuple(b.shape)}"
        ) from None
    a, b = (x.expand(*batch, *x.shape[-2:]) for x in (a, b))
    mask_a, mask_b = (mask.expand(*batch, -1) for mask in (mask_a, mask_b))
    return a, mask_a, b, mask_b


def _gaps(a: Tensor, b: Tensor) -> Tensor:
    """Distances of all pairs; products of matrices would lose digits."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _taken(points: Tensor, index: Tensor) -> Tensor:
    return points.gather(-2, index[..., None].expand(*index.shape, points.shape[-1]))


def _distances(argument: str, value: Any, shape: str = "(num_generated, num_real)") -> Tensor:
    """Checked distances between sets in double precision."""
    matrix = checks.as_tensor(argument, as_numbers(argument, value), shape).double()
    checks.all_finite(argument, matrix)
    if bool((matrix < 0).any()):
        raise ValueError(f"{argument} must contain distances >= 0, got {float(matrix.min()):g}")
    return matrix
