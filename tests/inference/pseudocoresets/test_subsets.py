"""Subsets: fractions of the classes, cluster centers, means that approach that of the data."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_ext.inference.pseudocoresets import (
    AutoPseudocoreset,
    herding_subset,
    k_means_subset,
    random_subset,
)
from tests.inference.pseudocoresets.coreset_models import labeled, location, logistic, points

pytestmark = pytest.mark.usefixtures("float64")

ALL = [partial(random_subset, seed=0), partial(k_means_subset, seed=0), herding_subset]


def are_rows_of(part: tuple[Tensor, ...], whole: tuple[Tensor, ...]) -> bool:
    """Whether each row is one of the data, each of these once, with all of its arguments."""
    joined = [torch.cat([row.reshape(len(row), -1) for row in rows], 1) for rows in (part, whole)]
    equal = (joined[0][:, None] == joined[1]).all(-1)
    return bool((equal.sum(1) == 1).all()) and bool((equal.sum(0) <= 1).all())


@pytest.mark.parametrize("subset", ALL)
def test_rows_of_each_class(subset: Any) -> None:
    x, y = labeled()
    chosen = subset(10, x, y)
    assert are_rows_of(chosen, (x, y))
    low, whole = subset(10, x.float(), y.long())
    assert (low.dtype, whole.dtype) == (torch.float32, torch.int64)
    assert float(chosen[1].sum()) == 5.0
    rare = (torch.arange(400) < 2).long()
    assert int(subset(10, x, rare)[1].sum()) == 2
    assert len(subset(7, x)[0].unique(dim=0)) == 7


@pytest.mark.parametrize("subset", [random_subset, k_means_subset, herding_subset])
def test_start_of_a_guide(subset: Any) -> None:
    x, y = labeled()
    guides = [AutoPseudocoreset(logistic, x, y, size=10, init=subset, seed=1) for _ in range(2)]
    assert are_rows_of(guides[0].pseudodata, (x, y))
    assert torch.equal(guides[0].pseudodata[0], guides[1].pseudodata[0])
    other = AutoPseudocoreset(logistic, x, y, size=10, init=subset, seed=2)
    is_random = subset is not herding_subset
    assert torch.equal(guides[0].pseudodata[0], other.pseudodata[0]) is not is_random
    if is_random:
        first, again = (subset(10, x, y, seed=0)[0] for _ in range(2))
        assert torch.equal(first, again)


def test_points_nearest_to_cluster_centers() -> None:
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    around = torch.tensor([[0.0, 0.1], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    x = (centers[:, None] + around).flatten(0, 1)
    (chosen,) = k_means_subset(3, x, seed=0)
    wanted = centers + around[0]
    assert sorted(chosen.tolist()) == sorted(wanted.tolist())


def test_clusters_of_equal_rows() -> None:
    (chosen,) = k_means_subset(4, torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5]), seed=0)
    assert chosen.sort().values.tolist() == [0.0, 0.0, 0.0, 0.5]


def test_herding_by_enumeration() -> None:
    """Each choice is the one of all candidates that brings the mean nearest."""
    x = points(30)
    chosen = herding_subset(6, x)[0]
    for number in range(1, 7):
        taken = chosen[: number - 1]
        left = [row for row in x if not bool((taken == row).all(-1).any())]
        distance = [(torch.cat([taken, row[None]]).mean(0) - x.mean(0)).norm() for row in left]
        assert torch.equal(chosen[number - 1], left[int(torch.stack(distance).argmin())])


def test_herding_beats_chance() -> None:
    """A mean of 20 herded rows is nearer to that of the data than any of 200 random subsets."""
    x = points(500)
    error = (herding_subset(20, x)[0].mean(0) - x.mean(0)).norm()
    chance = [(random_subset(20, x, seed=s)[0].mean(0) - x.mean(0)).norm() for s in range(200)]
    assert float(error) < float(torch.stack(chance).min())


def test_arguments_have_equal_shares() -> None:
    """An argument in other units chooses the same rows."""
    x, y = points(200), points(200, dim=1, seed=1)
    for subset in (partial(k_means_subset, seed=0), herding_subset):
        one, other = subset(8, x, y)[0], subset(8, x, 1e4 * y)[0]
        assert torch.equal(one, other)


def test_errors() -> None:
    x, y = labeled()
    with pytest.raises(ValueError, match="rows must be tensors with as many rows"):
        herding_subset(3, x, y[:-1])
    with pytest.raises(ValueError, match="rows must hold an argument of floating point"):
        herding_subset(3, torch.arange(20) % 2)
    guide = AutoPseudocoreset(location, points(), size=5, init=herding_subset, seed=0)
    assert guide.pseudodata[0].shape == (5, 2)
