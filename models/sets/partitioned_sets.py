"""Sets of points with known clusters, as Pyro models: training data for clustering.

[1] J. Lee, Y. Lee, Y. W. Teh (2019), Deep amortized clustering.
"""

import math
from typing import TypeAlias

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ext._lib import checks

Size: TypeAlias = int | tuple[int, int]
_MEAN_SCALE, _LOG_DEVIATION, _DEVIATION_SCALE = 3.0, math.log(0.25), 0.1


def random_partitions(
    num_sets: int, num_points: Size, max_clusters: int = 4, concentration: float = 1.0
) -> Tensor:
    r"""Pyro model of labels in at most ``max_clusters`` clusters [1].

    Weights have a symmetric Dirichlet distribution; each cluster except the first is left out with
    probability one half.

    :param int num_sets: number of sets.
    :param num_points: number of points of each set, or bounds between which it is drawn.
    :param int max_clusters: largest number of clusters.
    :param float concentration: concentration of the Dirichlet distribution; smaller values make the
        sizes of clusters differ more.
    :returns: labels. **Shape:** ``(num_sets, num_points)``.

    Example::

        >>> random_partitions(3, (40, 50), max_clusters=2).max() <= 1
        tensor(True)
    """
    return _partitions(num_sets, num_points, max_clusters, concentration)[0]


def gaussian_mixtures(
    num_sets: int,
    num_points: Size,
    max_clusters: int = 4,
    concentration: float = 1.0,
    num_features: int = 2,
) -> tuple[Tensor, Tensor]:
    r"""Pyro model of mixtures of Gaussians with independent features [1].

    Means are drawn from :math:`\mathcal{N}(0, 3^2)`, and standard deviations from
    :math:`\mathrm{LogNormal}(\log 0.25, 0.1)`.

    :param num_sets: as for :func:`random_partitions`, like the next three.
    :param num_points: as above.
    :param max_clusters: as above.
    :param concentration: as above.
    :param int num_features: number of features of a point.
    :returns: points and labels. **Shape:** ``(num_sets, num_points, num_features)`` and
        ``(num_sets, num_points)``.

    Example::

        >>> x, labels = gaussian_mixtures(3, 40)
        >>> x.shape, labels.shape
        (torch.Size([3, 40, 2]), torch.Size([3, 40]))
    """
    checks.integer("num_features", num_features, 1)
    labels, sets, points = _partitions(num_sets, num_points, max_clusters, concentration)
    with sets:
        with pyro.plate("clusters", max_clusters, dim=-1):
            loc = _sample("loc", dist.Normal(0.0, _MEAN_SCALE), num_features)
            deviation = dist.LogNormal(_LOG_DEVIATION, _DEVIATION_SCALE)
            scale = _sample("scale", deviation, num_features)
        with points:
            normal = dist.Normal(_of_points(loc, labels), _of_points(scale, labels))
            x: Tensor = pyro.sample("x", normal.to_event(1))
    return x, labels


def labeled_mixtures(
    points: Tensor,
    classes: Tensor,
    num_sets: int,
    num_points: Size,
    max_clusters: int = 4,
    concentration: float = 5.0,
) -> tuple[Tensor, Tensor]:
    """Pyro model of sets whose clusters are classes of a labeled data set [1].

    :param Tensor points: points of the data set. **Shape:** ``(n, num_features)``.
    :param Tensor classes: integers, of at least ``max_clusters`` classes. **Shape:** ``(n,)``.
    :param num_sets: as for :func:`random_partitions`, like the next three.
    :param num_points: as above.
    :param max_clusters: as above.
    :param concentration: as above.
    :returns: points, drawn with replacement, and labels. **Shape:** ``(num_sets, num_points,
        num_features)`` and ``(num_sets, num_points)``.
    :raises ValueError: for fewer classes than clusters.

    Example::

        >>> points, classes = torch.randn(90, 5), torch.arange(90) % 9
        >>> x, labels = labeled_mixtures(points, classes, 3, 40)
        >>> x.shape, labels.shape
        (torch.Size([3, 40, 5]), torch.Size([3, 40]))
    """
    points = checks.as_tensor("points", points, "(n, num_features)", finite=True)
    classes = checks.as_tensor("classes", classes, f"({len(points)},)", kind="integers")
    order = classes.argsort(stable=True)
    _, sizes = classes.unique(return_counts=True)
    if len(sizes) < checks.integer("max_clusters", max_clusters, 1):
        raise ValueError(
            f"max_clusters must be at most the {len(sizes)} classes, got {max_clusters}"
        )
    labels, sets, plate = _partitions(num_sets, num_points, max_clusters, concentration)
    with sets:
        # Of each set a random order of classes; its first are those of the clusters.
        uniform = dist.Uniform(torch.zeros(len(sizes)), 1.0).to_event(1)
        chosen = pyro.sample("order", uniform).argsort(-1).squeeze(-2).gather(-1, labels)
        with plate:
            position = pyro.sample("position", dist.Uniform(0.0, 1.0))
    rows = order[(sizes.cumsum(0) - sizes)[chosen] + (position * sizes[chosen]).long()]
    return pyro.deterministic("x", points[rows], event_dim=1), labels


def _partitions(
    num_sets: int, num_points: Size, max_clusters: int, concentration: float
) -> tuple[Tensor, pyro.plate, pyro.plate]:
    """Labels, and the plates of sets and points."""
    checks.integer("num_sets", num_sets, 1)
    checks.integer("max_clusters", max_clusters, 1)
    checks.number("concentration", concentration, above=0)
    sets = pyro.plate("sets", num_sets, dim=-2)
    points = pyro.plate("points", _drawn_size(num_points), dim=-1)
    probability = torch.full((max_clusters,), 0.5)
    probability[0] = 1.0
    with sets:
        shape = torch.full((max_clusters,), float(concentration))
        weights = pyro.sample("weights", dist.Dirichlet(shape))
        kept = pyro.sample("kept", dist.Bernoulli(probability).to_event(1))
        with points:
            labels: Tensor = pyro.sample("labels", dist.Categorical(weights * kept))
    return labels, sets, points


def _drawn_size(num_points: Size) -> int:
    if not isinstance(num_points, tuple):
        return checks.integer("num_points", num_points, 1)
    if len(num_points) != 2:
        raise ValueError(
            f"num_points must be a number or two bounds, got {checks.shown(num_points)}"
        )
    low = checks.integer("num_points", num_points[0], 1)
    high = checks.integer("num_points", num_points[1], low)
    return int(torch.randint(low, high + 1, ()))


def _sample(name: str, distribution: dist.TorchDistribution, num_features: int) -> Tensor:
    """A site of independent features."""
    value: Tensor = pyro.sample(name, distribution.expand([num_features]).to_event(1))
    return value


def _of_points(values: Tensor, labels: Tensor) -> Tensor:
    """Of values of clusters those of the points' clusters."""
    return values.gather(-2, labels[..., None].expand(*labels.shape, values.shape[-1]))
