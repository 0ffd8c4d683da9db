"""The page on tree-guided MCMC: its parts, a short run, and in full its claims."""

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from pyro_ext.inference import MCMC
from pyro_ext.inference.partitions import MarginalGibbs, trees
from pyro_ext.inference.partitions.mixtures import centered
from pyro_ext.random_measures import DirichletProcess
from pyro_ext.tutorials.papers import PublishedTreeGuided, _tgmcmc_moves
from tests.inference.partitions import enumeration

datasets = pytest.importorskip("sklearn.datasets")

PAGE = "tgmcmc"
pytestmark = pytest.mark.slow


def test_images_are_the_first_of_each_digit(names):
    counts, digits = names["images"]()
    source = datasets.load_digits()
    assert (
        counts.shape == (160, 64) and digits.tolist() == [0] * 40 + [1] * 40 + [4] * 40 + [6] * 40
    )
    assert torch.equal(counts[0], torch.tensor(source.data[0] / 4).round())
    fours = [row for row, digit in enumerate(source.target) if digit == 4]
    assert torch.equal(counts[119], torch.tensor(source.data[fours[39]] / 4).round())


def test_one_cluster_has_the_noted_density(names):
    """-10,684 for the data and the partition, as other code measured, give or take the variable."""
    counts, _ = names["images"]()
    kernel = MarginalGibbs(names["PRIOR"], names["pixel_cluster"], init="one")
    chain = names["run_for"](kernel, counts, 0.0, 0)
    assert chain.num_clusters.tolist() == [1.0] and len(chain.seconds) == 1
    assert abs(chain.log_joint[0] + 10_684) < 8


def test_chains_take_their_time_and_seed(names):
    points = names["blobs"](0)[:20]
    cluster = names["GaussianCluster"].from_data(points)
    runs = [
        names["run_for"](MarginalGibbs(names["PRIOR"], cluster, init="one"), points, 0.02, seed)
        for seed in (1, 1, 2)
    ]
    for run in runs:
        assert run.seconds[-1] >= 0.02 > run.seconds[:-1].max()
    length = min(len(run.seconds) for run in runs)
    first, second, other = (run.log_joint[:length] for run in runs)
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_blobs_are_about_their_centers(names):
    blobs = torch.stack([names["blobs"](seed) for seed in range(20)]).view(20, 13, 20, 2)
    assert abs(float(blobs.var(2).mean()) - 0.0625) < 0.002
    centers = blobs.mean(2)
    assert float(centers.abs().max()) < 4.3 and abs(float(centers.var()) - 16 / 3) < 0.8
    assert not torch.equal(blobs[0], blobs[1])


def test_error_of_a_mean_counts_autocorrelation(names):
    """An autoregression with coefficient 0.9 has 19 times the variance of the mean."""
    noise = torch.randn(2, 8192, generator=torch.Generator().manual_seed(0)).double()
    values = torch.from_numpy(lfilter([1.0], [1.0, -0.9], noise.numpy()))
    _, plain = names["mean_and_error"](noise)
    mean, error = names["mean_and_error"](values)
    assert mean == float(values.mean())
    assert plain == pytest.approx(noise.numel() ** -0.5, rel=0.1)
    assert error == pytest.approx(10 * noise.numel() ** -0.5, rel=0.25)


def test_error_of_a_mean_counts_that_chains_differ(names):
    noise = torch.randn(2, 400, generator=torch.Generator().manual_seed(0)).double()
    _, error = names["mean_and_error"](noise + torch.tensor([[0.0], [6.0]]))
    assert error > 1.0


# Total variation to the posterior of moves of clusters, worked out from the transition matrix on
# all partitions of four points and their trees. Moves of single points at random leave none.
WORKED_OUT = {
    ("Gaussian", "generalized gamma"): 0.07354,
    ("multinomial", "generalized gamma"): 0.0756,
    ("Gaussian", "Dirichlet"): 0.0858,
}


@pytest.mark.statistical
@pytest.mark.parametrize(("data", "weights"), WORKED_OUT)
def test_published_kernel_is_as_biased_as_was_worked_out(data, weights):
    """The standard error of 20,000 sweeps is at most 0.01, and fails one seed in 10,000."""
    make, points = enumeration.DATA[data]
    log_weights = enumeration.WEIGHTS[weights](4)
    states, expected = enumeration.posterior(make(), points, enumeration.log_prior_of(log_weights))
    kind, center, parameters = centered(make())
    model = trees.model_of(kind, parameters, points.numpy() - center, *log_weights)
    for moves, distance in ((1, WORKED_OUT[data, weights]), (0, 0.0)):
        rng, counts = np.random.default_rng(0), np.zeros(len(states))
        forest, roots = trees.new_forest(model, 400), np.arange(4)
        for seed in rng.integers(2**31, size=20_000):
            forest, roots = _tgmcmc_moves.replanted(model, forest, roots, 400)
            points = np.array([seed % 4])[moves:]
            roots, _ = _tgmcmc_moves.paper_sweep(model, forest, roots, moves, points, int(seed))
            labels = np.empty(4, np.int64)
            leaves = [trees.leaves_below(forest, root) for root in roots]
            roots = roots[np.argsort([below[0] for below in leaves])]
            for label, below in enumerate(sorted(leaves, key=lambda below: below[0])):
                labels[below] = label
            counts[states.index(tuple(labels.tolist()))] += 1
        found = 0.5 * np.abs(counts / counts.sum() - expected).sum()
        assert abs(found - distance) < 0.04


def dirichlet():
    return DirichletProcess(torch.tensor(1.3, dtype=torch.float64))


@pytest.mark.statistical
def test_published_kernel_is_biased(float64):
    """Mean number of clusters of the published kernel, against the posterior's.

    The standard error is about 0.02, and the difference 0.2.
    """
    every, exact = enumeration.posterior(
        enumeration.gaussian_cluster(),
        enumeration.POINTS,
        lambda sizes: dirichlet().log_eppf(torch.tensor(sizes)),
    )
    expected = sum(p * (max(state) + 1) for state, p in zip(every, exact, strict=True))
    kernel = PublishedTreeGuided(dirichlet(), enumeration.gaussian_cluster())
    mcmc = MCMC(kernel, 4000, warmup_steps=50, seed=0, progress=False).run(enumeration.POINTS)
    assert expected - mcmc.sample_statistics()["num_clusters"].mean() > 0.1


def test_published_kernel_has_its_defaults_and_no_checkpoint(tmp_path):
    kernel = PublishedTreeGuided(dirichlet(), enumeration.gaussian_cluster())
    settings = kernel.settings()
    assert settings["num_global_moves"] == 20 and settings["local_fraction"] == 0.1
    with pytest.raises(ValueError, match="whose state is known"):
        MCMC(kernel, 5, checkpoint=tmp_path / "run")
