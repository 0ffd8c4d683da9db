"""Incremental BHC: what it promises of its trees, and its log joint against the definition."""

import math

import numpy as np
import pytest
import torch

from pyro_ext.distributions import GaussianCluster, MultinomialCluster, PoissonCluster
from pyro_ext.inference.partitions import ibhc
from pyro_ext.inference.partitions.mixtures import centered
from pyro_ext.inference.partitions.trees import grow, leaves_below, model_of, nodes_below
from pyro_ext.random_measures import DirichletProcess
from tests.inference.partitions.enumeration import (
    CLOSED,
    COUNTS,
    POINTS,
    PROCESSES,
    dirichlet_weights,
    gaussian_cluster,
    multinomial_cluster,
)

EACH_PRIOR = pytest.mark.parametrize("prior", CLOSED)
BOTH_WAYS = pytest.mark.parametrize("noisy", [False, True])


def blobs(size=20, number=6, spread=0.2, seed=0):
    """Points of clusters in the plane, far from each other, in an order of chance."""
    generator = np.random.default_rng(seed)
    angles = 2.0 * math.pi * np.arange(number) / number
    labels = generator.permutation(np.repeat(np.arange(number), size))
    centers = 6.0 * np.stack([np.cos(angles), np.sin(angles)], -1)
    points = centers[labels] + spread * generator.normal(size=(len(labels), 2))
    return torch.from_numpy(points), torch.from_numpy(labels)


def tight_cluster():
    return GaussianCluster(POINTS.new_zeros(2), 0.05, 6.0, 0.3 * torch.eye(2).double())


def check_forest(forest, number):
    """Labels in the order of first occurrence, and a tree on each cluster."""
    labels = forest.labels
    assert labels.shape == (number,) and labels.dtype == torch.long
    seen = dict.fromkeys(labels.tolist())
    assert list(seen) == list(range(forest.num_clusters)) and len(forest.trees) == len(seen)
    for label, (tree, points) in enumerate(zip(forest.trees, forest.points, strict=True)):
        assert torch.equal(points, (labels == label).nonzero()[:, 0])
        assert tree.num_leaves == len(points) and tree.labels == tuple(map(str, points.tolist()))
        assert (tree.heights <= 0.0).all() and (tree.cut() == 0).all()


def log_joint(points, cluster, prior, forest):
    blocks = [points[forest.labels == label] for label in range(forest.num_clusters)]
    sizes = [len(block) for block in blocks]
    log_data = sum(float(cluster.log_marginal(block)) for block in blocks)
    if forest.auxiliary is None:
        return log_data + float(prior.log_eppf(sizes))
    return log_data + float(prior.log_joint(sizes, forest.auxiliary))


@BOTH_WAYS
@EACH_PRIOR
def test_log_joint_is_that_of_the_partition(prior, noisy):
    """Of counts too, with their base measure."""
    process = PROCESSES[prior]
    points, _ = blobs()
    for x, cluster in ((points, tight_cluster()), (COUNTS, multinomial_cluster())):
        forest = ibhc(x, cluster, process, noisy=noisy, seed=1)
        check_forest(forest, len(x))
        assert forest.log_joint == pytest.approx(log_joint(x, cluster, process, forest), rel=1e-9)
        assert (forest.auxiliary is None) == (prior != "generalized gamma")


@EACH_PRIOR
def test_finds_clusters_that_lie_apart(prior):
    process = PROCESSES[prior]
    points, labels = blobs()
    together = float(tight_cluster().log_marginal(points))
    for seed in range(10):
        forest = ibhc(points, tight_cluster(), process, seed=seed)
        one = (
            process.log_eppf([len(points)])
            if forest.auxiliary is None
            else process.log_joint([len(points)], forest.auxiliary)
        )
        assert forest.log_joint > together + float(one) + 100.0
        # Splits of a blob are possible, unions of two are not.
        for own in forest.points:
            assert len(labels[own].unique()) == 1


def heights_by_hand(points, cluster, tree, own, log_factor):
    """Log dissimilarities of the nodes of a tree, straight from evidences of blocks."""

    def log_weight(block):
        return log_factor(len(block)) + float(cluster.log_marginal(points[own[block]]))

    blocks = [[leaf] for leaf in range(tree.num_leaves)]
    logs, heights = [log_weight(block) for block in blocks], []
    for left, right in tree.merges.tolist():
        blocks.append(blocks[left] + blocks[right])
        together, apart = log_weight(blocks[-1]), logs[left] + logs[right]
        heights.append(apart - together)
        logs.append(np.logaddexp(together, apart))
    return heights


@BOTH_WAYS
@EACH_PRIOR
def test_heights_are_log_dissimilarities(prior, noisy):
    """With the factors of sizes written down anew."""
    points, _ = blobs(size=8, number=3, spread=0.5)
    forest = ibhc(points, tight_cluster(), PROCESSES[prior], noisy=noisy, seed=3)
    log_shift = math.log1p(forest.auxiliary or 0.0)
    factors = {
        "Dirichlet": lambda m: math.log(1.3) + math.lgamma(m),
        # The second cluster has the factor of concentration and discount.
        "Pitman-Yor": lambda m: math.lgamma(m - 0.3) - math.lgamma(0.7) + math.log(0.7 + 0.3),
        "generalized gamma": lambda m: (
            math.log(0.5) + math.lgamma(m - 0.5) - math.lgamma(0.5) - (m - 0.5) * log_shift
        ),
    }
    assert max(map(len, forest.points)) > 3
    for tree, own in zip(forest.trees, forest.points, strict=True):
        heights = heights_by_hand(points, tight_cluster(), tree, own, factors[prior])
        np.testing.assert_allclose(tree.heights, heights, rtol=1e-9, atol=1e-8)


def grown(points, order, most_returns, is_noisy=False):
    kind, center, parameters = centered(tight_cluster())
    weights = dirichlet_weights(len(points))
    model = model_of(kind, parameters, points.numpy() - center, *weights)
    return grow(model, np.asarray(order), most_returns, is_noisy)


def groups(forest, roots):
    return sorted(tuple(leaves_below(forest, root).tolist()) for root in roots)


def test_trees_are_cut_where_they_no_longer_hold_together():
    """Without returns some node stays whose parts do not belong together; with them none does."""
    points = torch.from_numpy(np.random.default_rng(4).normal(size=(300, 2)))
    num_cut = 0
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(300)
        most = []
        for returns in (0, 15_000):
            forest, roots = grown(points, order, returns)
            assert sorted(sum(groups(forest, roots), ())) == list(range(300))
            nodes = np.concatenate([nodes_below(forest, root) for root in roots])
            assert len(set(nodes.tolist())) == len(nodes) == 2 * 300 - len(roots)
            most.append(forest.log_cost[nodes].max())
        num_cut += most[0] > 0.0
        assert most[1] <= 0.0
    assert num_cut > 0


def test_each_point_goes_where_the_rules_say():
    """Two pairs, then a point between those of one: it comes to the nearer leaf of that pair."""
    points = torch.tensor([[0.0, 0.0], [9.0, 9.0], [0.6, 0.0], [9.1, 9.0], [0.1, 0.0]]).double()
    forest, roots = grown(points, [0, 1, 2, 3, 4], 250)
    assert groups(forest, roots) == [(0, 2, 4), (1, 3)]
    root = next(root for root in roots if len(leaves_below(forest, root)) == 3)
    children = {int(forest.left[root]), int(forest.right[root])}
    assert 2 in children  # the other child is the pair of 0 and 4
    noisy, roots = grown(points, [0, 1, 2, 3, 4], 250, True)
    root = next(root for root in roots if len(leaves_below(noisy, root)) == 3)
    assert 4 in {int(noisy.left[root]), int(noisy.right[root])}


@BOTH_WAYS
@EACH_PRIOR
def test_few_points(prior, noisy):
    for number in (1, 2):
        forest = ibhc(POINTS[:number], gaussian_cluster(), PROCESSES[prior], noisy=noisy, seed=0)
        check_forest(forest, number)
        expected = log_joint(POINTS[:number], gaussian_cluster(), PROCESSES[prior], forest)
        assert forest.log_joint == pytest.approx(expected, rel=1e-9)
    assert repr(ibhc(POINTS[:1], gaussian_cluster())).startswith(
        "ClusterForest(1 point, 1 cluster,"
    )


@BOTH_WAYS
def test_identical_points(noisy):
    forest = ibhc(torch.ones(60, 2), gaussian_cluster(), noisy=noisy, seed=0)
    check_forest(forest, 60)
    assert forest.num_clusters == 1
    rows = torch.tensor([[0.0, 0.0], [50.0, 3.0]]).repeat(30, 1)
    forest = ibhc(rows, PoissonCluster(torch.ones(2), 0.1), noisy=noisy, seed=0)
    assert torch.equal(forest.labels, torch.arange(60) % 2)


@BOTH_WAYS
def test_a_point_far_away(noisy):
    points, labels = blobs()
    points = torch.cat([points, torch.tensor([[1e6, -1e6]]).double()])
    forest = ibhc(points, tight_cluster(), noisy=noisy, seed=0)
    check_forest(forest, 121)
    assert (
        forest.points[-1].tolist() == [120] or int((forest.labels == forest.labels[120]).sum()) == 1
    )
    assert math.isfinite(forest.log_joint)
    for own in forest.points:
        assert len(labels[own[own < 120]].unique()) <= 1


def test_points_on_a_line_and_a_prior_that_requires_gradients():
    concentration = torch.tensor(1.0, requires_grad=True)
    cluster = GaussianCluster(torch.zeros(1), 0.1, 2.0, 0.1 * torch.eye(1))
    forest = ibhc(torch.tensor([0.0, 9.0, 0.1]), cluster, DirichletProcess(concentration), seed=0)
    assert forest.labels.tolist() == [0, 1, 0]


def test_errors(subtests):
    for options, error, message in [
        ({"x": torch.ones(3, 3)}, ValueError, "x has points of size 3"),
        ({"x": POINTS * 1e200}, ValueError, "x must hold finite numbers.*1e.100.*in row 1"),
        ({"cluster": MultinomialCluster(torch.ones(2))}, ValueError, "inside the support"),
        ({"prior": DirichletProcess(torch.ones(2))}, TypeError, "without batch shape"),
    ]:
        with subtests.test(message), pytest.raises(error, match=message):
            ibhc(**{"x": POINTS, "cluster": gaussian_cluster()} | options)
