"""Counts, sizes and co-clustering against loops, and against the same partitions renamed."""

from collections import Counter

import numpy as np
import pytest
import torch

from pyro_ext.diagnostics.partitions import (
    canonical_labels,
    cluster_sizes,
    co_clustering,
    num_clusters,
    num_clusters_distribution,
    partition_quantities,
)
from tests.diagnostics.partitions.test_point_estimate import random_draws

DRAWS = random_draws(4, 24, 9, 6).reshape(2, 12, 9)
RENAMED = torch.tensor([5, -1, 10**12, 7, 0, 3])[DRAWS]


def test_numbers_and_sizes():
    sizes = [[sorted(Counter(row).values())[::-1] for row in chain] for chain in DRAWS.tolist()]
    longest = max(len(row) for chain in sizes for row in chain)
    padded = [[row + [0] * (longest - len(row)) for row in chain] for chain in sizes]
    assert cluster_sizes(DRAWS).tolist() == padded
    numbers = [[len(row) for row in chain] for chain in sizes]
    assert num_clusters(DRAWS).tolist() == numbers
    flat = sum(numbers, [])
    shares = [flat.count(number) / len(flat) for number in range(max(flat) + 1)]
    np.testing.assert_allclose(num_clusters_distribution(DRAWS), shares, atol=1e-15)
    quantities = partition_quantities(DRAWS)
    assert quantities["num_clusters"].tolist() == numbers
    assert quantities["largest_cluster_size"].tolist() == [[r[0] for r in c] for c in sizes]
    assert quantities["num_singletons"].tolist() == [[r.count(1) for r in c] for c in sizes]
    entropies = [[-sum(s / 9 * np.log(s / 9) for s in row) for row in chain] for chain in sizes]
    np.testing.assert_allclose(quantities["entropy"], entropies, atol=1e-14)


def test_co_clustering_is_the_share_of_draws():
    rows = DRAWS.flatten(0, 1)
    wanted = (rows[:, :, None] == rows[:, None, :]).double().mean(0)
    torch.testing.assert_close(co_clustering(DRAWS), wanted, rtol=0, atol=1e-15)
    torch.testing.assert_close(co_clustering(rows.numpy()), wanted, rtol=0, atol=1e-15)


def test_names_of_labels_do_not_matter():
    torch.testing.assert_close(canonical_labels(RENAMED), canonical_labels(DRAWS))
    for function in (num_clusters, num_clusters_distribution, cluster_sizes, co_clustering):
        torch.testing.assert_close(function(RENAMED), function(DRAWS), rtol=0, atol=0)
    torch.testing.assert_close(partition_quantities(RENAMED), partition_quantities(DRAWS))


def test_smallest_cases():
    one = torch.tensor([[12]])
    assert co_clustering(one).tolist() == [[1.0]] and cluster_sizes(one).tolist() == [[1]]
    assert num_clusters_distribution(one).tolist() == [0.0, 1.0]
    quantities = {name: value.tolist() for name, value in partition_quantities(one).items()}
    assert quantities == {
        "num_clusters": [1],
        "largest_cluster_size": [1],
        "entropy": [0.0],
        "num_singletons": [1],
    }
    equal = torch.tensor([[1, 1, 0]] * 4)
    assert co_clustering(equal).tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def test_draws_have_two_or_three_axes():
    for function in (co_clustering, num_clusters_distribution, partition_quantities):
        for shape in [(3,), (1, 1, 2, 3)]:
            with pytest.raises(ValueError, match=r"labels must have the shape \(num_draws, n\) or"):
                function(torch.zeros(shape, dtype=torch.long))
