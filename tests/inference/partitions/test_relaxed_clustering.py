"""Relaxed BHC: against SciPy, a slow search over pairs, enumeration, and the limit of BHC."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import linkage

from pyro_ext.datasets import load_digits
from pyro_ext.inference.partitions import Dendrogram, GaussianCovarianceGenerator, rbhc
from pyro_ext.inference.partitions.bregman import generator_named
from tests.inference.partitions.enumeration import partitions_of

X4 = torch.tensor([[0.0, 0.0], [0.4, -0.1], [1.5, 1.2], [1.8, 0.9]], dtype=torch.float64)
FAMILIES = ("gaussian", "poisson", "multinomial", "itakura_saito", "gaussian_covariance")
METHODS = ("greedy", "nearest_neighbor_chain")
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)
EACH_METHOD = pytest.mark.parametrize("method", METHODS)


def digits(number):
    """The first images of scikit-learn, with pixels from 0 to 16."""
    data = load_digits(dtype=torch.float64)
    inputs = torch.cat([data.train_inputs, data.test_inputs])
    order = torch.cat([data.train_indices, data.test_indices]).argsort()
    return (inputs * data.input_scale + data.input_loc)[order].round()[:number]


def positive_points(number, features=3, seed=0):
    return (
        torch.rand(number, features, generator=torch.Generator().manual_seed(seed)).double() + 0.1
    )


def information(generator, points):
    """Sum of divergences from the mean."""
    y = generator.sufficient_statistics(points)
    return float(generator.divergence(y, y.mean(0)).sum())


def slow_tree(points, generator, cluster_cost=None):
    """Greedy merging of sets of points, straight from divergences."""
    clusters = {index: [index] for index in range(len(points))}
    excess = dict.fromkeys(clusters, 0.0)
    merges, heights = [], []

    def height(first, second):
        parts = [points[clusters[node]] for node in (first, second)]
        cost = information(generator, torch.cat(parts)) - sum(
            information(generator, part) for part in parts
        )
        return cost + excess[first] + excess[second]

    while len(clusters) > 1:
        pair = min(combinations(sorted(clusters), 2), key=lambda pair: height(*pair))
        merges.append(pair)
        heights.append(height(*pair))
        node = len(points) + len(heights) - 1
        excess[node] = 0.0 if cluster_cost is None else max(heights[-1] - cluster_cost, 0.0)
        clusters[node] = clusters.pop(pair[0]) + clusters.pop(pair[1])
    return Dendrogram(torch.tensor(merges), heights)


@EACH_METHOD
@pytest.mark.parametrize("features", [1, 2, 10])
def test_gaussian_is_ward(method, features):
    """More points than a block of costs has."""
    points = np.random.default_rng(1).normal(size=(700, features))
    expected = linkage(points, "ward")
    tree = rbhc(points, method=method)
    np.testing.assert_allclose(tree.heights, expected[:, 2] ** 2 / 4, rtol=1e-9)
    np.testing.assert_array_equal(tree.merges, expected[:, :2])
    np.testing.assert_array_equal(tree.sizes, expected[:, 3])


@EACH_FAMILY
@pytest.mark.parametrize("fraction", [None, 0.05, 0.3])
def test_greedy_is_the_slow_search(family, fraction):
    """Also with excess of a cost so low that much of the tree is above it."""
    points = positive_points(18, seed=2)
    plain = rbhc(points, family, method="greedy")
    cost = None if fraction is None else fraction * float(plain.heights.max())
    expected = slow_tree(points, generator_named(family), cost)
    tree = rbhc(points, family, cluster_cost=cost, method="greedy")
    torch.testing.assert_close(tree.merges, expected.merges)
    torch.testing.assert_close(tree.heights, expected.heights, rtol=1e-9, atol=1e-11)
    assert cost is None or tree.heights[-1] > 1.01 * plain.heights[-1]


@EACH_METHOD
@EACH_FAMILY
def test_heights_add_up_to_all_divergences(family, method):
    points = positive_points(300)
    tree = rbhc(points, family, method=method)
    expected = information(generator_named(family), points)
    assert float(tree.heights.sum()) == pytest.approx(expected, rel=1e-9)
    assert (tree.heights >= 0).all()


@pytest.mark.parametrize("family", ["gaussian", "poisson", "multinomial"])
def test_chain_and_greedy_agree_on_digits(family):
    """Though pixels make ties, and two of the families have inversions here."""
    points = digits(300) + (0.01 if family == "multinomial" else 0.0)
    chain, greedy = (rbhc(points, family, method=method) for method in METHODS[::-1])
    heights = [tree.heights.sort().values for tree in (chain, greedy)]
    torch.testing.assert_close(*heights, rtol=1e-12, atol=0)
    assert torch.equal(chain.cut(10), greedy.cut(10))
    num_inversions = int((greedy.heights.diff() < 0).sum())
    assert num_inversions == (0 if family == "gaussian" else 2)


@EACH_METHOD
@pytest.mark.parametrize(
    "cost, objective, labels",
    [
        (0.05, 0.1875, [0, 0, 1, 1]),
        (0.5, 1.0875, [0, 0, 1, 1]),
        (1.0, 2.0875, [0, 0, 1, 1]),
        (2.0, 3.74375, [0, 0, 0, 0]),
        (0.01, 0.04, [0, 1, 2, 3]),
    ],
)
def test_four_points(method, cost, objective, labels):
    tree = rbhc(X4, cluster_cost=cost, method=method)
    assert tree.merges.tolist() == [[0, 1], [2, 3], [4, 5]]
    if method != "greedy" or cost > 0.045:
        torch.testing.assert_close(tree.heights, torch.tensor([0.0425, 0.045, 1.65625]).double())
    assert tree.objective == pytest.approx(objective, abs=1e-12)
    assert tree.cut().tolist() == labels and tree.cut_height == cost
    assert tree.log_evidence_bound is None


@EACH_METHOD
@EACH_FAMILY
def test_objective_is_the_least_of_the_tree_s_partitions(family, method):
    points, generator = positive_points(10, seed=4), generator_named(family)
    top = float(rbhc(points, family).heights.max())
    for fraction in (0.02, 0.1, 0.4, 2.0):
        tree = rbhc(points, family, cluster_cost=fraction * top, method=method)
        values = [
            sum(information(generator, points[block]) + fraction * top for block in partition)
            for partition in partitions_of(tree, 2 * len(points) - 2)
        ]
        assert tree.objective == pytest.approx(min(values), rel=1e-9, abs=1e-9)


@EACH_METHOD
def test_counterexample_to_reducibility(method):
    """Three frequencies of weights 20, 40 and 10: the union of two is nearer than either part."""
    frequencies = [[0.0001, 0.15, 0.8499], [0.2, 0.0001, 0.7999], [0.45, 0.25, 0.3]]
    points = torch.tensor(frequencies).double().repeat_interleave(torch.tensor([20, 40, 10]), 0)
    groups = torch.arange(3).repeat_interleave(torch.tensor([20, 40, 10]))
    tree = rbhc(points, "multinomial", method=method)
    assert (tree.heights[:-2] == 0.0).all()
    np.testing.assert_allclose(tree.heights[-2:], [6.514581, 5.278263], atol=1e-6)
    for height, number in ((6.0, 1), (5.5, 1), (5.2, 3), (1e-9, 3)):
        assert torch.equal(tree.cut(height=height), groups.clamp(max=number - 1))
    assert torch.equal(tree.cut(num_clusters=2), (groups == 2).long())
    # No cost gives two clusters. With the excess of its part the root is as high as that.
    two = rbhc(points, "multinomial", num_clusters=2, method=method)
    assert int(two.cut().max()) + 1 == (3 if method == "greedy" else 1)
    assert (two.heights[-1] == two.heights[-2]) == (method == "greedy")
    three = rbhc(points, "multinomial", num_clusters=3, method=method)
    assert torch.equal(three.cut(), groups)


def test_chain_that_runs_into_itself():
    """It goes from the first group to the second, third and fourth, and merges the last two.

    Their union is next to the second group, but has the first for its own nearest neighbor.
    """
    means = [[0.8443, 0.1455, 0.02436], [0.1561, 0.7108, 11.0], [0.03115, 15.14, 0.6704]]
    means = torch.tensor([*means, [2.482, 16.35, 0.8023]]).double()
    groups = torch.arange(4).repeat_interleave(torch.tensor([3, 3, 3, 4]))
    points, generator = means[groups], generator_named("itakura_saito")
    tree = rbhc(points, "itakura_saito")

    def block(*chosen):
        return information(generator, points[torch.isin(groups, torch.tensor(chosen))])

    last = [block(2, 3), block(0, 2, 3) - block(2, 3), block(0, 1, 2, 3) - block(0, 2, 3)]
    np.testing.assert_allclose(tree.heights[-3:], last, rtol=1e-9)
    assert tree.heights[:-3].max() < 1e-12
    for number, expected in ((4, groups), (3, [0, 1, 2, 2]), (2, [0, 1, 0, 0])):
        labels = torch.as_tensor(expected)[groups] if number < 4 else groups
        assert torch.equal(tree.cut(number), labels)


@EACH_METHOD
@pytest.mark.parametrize("family", ["gaussian", "poisson", "itakura_saito"])
def test_number_of_clusters_chooses_the_cost(family, method):
    points = positive_points(60, seed=1)
    plain = rbhc(points, family, method=method)
    assert plain.cut_height is None and plain.objective is None
    for number in (1, 2, 5, 20, 60):
        tree = rbhc(points, family, num_clusters=number, method=method)
        labels = tree.cut()
        assert int(labels.max()) + 1 == number
        assert torch.equal(labels, plain.cut(number))
    top = plain.opening_levels.sort(descending=True).values
    cost = rbhc(points, family, num_clusters=5, method=method).cut_height
    assert top[4] < cost < top[3]


@EACH_METHOD
@EACH_FAMILY
def test_few_points(family, method):
    one = rbhc(torch.ones(1, 2), family, num_clusters=1, method=method)
    assert one.num_leaves == 1 and one.cut().tolist() == [0]
    assert rbhc(torch.ones(1, 2), family, cluster_cost=2.0, method=method).objective == 2.0
    points, generator = torch.tensor([[1.0, 2.0], [2.0, 1.0]]), generator_named(family)
    two = rbhc(points, family, method=method)
    assert two.merges.tolist() == [[0, 1]]
    torch.testing.assert_close(float(two.heights), information(generator, points.double()))


@EACH_METHOD
@EACH_FAMILY
def test_identical_points(family, method):
    points = torch.tensor([[0.3, 0.7, 0.1], [0.9, 0.2, 0.4]]).repeat(250, 1)
    tree = rbhc(points, family, num_clusters=2, method=method)
    assert float(tree.heights[:-1].abs().max()) < 1e-9
    assert torch.equal(tree.cut(), torch.arange(500) % 2)
    assert (rbhc(points[::2], family, method=method).heights.abs() < 1e-9).all()


@EACH_METHOD
@EACH_FAMILY
def test_a_point_far_away(family, method):
    """It comes last, and takes no digits from the other merges."""
    near = positive_points(30, seed=5)
    outlier = torch.tensor([[1e6, 1.0, 1.0]]).double()
    tree = rbhc(torch.cat([near, outlier]), family, method=method)
    alone = rbhc(near, family, method=method)
    if family in ("gaussian", "poisson"):
        assert tree.merges[-1].tolist() == [30, 59]
        torch.testing.assert_close(tree.heights[:-1], alone.heights, rtol=1e-12, atol=0)
    expected = information(generator_named(family), torch.cat([near, outlier]))
    tolerance = 1e-5 if family == "gaussian_covariance" else 1e-9  # of the reference
    assert float(tree.heights.sum()) == pytest.approx(expected, rel=tolerance)


def test_covariances_do_not_depend_on_the_origin():
    points = positive_points(40, seed=6)
    family = GaussianCovarianceGenerator(1e-3)
    here, there = rbhc(points, family), rbhc(points + 1e6, family)
    assert torch.equal(here.merges, there.merges)
    torch.testing.assert_close(here.heights, there.heights, rtol=1e-5, atol=1e-6)


@EACH_METHOD
def test_rows_of_zero_counts(method):
    points = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [5.0, 6.0]])
    tree = rbhc(points, "poisson", method=method)
    # Of three means 0, 0 and 1, J is log 3; of all four it is by hand.
    assert tree.merges.tolist() == [[0, 1], [2, 4], [3, 5]]
    by_hand = 5 * math.log(5) + 6 * math.log(6) - 6 * math.log(1.5) - 6 * math.log(1.5)
    expected = torch.tensor([0.0, math.log(3), by_hand - math.log(3)])
    torch.testing.assert_close(tree.heights, expected.double())
    with pytest.raises(ValueError, match="a count > 0 in each row.*in row 0"):
        rbhc(points, "multinomial", method=method)


def test_errors(subtests):
    for options, message in [
        ({"x": torch.tensor([[1.0], [1e200]]).double()}, "at most 1e.100 in size.*in row 1"),
        ({"x": -X4, "family": "itakura_saito"}, "x must hold finite numbers > 0"),
        ({"num_clusters": 5}, "num_clusters must be at most 4"),
        ({"num_clusters": 2, "cluster_cost": 1.0}, "exclude each other"),
        ({"excess": True, "cluster_cost": 1.0}, "excess must be False unless method"),
        ({"excess": True, "method": "greedy"}, "excess must be False unless method"),
    ]:
        with subtests.test(message), pytest.raises(ValueError, match=message):
            rbhc(**{"x": X4} | options)
