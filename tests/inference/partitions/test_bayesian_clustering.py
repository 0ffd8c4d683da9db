"""BHC: against noted numbers, a slow search over pairs, enumeration, and its limit."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from pyro_ext.datasets import load_wine
from pyro_ext.distributions import (
    BernoulliCluster,
    GaussianCluster,
    KnownVarianceGaussianCluster,
    MultinomialCluster,
    PoissonCluster,
)
from pyro_ext.inference.partitions import bhc, rbhc
from tests.inference.partitions.enumeration import (
    COUNTS,
    POINTS,
    gaussian_cluster,
    partitions,
    partitions_of,
)

OFFSET = torch.tensor([1.0, -2.0], dtype=torch.float64)
TWO = torch.ones(2, dtype=torch.float64)
CLUSTERS = {
    "Gaussian": GaussianCluster(OFFSET, 0.5, 4.0, 0.5 * torch.eye(2, dtype=torch.float64)),
    "known variance": KnownVarianceGaussianCluster(OFFSET, 2.0, 0.5 * TWO),
    "multinomial": MultinomialCluster(0.5 * TWO),
    "Bernoulli": BernoulliCluster(0.5 * TWO, 0.7),
    "Poisson": PoissonCluster(2.0 * TWO, 0.5),
}
EACH_CLUSTER = pytest.mark.parametrize("name", CLUSTERS)


def points_for(name, number, seed=0):
    generator = np.random.default_rng(seed)
    if name in ("multinomial", "Poisson"):
        return torch.from_numpy(generator.poisson(generator.choice([1.0, 6.0], (number, 2)))) * 1.0
    if name == "Bernoulli":
        return torch.from_numpy(generator.integers(2, size=(number, 2))).double()
    centers = 2.0 * generator.normal(size=(3, 2))
    return torch.from_numpy(generator.choice(centers, number) + generator.normal(size=(number, 2)))


def log_weight(cluster, points, block, concentration):
    value = math.log(concentration) + math.lgamma(len(block))
    return value + float(cluster.log_marginal(points[list(block)].double()))


def check_greedy(tree, points, cluster, concentration):
    """Each merge is one of the best of all pairs, straight from evidences of blocks."""
    blocks = {node: (node,) for node in range(len(points))}
    logs = {
        node: log_weight(cluster, points, block, concentration) for node, block in blocks.items()
    }
    pairs = list(combinations(blocks, 2))
    heights = {}
    for node, (left, right) in enumerate(tree.merges.tolist(), len(points)):
        for one, other in pairs:
            union = blocks[one] + blocks[other]
            together = log_weight(cluster, points, union, concentration)
            heights[one, other] = logs[one] + logs[other] - together
        height = heights[left, right]
        assert height <= min(heights.values()) + 1e-8
        assert height == pytest.approx(float(tree.heights[node - len(points)]), rel=1e-9, abs=1e-8)
        together = logs[left] + logs[right] - height
        logs[node] = np.logaddexp(together, logs[left] + logs[right])
        blocks[node] = blocks.pop(left) + blocks.pop(right)
        heights = {pair: value for pair, value in heights.items() if not {left, right} & {*pair}}
        pairs = [(other, node) for other in blocks if other != node]
    assert list(blocks) == [2 * len(points) - 2]


def blocks_of(tree):
    """Sets of points of all merged clusters."""
    blocks = [frozenset([leaf]) for leaf in range(tree.num_leaves)]
    for left, right in tree.merges.tolist():
        blocks.append(blocks[left] | blocks[right])
    return blocks[tree.num_leaves :]


def pairs_of(tree):
    """Each merge as the two sets of points that it unites."""
    blocks = [frozenset([leaf]) for leaf in range(tree.num_leaves)] + blocks_of(tree)
    return {frozenset([blocks[left], blocks[right]]) for left, right in tree.merges.tolist()}


def log_evidence(points, cluster, concentration, every):
    """Of the mixture, restricted to some partitions."""
    logs = [
        sum(log_weight(cluster, points, block, concentration) for block in blocks)
        for blocks in every
    ]
    rising = sum(math.log(concentration + i) for i in range(len(points)))
    return float(np.logaddexp.reduce(logs)) - rising


def log_evidence_of_all(points, cluster, concentration):
    every = [
        [[i for i, own in enumerate(labels) if own == label] for label in set(labels)]
        for labels in partitions(len(points))
    ]
    return log_evidence(points, cluster, concentration, every)


def test_noted_numbers_of_four_points():
    tree = bhc(POINTS, gaussian_cluster())
    assert set(map(tuple, map(sorted, blocks_of(tree)))) == {(0, 1), (2, 3), (0, 1, 2, 3)}
    found = tree.merge_probabilities.sort().values
    noted = torch.tensor([0.2290906, 0.6426574, 0.9286182]).double()
    torch.testing.assert_close(found, noted, rtol=0, atol=5e-7)
    assert tree.log_evidence_bound == pytest.approx(-10.4704150, abs=5e-8)
    exact = log_evidence_of_all(POINTS, gaussian_cluster(), 1.0)
    assert exact == pytest.approx(-10.1808347, abs=5e-8)
    assert tree.cut().tolist() == [0, 0, 1, 1] and tree.cut_height == 0.0


@EACH_CLUSTER
@pytest.mark.parametrize("concentration", [0.3, 5.0])
def test_bound_is_the_sum_over_partitions_of_the_tree(name, concentration):
    """With the base measure of counts, and less than the sum over all partitions."""
    points, cluster = points_for(name, 6), CLUSTERS[name]
    tree = bhc(points, cluster, concentration)
    own = log_evidence(points, cluster, concentration, partitions_of(tree, 10))
    assert tree.log_evidence_bound == pytest.approx(own, rel=1e-9)
    exact = log_evidence_of_all(points, cluster, concentration)
    assert exact - 3.0 < tree.log_evidence_bound < exact


@EACH_CLUSTER
@pytest.mark.parametrize("number, concentration", [(12, 1.0), (24, 0.1), (24, 20.0)])
def test_merges_are_those_of_a_slow_search(name, number, concentration):
    """Counts have many pairs of equal dissimilarity, of which any will do."""
    points = points_for(name, number, seed=number)
    tree = bhc(points, CLUSTERS[name], concentration)
    check_greedy(tree, points, CLUSTERS[name], concentration)
    torch.testing.assert_close(tree.merge_probabilities, 1.0 / (1.0 + tree.heights.exp()))


def test_limit_makes_the_merges_of_relaxed_clustering():
    """All of 60 wines, above the cut too, where the order depends on the excess."""
    data = load_wine(dtype=torch.float64)
    order = torch.cat([data.train_indices, data.test_indices]).argsort()
    wines = torch.cat([data.train_inputs, data.test_inputs])[order]
    wines = (wines - wines.mean(0)) / wines.std(0, correction=0)
    wines = wines[np.random.default_rng(0).permutation(178)[:60]]
    beta, cost = 1e6, 5.0
    cluster = KnownVarianceGaussianCluster(
        wines.new_zeros(13), math.sqrt(10.0), wines.new_full((13,), beta**-0.5)
    )
    exact = bhc(wines, cluster, log_concentration=-beta * cost)
    limit = rbhc(wines, cluster_cost=cost, method="greedy", excess=True)
    assert pairs_of(exact) == pairs_of(limit) and len(pairs_of(exact)) == 59
    torch.testing.assert_close(
        exact.heights.sort().values / beta,
        limit.heights.sort().values - cost,
        rtol=1e-4,
        atol=1e-3,  # log(beta) / beta for each feature, and for each cluster below
    )
    simple = rbhc(wines, method="greedy")
    assert int((exact.merges == simple.merges).all(-1).sum()) == 54  # noted, step by step
    assert torch.equal(exact.cut(), limit.cut())


def test_logarithm_of_the_concentration():
    given = bhc(POINTS, gaussian_cluster(), 0.2)
    same = bhc(POINTS, gaussian_cluster(), log_concentration=math.log(0.2))
    torch.testing.assert_close(given.heights, same.heights)
    assert given.log_evidence_bound == pytest.approx(same.log_evidence_bound, rel=1e-12)
    # Without a chance of a second cluster the evidence is that of one.
    one = bhc(POINTS, gaussian_cluster(), log_concentration=-1e6)
    whole = float(gaussian_cluster().log_marginal(POINTS))
    assert one.log_evidence_bound == pytest.approx(whole, rel=1e-8)
    assert (one.merge_probabilities == 1.0).all()
    each = bhc(POINTS, gaussian_cluster(), log_concentration=1e6)
    assert each.cut().tolist() == [0, 1, 2, 3]
    apart = float(gaussian_cluster().log_prob(POINTS).sum())
    assert each.log_evidence_bound == pytest.approx(apart, rel=1e-8)


@EACH_CLUSTER
def test_few_points(name):
    cluster = CLUSTERS[name]
    points = points_for(name, 2)
    one = bhc(points[:1], cluster, 3.0)
    assert one.num_leaves == 1 and one.cut().tolist() == [0]
    assert one.log_evidence_bound == pytest.approx(float(cluster.log_prob(points[0].double())))
    two = bhc(points, cluster, 3.0)
    exact = log_evidence_of_all(points, cluster, 3.0)
    assert two.merges.tolist() == [[0, 1]]
    assert two.log_evidence_bound == pytest.approx(exact, rel=1e-9)


@EACH_CLUSTER
def test_identical_points(name):
    points = points_for(name, 1).expand(50, 2)
    tree = bhc(points, CLUSTERS[name])
    assert tree.sizes[-1] == 50 and (tree.cut() == 0).all()
    assert float(tree.merge_probabilities.min()) > 0.5


def test_a_point_far_away():
    """It comes last, and takes no digits from the other merges."""
    near = points_for("Gaussian", 30, seed=5)
    far = torch.cat([near, torch.tensor([[1e6, 1.0]], dtype=torch.float64)])
    for name in ("Gaussian", "known variance"):
        tree, alone = bhc(far, CLUSTERS[name]), bhc(near, CLUSTERS[name])
        assert 30 in tree.merges[-1] or name != "known variance"
        assert int((tree.cut() == tree.cut()[30]).sum()) == 1, name
        inside = [block for block in blocks_of(tree) if 30 not in block]
        assert set(inside) <= set(blocks_of(alone)), name


def test_points_on_a_line_and_of_other_types():
    cluster = KnownVarianceGaussianCluster(torch.zeros(1), 3.0, 0.5)
    flat = bhc(torch.tensor([0.0, 0.1, 5.0]), cluster)
    assert flat.cut().tolist() == [0, 0, 1]
    counts = bhc(COUNTS.long(), MultinomialCluster(torch.full((3,), 0.5)))
    torch.testing.assert_close(
        counts.heights, bhc(COUNTS, MultinomialCluster(torch.full((3,), 0.5))).heights
    )


def test_errors(subtests):
    for options, error, message in [
        ({"x": POINTS * 1e200}, ValueError, "x must hold finite numbers.*1e.100.*in row 1"),
        ({"x": torch.ones(3, 3)}, ValueError, "x has points of size 3.*of points of size 2"),
        ({"cluster": CLUSTERS["Poisson"]}, ValueError, "inside the support of PoissonCluster"),
        ({"cluster": gaussian_cluster().expand((3,))}, TypeError, "without batch shape"),
        ({"concentration": 2.0, "log_concentration": 0.0}, ValueError, "exclude each other"),
    ]:
        with subtests.test(message), pytest.raises(error, match=message):
            bhc(**{"x": POINTS, "cluster": gaussian_cluster()} | options)
