"""Kernels over partitions against exact posteriors, and what users may get wrong."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC as PyroMCMC

from pyro_ext.diagnostics import to_arviz
from pyro_ext.diagnostics.partitions import canonical_labels, point_estimate
from pyro_ext.distributions import (
    GaussianCluster,
    KnownVarianceGaussianCluster,
    PoissonCluster,
)
from pyro_ext.inference import MCMC
from pyro_ext.inference.partitions import MarginalGibbs, SliceSampler, SplitMerge, TreeGuided
from pyro_ext.random_measures import (
    DirichletProcess,
    GeneralizedGammaProcess,
)
from tests.inference.partitions.enumeration import (
    CLOSED,
    COUNTS,
    POINTS,
    PROCESSES,
    gaussian_cluster,
    multinomial_cluster,
    posterior,
    posterior_under,
)

pytestmark = pytest.mark.usefixtures("float64")

FIVE = torch.cat([POINTS, torch.tensor([[3.0, -1.0]], dtype=torch.float64)])


KERNELS = (
    MarginalGibbs,
    partial(SplitMerge, num_scans=3),
    partial(SplitMerge, num_proposals=3, num_scans=0),
    partial(TreeGuided, num_global_moves=3),
)


def total_variation(kernel, x, every, process, num_samples, seed=0):
    mcmc = MCMC(kernel, num_samples, warmup_steps=20, seed=seed, progress=False).run(x)
    index = {state: index for index, state in enumerate(every)}
    fractions = np.zeros(len(every))
    for row in mcmc.get_samples()["assignment"].tolist():
        fractions[index[tuple(row)]] += 1.0 / num_samples
    return 0.5 * np.abs(fractions - process).sum()


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("make", KERNELS)
@pytest.mark.parametrize("name", CLOSED)
def test_posterior_of_five_points(make, name):
    """Total variation of 3,000 steps to enumeration, with u sampled; about 0.02 to 0.04.

    More than 0.09 in less than one of 100,000 seeds.
    """
    process = PROCESSES[name]
    every, exact = posterior_under(process, gaussian_cluster(), FIVE)
    kernel = make(process, gaussian_cluster())
    assert total_variation(kernel, FIVE, every, exact, 3000) < 0.09


def test_slices_that_take_too_many_weights():
    process = GeneralizedGammaProcess(torch.tensor(5.0), 0.97, 1.0).normalize()
    with pytest.raises(RuntimeError, match="the discount is too large for slices"):
        MCMC(SliceSampler(process, gaussian_cluster()), 20, seed=0, progress=False).run(FIVE)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("discount", [0.0, 0.5])
def test_slice_sampler(discount):
    """As above, of 2,000 steps with weights; total variation 0.03 to 0.05."""
    process = GeneralizedGammaProcess(torch.tensor(0.7), discount, 1.0).normalize()
    every, exact = posterior_under(process, gaussian_cluster(), FIVE)
    kernel = SliceSampler(process, gaussian_cluster())
    assert total_variation(kernel, FIVE, every, exact, 2000) < 0.1


def test_slice_sampler_steps():
    process = PROCESSES["generalized gamma"]
    mcmc = MCMC(SliceSampler(process, gaussian_cluster()), 5, seed=0, progress=False).run(FIVE)
    assert (mcmc.sample_statistics()["num_weights"] >= 1).all()
    with pytest.raises(TypeError, match="prior must be a normalized measure for SliceSampler"):
        kernel = SliceSampler(PROCESSES["Dirichlet"], gaussian_cluster())
        MCMC(kernel, 5, seed=0, progress=False).run(FIVE)


@pytest.mark.slow
@pytest.mark.statistical
def test_posterior_of_counts_under_a_measure_by_quadrature():
    """As above, for 400 steps under a stable beta process; 0.15 is out of reach of chance."""
    process = PROCESSES["stable beta"]
    every, exact = posterior_under(process, multinomial_cluster(), COUNTS)
    kernel = MarginalGibbs(process, multinomial_cluster())
    assert total_variation(kernel, COUNTS, every, exact, 400) < 0.15


def prior():
    mass = pyro.sample("mass", dist.Gamma(torch.tensor(1.0, dtype=torch.float64), 1.0))
    discount = pyro.sample("discount", dist.Beta(torch.tensor(1.5, dtype=torch.float64), 1.5))
    return GeneralizedGammaProcess(mass * discount, discount, 1.0).normalize()


def exact_with_hyperparameters():
    """Partitions of five points, the EPPF averaged over the priors of both hyperparameters."""
    from scipy import stats

    nodes, weights = np.polynomial.legendre.leggauss(24)
    levels, weights = torch.tensor((nodes + 1.0) / 2.0), torch.tensor(weights / 2.0)
    discount = torch.tensor(stats.beta(1.5, 1.5).ppf(levels.numpy()))
    mass, discount = torch.meshgrid(-torch.log1p(-levels), discount, indexing="ij")
    process = GeneralizedGammaProcess(mass * discount, discount, torch.ones(())).normalize()
    joint = weights[:, None] * weights
    known = {}

    def log_prior(sizes):
        key = tuple(sorted(sizes))
        if key not in known:
            counts = torch.tensor(key, dtype=torch.float64).expand(24, 24, -1)
            known[key] = float((process.log_eppf(counts).exp() * joint).sum().log())
        return known[key]

    return posterior(gaussian_cluster(), FIVE, log_prior)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("make", [KERNELS[0], KERNELS[-1]])
def test_posterior_with_hyperparameters(make):
    """Total variation of 3,000 steps, 0.03 to 0.05; more than 0.1 in less than 1 of 10^5 seeds."""
    every, exact = exact_with_hyperparameters()
    assert total_variation(make(prior, gaussian_cluster()), FIVE, every, exact, 3000) < 0.1


@pytest.mark.slow
@pytest.mark.statistical
def test_hyperparameter_of_the_cluster():
    """The scale of the cluster has its posterior; five standard errors of effective draws."""
    shape = torch.tensor(2.0, dtype=torch.float64)

    def cluster():
        rate = pyro.sample("rate", dist.Gamma(shape, 1.0))
        return PoissonCluster(torch.full((1,), 2.0, dtype=torch.float64), rate)

    x = torch.tensor([[0.0], [1.0], [7.0], [9.0]], dtype=torch.float64)
    process = PROCESSES["Dirichlet"]
    grid = torch.linspace(1e-3, 12.0, 200, dtype=torch.float64)
    logs = []
    for rate in grid:
        base = PoissonCluster(torch.full((1,), 2.0, dtype=torch.float64), rate)
        every, _ = posterior_under(process, base, x)
        terms = []
        for state in every:
            blocks = [x[torch.tensor(state) == k] for k in range(max(state) + 1)]
            log_prior = process.log_eppf(torch.tensor([len(block) for block in blocks]))
            terms.append(log_prior + sum(base.log_marginal(block) for block in blocks))
        logs.append(torch.stack(terms).logsumexp(0) + dist.Gamma(shape, 1.0).log_prob(rate))
        if len(logs) > 1 and rate > 3.0 and logs[-1] < max(logs) - 25.0:
            break
    weights = torch.stack(logs).softmax(0)
    mean = (weights * grid[: len(weights)]).sum()
    spread = (weights * (grid[: len(weights)] - mean).square()).sum().sqrt()
    mcmc = MCMC(MarginalGibbs(process, cluster), 2000, warmup_steps=50, seed=0, progress=False).run(
        x
    )
    draws = mcmc.get_samples()["rate"]
    effective = float(mcmc.diagnostics()["rate"]["n_eff"])
    assert effective > 300
    assert abs(draws.mean() - mean) < 5.0 * spread / effective**0.5


def test_proposals_are_balanced_in_the_warm_up():
    """By the square of the number of clusters."""
    apart = 3.0 * torch.arange(60.0, dtype=torch.float64)[:, None]
    cluster = KnownVarianceGaussianCluster(*(torch.tensor([x]).double() for x in (0, 1000.0, 1.0)))
    kernel = TreeGuided(DirichletProcess(50.0), cluster, init="each")
    MCMC(kernel, 6, warmup_steps=2, seed=0, progress=False).run(apart)
    assert kernel._num_moves > 10  # of 5 at least
    kernel.setup(0, apart)
    assert kernel._num_moves == 5


def test_hyperparameters_of_few_points_are_moved_after_several_rounds():
    """In the warm-up alone: rounds that went by where a chain is would not keep the posterior."""

    cluster = KnownVarianceGaussianCluster(torch.zeros(1), 3.0, 1.0)

    def kernel_after(x, **options):
        kernel = TreeGuided(prior, cluster, **options)
        MCMC(kernel, 2, warmup_steps=2, seed=0, progress=False).run(x)
        return kernel

    few, many = torch.linspace(-3.0, 3.0, 10)[:, None], 1000.0 * torch.arange(300.0)[:, None]
    kernel = kernel_after(few)
    assert kernel._num_rounds == 20
    kernel.setup(0, few)
    assert kernel._num_rounds == 1
    assert kernel_after(many, init="each")._num_rounds == 1
    assert kernel_after(few, num_global_moves=5)._num_rounds == 1


def test_under_the_mcmc_of_pyro():
    kernel = MarginalGibbs(prior, gaussian_cluster())
    mcmc = PyroMCMC(kernel, num_samples=5, warmup_steps=2, disable_progbar=True)
    mcmc.run(FIVE)
    samples = mcmc.get_samples()
    assert samples["assignment"].shape == (5, 5)
    assert set(samples) == {"assignment", "mass", "discount", "u"}


def test_statistics_summary_and_arviz(capsys):
    kernel = TreeGuided(PROCESSES["generalized gamma"], gaussian_cluster(), num_global_moves=2)
    mcmc = MCMC(kernel, 8, num_chains=2, seed=0, progress=False).run(FIVE)
    statistics = mcmc.sample_statistics()
    assert statistics["lp"].shape == (2, 8)
    labels = mcmc.get_samples(group_by_chain=True)["assignment"]
    assert torch.equal(statistics["num_clusters"], labels.amax(-1).double() + 1.0)
    assert {"split_acceptance", "merge_acceptance"} <= set(statistics)
    mcmc.summary()
    printed = capsys.readouterr().out
    assert "clusters of assignment" in printed and "assignment[" not in printed
    data = to_arviz(mcmc)
    assert "assignment_num_clusters" in data.posterior


def test_log_density_of_a_draw():
    """The statistic is the sum of its parts, multinomial coefficients included."""
    process = PROCESSES["generalized gamma"]
    mcmc = MCMC(MarginalGibbs(process, multinomial_cluster()), 3, seed=0, progress=False).run(
        COUNTS
    )
    labels, tilt = (mcmc.get_samples()[name][-1] for name in ("assignment", "u"))
    blocks = [COUNTS[labels == k] for k in range(int(labels.max()) + 1)]
    expected = process.log_joint([len(block) for block in blocks], tilt)
    expected = expected + sum(multinomial_cluster().log_marginal(block) for block in blocks)
    torch.testing.assert_close(mcmc.sample_statistics()["lp"][0, -1], expected)


@pytest.mark.parametrize("make", KERNELS)
@pytest.mark.parametrize(
    "x",
    [
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[1.0, 2.0], [1.0, 2.0]]),
        torch.ones(12, 2),
        torch.tensor([[0.1, 0.2], [1e6, -1e6], [0.3, 0.1], [0.0, 0.0]]),
    ],
    ids=["one", "two", "identical", "far"],
)
def test_edge_cases(make, x):
    for process in (PROCESSES["Dirichlet"], PROCESSES["generalized gamma"]):
        mcmc = MCMC(make(process, gaussian_cluster()), 20, seed=0, progress=False).run(x)
        assert mcmc.sample_statistics()["lp"].isfinite().all()
    if x.shape[0] == 4:
        together = mcmc.get_samples()["assignment"]
        far = together[:, 1]
        assert (far != together[:, 0]).double().mean() > 0.9


def test_row_without_counts():
    x = torch.tensor([[0.0, 0.0, 0.0], [5.0, 0.0, 1.0], [0.0, 6.0, 0.0]])
    for make in KERNELS:
        mcmc = MCMC(make(PROCESSES["Dirichlet"], multinomial_cluster()), 10, seed=0, progress=False)
        assert mcmc.run(x).sample_statistics()["lp"].isfinite().all()


def test_points_that_move_singly():
    """Without moves of clusters, no more points move from clusters of one than are asked for."""
    x = torch.zeros(20, 2)
    kernel = TreeGuided(
        PROCESSES["Dirichlet"],
        gaussian_cluster(),
        num_global_moves=0,
        local_fraction=0.1,
        init="each",
    )
    kernel.setup(0, x)
    assert len(kernel.sample(kernel.initial_params)["assignment"].unique()) in (18, 19)
    kernel.local_fraction = 1.0
    assert len(kernel.sample(kernel.initial_params)["assignment"].unique()) < 10


def test_a_start_at_the_clusters_of_neighbors():
    """Ten clusters far apart are found before the first step, also under hyperparameters."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(10).repeat(12)[torch.randperm(120, generator=generator)]
    centers = 10.0 * torch.cartesian_prod(torch.arange(5.0), torch.arange(2.0)).double()
    cluster = GaussianCluster(torch.zeros(2), 1e-3, 4.0, 0.5 * torch.eye(2))
    x = centers[truth] + 0.3 * torch.randn(120, 2, generator=generator, dtype=torch.float64)

    def prior():
        mass = pyro.sample("mass", dist.Gamma(torch.tensor(1.0), 1.0))
        return GeneralizedGammaProcess(mass, 0.3, 1.0).normalize()

    for process in (PROCESSES["Dirichlet"], PROCESSES["Pitman-Yor"], prior):
        kernel = MarginalGibbs(process, cluster, init="ibhc")
        kernel.setup(0, x)
        labels = kernel.initial_params["assignment"]
        assert torch.equal(labels, canonical_labels(truth))


def test_bad_arguments():
    process, cluster = PROCESSES["Dirichlet"], gaussian_cluster()

    def discrete():
        pyro.sample("kind", dist.Bernoulli(0.5))
        return process

    with pytest.raises(ValueError, match="discrete site 'kind'"):
        MCMC(MarginalGibbs(discrete, cluster), 2, progress=False).run(POINTS)
    with pytest.raises(TypeError, match="prior must be or return"):
        MCMC(MarginalGibbs(lambda: 3.0, cluster), 2, progress=False).run(POINTS)


def test_start():
    process, cluster = PROCESSES["Dirichlet"], gaussian_cluster()
    start = {"assignment": torch.tensor([[7, 7, 3, 3]])}
    kernel = TreeGuided(process, cluster)
    mcmc = MCMC(kernel, 2, initial_params=start, progress=False).run(POINTS)
    assert mcmc.get_samples()["assignment"].shape == (2, 4)
    with pytest.raises(ValueError, match="must be 4 integers"):
        bad = {"assignment": torch.zeros(1, 3)}
        MCMC(kernel, 2, initial_params=bad, progress=False).run(POINTS)
    for init, number in (("one", 1), ("each", 4)):
        kernel = MarginalGibbs(process, cluster, init=init)
        kernel.setup(0, POINTS)
        assert int(kernel.initial_params["assignment"].max()) + 1 == number


def test_start_at_labels():
    """Labels are the first partition; a function gives each chain its own, seed by seed."""
    process, cluster = PROCESSES["Dirichlet"], gaussian_cluster()
    kernel = TreeGuided(process, cluster, init=torch.tensor([7, 7, 3, 3]))
    kernel.setup(0, POINTS)
    assert kernel.initial_params["assignment"].tolist() == [0, 0, 1, 1]
    starts = []

    def labels(x):
        starts.append(torch.randint(2, (len(x),)).tolist())
        return torch.tensor(starts[-1])

    for _ in range(2):
        kernel = MarginalGibbs(process, cluster, init=labels)
        MCMC(kernel, 1, num_chains=3, seed=0, progress=False).run(POINTS)
    assert starts[:3] == starts[3:] and len({tuple(row) for row in starts}) > 1
    for init in (torch.zeros(3, dtype=torch.long), lambda x: torch.zeros(3, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"init must have the shape \(4,\), got \(3,\)"):
            MarginalGibbs(process, cluster, init=init).setup(0, POINTS)
    for init in (torch.zeros(4), None, 3.0, int):
        with pytest.raises((TypeError, ValueError), match="init must"):
            MarginalGibbs(process, cluster, init=init)


@pytest.mark.parametrize("make", KERNELS)
def test_any_names_of_clusters(make):
    """Labels that another sampler left with gaps are as good as others."""
    kernel = make(PROCESSES["Dirichlet"], gaussian_cluster())
    kernel.setup(0, POINTS)
    state = kernel.sample({"assignment": torch.tensor([7, 7, 2, 5])})
    assert state["assignment"][0] == 0 and int(state["assignment"].max()) < 4


@pytest.mark.slow
@pytest.mark.statistical
def test_iris_by_default_is_some_three_species():
    """Chains agree on the number of clusters, in any units, and find the species."""
    from pyro.ops.stats import split_gelman_rubin
    from sklearn.datasets import load_iris
    from sklearn.metrics import adjusted_rand_score

    iris = load_iris()
    x = torch.tensor(iris.data) * torch.tensor([1.0, 1e-3, 1e3, 1.0])

    def concentration():
        return DirichletProcess(pyro.sample("concentration", dist.Gamma(torch.tensor(1.0), 1.0)))

    kernel = TreeGuided(concentration, GaussianCluster.hyperprior(x))
    mcmc = MCMC(kernel, 300, warmup_steps=150, num_chains=3, seed=0, progress=False).run(x)
    numbers = mcmc.sample_statistics()["num_clusters"].double()
    assert split_gelman_rubin(numbers, 0, 1) < 1.1
    assert 2.5 < numbers.mean() < 5.0
    found = point_estimate(mcmc.get_samples()["assignment"]).labels
    assert adjusted_rand_score(iris.target, found) > 0.7
