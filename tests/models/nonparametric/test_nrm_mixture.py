"""The mixture against sums over all partitions, with priors and marginals from elsewhere."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from scipy.integrate import quad
from scipy.special import gammaln, logsumexp
from scipy.stats import multivariate_normal

from pyro_ext.distributions import GaussianCluster, KnownVarianceGaussianCluster, PoissonCluster
from pyro_ext.inference import MCMC, MarginalGibbs
from pyro_ext.models.nonparametric import NRMMixture
from pyro_ext.random_measures import DirichletProcess, GeneralizedGammaProcess, PitmanYor
from tests.inference.partitions.enumeration import partitions

pytestmark = pytest.mark.usefixtures("float64")

X = np.array([-1.2, -0.9, 0.4, 2.1])
NEW = np.array([-3.0, -1.0, 0.5, 1.9, 8.0])
LOC_SCALE, SCALE = 2.0, 0.7


def cluster():
    return KnownVarianceGaussianCluster(torch.zeros(1), LOC_SCALE, SCALE)


def log_marginal(x):
    """Normal, with a covariance that is constant but for the diagonal."""
    covariance = LOC_SCALE**2 + SCALE**2 * np.eye(len(x))
    return multivariate_normal(np.zeros(len(x)), covariance).logpdf(x)


def log_pitman_yor(sizes, discount, concentration):
    new = sum(math.log(concentration + discount * k) for k in range(1, len(sizes)))
    total = gammaln(concentration + sum(sizes)) - gammaln(concentration + 1.0)
    own = sum(gammaln(size - discount) - gammaln(1.0 - discount) for size in sizes)
    return new - total + own


def log_generalized_gamma(sizes, mass, discount, tilt):
    number = sum(sizes)
    gammas = sum(gammaln(size - discount) - gammaln(1.0 - discount) for size in sizes)

    def density(u):
        exponent = mass / discount * ((u + tilt) ** discount - tilt**discount)
        power = (len(sizes) * discount - number) * math.log(u + tilt)
        log_u = (number - 1) * math.log(u) if u > 0 else -math.inf
        return math.exp(log_u - exponent + power)

    integral = sum(
        quad(density, low, high, epsabs=0.0, epsrel=1e-11)[0]
        for low, high in ((0.0, 1.0), (1.0, 30.0), (30.0, np.inf))
    )
    return math.log(integral) + len(sizes) * math.log(mass) + gammas - gammaln(number)


LAWS = {
    "Dirichlet": (lambda: DirichletProcess(0.8), lambda sizes: log_pitman_yor(sizes, 0.0, 0.8)),
    "Pitman-Yor": (lambda: PitmanYor(0.3, 0.7), lambda sizes: log_pitman_yor(sizes, 0.3, 0.7)),
    "generalized gamma": (
        lambda: GeneralizedGammaProcess(1.5, 0.4, 0.6).normalize(),
        lambda sizes: log_generalized_gamma(sizes, 1.5, 0.4, 0.6),
    ),
}
every_law = pytest.mark.parametrize("name", LAWS)


def log_joint(x, labels, log_eppf):
    blocks = [x[np.array(labels) == k] for k in range(max(labels) + 1)]
    return log_eppf([len(block) for block in blocks]) + sum(map(log_marginal, blocks))


def log_evidence(x, log_eppf):
    return logsumexp([log_joint(x, labels, log_eppf) for labels in partitions(len(x))])


@every_law
def test_trace_has_the_joint_density(name):
    fn, log_eppf = LAWS[name]
    mixture, x = NRMMixture(fn(), cluster()), torch.tensor(X)
    total = 0.0
    for labels in partitions(4):
        data = {"assignment": torch.tensor(labels)}
        trace = poutine.trace(poutine.condition(mixture, data=data)).get_trace(x)
        expected = log_joint(X, labels, log_eppf)
        assert float(trace.log_prob_sum()) == pytest.approx(expected, rel=1e-8)
        assert float(mixture.log_joint(x, torch.tensor(labels) + 5)) == pytest.approx(expected)
        total += float(trace.nodes["assignment"]["log_prob_sum"].exp())
    assert total == pytest.approx(1.0, rel=1e-8)


@pytest.mark.statistical
def test_draws_share_the_mean_of_their_cluster():
    """Two moments within 5 standard errors: false alarms in 2e-6 of seeds."""
    mixture = NRMMixture(PitmanYor(0.3, 0.7), cluster())
    draws = torch.stack([mixture(num_points=2)[:, 0] for _ in range(4_000)])
    same = (1.0 - 0.3) / (1.0 + 0.7)
    for products, expected in (
        (draws[:, 0] * draws[:, 1], same * LOC_SCALE**2),
        (draws[:, 0].square(), LOC_SCALE**2 + SCALE**2),
    ):
        error = (products.mean() - expected) / (products.std() / len(products) ** 0.5)
        assert abs(float(error)) < 5.0


def test_model_draws_data_with_its_sites():
    mixture = NRMMixture(prior, located_cluster)
    trace = poutine.trace(mixture).get_trace(num_points=6)
    assert trace.stochastic_nodes == ["mass", "loc", "assignment", "x"]
    assert trace.nodes["assignment"]["value"].shape == (6,)
    assert trace.nodes["x"]["value"].shape == (6, 1)


@every_law
def test_predictive_density_of_all_partitions_is_a_ratio_of_evidences(name):
    fn, log_eppf = LAWS[name]
    mixture, every = NRMMixture(fn(), cluster()), partitions(4)
    rows = mixture.predictive_log_prob(
        torch.tensor(NEW), torch.tensor(X), {"assignment": torch.tensor(every)}, by_draw=True
    )
    log_posterior = np.array([log_joint(X, labels, log_eppf) for labels in every])
    log_posterior -= log_evidence(X, log_eppf)
    value = logsumexp(rows.numpy() + log_posterior[:, None], axis=0)
    expected = [log_evidence(np.append(X, new), log_eppf) for new in NEW]
    np.testing.assert_allclose(value, np.array(expected) - log_evidence(X, log_eppf), rtol=1e-8)


def test_mean_over_draws_is_one_of_densities():
    mixture, x = NRMMixture(DirichletProcess(0.8), cluster()), torch.tensor(X)
    labels = torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3], [0, 0, 0, 1]])
    rows = mixture.predictive_log_prob(torch.tensor(NEW), x, {"assignment": labels}, by_draw=True)
    mean = mixture.predictive_log_prob(torch.tensor(NEW), x, {"assignment": labels})
    torch.testing.assert_close(mean.exp(), rows.exp().mean(0))
    other = {"assignment": torch.tensor([[4, 4, 4, 0], [9, 2, 5, 1], [1, 1, 1, 0]])}
    torch.testing.assert_close(mixture.predictive_log_prob(torch.tensor(NEW), x, other), mean)


def prior():
    mass = pyro.sample("mass", dist.Gamma(2.0, 1.0))
    return GeneralizedGammaProcess(mass, 0.4, 0.6).normalize()


def located_cluster():
    loc = pyro.sample("loc", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    return KnownVarianceGaussianCluster(loc, LOC_SCALE, SCALE)


def test_each_draw_has_its_own_hyperparameters():
    mixture, x, new = NRMMixture(prior, located_cluster), torch.tensor(X), torch.tensor(NEW)
    samples = {
        "assignment": torch.tensor([[0, 0, 1, 1], [0, 1, 1, 2]]),
        "mass": torch.tensor([0.3, 6.0]),
        "loc": torch.tensor([[-1.0], [2.0]]),
        "u": torch.tensor([1.0, 2.0]),
    }
    rows = mixture.predictive_log_prob(new, x, samples, by_draw=True)
    for i, row in enumerate(rows):
        fn = GeneralizedGammaProcess(samples["mass"][i], 0.4, 0.6).normalize()
        fixed = KnownVarianceGaussianCluster(samples["loc"][i], LOC_SCALE, SCALE)
        alone = {"assignment": samples["assignment"][i : i + 1]}
        expected = NRMMixture(fn, fixed).predictive_log_prob(new, x, alone)
        torch.testing.assert_close(row, expected)


def test_joint_density_counts_the_hyperparameters():
    mixture, labels = NRMMixture(prior, located_cluster), torch.tensor([0, 0, 1, 1])
    values = {"mass": torch.tensor(0.7), "loc": torch.tensor([0.0])}
    expected = log_joint(
        X, labels.numpy(), lambda sizes: log_generalized_gamma(sizes, 0.7, 0.4, 0.6)
    )
    expected += math.log(0.7) - 0.7 - 0.5 * math.log(2.0 * math.pi)
    value = mixture.log_joint(torch.tensor(X), labels, values)
    assert float(value) == pytest.approx(expected, rel=1e-8)


@pytest.mark.slow
@pytest.mark.statistical
def test_clusters_of_new_points_are_ratios_of_joint_densities():
    """A draw's clusters by Bayes' theorem; those of a coarser partition add; draws have a mean."""
    mixture = NRMMixture(PitmanYor(0.3, torch.tensor(0.7)), cluster())
    x, new = torch.tensor(X), torch.tensor(NEW)
    draw = torch.tensor([0, 0, 1, 2])

    def expected(draw):
        number = int(draw.max()) + 2
        logs = [
            [
                float(mixture.log_joint(torch.cat([x, one[None]]), torch.cat([draw, k[None]])))
                for k in torch.arange(number)
            ]
            for one in new
        ]
        return torch.tensor(logs).softmax(-1)

    found = mixture.predict_clusters(new, x, {"assignment": draw[None]}, draw + 5)
    torch.testing.assert_close(found, expected(draw))
    coarse = mixture.predict_clusters(
        new, x, {"assignment": draw[None]}, torch.tensor([4, 4, 4, 1])
    )
    by_draw = expected(draw)
    sums = torch.stack([by_draw[:, :2].sum(-1), by_draw[:, 2], by_draw[:, 3]], -1)
    torch.testing.assert_close(coarse, sums)
    # Where a draw joins what the partition has apart, its cluster counts by the shares of points.
    other = torch.tensor([0, 0, 0, 1])
    both = mixture.predict_clusters(new, x, {"assignment": torch.stack([draw, other])}, draw)
    first, second = expected(other)[:, :1] * torch.tensor([2.0, 1.0]) / 3.0, expected(other)[:, 1:]
    torch.testing.assert_close(both, (by_draw + torch.cat([first, second], -1)) / 2.0)
    with pytest.raises(ValueError, match=r"labels must have the shape \(4,\)"):
        mixture.predict_clusters(new, x, {"assignment": draw[None]}, draw[:3])


def test_draws_of_a_kernel_give_the_exact_density():
    """Five means within 5 standard errors of 50 batches: false alarms in 4e-5 of seeds."""
    fn, log_eppf = LAWS["generalized gamma"]
    mixture, x, new = NRMMixture(fn(), cluster()), torch.tensor(X), torch.tensor(NEW)
    kernel = MarginalGibbs(mixture.prior, mixture.cluster)
    mcmc = MCMC(kernel, num_samples=1_000, warmup_steps=50, seed=0, progress=False).run(x[:, None])
    rows = mixture.predictive_log_prob(new, x, mcmc.get_samples(), by_draw=True).exp()
    batches = rows.view(50, 20, -1).mean(1)
    expected = [log_evidence(np.append(X, value), log_eppf) for value in NEW]
    exact = torch.tensor(expected).sub(log_evidence(X, log_eppf)).exp()
    error = (batches.mean(0) - exact) / (batches.std(0) / 50**0.5)
    assert float(error.abs().max()) < 5.0


def test_densities_do_not_leak_into_a_model_around_them():
    mixture = NRMMixture(prior, cluster())
    samples = {"assignment": torch.tensor([[0, 0, 1, 1]]), "mass": torch.tensor([0.7])}

    def around():
        mixture.predictive_log_prob(torch.tensor(NEW), torch.tensor(X), samples)
        mixture.log_joint(torch.tensor(X), samples["assignment"][0], {"mass": torch.tensor(0.7)})

    trace = poutine.trace(around).get_trace()
    assert not trace.stochastic_nodes and not trace.observation_nodes


def test_model_refuses_what_parts_return():
    with pytest.raises(TypeError, match="cluster must be or return.*got None"):
        NRMMixture(DirichletProcess(1.0), lambda: None)(num_points=3)


def test_model_refuses(subtests):
    for arguments, message in [
        ({}, "either x or num_points must be given, got x=None and num_points=None"),
        ({"x": torch.zeros(2, 2), "num_points": 2}, "either x or num_points must be given"),
    ]:
        with subtests.test(message):
            mixture = NRMMixture(
                DirichletProcess(1.0), GaussianCluster(torch.zeros(2), 1.0, 4.0, torch.eye(2))
            )
            with pytest.raises(ValueError, match=message):
                mixture(**arguments)


def test_predictive_density_refuses(subtests):
    for changed, error, message in [
        ({"x_new": torch.tensor([1.0, -2.0])}, ValueError, r"x_new .*PoissonCluster, got \[-2.0\]"),
        (
            {"samples": {"assignment": torch.zeros(2, 3).long()}},
            ValueError,
            r"samples lacks the sites \['mass'\], got \['assignment'\]",
        ),
        (
            {"samples": {"assignment": torch.zeros(2, 2, 3).long(), "mass": torch.ones(2, 2)}},
            ValueError,
            r"shape \(num_draws, 3\), with the draws of all chains on one axis, got \(2, 2, 3\)",
        ),
        (
            {"samples": {"assignment": torch.zeros(2, 3).long(), "mass": torch.ones(4)}},
            ValueError,
            r"samples must have 2 draws of each site, got \{'mass': \(4,\)\}",
        ),
    ]:
        with subtests.test(message):
            mixture = NRMMixture(prior, PoissonCluster(torch.tensor([2.0]), 1.0))
            arguments = {
                "x_new": torch.tensor([1.0]),
                "x": torch.tensor([0.0, 1.0, 4.0]),
                "samples": {"assignment": torch.zeros(2, 3).long(), "mass": torch.ones(2)},
            }
            with pytest.raises(error, match=message):
                mixture.predictive_log_prob(**arguments | changed)


def test_joint_density_refuses():
    mixture = NRMMixture(prior, cluster())
    with pytest.raises(ValueError, match=r"hyperparameters lacks the sites \['mass'\], got \[\]"):
        mixture.log_joint(torch.tensor(X), torch.zeros(4).long())
