"""A mixture with any number of clusters, and what the prior over partitions does to it."""

# %% [markdown]
# # Mixtures with any number of clusters
#
# How many clusters do data have, which are they, and what is the density of the next point? A
# mixture over random partitions answers all three at once, and the answers depend on the prior over
# partitions. `python tutorials/nrm_mixture.py` puts three of them on the same data: a Dirichlet
# process, a Pitman-Yor process, and the normalized generalized gamma process (NGGP).

# %%
from collections.abc import Callable
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

from pyro_ext.datasets import load_wine
from pyro_ext.diagnostics import to_arviz
from pyro_ext.diagnostics.partitions import (
    canonical_labels,
    credible_ball,
    num_clusters,
    num_clusters_distribution,
    point_estimate,
    variation_of_information,
)
from pyro_ext.diagnostics.plots import plot_co_clustering, plot_num_clusters
from pyro_ext.distributions import GaussianCluster
from pyro_ext.inference import MCMC, AuxiliaryGibbs, SplitMerge
from pyro_ext.models.nonparametric import NRMMixture, NRMModelMixture
from pyro_ext.random_measures import (
    DirichletProcess,
    GeneralizedGammaProcess,
    NormalizedRandomMeasure,
    PitmanYor,
)
from pyro_ext.reproduction import Page

page = Page("nrm-mixture")
torch.set_default_dtype(torch.float64)
pyro.set_rng_seed(0)

# %% [markdown]
# ## The data
#
# 178 wines of three growers, two measurements of each, standardized. A fifth of the wines is kept
# aside. There is no reason why each grower should be one Gaussian cluster.

# %%
wines = load_wine(test_fraction=0.2, dtype=torch.float64)
columns = [list(wines.feature_names or ()).index(name) for name in ("flavanoids", "proline")]
x, x_new = wines.train_inputs[:, columns], wines.test_inputs[:, columns]

# %% [markdown]
# ## The model
#
# `NRMMixture` takes a prior over partitions and a distribution of clusters, here Gaussians of
# unknown mean and covariance, which are integrated out: their covariance is a quarter of the
# identity on average, and the mean of a cluster has ten times the variance of its points. Prior and
# clusters may be values, or Pyro models that return them.
#
# The mixture is a Pyro model itself. Without data it draws some, so one sees what the prior means
# before it meets the wines.

# %%
Prior = NormalizedRandomMeasure | PitmanYor
cluster = GaussianCluster(torch.zeros(2), 0.1, 6.0, 0.75 * torch.eye(2))
mixture = NRMMixture(DirichletProcess(1.0), cluster)
figure, panels = plt.subplots(1, 4, figsize=(12, 3.2), sharex=True, sharey=True)
figure.set_layout_engine("constrained")
for axes in panels:
    nodes: Any = pyro.poutine.trace(mixture).get_trace(num_points=len(x)).nodes
    labels = nodes["assignment"]["value"]
    axes.scatter(*nodes["x"]["value"].T, s=6, c=labels, cmap="tab20")
    axes.set(title=f"{labels.max() + 1} clusters", xlim=(-5, 5), ylim=(-5, 5))
page.figure("prior", figure)

# %% [markdown]
# ## What a wrong prior does
#
# Say that somebody expects 25 clusters among 142 wines, far too many. Each distribution can be made
# to say so on average. A Dirichlet process then is nearly certain of it. With a discount of one
# half, the other two have far wider distributions: the number of clusters is what
# `log_num_clusters` gives exactly.

# %%
FIXED: dict[str, Prior] = {
    "Dirichlet": DirichletProcess(8.55),
    "Pitman-Yor": PitmanYor(0.5, 1.0),
    "NGGP": GeneralizedGammaProcess(0.91, 0.5, 1.0).normalize(),
}
NUMBERS = torch.arange(1.0, len(x) + 1.0)
NUM_SAMPLES = page.length(150, smoke=10)
fractions, prior_means, posterior_means = {}, {}, {}
for name, distribution in FIXED.items():
    prior_weights = distribution.log_num_clusters(len(x)).exp()
    run = MCMC(
        SplitMerge(distribution, cluster, num_proposals=20),
        num_samples=NUM_SAMPLES,
        warmup_steps=NUM_SAMPLES // 5,
        num_chains=2,
        seed=0,
        progress=False,
    ).run(x)
    draws = run.get_samples(group_by_chain=True)["assignment"]
    fractions[name] = (prior_weights, draws)
    prior_means[name] = float((prior_weights * NUMBERS).sum())
    posterior_means[name] = float(num_clusters(draws).double().mean())
    spread = float((prior_weights * (NUMBERS - prior_means[name]).square()).sum().sqrt())
    print(
        f"{name:11} prior mean {prior_means[name]:.1f} clusters, sd {spread:.1f}; "
        f"posterior mean {posterior_means[name]:.1f}"
    )
figure, panels = plt.subplots(1, 3, figsize=(12, 3.2), sharex=True, layout="constrained")
for axes, (name, (prior_weights, draws)) in zip(panels, fractions.items(), strict=True):
    plot_num_clusters(draws, ax=axes)
    axes.plot(NUMBERS, prior_weights, color="black", linewidth=1, label="prior")
    axes.set(title=name, xlim=(0, 50))
page.figure("sensitivity", figure)

# %% [markdown]
# Bars are the posterior, points its two chains, lines the prior. The data want fewer clusters, and
# the wide distributions let them have it: the posterior mean is 17 under the Dirichlet process, but
# 11 to 13 under the other two. A discount costs certainty about the number of clusters, which here
# is good.
#
# ## Hyperparameters with priors
#
# Better to leave the parameters of the distribution to the data. A Pyro model that returns the
# distribution has them as sample sites, and the kernel moves them together with the partition.


# %%
def dirichlet() -> Prior:
    """Dirichlet process of unknown concentration."""
    return DirichletProcess(pyro.sample("concentration", dist.Gamma(1.0, 1.0)))


def pitman_yor() -> Prior:
    """Pitman-Yor process of unknown discount and concentration."""
    discount = pyro.sample("discount", dist.Beta(1.0, 2.0))
    return PitmanYor(discount, pyro.sample("concentration", dist.Gamma(1.0, 1.0)))


def generalized_gamma() -> Prior:
    """NGGP of unknown mass and discount; the tilt would only rescale the mass."""
    mass, discount = (
        pyro.sample("mass", dist.Gamma(1.0, 1.0)),
        pyro.sample("discount", dist.Beta(1.0, 2.0)),
    )
    return GeneralizedGammaProcess(mass, discount, 1.0).normalize()


PRIORS: dict[str, Callable[[], Prior]] = {
    "Dirichlet": dirichlet,
    "Pitman-Yor": pitman_yor,
    "NGGP": generalized_gamma,
}
runs = {
    name: MCMC(
        SplitMerge(prior, cluster, num_proposals=20),
        num_samples=2 * NUM_SAMPLES,
        warmup_steps=NUM_SAMPLES // 5,
        num_chains=2,
        seed=0,
        progress=False,
    ).run(x)
    for name, prior in PRIORS.items()
}
summaries = {}
shown = ["mass", "discount", "concentration", "assignment_num_clusters", "assignment_entropy"]
for name, run in runs.items():
    data = to_arviz(run)
    names = [site for site in shown if site in data["posterior"]]
    summaries[name] = az.summary(data, var_names=names)
    print(f"\n{name}\n{summaries[name].to_string()}")

# %% [markdown]
# Now all three agree on 7 or 8 clusters, give or take 3, of which most are small. The discount is
# hardly known, as it should be with 142 wines. The chains are short: where the effective sample
# size is below 100, believe the first digit.
#
# ## Density and held-out wines
#
# `predictive_log_prob` is the log density of new points: for each draw a sum over its clusters and
# a new one, then the mean over draws. How clusters are numbered plays no part. On a grid it is an
# estimate of the density; on the wines kept aside, its mean is a score. One Gaussian is there for
# comparison.

# %%
single = dist.MultivariateNormal(x.mean(0), x.T.cov())
scores = {"one Gaussian": float(single.log_prob(x_new).mean())}
points = torch.linspace(-3.0, 3.5, 12 if page.smoke else 45)
grid = torch.cartesian_prod(points, points)
densities = {}
for name, prior in PRIORS.items():
    kept = slice(None, None, 1 if page.smoke else 6)  # 100 draws
    samples = {site: value[kept] for site, value in runs[name].get_samples().items()}
    model = NRMMixture(prior, cluster)
    scores[name] = float(model.predictive_log_prob(x_new, x, samples).mean())
    densities[name] = model.predictive_log_prob(grid, x, samples).exp()
for name, score in scores.items():
    print(f"{name:12} held-out log density {score:.3f} a wine")
cell = float((points[1] - points[0]) ** 2)
inside = {name: float(density.sum() * cell) for name, density in densities.items()}
print("mass in the picture:", ", ".join(f"{name} {value:.3f}" for name, value in inside.items()))

figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), sharex=True, sharey=True)
figure.set_layout_engine("constrained")
for axes, (name, density) in zip(panels, densities.items(), strict=True):
    axes.contourf(points, points, density.view(len(points), -1).T, levels=12, cmap="Blues")
    axes.scatter(*x.T, s=5, color="0.25")
    axes.scatter(*x_new.T, s=12, color="#c8553d", marker="x", linewidth=1)
    axes.set(title=name, xlabel="flavanoids", ylabel="proline")
page.figure("density", figure)

# %% [markdown]
# The three densities are the same to the eye, and the scores differ by a hundredth: it is the
# number of clusters that depends on the prior, much more than the density.
#
# ## Which clusters
#
# A posterior over partitions has no mean. `point_estimate` finds the partition that is closest to
# the draws in expectation, by the variation of information, and `credible_ball` says how far from
# it 95% of the posterior reaches.

# %%
growers = canonical_labels(wines.train_targets)
estimates = {}
for name, run in runs.items():
    draws = run.get_samples(group_by_chain=True)["assignment"]
    estimate = point_estimate(draws, seed=0)
    ball = credible_ball(draws, estimate.labels)
    distance = float(variation_of_information(estimate.labels, growers))
    estimates[name] = (estimate.labels, distance)
    most_likely = int(num_clusters_distribution(draws).argmax())
    print(
        f"{name:11} {most_likely} clusters are most likely, the estimate has "
        f"{int(estimate.labels.max()) + 1}, sizes {estimate.labels.bincount().tolist()}; radius "
        f"{ball.radius:.2f}, distance to the growers {distance:.2f}"
    )
trivial = float(variation_of_information(torch.zeros_like(growers), growers))
print(f"distance of a single cluster to the growers {trivial:.2f}")

# %%
labels, _ = estimates["NGGP"]
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
left.scatter(*x.T, s=10, c=growers, cmap="tab10", vmax=9)
left.set(title="growers", xlabel="flavanoids", ylabel="proline")
middle.scatter(*x.T, s=10, c=labels, cmap="tab10", vmax=9)
middle.set(title="point estimate, NGGP", xlabel="flavanoids", ylabel="proline")
plot_co_clustering(runs["NGGP"].get_samples()["assignment"], order=labels, ax=right)
page.figure("partition", figure)

# %% [markdown]
# Three large clusters and two wines on their own, fewer than the 7 or 8 that are most likely: draws
# differ in which wines they split off, so a partition in their middle splits off few. It is closer
# to the growers than one cluster is, but the growers overlap, and two measurements do not tell them
# apart.
#
# ## Clusters of any kind
#
# A cluster need not be conjugate. `AuxiliaryGibbs` takes a Pyro model of the points of one cluster
# instead, here with independent Student-t distributions, which forgive outliers. Their degrees of
# freedom are one number that all clusters share. `NRMModelMixture` is the mixture as a Pyro model,
# with predictive densities; draws of its sites hold, for each wine, the value of the wine's
# cluster.


# %%
def heavy_tailed(points: torch.Tensor) -> None:
    """One cluster: where it is, how wide, and how heavy its tails are."""
    tails = pyro.sample("tails", dist.Gamma(2.0, 0.1))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.5).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(torch.full((2,), -0.7), 0.5).to_event(1))
    with pyro.plate("points", len(points)):
        pyro.sample("x", dist.StudentT(tails, loc, scale).to_event(1), obs=points)


tailed = NRMModelMixture(dirichlet, heavy_tailed, shared=["tails"])
tailed_run = MCMC(
    AuxiliaryGibbs(tailed.prior, tailed.cluster, shared=tailed.shared),
    num_samples=2 * NUM_SAMPLES,
    warmup_steps=NUM_SAMPLES // 2,
    seed=0,
    progress=False,
).run(x)
tailed_draws = {site: value[::3] for site, value in tailed_run.get_samples().items()}
scores["Student-t"] = float(tailed.predictive_log_prob(tailed_draws, x_new).mean())
number = float(num_clusters(tailed_draws["assignment"]).double().mean())
low, high = tailed_draws["tails"].quantile(torch.tensor([0.05, 0.95])).tolist()
print(
    f"Student-t clusters: {number:.1f} clusters, degrees of freedom {low:.0f} to {high:.0f}, "
    f"held-out log density {scores['Student-t']:.3f} a wine"
)

# %% [markdown]
# The wines see no need of heavy tails: their degrees of freedom are large. And since these clusters
# have no correlations, they score less than the Gaussian ones.
#
# What this page claims, checked:

# %%
if not page.smoke:
    assert all(abs(value - 25.0) < 0.5 for value in prior_means.values()), prior_means
    assert posterior_means["Dirichlet"] > posterior_means["Pitman-Yor"] + 2.0, posterior_means
    assert posterior_means["Dirichlet"] > posterior_means["NGGP"] + 2.0, posterior_means
    sampled = [float(table["mean"]["assignment_num_clusters"]) for table in summaries.values()]
    assert max(sampled) < min(posterior_means.values()), (sampled, posterior_means)
    held_out = [scores[name] for name in PRIORS]
    assert min(held_out) > scores["one Gaussian"] + 0.3, scores
    assert max(held_out) - min(held_out) < 0.05, scores
    assert all(abs(value - 1.0) < 0.01 for value in inside.values()), inside
    assert scores["one Gaussian"] + 0.3 < scores["Student-t"] < min(held_out), scores
    assert low > 5.0, (low, high)
    assert all(distance < trivial for _, distance in estimates.values()), (estimates, trivial)
