"""Distances between sets and metrics of generated ones, against numbers by hand and brute force."""

import itertools
import math

import numpy as np
import pytest
import torch

from pyro_ext.diagnostics.sets import (
    chamfer_distance,
    coverage,
    earth_mover_distance,
    minimum_matching_distance,
    occupancy_divergence,
    one_nearest_neighbor_accuracy,
)

A = [[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]
B = [[0.0, 1.0], [1.0, 1.0], [3.0, 0.0]]
DISTANCES = {
    "chamfer": chamfer_distance,
    "mean chamfer": lambda *sets: chamfer_distance(*sets, reduction="mean"),
    "earth mover": earth_mover_distance,
    "squared earth mover": lambda *sets: earth_mover_distance(*sets, cost="squared"),
}


def ragged(*sizes, filling=math.nan):
    """Sets of these sizes, with something else in the padding, and the mask."""
    mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    return torch.randn(*mask.shape, 2).masked_fill(~mask[..., None], filling), mask


@pytest.mark.parametrize("make", [np.array, torch.tensor, list])
def test_numbers_by_hand(make, float64):
    a, b = make(A), make(B)
    assert float(chamfer_distance(a, b)) == pytest.approx(9.0)
    assert float(chamfer_distance(a, b, reduction="mean")) == pytest.approx(3.0)
    assert float(earth_mover_distance(a, b)) == pytest.approx(4.4142135624, abs=1e-10)
    assert float(earth_mover_distance(a, b, cost="squared")) == pytest.approx(7.0)


def test_integers_are_numbers():
    a, b = (torch.tensor(points).long() for points in (A, B))
    assert chamfer_distance(a, b) == 9.0 and chamfer_distance(a, b).dtype == torch.float32
    assert earth_mover_distance(torch.tensor(A).double(), b).dtype == torch.float64


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_distances_are_symmetric_and_see_neither_order_nor_padding(distance, float64):
    (a, mask), (b, _) = ragged(3, 5, 1), ragged(3, 5, 1, filling=math.inf)
    found = distance(a, b, mask, mask)
    assert found.shape == (3,) and bool((found > 0).all())
    torch.testing.assert_close(found, distance(b, a, mask, mask))
    torch.testing.assert_close(distance(a, a, mask, mask), torch.zeros(3))
    order = torch.randperm(5)
    torch.testing.assert_close(found, distance(a[:, order], b, mask[:, order], mask))
    alone = [distance(x[:n], y[:n]) for x, y, n in zip(a, b, (3, 5, 1), strict=True)]
    torch.testing.assert_close(found, torch.stack(alone))


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_each_set_to_each_other_one(distance, float64):
    a, b = torch.randn(2, 4, 2), torch.randn(3, 4, 2)
    found = distance(a[:, None], b)
    for row, column in itertools.product(range(2), range(3)):
        torch.testing.assert_close(found[row, column], distance(a[row], b[column]))


def test_earth_mover_distance_is_that_of_the_best_matching(float64):
    a, b = torch.randn(2, 4, 5, 3)
    for cost, power in (("euclidean", 1), ("squared", 2)):
        best = [
            min(
                float(((x - y[list(order)]).norm(dim=-1) ** power).sum())
                for order in itertools.permutations(range(5))
            )
            for x, y in zip(a, b, strict=True)
        ]
        found = earth_mover_distance(a, b, cost=cost)
        torch.testing.assert_close(found, torch.tensor(best))
    # Each half of the Chamfer distance is a matching that may take a point twice.
    assert bool((earth_mover_distance(a, b, cost="squared") >= chamfer_distance(a, b) / 2).all())


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_gradients(distance, float64):
    a, b = torch.randn(2, 2, 4, 2, requires_grad=True)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    assert torch.autograd.gradcheck(lambda a, b: distance(a, b, mask, mask), (a, b))
    (gradient,) = torch.autograd.grad(distance(a, a.detach()).sum(), a)  # at equal points
    assert bool((gradient == 0).all())


def test_metrics_by_hand():
    between = torch.tensor([[1.0, 2.0, 9.0], [0.5, 1.5, 9.0]])
    assert minimum_matching_distance(between) == pytest.approx((0.5 + 1.5 + 9.0) / 3)
    assert coverage(between.numpy()) == pytest.approx(1 / 3)
    assert coverage(torch.eye(3).mul(-1).add(1)) == 1.0


def gaps(x, y):
    return chamfer_distance(x[:, None], y)


def accuracy(x, y):
    return one_nearest_neighbor_accuracy(gaps(x, x), gaps(y, y), gaps(x, y))


@pytest.mark.statistical
def test_nearest_neighbors_tell_other_sets_apart(float64):
    """Halves of one data set within three standard errors: a false alarm in 0.3 % of seeds."""
    sets = torch.randn(200, 6, 2)
    assert abs(accuracy(sets[:100], sets[100:]) - 0.5) < 3 * (0.25 / 200) ** 0.5
    assert accuracy(sets[:100], sets[100:] + 10.0) == 1.0
    assert accuracy(sets[:3], sets[:3]) == 0.0  # each is nearest to its copy


def test_occupancy(float64):
    x = torch.tensor([[[0.1, 0.1], [0.9, 0.9], [7.0, 7.0]]])
    mask = torch.tensor([[True, True, False]])
    options = dict(low=0.0, high=1.0)
    assert occupancy_divergence(x, x, mask, mask, **options) == 0.0
    assert occupancy_divergence(x[:, :1], x[:, 1:2], **options) == pytest.approx(1.0)
    # Halves and all of it in one cell: entropies of (3/4, 1/4) and (1/2, 1/2).
    expected = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)) - 0.5
    found = occupancy_divergence(x[0], x[0, :1], mask[0], num_cells=2, **options)
    assert found == pytest.approx(expected)
    outside = occupancy_divergence(x[0], x[0, 1:2], num_cells=1, **options)
    assert outside == 0.0  # the point beyond the border is in the last cell
    many = torch.rand(20, 30, 3)
    assert 0.0 < occupancy_divergence(many[:10], many[10:], **options) < 1.0


def test_wrong_sets_are_named(subtests):
    a, mask = ragged(3, 5, 1, filling=0.0)
    cases = {
        "mask_a must be a tensor.* of booleans": lambda: chamfer_distance(a, a, mask.float()),
        r"mask_b must have the shape \(3, 5\)": lambda: chamfer_distance(a, a, mask, mask[:, :4]),
        r"mask_a must be true .*got none at \(1,\)": lambda: chamfer_distance(
            a, a, mask & torch.tensor([[True], [False], [True]])
        ),
        r"b must have the shape \(\*batch, num_points, 2\)": lambda: chamfer_distance(
            a, a[..., :1]
        ),
        "b must have leading dimensions that broadcast": lambda: chamfer_distance(a, a[:2]),
        "b must have as many points as a in each set, 3, got 1": lambda: earth_mover_distance(
            a, a, mask, mask.flip(0)
        ),
        r"real must have the shape \(3, 3\)": lambda: one_nearest_neighbor_accuracy(
            torch.eye(3), torch.eye(2), torch.eye(3)
        ),
        "distances must contain distances >= 0, got -1": lambda: coverage(-torch.eye(2)),
        "high must be > low = 1, got 0": lambda: occupancy_divergence(a, a, low=1.0, high=0.0),
        "real must have 2 coordinates": lambda: occupancy_divergence(
            a, a[..., :1], low=0.0, high=1.0
        ),
    }
    for message, call in cases.items():
        with subtests.test(message), pytest.raises((ValueError, TypeError), match=message):
            call()
