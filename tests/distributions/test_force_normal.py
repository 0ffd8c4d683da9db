"""ForceNormal: its covariance and factor against dense algebra, and its six numbers of a matrix."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_ext.distributions import ForceNormal

pytestmark = pytest.mark.usefixtures("float64")


def covariance_of(l6, eps):
    """By its definition."""
    lower = torch.diag_embed(l6[..., :3].exp())
    lower[..., 2, 1], lower[..., 2, 0], lower[..., 1, 0] = l6[..., 3:].unbind(-1)
    return lower @ lower.mT + eps * torch.eye(3)


def test_numbers_of_the_paper():
    diagonal, others = torch.tensor([0.5, 1.2, 0.8]).log(), torch.tensor([0.3, -0.4, 0.6])
    force = ForceNormal(torch.zeros(3), torch.cat([diagonal, others]))
    wanted = torch.tensor([[0.251, 0.3, -0.2], [0.3, 1.801, 0.12], [-0.2, 0.12, 0.891]])
    torch.testing.assert_close(force.covariance_matrix, wanted)
    assert round(float(force.log_det()), 4) == -1.4587
    residual = torch.tensor([0.3, -0.7, 0.2])
    assert round(float(force.mahalanobis(residual)), 4) == 1.9039
    loss = force.mahalanobis(residual) + force.log_det()
    density = force.log_prob(residual)
    torch.testing.assert_close(loss, -2 * density - 3 * math.log(2 * math.pi))


@pytest.mark.parametrize("eps", [0.0, 1e-3, 1.0])
def test_density_is_that_of_the_dense_normal(eps):
    generator = torch.Generator().manual_seed(0)
    loc, l6, value = (torch.randn(50, size, generator=generator) for size in (3, 6, 3))
    force = ForceNormal(loc, l6, eps)
    dense = dist.MultivariateNormal(loc, covariance_of(l6, eps))
    torch.testing.assert_close(force.log_prob(value), dense.log_prob(value))
    torch.testing.assert_close(force.covariance_matrix, dense.covariance_matrix)
    torch.testing.assert_close(force.scale_tril, dense.scale_tril)
    torch.testing.assert_close(force.entropy(), dense.entropy())
    torch.testing.assert_close(force.variance, dense.variance)


def test_float32_does_for_numbers_of_any_size():
    """A factorization of the matrix itself would fail for most of these."""
    generator = torch.Generator().manual_seed(0)
    l6 = 6.0 * torch.randn(500, 6, generator=generator)
    wide, narrow = (ForceNormal(torch.zeros(3).to(x), x).log_det() for x in (l6, l6.float()))
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-4)


def test_gradients():
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, size, generator=generator).requires_grad_() for size in (3, 6, 3)]
    assert torch.autograd.gradcheck(lambda a, b, x: ForceNormal(a, b).log_prob(x), inputs)
    assert torch.autograd.gradgradcheck(lambda a, b, x: ForceNormal(a, b).log_prob(x), inputs)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="loc and l6 must broadcast"):
        ForceNormal(torch.zeros(2, 3), torch.zeros(3, 6))
