"""What every conjugate cluster does, and joint distributions of points in blocks and partitions."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta
from pyro.optim import Adam
from torch.distributions import MultivariateNormal

from pyro_ext.distributions import (
    BernoulliCluster,
    GaussianCluster,
    KnownVarianceGaussianCluster,
    PartitionedBlock,
    PoissonCluster,
)
from pyro_ext.testing.potential import check_potential
from tests.distributions.clusters import DATA, GAUSSIAN, X4, cluster_and_data, everything, tensors

pytestmark = pytest.mark.usefixtures("float64")


@everything
def test_empty_blocks(make):
    cluster, x = cluster_and_data(make)
    assert cluster.log_marginal(x[:0]).item() == 0.0
    assert cluster.log_marginal(x, torch.zeros(4, dtype=torch.bool)).item() == 0.0


@everything
def test_masks(make):
    cluster, x = cluster_and_data(make)
    masks = torch.tensor([[True, False, True, True], [False, True, False, False]])
    blocks = [x[mask] for mask in masks]
    exact = torch.stack([cluster.log_marginal(block) for block in blocks])
    torch.testing.assert_close(cluster.log_marginal(x, masks), exact)
    posterior = cluster.posterior(x, masks)
    assert posterior.batch_shape == (2,)
    for name in make.arg_constraints:
        one = getattr(cluster.posterior(blocks[1]), name)
        torch.testing.assert_close(getattr(posterior, name)[1], one)


@everything
def test_points_outside_a_mask_have_no_influence(make):
    cluster, x = cluster_and_data(make)
    mask = torch.tensor([True, True, True, False])
    holes = x.clone()
    holes[3] = torch.nan
    holes.requires_grad_()
    value = cluster.log_marginal(holes, mask)
    torch.testing.assert_close(value, cluster.log_marginal(x[:3]))
    (gradient,) = torch.autograd.grad(value, holes)
    assert gradient.isfinite().all() and (gradient[3] == 0).all()


@everything
def test_batches_and_expansion(make):
    first, *others = tensors(make)
    cluster = make(torch.stack([first, 2 * first, first]), *others)
    _, x = cluster_and_data(make)
    value = cluster.log_marginal(x)
    torch.testing.assert_close(value[1], make(2 * first, *others).log_marginal(x))
    assert cluster.log_marginal(x.expand(5, 1, 4, 2)).shape == (5, 3)
    wide = cluster.expand((4, 3))
    torch.testing.assert_close(wide.log_marginal(x), value.expand(4, 3))
    assert wide.posterior(x).batch_shape == (4, 3)


def test_numbers_stand_for_vectors_and_one_argument_tells_the_size():
    cluster = KnownVarianceGaussianCluster(0.0, torch.tensor([2.0, 2.0]), 1.0)
    assert cluster.event_shape == (2,) and cluster.loc.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="BernoulliCluster takes the shapes concentration1"):
        BernoulliCluster(1.0, 1.0)


def test_prior_from_data():
    x = torch.tensor(X4)
    cluster = GaussianCluster.from_data(x)
    covariance = torch.tensor(np.cov(X4, rowvar=False))
    torch.testing.assert_close(cluster.loc, x.mean(0))
    assert cluster.dof.item() == 8.0 and cluster.loc_precision.item() == pytest.approx(0.1)
    covariance = covariance * (len(X4) - 1) / len(X4)
    torch.testing.assert_close(cluster.scale / (cluster.dof - 3.0), covariance / 10.0)
    other = GaussianCluster.from_data(x, loc_precision=0.3, dof=5.0, determinant=2.0)
    assert other.dof.item() == 5.0 and other.scale.det().item() == pytest.approx(2.0)
    units = torch.tensor([1e-9, 1e9], dtype=x.dtype)
    apart = GaussianCluster.from_data(x * units)
    torch.testing.assert_close(apart.scale / units / units[:, None], cluster.scale)


def test_hyperprior_knows_no_units():
    """Densities of data in other units differ by the Jacobian, at the same hyperparameters."""
    x, units = torch.tensor(X4), torch.tensor([1e-3, 1e4], dtype=torch.float64)
    values = {
        "loc_precision": torch.tensor(0.2, dtype=x.dtype),
        "dof_excess": torch.tensor(1.5, dtype=x.dtype),
        "relative_size": torch.tensor([0.3, 0.7], dtype=x.dtype),
    }
    first, second = (
        pyro.condition(GaussianCluster.hyperprior(data), values)() for data in (x, x * units)
    )
    assert first.dof.item() == 4.5 and first.loc_precision.item() == pytest.approx(0.2)
    expected = 2.5 * (torch.tensor([0.3, 0.7]).double() * x.std(0)).square().diag()
    torch.testing.assert_close(first.scale, expected)
    shift = len(x) * units.log().sum()
    torch.testing.assert_close(
        first.log_marginal(x), second.log_marginal(x * units) + shift, rtol=1e-9, atol=0
    )


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 2), "x must have at least two rows, got 1"),
        (torch.tensor([[0.0, 0.1], [1.0, 0.1], [7.0, 0.1]]), r"constant ones: \[1\]"),
    ],
)
def test_data_that_give_no_hyperprior(x, message):
    with pytest.raises(ValueError, match=message):
        GaussianCluster.hyperprior(x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 2), r"x must have the shape \(n, d\) with more points.*got \(2, 2\)"),
        (torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]]), "subspace, got 3 points"),
        (torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]), "covariance is singular"),
        (torch.tensor([[0.0, 0.1], [1.0, 0.1], [7.0, 0.1]]).double(), "covariance is singular"),
        (torch.arange(21.0).view(7, 3) ** 2 @ torch.ones(3, 3), "covariance is singular"),
    ],
)
def test_data_that_give_no_prior(x, message):
    with pytest.raises(ValueError, match=message):
        GaussianCluster.from_data(x)


def test_hyperparameters_out_of_range():
    zeros, eye = torch.zeros(2), torch.eye(2)
    with pytest.raises(ValueError, match=r"dof of GaussianCluster must be > 1 in 2 .*got 0.5"):
        GaussianCluster(zeros, 1.0, 0.5, eye)
    with pytest.raises(ValueError, match="parameter scale .*PositiveDefinite"):
        GaussianCluster(zeros, 1.0, 3.0, torch.ones(2, 2))
    with pytest.raises(ValueError, match="GaussianCluster takes the shapes .*'scale': \\(3, 3\\)"):
        GaussianCluster(zeros, 1.0, 3.0, torch.eye(3))
    with pytest.raises(ValueError, match="GaussianCluster takes the shapes .*'scale': \\(\\)"):
        GaussianCluster(zeros, 1.0, 3.0, 1.0)
    with pytest.raises(ValueError, match="hyperparameters of GaussianCluster do not broadcast"):
        GaussianCluster(zeros.expand(3, 2), torch.ones(2), 3.0, eye)


@everything
def test_points_that_do_not_fit(make):
    cluster, x = cluster_and_data(make)
    with pytest.raises(ValueError, match=r"mask must have the shape \(\*batch, 4\), got \(3,\)"):
        cluster.log_marginal(x, torch.ones(3, dtype=torch.bool))
    if make not in GAUSSIAN:
        with pytest.raises(ValueError, match=r"x must be .*support .*, got \d\.5"):
            cluster.log_marginal(x + 0.5)
    with pytest.raises(ValueError):
        cluster.block(3).log_prob(x)
    unchecked = make(*tensors(make), validate_args=False)
    assert unchecked.log_prob(torch.full((4, 2), torch.nan)).isnan().all()


@everything
def test_blocks_in_a_model(make):
    cluster, x = cluster_and_data(make)

    def model():
        with pyro.plate("clusters", 2):
            pyro.sample("x", cluster.block(4), obs=x.expand(2, 4, 2))
        return pyro.sample("next", cluster.posterior(x))

    trace = pyro.poutine.trace(model).get_trace()
    value = trace.nodes["x"]["fn"].log_prob(trace.nodes["x"]["value"])
    torch.testing.assert_close(value, cluster.log_marginal(x).expand(2))
    point = trace.nodes["next"]["value"]
    exact = 2 * cluster.log_marginal(x) + cluster.posterior(x).log_prob(point)
    torch.testing.assert_close(trace.log_prob_sum(), exact)


@pytest.mark.parametrize("make", [GaussianCluster, PoissonCluster], ids=lambda make: make.__name__)
def test_a_latent_hyperparameter(make):
    """In a recorded potential, which takes no branch on a value, and at the optimum of SVI."""
    x = torch.tensor(DATA[make])

    def fn(size):
        if make is GaussianCluster:
            return GaussianCluster(torch.zeros(2), 0.5, 4.0, size[..., None, None] * torch.eye(2))
        return PoissonCluster(torch.ones(2), size[..., None])

    def model():
        size = pyro.sample("size", dist.Gamma(2.0, 1.0))
        pyro.sample("x", fn(size).block(4), obs=x)

    check_potential(model)
    guide = AutoDelta(model, init_loc_fn=pyro.infer.autoguide.init_to_median)
    svi = SVI(model, guide, Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(200):
        svi.step()
    grid = torch.linspace(0.02, 8.0, 4_000)
    joint = dist.Gamma(2.0, 1.0).log_prob(grid) + fn(grid).log_marginal(x)
    assert guide.median()["size"].item() == pytest.approx(grid[joint.argmax()].item(), abs=0.02)


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
    fn = PartitionedBlock(KnownVarianceGaussianCluster(loc, 2.0, 0.7), LABELS[0])
    fn.rsample().sum().backward()
    assert loc.grad is not None and float(loc.grad) == pytest.approx(4.0)
    counts = PartitionedBlock(PoissonCluster(torch.tensor([2.0]), 1.0), LABELS[0])
    assert counts.sample((3,)).shape == (3, 4, 1)
    with pytest.raises(NotImplementedError, match="draws of PoissonCluster have no gradients"):
        counts.rsample()


def test_moments_are_those_of_single_points():
    fn = PartitionedBlock(cluster(), LABELS)
    torch.testing.assert_close(fn.mean, torch.full((3, 4, 1), 0.5))
    torch.testing.assert_close(fn.variance, torch.full((3, 4, 1), 4.49))


def test_a_batch_of_clusters_is_refused():
    with pytest.raises(ValueError, match=r"cluster must have no batch shape, got \(2,\)"):
        PartitionedBlock(cluster().expand((2,)), LABELS)
