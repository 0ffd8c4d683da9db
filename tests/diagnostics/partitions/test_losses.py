"""Losses against their definitions by pairs and by entropies, and as metrics."""

import itertools

import numpy as np
import pytest
import torch

from pyro_ext.diagnostics.partitions import (
    Loss,
    binder_loss,
    expected_loss,
    variation_of_information,
)
from tests.diagnostics.partitions.test_point_estimate import LOSSES, partitions, random_draws

DISTANCES = (variation_of_information, binder_loss)


def entropy(labels: list[object]) -> float:
    shares = np.array([labels.count(label) for label in set(labels)]) / len(labels)
    return float(-(shares * np.log(shares)).sum())


def binder_by_pairs(first: list[int], second: list[int]) -> float:
    pairs = itertools.product(range(len(first)), repeat=2)
    wrong = sum((first[i] == first[j]) != (second[i] == second[j]) for i, j in pairs)
    return wrong / len(first) ** 2


def information_by_entropies(first: list[int], second: list[int]) -> float:
    together = entropy(list(zip(first, second, strict=True)))
    return 2.0 * together - entropy(list(first)) - entropy(list(second))


@pytest.mark.parametrize(
    ("distance", "definition"),
    [(variation_of_information, information_by_entropies), (binder_loss, binder_by_pairs)],
)
@pytest.mark.parametrize("num_points", [1, 4, 9])
def test_definitions(distance, definition, num_points):
    first = random_draws(0, 20, num_points, 5)
    second = random_draws(1, 20, num_points, 4)
    expected = [definition(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    np.testing.assert_allclose(distance(first, second), expected, atol=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_metric_on_all_partitions_of_five_points(distance):
    every = torch.tensor(list(partitions(5)))
    table = distance(every[:, None], every)
    assert table.shape == (52, 52)
    torch.testing.assert_close(table, table.T, rtol=0, atol=0)
    assert ((table == 0.0) == torch.eye(52, dtype=torch.bool)).all() and (table >= 0.0).all()
    through = table[:, :, None] + table[None]  # from i through j to k
    assert (table[:, None] <= through + 1e-12).all()


def test_ends():
    single, apart = torch.zeros(7, dtype=torch.long), torch.arange(7)
    assert float(variation_of_information(single, apart)) == pytest.approx(np.log(7))
    assert float(binder_loss(single, apart)) == pytest.approx(1.0 - 1.0 / 7.0)


@pytest.mark.parametrize("distance", DISTANCES)
def test_names_of_labels_do_not_matter(distance):
    first, second = random_draws(0, 10, 8, 4), random_draws(1, 10, 8, 4)
    other = torch.tensor([-7, 3, 2**40, 0])[first]
    torch.testing.assert_close(distance(other, second), distance(first, second), rtol=0, atol=0)
    assert (distance(other, first.numpy().astype("uint8")) == 0.0).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_shapes_broadcast(distance):
    first, second = random_draws(0, 6, 5, 3).reshape(2, 3, 5), random_draws(1, 3, 5, 3)
    table = distance(first, second)
    assert table.shape == (2, 3) and table.dtype == torch.float64
    assert float(table[1, 2]) == float(distance(first[1, 2], second[2]))
    assert distance(first[0, 0], second[0]).shape == ()


@pytest.mark.parametrize("loss", LOSSES)
def test_expected_loss_is_the_mean(loss: Loss):
    draws = random_draws(0, 30, 12, 5).reshape(3, 10, 12)
    candidates = random_draws(1, 4, 12, 12).reshape(2, 2, 12)
    distance = DISTANCES[LOSSES.index(loss)]
    wanted = distance(candidates[..., None, :], draws.flatten(0, 1)).mean(-1)
    torch.testing.assert_close(expected_loss(candidates, draws, loss), wanted)
    assert expected_loss(candidates[0, 0], draws, loss).shape == ()


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"first and second must .* got \(3,\) and \(4,\)"):
        binder_loss(torch.arange(3), torch.arange(4))
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3, 3\)"):
        variation_of_information(torch.ones(2, 3).long(), torch.ones(3, 3).long())
    with pytest.raises(ValueError, match="candidate must have a label for each of 3 points, got 2"):
        expected_loss(torch.arange(2), torch.ones(4, 3).long())
