"""Weights of observations and atoms: their moments, blocks, and what a draw depends on."""

from typing import Any

import pytest
import torch

from pyro_ext.inference.martingale import DirichletWeights
from tests.inference.models import assert_mean


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("num_blocks", "variance", "pseudo_variance"),
    [(None, 8.1156e-5, 8.1826e-6), (100, 8.1156e-5, 8.1826e-6), (10, 7.4455e-6, 8.1156e-7)],
)
def test_moments(num_blocks: int | None, variance: float, pseudo_variance: float) -> None:
    """100 observations and 100 atoms worth 10; pooled over points, false-alarm rate 1e-5 each."""
    distribution = DirichletWeights(100, 100, 10.0, num_blocks)
    draws = distribution.draw(range(8000), seed=0)
    torch.testing.assert_close(draws.sum(-1), torch.ones(8000, dtype=torch.float64))
    torch.testing.assert_close(
        distribution.mean[:100], torch.full((100,), 1 / 110, dtype=torch.float64)
    )
    torch.testing.assert_close(
        distribution.mean[100:], torch.full((100,), 0.1 / 110, dtype=torch.float64)
    )
    for part, wanted in ((draws[:, :100], variance), (draws[:, 100:], pseudo_variance)):
        by_draw = part.var(1, correction=0)  # about its own mean, which varies a little
        mean = part.mean(1)
        assert_mean(by_draw + (mean - mean.mean()).square(), wanted)


@pytest.mark.statistical
def test_marginals_of_small_concentrations() -> None:
    """The share of all atoms is a beta variable; its mean and variance within 4.5 errors."""
    distribution = DirichletWeights(5, 200, 0.5)
    share = distribution.draw(range(5000), seed=1)[:, 5:].sum(-1)
    mean, variance = 0.5 / 5.5, 0.5 * 5.0 / (5.5**2 * 6.5)
    assert float(share.mean()) == pytest.approx(mean, abs=4.5 * (variance / 5000) ** 0.5)
    assert_mean((share - mean).square(), variance)


def test_blocks_share_a_weight_and_are_drawn_anew() -> None:
    distribution = DirichletWeights(10, 7, 3.0, num_blocks=4)
    draws = distribution.draw(range(50), seed=0)
    for row in draws:
        # Ten points in blocks of 3, 3, 2, 2; seven atoms in blocks of 2, 2, 2, 1.
        assert sorted(row[:10].unique(return_counts=True)[1].tolist()) == [2, 2, 3, 3]
        assert sorted(row[10:].unique(return_counts=True)[1].tolist()) == [1, 2, 2, 2]
    together = draws[:, 0] == draws[:, 1]
    assert 0 < int(together.sum()) < 30


def test_unit_blocks() -> None:
    """The data have the mass L / (L + alpha) instead of n / (n + alpha)."""
    distribution = DirichletWeights(100, 100, 10.0, 20, "unit")
    assert float(distribution.mean[:100].sum()) == pytest.approx(20 / 30)
    draws = distribution.draw(range(4000), seed=0)
    assert float(draws[:, :100].sum(-1).mean()) == pytest.approx(20 / 30, abs=0.01)


def test_a_draw_alone_and_among_others() -> None:
    for distribution in (
        DirichletWeights(6),
        DirichletWeights(6, 4, 2.0),
        DirichletWeights(6, 4, 2.0, 3),
    ):
        draws = distribution.draw(range(5), seed=3)
        assert torch.equal(distribution.draw([3], seed=3)[0], draws[3])
        assert not torch.equal(distribution.draw([3], seed=4)[0], draws[3])
        assert len(draws.unique(dim=0)) == 5


def test_without_concentration_atoms_have_no_weight() -> None:
    draws = DirichletWeights(6, 4, 0.0).draw(range(5), seed=3)
    assert torch.equal(draws[:, :6], DirichletWeights(6).draw(range(5), seed=3))
    assert float(draws[:, 6:].abs().max()) == 0.0


def test_observations_see_the_same_numbers_whatever_the_concentration_is() -> None:
    """Ratios of their weights do not depend on it, so that concentrations can be compared."""
    without = DirichletWeights(6).draw(range(5), seed=3)
    some = DirichletWeights(6, 4, 2.0).draw(range(5), seed=3)[:, :6]
    torch.testing.assert_close(some / some.sum(-1, keepdim=True), without)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 0, 1.0), "concentration=1 puts weight on atoms"),
        ((5, 3, 1.0, 6), "num_blocks must be at most the 5 observations, got 6"),
    ],
)
def test_bad_input(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DirichletWeights(*arguments)
