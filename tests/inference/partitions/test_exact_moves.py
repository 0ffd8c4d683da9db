"""Tree-guided splits and merges leave the exact posterior invariant."""

import itertools

import numpy as np
import pytest

from pyro_ext.inference.partitions import _exact_moves as moves
from pyro_ext.inference.partitions._cluster_loops import constants
from pyro_ext.inference.partitions._locality import neighbor_tree
from pyro_ext.inference.partitions.mixtures import Compiled, centered
from pyro_ext.inference.partitions.trees import leaves_below, model_of, new_forest
from tests.inference.partitions.enumeration import DATA, WEIGHTS, log_prior_of, posterior


def canonical(labels):
    seen = {}
    return tuple(seen.setdefault(int(label), len(seen)) for label in labels)


class Enumeration:
    """Transition matrix of splits and merges, from the functions that the sampler runs."""

    def __init__(self, name, prior, num_scans=1):
        make, points = DATA[name]
        number = len(points)
        order, self.tallest = neighbor_tree(points.numpy())
        points = points[order.tolist()]
        cluster, self.num_scans = make(), num_scans
        self.log_size, self.log_number = WEIGHTS[prior](number)
        self.kind, center, self.parameters = centered(cluster)
        self.points = points.numpy() - center
        self.table = constants(self.kind, self.parameters, points.shape[1], number)
        self.model = model_of(
            self.kind, self.parameters, self.points, self.log_size, self.log_number
        )
        self.states, self.process = posterior(
            cluster, points, log_prior_of((self.log_size, self.log_number))
        )
        self.index = {state: index for index, state in enumerate(self.states)}
        self.forest = new_forest(self.model, 3 * number + 1)

    def splits(self, labels, one):
        """All splits of a cluster: labels after, log probability, anchors and sides included."""
        members = np.flatnonzero(labels == one)
        start = self.forest.top[0]
        tree = moves.block_tree(self.model, self.forest, self.tallest, members)
        for first, second in itertools.combinations(members, 2):
            log_anchors = moves.log_anchors(self.forest, tree, first, second)
            own = np.array([*(i for i in members if i not in (first, second)), first, second])
            for parts in itertools.product((0, 1), repeat=len(own) - 2):
                current = np.array([*parts, 0, 1])
                sides = np.empty(len(own), np.int64)
                moves.lay_out(self.model, self.forest, tree, own, first, second, sides)
                log_sides = moves.draw_sides(
                    self.model,
                    self.table,
                    self.log_size,
                    self.points[own],
                    sides,
                    current,
                    self.num_scans,
                    True,
                )
                after = labels.copy()
                after[own[current == 1]] = labels.max() + 1
                yield after, log_anchors + log_sides
        self.forest.top[0] = start

    def matrix(self):
        matrix = np.zeros((len(self.states), len(self.states)))
        for state in self.states:
            labels = np.array(state)
            number = labels.max() + 1
            before = moves.clusters_of(self.model, self.forest, self.tallest, labels, number + 3)
            weights = before.split_weight[:number]
            for one in np.flatnonzero(weights > 0.0):
                log_cluster = np.log(weights[one] / weights.sum())
                for after, log_rest in self.splits(labels, one):
                    after_split = moves.clusters_of(
                        self.model, self.forest, self.tallest, after, number + 3
                    )
                    row = number + 2
                    for own, whole in zip(after_split, before, strict=True):
                        own[row] = whole[one]
                    log_ratio = moves.log_ratio_of_split(
                        self.model, self.forest, after_split, number + 1, row, one, number
                    )
                    log_ratio -= log_rest
                    i, j = self.index[canonical(labels)], self.index[canonical(after)]
                    log_forward = np.log(0.5) + log_cluster + log_rest
                    log_pair = moves.log_pair(
                        self.model, self.forest, after_split, number + 1, one, number
                    )
                    sizes = after_split.counts[[one, number]]
                    log_back = np.log(0.5) + log_pair - np.log(sizes).sum()
                    matrix[i, j] += np.exp(log_forward + min(0.0, log_ratio))
                    matrix[j, i] += np.exp(log_back + min(0.0, -log_ratio))
        stay = 1.0 - matrix.sum(1)
        return matrix + np.diag(stay)


@pytest.mark.parametrize("prior", WEIGHTS)
@pytest.mark.parametrize("name", DATA)
def test_moves_of_clusters_keep_the_posterior(name, prior):
    for num_scans in (0, 2):
        case = Enumeration(name, prior, num_scans)
        matrix = case.matrix()
        assert (matrix >= -1e-15).all()
        flow = case.process[:, None] * matrix
        assert np.abs(flow - flow.T).max() < 1e-12
        assert np.abs(case.process @ matrix - case.process).max() < 1e-12
        # All states have a way to all others: splits of any two points are possible.
        assert (np.linalg.matrix_power(matrix, 6) > 0.0).all()


@pytest.mark.parametrize("name", DATA)
def test_splits_of_a_cluster_add_up(name):
    case = Enumeration(name, "generalized gamma")
    total = sum(np.exp(log_split) for _, log_split in case.splits(np.zeros(4, np.int64), 0))
    assert abs(total - 1.0) < 1e-12


def test_pairs_add_up():
    case = Enumeration("Gaussian", "Pitman-Yor")
    labels = np.array([0, 1, 2, 1])
    clusters = moves.clusters_of(case.model, case.forest, case.tallest, labels, 4)
    logs = [
        moves.log_pair(case.model, case.forest, clusters, 3, *pair)
        for pair in itertools.combinations(range(3), 2)
    ]
    assert abs(np.exp(logs).sum() - 1.0) < 1e-12 and len({round(log, 6) for log in logs}) == 3


def test_trees_of_blocks_are_parts_of_the_tree_of_all():
    """Each block of the whole tree meets a subset in a block of its tree, or not at all."""
    points = np.random.default_rng(0).normal(size=(40, 2))
    order, tallest = neighbor_tree(points)
    kind, center, parameters = centered(DATA["Gaussian"][0]())
    sizes = np.zeros(41), np.zeros(42)
    model = model_of(kind, parameters, points[order] - center, *sizes)
    forest = new_forest(model, 200)
    members = np.arange(1, 40, 3)

    def blocks(tree):
        nodes = moves.nodes_below(forest, tree)
        return {tuple(leaves_below(forest, node)) for node in nodes}

    whole = blocks(moves.block_tree(model, forest, tallest, np.arange(40)))
    met = {tuple(i for i in block if i in members) for block in whole} - {()}
    assert blocks(moves.block_tree(model, forest, tallest, members)) == met


def frequencies(case, num_moves, number, seed=0):
    """Share of each partition among the states of a chain of the sampler."""
    rng = np.random.default_rng(seed)
    labels, counts = np.zeros(len(case.points), np.int64), np.zeros(len(case.states))
    compiled = Compiled(case.kind, case.parameters, case.table, case.points)
    weights = case.log_size, case.log_number
    for seed_of_loop in rng.integers(2**31, size=number):
        moves.exact_sweep(
            compiled, labels, case.tallest, *weights, num_moves, case.num_scans, int(seed_of_loop)
        )
        counts[case.index[canonical(labels)]] += 1
    return counts / number


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("prior", WEIGHTS)
@pytest.mark.parametrize("name", DATA)
def test_chains_have_the_posterior(name, prior):
    """Total variation of 20,000 sweeps, about 0.007; more than 0.025 in less than 1 of 10^6 seeds.

    It sees that the sampler draws what the matrix says.
    """
    case = Enumeration(name, prior)
    fractions = frequencies(case, 3, 20_000)
    assert 0.5 * np.abs(fractions - case.process).sum() < 0.025


@pytest.mark.parametrize(
    ("name", "mean", "partitions"),
    [
        ("Gaussian", 2.073331, {(0, 0, 1, 1): 0.2536624}),
        ("multinomial", 2.4707, {(0, 0, 1, 1): 0.2071326, (0, 0, 1, 2): 0.1794185}),
    ],
)
def test_numbers_of_the_specification(name, mean, partitions):
    case = Enumeration(name, "generalized gamma")
    by_state = dict(zip(case.states, case.process, strict=True))
    expected = sum(p * (max(state) + 1) for state, p in by_state.items())
    assert abs(expected - mean) < (1e-6 if name == "Gaussian" else 1e-4)
    for state, probability in partitions.items():
        assert abs(by_state[state] - probability) < 1e-7
