"""An order in which neighbors come one after the other."""

import numpy as np
import pytest

from pyro_ext.inference.partitions._locality import locality_order, neighbor_tree


def test_halves_along_the_widest_axis():
    points = np.random.default_rng(1).normal(size=(64, 2)) * [1.0, 10.0]
    order = locality_order(points)
    assert points[order[:32], 1].max() < points[order[32:], 1].min()
    # Each half is wider along the second axis still.
    assert points[order[:16], 1].max() < points[order[16:32], 1].min()


def test_clusters_stay_together():
    centers = np.array([[-50.0, 0.0], [50.0, 0.0], [-50.0, 90.0], [50.0, 90.0]])
    labels = np.random.default_rng(2).permutation(np.repeat(np.arange(4), 8))
    points = centers[labels] + np.random.default_rng(3).normal(size=(32, 2))
    assert (np.diff(labels[locality_order(points)]) != 0).sum() == 3


def test_equal_points_keep_their_order():
    assert locality_order(np.zeros((40, 2))).tolist() == list(range(40))


@pytest.mark.parametrize("number", [1, 2, 3, 90, 2_500])
def test_a_tree_of_neighbors(number):
    rng = np.random.default_rng(number)
    labels = rng.integers(3, size=number)
    points = np.array([[0.0, 0.0], [40.0, 0.0], [0.0, 30.0]])[labels] + rng.normal(size=(number, 2))
    order, tallest = neighbor_tree(points)
    assert sorted(order) == list(range(number))
    for level, row in enumerate(tallest):
        for start in rng.integers(max(number - 2**level, 1), size=5 if number > 1 else 0):
            assert row[start] == tallest[0, start : start + 2**level].max()
    if number == 90:
        # The two highest joints are those between the three clusters.
        cuts = np.sort(np.argsort(tallest[0])[-2:]) + 1
        assert [len(set(part)) for part in np.split(labels[order], cuts)] == [1, 1, 1]
        assert len(set(tallest[0])) == 89
