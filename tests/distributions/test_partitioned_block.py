"""Joint laws of partitioned points against multivariate normal distributions."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_ext.distributions import (
    KnownVarianceGaussianCluster,
    PartitionedBlock,
    PoissonCluster,
)

pytestmark = pytest.mark.usefixtures("float64")

LABELS = torch.tensor([[7, 2, 7, 2], [0, 0, 0, 1], [3, 3, 3, 3]])


def cluster():
    return KnownVarianceGaussianCluster(torch.tensor([0.5]), 2.0, 0.7)


def exact(labels):
    """Points of a cluster have a common mean, so the covariance is constant within it."""
    is_same = (labels[:, None] == labels[None, :]).double()
    covariance = 2.0**2 * is_same + 0.7**2 * torch.eye(len(labels))
    return MultivariateNormal(torch.full((len(labels),), 0.5), covariance)


def test_density_is_that_of_the_normal_law():
    x = torch.tensor([[0.2], [1.9], [-0.4], [3.0]])
    expected = torch.stack([exact(row).log_prob(x[:, 0]) for row in LABELS])
    torch.testing.assert_close(PartitionedBlock(cluster(), LABELS).log_prob(x), expected)
    wide = PartitionedBlock(cluster(), LABELS[0]).expand((2,))
    torch.testing.assert_close(wide.log_prob(x), expected[:1].expand(2))


@pytest.mark.statistical
def test_draws_have_the_covariance_of_the_normal_law():
    """Each of 48 means is within 5 standard errors: false alarms in 3e-5 of seeds."""
    draws = PartitionedBlock(cluster(), LABELS).sample((20_000,))[..., 0]
    products = (draws - 0.5)[..., :, None] * (draws - 0.5)[..., None, :]
    expected = torch.stack([exact(row).covariance_matrix for row in LABELS])
    error = (products.mean(0) - expected) / (products.std(0) / len(draws) ** 0.5)
    assert float(error.abs().max()) < 5.0


def test_draws_have_gradients_where_the_cluster_has_them():
    loc = torch.tensor([0.5], requires_grad=True)
    law = PartitionedBlock(KnownVarianceGaussianCluster(loc, 2.0, 0.7), LABELS[0])
    law.rsample().sum().backward()
    assert loc.grad is not None and float(loc.grad) == pytest.approx(4.0)
    counts = PartitionedBlock(PoissonCluster(torch.tensor([2.0]), 1.0), LABELS[0])
    assert counts.sample((3,)).shape == (3, 4, 1)
    with pytest.raises(NotImplementedError, match="draws of PoissonCluster have no gradients"):
        counts.rsample()


def test_moments_are_those_of_single_points():
    law = PartitionedBlock(cluster(), LABELS)
    torch.testing.assert_close(law.mean, torch.full((3, 4, 1), 0.5))
    torch.testing.assert_close(law.variance, torch.full((3, 4, 1), 4.49))


@pytest.mark.parametrize(
    ("given", "labels", "error", "message"),
    [
        (cluster, LABELS, TypeError, "cluster must be a conjugate cluster, got <function"),
        (None, LABELS.double(), TypeError, "labels must be a tensor of integers, got torch.float"),
        (None, [0, 1], TypeError, "labels must be a tensor of integers, got list"),
        (None, torch.tensor(1), ValueError, r"labels must have shape \(\*batch, n\).*got \(\)"),
    ],
)
def test_errors(given, labels, error, message):
    with pytest.raises(error, match=message):
        PartitionedBlock(given or cluster(), labels)


def test_a_batch_of_clusters_is_refused():
    with pytest.raises(ValueError, match=r"cluster must have no batch shape, got \(2,\)"):
        PartitionedBlock(cluster().expand((2,)), LABELS)
