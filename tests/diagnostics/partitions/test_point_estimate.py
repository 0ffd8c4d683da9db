"""The search finds the least expected loss, which enumeration knows for few points."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pyro_ext.diagnostics.partitions import (
    Loss,
    canonical_labels,
    co_clustering,
    expected_loss,
    point_estimate,
)

LOSSES: tuple[Loss, ...] = ("variation_of_information", "binder")


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


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("num_points", [2, 4, 6])
def test_global_minimum_over_all_partitions(loss: Loss, num_points: int) -> None:
    every = torch.tensor(list(partitions(num_points)))
    for seed in range(25):
        draws = random_draws(seed, 30, num_points, 4)
        losses = expected_loss(every, draws, loss)
        estimate = point_estimate(draws, loss, seed=seed)
        assert estimate.expected_loss == pytest.approx(float(losses.min()), abs=1e-12)
        own = expected_loss(estimate.labels, draws, loss)
        assert estimate.expected_loss == pytest.approx(float(own), abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("most", [1, 2, 3])
def test_global_minimum_with_few_clusters(loss: Loss, most: int) -> None:
    every = torch.tensor(list(partitions(6)))
    allowed = every[every.amax(-1) < most]
    for seed in range(15):
        draws = random_draws(seed, 20, 6, 6)
        estimate = point_estimate(draws, loss, max_num_clusters=most, seed=seed)
        assert int(estimate.labels.max()) < most
        least = float(expected_loss(allowed, draws, loss).min())
        assert estimate.expected_loss == pytest.approx(least, abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_move_of_a_point_is_better(loss: Loss) -> None:
    draws = random_draws(2, 40, 30, 5)
    bad = torch.arange(30) % 3
    estimate = point_estimate(draws, loss, candidates=bad[None], seed=0, num_restarts=0)
    for point in range(30):
        moved = estimate.labels.repeat(int(estimate.labels.max()) + 2, 1)
        moved[:, point] = torch.arange(len(moved))
        assert float(expected_loss(moved, draws, loss).min()) > estimate.expected_loss - 1e-9


@pytest.mark.parametrize("loss", LOSSES)
def test_no_candidate_is_better(loss: Loss) -> None:
    draws = random_draws(5, 60, 40, 6)
    estimate = point_estimate(draws, loss, seed=0, num_restarts=2)
    assert estimate.expected_loss <= float(expected_loss(draws, draws, loss).min())


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_draws_are_the_estimate(loss: Loss) -> None:
    one = torch.tensor([4, 4, -2, 9, 9, 9, -2])
    for draws in (one[None], one.repeat(5, 1), one.repeat(2, 5, 1)):
        estimate = point_estimate(draws, loss, seed=0)
        assert estimate.labels.tolist() == [0, 0, 1, 2, 2, 2, 1]
        assert estimate.expected_loss == 0.0


@pytest.mark.parametrize("loss", LOSSES)
def test_single_point(loss: Loss) -> None:
    estimate = point_estimate(torch.tensor([[3], [8]]), loss, seed=0)
    assert estimate.labels.tolist() == [0] and estimate.expected_loss == 0.0


@pytest.mark.parametrize("loss", LOSSES)
def test_one_seed_gives_one_estimate_whatever_the_names(loss: Loss) -> None:
    draws = random_draws(8, 50, 40, 8)
    first = point_estimate(draws, loss, seed=3)
    other = point_estimate((7 - draws).reshape(5, 10, 40), loss, seed=3)
    torch.testing.assert_close(first.labels, other.labels, rtol=0, atol=0)
    assert first.expected_loss == other.expected_loss
    torch.testing.assert_close(canonical_labels(first.labels), first.labels, rtol=0, atol=0)
    torch.manual_seed(1)
    unseeded = point_estimate(draws, loss)
    torch.manual_seed(1)
    torch.testing.assert_close(point_estimate(draws, loss).labels, unseeded.labels)


@pytest.mark.parametrize("loss", LOSSES)
def test_more_clusters_than_the_tables_begin_with(loss: Loss) -> None:
    """Thirty pairs that all draws agree upon, built up from nothing."""
    draws = (torch.arange(60) // 2).repeat(3, 1)
    one = torch.zeros(1, 60, dtype=torch.long)
    estimate = point_estimate(draws, loss, candidates=one, seed=0)
    torch.testing.assert_close(estimate.labels, draws[0], rtol=0, atol=0)


def test_dissolving_a_cluster_leaves_a_local_minimum() -> None:
    """No single point gains by leaving two clusters that are joined; all of them together do."""
    draws = (torch.arange(20) % 2).repeat(3, 1)
    joined = torch.zeros(1, 20, dtype=torch.long)
    moved = torch.eye(20, dtype=torch.long)[:1]
    assert float(expected_loss(moved, draws)) > float(expected_loss(joined, draws))
    estimate = point_estimate(draws, candidates=joined, seed=0, num_restarts=0)
    torch.testing.assert_close(estimate.labels, draws[0], rtol=0, atol=0)


def test_expected_information_is_not_its_bound() -> None:
    """The bound of Wade and Ghahramani needs co-clustering only, and lies below."""
    draws = random_draws(1, 50, 6, 3)
    shares = co_clustering(draws)
    labels = draws[0]
    together = (labels[:, None] == labels).double()
    bound = (
        together.sum(1).log() + shares.sum(1).log() - 2.0 * (together * shares).sum(1).log()
    ).mean()
    assert float(bound) < float(expected_loss(labels, draws)) - 1e-3


def test_draws_are_thinned_where_there_are_many() -> None:
    draws = random_draws(0, 1500, 6, 3)
    every = torch.tensor(list(partitions(6)))
    estimate = point_estimate(draws, seed=0)
    least = float(expected_loss(every, draws).min())
    assert estimate.expected_loss == pytest.approx(least, abs=1e-12)
