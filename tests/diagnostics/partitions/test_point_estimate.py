"""The search finds the least expected loss, which enumeration knows for few points."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_ext.diagnostics.partitions import canonical_labels, expected_loss, point_estimate
from pyro_ext.diagnostics.partitions.estimates import _Search


def partitions(num_points: int, labels: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """All label vectors in the order of first occurrence."""
    if len(labels) == num_points:
        yield labels
        return
    for label in range(max(labels, default=-1) + 2):
        yield from partitions(num_points, (*labels, label))


def random_draws(seed: int, num_draws: int, num_points: int, num_labels: int) -> Tensor:
    """Draws that agree in part, under names that do not."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.randint(num_labels, (num_points,), generator=generator)
    others = torch.randint(num_labels, (num_draws, num_points), generator=generator)
    share = torch.rand((), generator=generator)
    is_other = torch.rand(num_draws, num_points, generator=generator) < share
    names = torch.rand(num_draws, num_labels, generator=generator).argsort(-1)
    return names.gather(1, torch.where(is_other, others, center))


@pytest.mark.parametrize("num_points", [2, 4, 6])
def test_global_minimum_over_all_partitions(num_points: int) -> None:
    every = torch.tensor(list(partitions(num_points)))
    for seed in range(25):
        draws = random_draws(seed, 30, num_points, 4)
        estimate = point_estimate(draws, seed=seed)
        least = float(expected_loss(every, draws).min())
        assert estimate.expected_loss == pytest.approx(least, abs=1e-12)
        own = expected_loss(estimate.labels, draws)
        assert estimate.expected_loss == pytest.approx(float(own), abs=1e-12)


def test_no_move_of_a_point_and_no_draw_is_better() -> None:
    draws = random_draws(5, 60, 40, 6)
    estimate = point_estimate(draws, seed=0)
    assert estimate.expected_loss <= float(expected_loss(draws, draws).min())
    for point in range(40):
        moved = estimate.labels.repeat(int(estimate.labels.max()) + 2, 1)
        moved[:, point] = torch.arange(len(moved))
        assert float(expected_loss(moved, draws).min()) > estimate.expected_loss - 1e-9


@pytest.mark.parametrize("one", [[4, 4, -2, 9, 9, 9, -2], [3]])
def test_equal_draws_are_the_estimate(one: list[int]) -> None:
    row = torch.tensor(one)
    for draws in (row[None], row.repeat(5, 1), row.repeat(2, 5, 1)):
        estimate = point_estimate(draws, seed=0)
        torch.testing.assert_close(estimate.labels, canonical_labels(row), rtol=0, atol=0)
        assert estimate.expected_loss == 0.0


def test_one_seed_gives_one_estimate_whatever_the_names() -> None:
    draws = random_draws(8, 50, 40, 8)
    first = point_estimate(draws, seed=3)
    other = point_estimate((7 - draws).reshape(5, 10, 40), seed=3)
    torch.testing.assert_close(first.labels, other.labels, rtol=0, atol=0)
    assert first.expected_loss == other.expected_loss
    torch.testing.assert_close(canonical_labels(first.labels), first.labels, rtol=0, atol=0)


def test_more_clusters_than_the_tables_begin_with() -> None:
    """Thirty pairs that all draws agree upon, built up from nothing."""
    draws = (torch.arange(60) // 2).repeat(3, 1)
    search = _Search(draws.numpy(), 0)
    search.start_from(np.full(60, -1))
    assert search.labels.tolist() == draws[0].tolist()


def test_dissolving_a_cluster_leaves_a_local_minimum() -> None:
    """No single point gains by leaving two clusters that are joined; all of them together do."""
    draws = (torch.arange(20) % 2).repeat(3, 1)
    search = _Search(draws.numpy(), 0)
    search.start_from(np.zeros(20, np.int64))
    assert not search.labels.any()
    search.dissolve_clusters()
    assert search.labels.tolist() == draws[0].tolist()


def test_draws_are_thinned_where_there_are_many() -> None:
    draws = random_draws(0, 1500, 6, 3)
    every = torch.tensor(list(partitions(6)))
    estimate = point_estimate(draws, seed=0)
    least = float(expected_loss(every, draws).min())
    assert estimate.expected_loss == pytest.approx(least, abs=1e-12)
