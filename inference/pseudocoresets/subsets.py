"""Subsets that represent the data: starting points of coresets, and baselines for them."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.pseudocoresets.coreset_rows import balanced_subset
from pyro_ext.random import fresh_seed


def random_subset(size: int, *rows: Tensor, seed: int | None = None) -> tuple[Tensor, ...]:
    """Choose rows at random, with classes as balanced as possible.

    The classes are the first argument with a single whole number in each row and at most ``size``
    different ones; without such an argument, all rows belong to one class.

    :param int size: number of rows to choose.
    :param rows: the data. **Shape:** ``(num_points, *event)`` each.
    :param int seed: seed of the choice; ``None`` takes one from PyTorch's generator.
    :returns: the chosen rows of each argument. **Shape:** ``(size, *event)`` each.
    :raises ValueError: for a size out of range, or arguments with different numbers of rows.

    Example::

        >>> x, y = torch.randn(100, 2), torch.arange(100) % 2
        >>> random_subset(10, x, y, seed=0)[1].bincount()
        tensor([5, 5])
    """
    rows = _checked(size, rows)
    index = balanced_subset(_classes(size, rows)[0], len(rows[0]), size, fresh_seed(seed))
    return _chosen(rows, index)


def k_means_subset(size: int, *rows: Tensor, seed: int | None = None) -> tuple[Tensor, ...]:
    """Choose the rows nearest to cluster centers, which k-means finds in each class.

    Classes are as in :func:`random_subset`. Distances use the values of all floating-point
    arguments except the classes, with each argument scaled to the same variance.

    :param int size: number of rows to choose.
    :param rows: the data. **Shape:** ``(num_points, *event)`` each.
    :param int seed: seed of the initial centers; ``None`` takes one from PyTorch's generator.
    :returns: the chosen rows of each argument, which are distinct. **Shape:** ``(size,
        *event)`` each.
    :raises ValueError: for a size out of range, or arguments of a wrong shape.
    :raises ImportError: without scikit-learn.

    Example::

        >>> x = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])
        >>> k_means_subset(2, x, seed=0)[0].sort().values
        tensor([ 1., 11.])
    """
    rows = _checked(size, rows)
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ImportError(
            "k_means_subset needs scikit-learn; install it with: pip install 'pyro-ext[data]'"
        ) from error
    points = _points(size, rows)
    seed = fresh_seed(seed)
    parts = []
    for members, number in _parts(size, rows):
        own = points[members]
        k_means = KMeans(number, n_init=1, random_state=seed % 2**32)
        with warnings.catch_warnings():
            # Fewer different rows than clusters: equal ones are chosen then.
            warnings.filterwarnings("ignore", "Number of distinct clusters")
            centers = torch.from_numpy(k_means.fit(own.numpy()).cluster_centers_)
        parts.append(members[_nearest(own, centers)])
    return _chosen(rows, torch.cat(parts))


def herding_subset(size: int, *rows: Tensor) -> tuple[Tensor, ...]:
    r"""Choose rows one by one so that their mean approaches that of all rows of the class [1].

    With the mean :math:`\mu` of the coordinates, defined as in :func:`k_means_subset`, the next
    row of a class is

    .. math:: x_k = \arg\min_x \Big| \mu - \frac1k \Big( x + \sum_{j < k} x_j \Big) \Big|

    among those not chosen yet. Classes are as in :func:`random_subset`.

    :param int size: number of rows to choose.
    :param rows: the data. **Shape:** ``(num_points, *event)`` each.
    :returns: the chosen rows of each argument, in order of choice within each class.
        **Shape:** ``(size, *event)`` each.
    :raises ValueError: for a size out of range, or arguments of a wrong shape.

    [1] M. Welling (2009), Herding dynamical weights to learn; S.-A. Rebuffi, A. Kolesnikov,
    G. Sperl, C. H. Lampert (2017), iCaRL: incremental classifier and representation learning.

    Example::

        >>> x = torch.tensor([0.0, 2.0, 3.0, 7.0, 8.0])
        >>> herding_subset(3, x)[0]  # the mean of all is four
        tensor([3., 7., 2.])
    """
    rows = _checked(size, rows)
    points = _points(size, rows)
    parts = []
    for members, number in _parts(size, rows):
        own = points[members]
        own = own - own.mean(0)
        squares = own.square().sum(-1)
        total = torch.zeros_like(own[0])
        chosen: list[int] = []
        for _ in range(number):
            # The square of the distance, without what is the same for all rows.
            distance = squares + 2.0 * (own @ total)
            distance[chosen] = torch.inf
            best = int(distance.argmin())
            chosen.append(best)
            total = total + own[best]
        parts.append(members[torch.tensor(chosen)])
    return _chosen(rows, torch.cat(parts))


def _checked(size: int, rows: tuple[Any, ...]) -> tuple[Tensor, ...]:
    tensors = tuple(checks.as_tensor(f"rows[{i}]", row, "(n, ...)") for i, row in enumerate(rows))
    lengths = {len(row) for row in tensors}
    if len(lengths) != 1:
        raise ValueError(
            f"rows must be tensors with as many rows each, got lengths {sorted(lengths)}"
        )
    if checks.integer("size", size, 1) > len(tensors[0]):
        raise ValueError(f"size must be at most the {len(tensors[0])} rows, got {size}")
    return tensors


def _classes(size: int, rows: tuple[Tensor, ...]) -> tuple[Tensor | None, int | None]:
    """The classes of the rows, and which argument holds them, if any does."""
    for index, row in enumerate(rows):
        flat = row.detach().reshape(len(row), -1)
        is_whole = flat.shape[1] == 1 and bool((flat == flat.round()).all())
        if is_whole and len(flat.unique()) <= size:
            return flat[:, 0], index
    return None, None


def _parts(size: int, rows: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, int]]:
    """Numbers of the rows of each class, and how many of them are to be chosen."""
    labels, _ = _classes(size, rows)
    if labels is None:
        yield torch.arange(len(rows[0])), size
        return
    classes = labels.cpu().unique(return_inverse=True)[1]
    counts = classes[balanced_subset(classes, len(classes), size, seed=0)].bincount()
    for number, count in enumerate(counts.tolist()):
        if count:
            yield (classes == number).nonzero()[:, 0], count


def _points(size: int, rows: tuple[Tensor, ...]) -> Tensor:
    """Coordinates of the rows, in double precision. **Shape:** ``(num_points, dimension)``."""
    _, classes = _classes(size, rows)
    parts = [
        row.detach().double().cpu().reshape(len(row), -1)
        for index, row in enumerate(rows)
        if row.is_floating_point() and index != classes
    ]
    if not parts:
        raise ValueError("rows must hold an argument of floating point beside the classes")
    scales = [part.var(0, correction=0).sum().sqrt() for part in parts]
    pairs = zip(parts, scales, strict=True)
    points = torch.cat([part / (scale if scale > 0 else 1.0) for part, scale in pairs], 1)
    if not bool(points.isfinite().all()):
        raise ValueError("rows must have finite coordinates")
    return points


def _nearest(points: Tensor, centers: Tensor) -> Tensor:
    """Number of the point nearest to each center, among those that no center before has."""
    distances = torch.cdist(centers, points)
    chosen = []
    for number in range(len(centers)):
        best = distances[number].argmin()
        distances[:, best] = torch.inf
        chosen.append(best)
    return torch.stack(chosen)


def _chosen(rows: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, ...]:
    return tuple(row[index.to(row.device)].detach().clone() for row in rows)
