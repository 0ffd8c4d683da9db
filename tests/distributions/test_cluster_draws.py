"""Moments and draws of conjugate clusters and of their blocks."""

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_ext.distributions import (
    BernoulliCluster,
    GaussianCluster,
    MultinomialCluster,
    PoissonCluster,
)
from pyro_ext.testing.distributions import check_draws
from tests.distributions.clusters import (
    COUNTS,
    cluster_and_data,
    gaussian,
)

pytestmark = pytest.mark.usefixtures("float64")

SMALLEST_P = 1e-5


def test_moments_that_are_not_finite():
    heavy = GaussianCluster(torch.zeros(2), 1.0, torch.tensor([1.5, 2.5, 3.5]), torch.eye(2))
    assert heavy.mean.isnan().all(-1).tolist() == [True, False, False]
    assert heavy.variance[1].isinf().all() and heavy.variance[2].isfinite().all()


@pytest.mark.statistical
@gaussian
def test_blocks_of_gaussian_points_have_uniform_ranks(make):
    """A point has uniform ranks given the points before, under SciPy's distribution of a distance.

    Kolmogorov-Smirnov tests of 20,000 draws, of one point and the three of a block; any of the
    two families fails for one seed in 7,000.
    """
    torch.manual_seed(1)
    cluster, _ = cluster_and_data(make)
    blocks = cluster.block(3).sample((20_000,))
    draws = [(cluster, cluster.sample((20_000,)))]
    draws += [(cluster.posterior(blocks[:, :size]), blocks[:, size]) for size in range(3)]
    for fn, x in draws:
        shift = (x - fn.loc).numpy()
        if make is GaussianCluster:
            df = (fn.dof - 1).numpy()
            precision = fn.loc_precision.numpy()
            shape = fn.scale.numpy() * ((precision + 1) / (precision * df))[..., None, None]
            distance = (shift * np.linalg.solve(shape, shift[..., None])[..., 0]).sum(-1)
            ranks = stats.f.cdf(distance / 2, 2, df)
        else:
            ranks = stats.norm.cdf(shift / torch.hypot(fn.loc_scale, fn.scale).numpy())
        for column in ranks.reshape(len(ranks), -1).T:
            assert stats.kstest(column, "uniform").pvalue > SMALLEST_P


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("cluster", "num_values"),
    [
        (MultinomialCluster(torch.tensor([0.5, 1.7], dtype=torch.float64), total_count=2), 3),
        (BernoulliCluster(torch.tensor([0.5], dtype=torch.float64), 1.2), 2),
        (PoissonCluster(torch.tensor([1.7], dtype=torch.float64), 2.0), 4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_frequencies_of_blocks_of_counts(cluster, num_values):
    """Chi-squared tests of 50,000 blocks of three, all larger counts as one event.

    Any of the three families fails for one seed in 33,000.
    """
    values = torch.cartesian_prod(*[torch.arange(num_values)] * 3)
    points = values.unsqueeze(-1)
    if isinstance(cluster, MultinomialCluster):
        points = torch.cat([points, 2 - points], -1)
    check_draws(cluster.block(3), points=points, num_draws=50_000, seed=2)


def test_total_count_is_of_draws_alone():
    cluster = MultinomialCluster(torch.tensor([0.5, 1.7]), total_count=7)
    x = torch.tensor(COUNTS)
    assert (cluster.sample((5,)).sum(-1) == 7).all()
    for other in (cluster.expand((3,)), cluster.posterior(x), cluster.block(2).cluster):
        assert other.total_count == 7
    plain = MultinomialCluster(torch.tensor([0.5, 1.7]))
    assert torch.equal(cluster.log_marginal(x), plain.log_marginal(x))
    assert (cluster.log_prob(torch.zeros(2)) == 0).item()


def test_draws_of_counts_have_no_gradients():
    for make in (MultinomialCluster, BernoulliCluster, PoissonCluster):
        cluster, _ = cluster_and_data(make)
        assert not cluster.has_rsample and not cluster.block(2).has_rsample
        with pytest.raises(NotImplementedError):
            cluster.rsample()
        with pytest.raises(NotImplementedError, match=f"draws of {make.__name__}"):
            cluster.block(2).rsample()
