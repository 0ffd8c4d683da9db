"""Closed forms of divergences between Gaussians against other ways to them."""

import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_ext.inference.pseudocoresets import gaussian_kl, gaussian_wasserstein

pytestmark = pytest.mark.usefixtures("float64")


def pair(dim: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(2):
        factor = torch.randn(dim, dim, generator=generator)
        parts += [torch.randn(dim, generator=generator), factor @ factor.mT + 0.3 * torch.eye(dim)]
    return parts


def test_kl_is_that_of_pytorch() -> None:
    mean, covariance, other_mean, other_covariance = pair()
    expected = kl_divergence(
        MultivariateNormal(mean, covariance), MultivariateNormal(other_mean, other_covariance)
    )
    torch.testing.assert_close(gaussian_kl(*pair()), expected)


def test_wasserstein_by_matrix_roots() -> None:
    mean, covariance, other_mean, other_covariance = pair()
    root = scipy.linalg.sqrtm(covariance.numpy())
    cross = scipy.linalg.sqrtm(root @ other_covariance.numpy() @ root).real
    expected = float((mean - other_mean).square().sum()) + float(
        (covariance + other_covariance).trace() - 2.0 * cross.trace()
    )
    assert float(gaussian_wasserstein(*pair())) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("function", [gaussian_kl, gaussian_wasserstein])
def test_zero_batches_and_gradients(function) -> None:
    mean, covariance, other_mean, other_covariance = pair()
    assert float(function(mean, covariance, mean, covariance)) == pytest.approx(0.0, abs=1e-12)
    stacked = function(*[torch.stack([part, part]) for part in pair()])
    torch.testing.assert_close(stacked, function(*pair()).expand(2))
    leaves = [part.requires_grad_() for part in pair()]

    def of_factors(mean, factor, other_mean, other_factor):
        return function(mean, factor @ factor.mT, other_mean, other_factor @ other_factor.mT)

    assert torch.autograd.gradcheck(of_factors, leaves)


@pytest.mark.parametrize("function", [gaussian_kl, gaussian_wasserstein])
def test_equal_eigenvalues_have_gradients_and_no_covariance_is_nan(function) -> None:
    unit = torch.eye(3).requires_grad_()
    value = function(torch.zeros(3), torch.eye(3), torch.ones(3), unit)
    assert bool(torch.autograd.grad(value, unit)[0].isfinite().all())
    assert bool(function(torch.zeros(2), -torch.eye(2), torch.zeros(2), torch.eye(2)).isnan())
