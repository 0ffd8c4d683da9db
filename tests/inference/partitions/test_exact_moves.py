"""Tree-guided moves of clusters and points leave the exact posterior invariant."""

import itertools

import numpy as np
import pytest

from pyro_ext.inference.partitions import _exact_moves as moves
from pyro_ext.inference.partitions import _tree_guided_loops as guided
from pyro_ext.inference.partitions import _tree_loops as trees
from pyro_ext.inference.partitions._conjugate_mixture import centered
from tests.inference.partitions.enumeration import (
    DATA,
    WEIGHTS,
    log_prior_of,
    partitions,
    posterior,
)

CAPACITY = 4000


def canonical(labels):
    seen = {}
    return tuple(seen.setdefault(int(label), len(seen)) for label in labels)


class Enumeration:
    """Transition matrices of the moves, from the functions that the sampler runs."""

    def __init__(self, name, prior):
        make, points = DATA[name]
        self.cluster, self.points = make(), points
        number = len(points)
        self.weights = WEIGHTS[prior](number)
        kind, center, parameters = centered(self.cluster)
        self.model = trees.model_of(kind, parameters, points.numpy() - center, *self.weights)
        self.states, self.law = posterior(self.cluster, points, log_prior_of(self.weights))
        self.index = {state: place for place, state in enumerate(self.states)}

    def forest(self):
        return trees.new_forest(self.model, CAPACITY)

    def cluster_matrix(self):
        """Rows of the kernel that splits and merges."""
        matrix = np.zeros((len(self.states), len(self.states)))
        for state in self.states:
            forest = self.forest()
            labels = np.array(state)
            roots = moves.trees_of_labels(self.model, forest, labels)
            for chosen in range(len(roots)):
                self._add_splits(matrix, forest, labels, roots, chosen)
            for number in range(2, len(roots) + 1):
                for own in itertools.combinations(range(len(roots)), number):
                    self._add_merge(matrix, forest, labels, roots, list(own))
            row = self.index[state]
            matrix[row, row] += 1.0 - matrix[row].sum()
        return matrix

    def _add_splits(self, matrix, forest, labels, roots, chosen):
        members = np.nonzero(labels == chosen)[0]
        rest = np.delete(roots, chosen)
        for parts in partitions(len(members)):
            if max(parts) == 0:
                continue
            after, block_of = labels.copy(), np.zeros(len(labels), np.int64)
            after[members] = len(labels) + np.array(parts)
            block_of[members] = parts
            blocks = np.array(
                [
                    trees.build(self.model, forest, members[np.array(parts) == part])
                    for part in range(max(parts) + 1)
                ]
            )
            log_split, has_room = guided.log_split(
                self.model, forest, roots[chosen], block_of, rest, CAPACITY // 2
            )
            assert has_room
            if log_split == -np.inf:
                continue
            log_odds, _ = moves.log_odds_of_split(
                self.model, forest, roots[chosen], blocks, block_of, rest
            )
            flow = np.exp(log_split + min(0.0, log_odds))
            matrix[self.index[canonical(labels)], self.index[canonical(after)]] += flow

    def _add_merge(self, matrix, forest, labels, roots, own):
        rest, blocks = np.delete(roots, own), roots[own]
        members = np.nonzero(np.isin(labels, own))[0]
        whole = trees.build(self.model, forest, members)
        block_of = np.zeros(len(labels), np.int64)
        for part, label in enumerate(own):
            block_of[labels == label] = part
        after = labels.copy()
        after[members] = own[0]
        log_merge = guided.log_merge(self.model, forest, blocks, rest)
        log_odds, _ = moves.log_odds_of_split(self.model, forest, whole, blocks, block_of, rest)
        flow = np.exp(log_merge + min(0.0, -log_odds))
        matrix[self.index[canonical(labels)], self.index[canonical(after)]] += flow


@pytest.mark.parametrize("prior", WEIGHTS)
@pytest.mark.parametrize("name", DATA)
def test_moves_of_clusters_keep_the_posterior(name, prior):
    case = Enumeration(name, prior)
    matrix = case.cluster_matrix()
    assert (matrix >= -1e-15).all()
    assert np.abs(case.law @ matrix - case.law).max() < 1e-12
    flow = case.law[:, None] * matrix
    assert np.abs(flow - flow.T).max() < 1e-12
    # It moves: on all but few states it does not stay with certainty.
    assert (np.diag(matrix) < 1.0 - 1e-6).mean() > 0.9


@pytest.mark.parametrize("name", DATA)
def test_splits_of_a_cluster_add_up(name):
    """Over all ways to split, to the probability that a tree is picked and finds none like it."""
    case = Enumeration(name, "generalized gamma")
    forest, number = case.forest(), len(case.points)
    whole = trees.build(case.model, forest, np.arange(number))
    total = 0.0
    for parts in case.states:
        block_of = np.array(parts)
        log_split, _ = guided.log_split(
            case.model, forest, whole, block_of, np.empty(0, np.int64), CAPACITY // 2
        )
        total += np.exp(log_split)
    assert abs(total - 1.0) < 1e-12


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_picks_add_up(depth):
    case = Enumeration("Gaussian", "generalized gamma")
    forest = case.forest()
    whole = trees.build(case.model, forest, np.arange(4))
    nodes, probabilities = moves.pick_probabilities(forest, whole, depth)
    assert abs(probabilities.sum() - 1.0) < 1e-12
    assert (probabilities[nodes >= 4] == 0).all() and (probabilities[nodes < 4] > 0).all()


def frequencies(case, num_moves, num_picks, number, seed=0):
    """Share of each partition among the states of a chain of the sampler."""
    rng = np.random.default_rng(seed)
    labels, counts = np.zeros(len(case.points), np.int64), np.zeros(len(case.states))
    for word in rng.integers(2**31, size=number):
        has_room, _ = moves.exact_sweep(
            case.model, labels, num_moves, num_picks, 2, CAPACITY, int(word)
        )
        assert has_room
        counts[case.index[canonical(labels)]] += 1
    return counts / number


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("prior", WEIGHTS)
@pytest.mark.parametrize("name", DATA)
def test_chains_have_the_posterior(name, prior):
    """Total variation of 20,000 sweeps, about 0.007; more than 0.025 in less than 1 of 10^6 seeds.

    The moves of points are seen here alone, and that the sampler draws what the matrix says.
    """
    case = Enumeration(name, prior)
    for num_moves, num_picks in ((2, 0), (0, 3)):
        shares = frequencies(case, num_moves, num_picks, 20_000)
        assert 0.5 * np.abs(shares - case.law).sum() < 0.025


def test_numbers_of_the_specification():
    case = Enumeration("Gaussian", "generalized gamma")
    by_state = dict(zip(case.states, case.law, strict=True))
    expected = sum(p * (max(state) + 1) for state, p in by_state.items())
    assert abs(expected - 2.073331) < 1e-6
    for state, probability in {
        (0, 0, 1, 1): 0.2536624,
        (0, 0, 0, 0): 0.2232900,
        (0, 1, 2, 2): 0.1994695,
    }.items():
        assert abs(by_state[state] - probability) < 1e-7


def test_no_room_is_told():
    case = Enumeration("Gaussian", "generalized gamma")
    labels = np.zeros(4, np.int64)
    results = {moves.exact_sweep(case.model, labels, 50, 0, 2, 20, seed)[0] for seed in range(5)}
    assert False in results
    assert (labels == 0).all() or True in results
