"""The loss against its definition by entropies, and as a metric."""

import numpy as np
import pytest
import torch

from pyro_ext.diagnostics.partitions import expected_loss, variation_of_information
from tests.diagnostics.partitions.test_point_estimate import partitions, random_draws


def entropy(labels: list[object]) -> float:
    shares = np.array([labels.count(label) for label in set(labels)]) / len(labels)
    return float(-(shares * np.log(shares)).sum())


def by_entropies(first: list[int], second: list[int]) -> float:
    together = entropy(list(zip(first, second, strict=True)))
    return 2.0 * together - entropy(list(first)) - entropy(list(second))


@pytest.mark.parametrize("num_points", [1, 4, 9])
def test_definition_whatever_the_names_of_labels(num_points):
    first = random_draws(0, 20, num_points, 4)
    second = random_draws(1, 20, num_points, 4)
    expected = [by_entropies(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    np.testing.assert_allclose(variation_of_information(first, second), expected, atol=1e-12)
    other = torch.tensor([-7, 3, 2**40, 0])[first]
    np.testing.assert_allclose(variation_of_information(other, second), expected, atol=1e-12)
    assert (variation_of_information(other, first.numpy().astype("uint8")) == 0.0).all()


def test_metric_on_all_partitions_of_five_points():
    every = torch.tensor(list(partitions(5)))
    table = variation_of_information(every[:, None], every)
    assert table.shape == (52, 52)
    torch.testing.assert_close(table, table.T, rtol=0, atol=0)
    assert ((table == 0.0) == torch.eye(52, dtype=torch.bool)).all() and (table >= 0.0).all()
    through = table[:, :, None] + table[None]  # from i through j to k
    assert (table[:, None] <= through + 1e-12).all()
    single, apart = torch.zeros(7, dtype=torch.long), torch.arange(7)
    assert float(variation_of_information(single, apart)) == pytest.approx(np.log(7))


def test_shapes_broadcast():
    first, second = random_draws(0, 6, 5, 3).reshape(2, 3, 5), random_draws(1, 3, 5, 3)
    table = variation_of_information(first, second)
    assert table.shape == (2, 3) and table.dtype == torch.float64
    assert float(table[1, 2]) == float(variation_of_information(first[1, 2], second[2]))
    assert variation_of_information(first[0, 0], second[0]).shape == ()


def test_expected_loss_is_the_mean():
    draws = random_draws(0, 30, 12, 5).reshape(3, 10, 12)
    candidates = random_draws(1, 4, 12, 12).reshape(2, 2, 12)
    wanted = variation_of_information(candidates[..., None, :], draws.flatten(0, 1)).mean(-1)
    torch.testing.assert_close(expected_loss(candidates, draws), wanted)
    assert expected_loss(candidates[0, 0], draws).shape == ()


def test_wrong_arguments():
    for shapes in [((3,), (4,)), ((2, 3), (3, 3))]:
        with pytest.raises(ValueError, match="first and second must have equally many labels and"):
            variation_of_information(*(torch.ones(shape).long() for shape in shapes))
    with pytest.raises(ValueError, match="candidate must have a label for each of 3 points, got 2"):
        expected_loss(torch.arange(2), torch.ones(4, 3).long())
