"""Mixture moments and BALD against closed forms and draws, and the choice of points."""

import pytest
import torch

from pyro_ext.inference import bald, best_by_turns, farthest_points, mixture_moments
from tests.inference.models import assert_mean

pytestmark = pytest.mark.usefixtures("float64")


def test_numbers_of_three_members():
    means, variances = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 0.5])
    mean, variance = mixture_moments(means, variances)
    assert float(mean) == 1.0
    assert float(variance) == pytest.approx(7 / 6 + 2 / 3)
    assert round(float(bald(means, variances)), 4) == 0.3031


def test_vectors_of_one_component_are_numbers():
    generator = torch.Generator().manual_seed(0)
    means, variances = torch.randn(4, 5, generator=generator), torch.rand(4, 5, generator=generator)
    mean, covariance = mixture_moments(means[..., None], variances[..., None, None], 1)
    torch.testing.assert_close(mean[:, 0], mixture_moments(means, variances)[0])
    torch.testing.assert_close(covariance[:, 0, 0], mixture_moments(means, variances)[1])
    wide = bald(means[..., None], variances[..., None, None], 1)
    torch.testing.assert_close(wide, bald(means, variances))


def test_moments_are_those_of_draws():
    """Five standard errors of 40,000 draws, which one seed in a million exceeds."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 2, generator=generator)
    factors = torch.randn(3, 2, 2, generator=generator)
    mean, covariance = mixture_moments(means, factors @ factors.mT, 1)
    member = torch.randint(3, (40_000,), generator=generator)
    noise = torch.randn(40_000, 2, 1, generator=generator)
    draws = means[member] + (factors[member] @ noise)[..., 0]
    assert_mean(draws, mean, most=5.0)
    assert_mean((draws - mean)[:, :, None] * (draws - mean)[:, None, :], covariance, most=5.0)


def test_bald_is_zero_only_where_members_agree():
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(5, 200, 3, generator=generator)
    factors = torch.randn(5, 200, 3, 3, generator=generator)
    covariances = factors @ factors.mT + 0.1 * torch.eye(3)
    assert (bald(means, covariances, 1) > 0).all()
    same = bald(means[:1].expand(5, -1, -1), covariances[:1].expand(5, -1, -1, -1), 1)
    assert (same < 1e-12).all()
    own_noise = bald(torch.zeros(2, 1), torch.tensor([[1.0], [4.0]]))
    assert own_noise > 0.1  # they do not agree on the noise


def test_farthest_points():
    points = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 4.0], [9.0, 0.0], [5.0, 0.0]])
    assert farthest_points(points, 4).tolist() == [2, 1, 4, 0]
    assert farthest_points(points, 2, torch.tensor([[10.0, 0.0]])).tolist() == [2, 4]
    assert sorted(farthest_points(points, 5).tolist()) == [0, 1, 2, 3, 4]
    assert len(set(farthest_points(torch.zeros(3, 1), 3).tolist())) == 3


def test_scores_choose_by_turns():
    energy, force = torch.tensor([5.0, 4.0, 3.0, 0.0]), torch.tensor([9.0, 0.0, 1.0, 8.0])
    assert best_by_turns([energy, force], 4).tolist() == [0, 3, 1, 2]
    assert best_by_turns([force], 2).tolist() == [0, 3]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="variances must not be negative"):
        mixture_moments(torch.zeros(2), torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="variances must be positive"):
        bald(torch.zeros(2), torch.zeros(2))
    indefinite = torch.tensor([[1.0, 2.0], [2.0, 1.0]]).expand(2, 2, 2)
    lopsided = torch.tensor([[1.0, 0.9], [0.0, 1.0]]).expand(2, 2, 2)
    for function in (bald, mixture_moments):
        with pytest.raises(ValueError, match="no negative eigenvalues, got 2 that have"):
            function(torch.zeros(2, 2), indefinite, 1)
        with pytest.raises(ValueError, match="variances must be symmetric"):
            function(torch.zeros(2, 2), lopsided, 1)
    flat = torch.ones(2, 2, 2)
    assert torch.equal(mixture_moments(torch.zeros(2, 2), flat, 1)[1], flat[0])
    with pytest.raises(ValueError, match="variances must be positive definite, got 2"):
        bald(torch.zeros(2, 2), flat, 1)
    with pytest.raises(ValueError, match="num_points must be at most the 2 points"):
        farthest_points(torch.zeros(2, 1), 3)
