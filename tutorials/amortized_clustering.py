"""Clusters from raw data by a trained network in an instant, then refined by MCMC and diagnosed."""

# %% [markdown]
# # From raw data to clusters in an instant, and on to a posterior
#
# A posterior over partitions takes a chain for each data set, and the chain has to find the
# clusters first. Whoever clusters many data sets of one kind can learn to find them instead: draw
# data from the model, whose clusters are then known, and train a network on them
# (Lee, Lee and Teh, 2019, Deep amortized clustering). After that, a new data set takes a few passes
# of the network. Its clusters are a guess, not a posterior, and so this page goes on: chains start
# at the guess and draw from the exact posterior, and ArviZ says whether they agree.
#
# The steps are
#
# 1. write down what data look like, as a Pyro model,
# 2. train the network on draws of it,
# 3. bring raw data to the scale of the model, and cluster them,
# 4. start MCMC there, and look at its diagnostics,
# 5. and, with 10,000 points, see what the start has saved.
#
# `python tutorials/amortized_clustering.py` prints the numbers and saves the figures in
# `figures/amortized-clustering`.

# %%
import math
import time
from functools import partial
from typing import NamedTuple

import arviz as az
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from pyro_ext.datasets import load_wine
from pyro_ext.diagnostics import to_arviz
from pyro_ext.diagnostics.partitions import point_estimate
from pyro_ext.distributions import GaussianCluster
from pyro_ext.inference import MCMC, TreeGuided
from pyro_ext.inference.partitions import ConjugateKernel
from pyro_ext.models.sets import AmortizedClusterer, FilteringNetwork, random_partitions
from pyro_ext.random_measures import DirichletProcess
from pyro_ext.reproduction import Page

page = Page("amortized-clustering")
pyro.set_rng_seed(0)

# %% [markdown]
# ## What data look like
#
# Up to six clusters in the plane, Gaussians of any direction, in units in which the data as a whole
# have a standard deviation of about one. Clusters hardly lie on top of each other: their means are
# near different points of a grid. `random_partitions` draws the labels. All of it is a Pyro model,
# so whatever is known about the data goes in here: the network can only be as good as this model is
# like the data.

# %%
MAX_CLUSTERS = 6
GRID = 1.3 * torch.cartesian_prod(torch.arange(-1.0, 2.0), torch.arange(-1.0, 2.0))


def mixtures(num_sets: int, num_points: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Points of some sets and their labels."""
    labels = random_partitions(num_sets, num_points, MAX_CLUSTERS, concentration=2.0)
    with pyro.plate("mixtures", num_sets, dim=-2):
        order = pyro.sample("order", dist.Uniform(torch.zeros(9), 1.0).to_event(1)).argsort(-1)
        with pyro.plate("components", MAX_CLUSTERS, dim=-1):
            cells = GRID[order[:, 0, :MAX_CLUSTERS]]
            loc = pyro.sample("loc", dist.Normal(cells, 0.25).to_event(1))
            scale = pyro.sample("scale", dist.LogNormal(torch.full((2,), -1.05), 0.3).to_event(1))
            angle = pyro.sample("angle", dist.Uniform(0.0, math.pi))
    index = labels[..., None].expand(*labels.shape, 2)
    with pyro.plate("sets of points", num_sets, dim=-2):
        with pyro.plate("all points", labels.shape[1], dim=-1):
            noise = pyro.sample("noise", dist.Normal(0.0, scale.gather(1, index)).to_event(1))
    cos, sin = (f(angle.gather(1, labels)) for f in (torch.cos, torch.sin))
    first, second = noise.unbind(-1)
    turned = torch.stack([cos * first - sin * second, sin * first + cos * second], -1)
    return turned + loc.gather(1, index), labels


# %% [markdown]
# ## Training
#
# The network looks at a set and at one of its points, the anchor, and says which points are in the
# anchor's cluster. `"rank_one"` makes it predict the density of the cluster, too, a Gaussian with
# covariance $v I + w w^\top$, which in the plane is any covariance.

# %%
network = FilteringNetwork(2, "rank_one", anchored=True, width=48, num_blocks=2, num_inducing=16)
clusterer = AmortizedClusterer(network, standardize=False)
NUM_STEPS = page.length(800, smoke=5)
started = time.process_time()
losses = clusterer.fit(
    partial(mixtures, num_sets=12, num_points=(60, 240)),
    NUM_STEPS,
    optimizer=partial(torch.optim.Adam, lr=2e-3, fused=True),
    seed=0,
    progress=False,
)
print(f"{NUM_STEPS} steps take {time.process_time() - started:.0f} CPU seconds")

# %% [markdown]
# On new sets of the model, how well does it find the clusters? This is the first thing to look at;
# what it can't do here it will not do on real data.

# %%
sets, truths = mixtures(page.length(60, smoke=3), 200)
found = clusterer.cluster(sets, seed=0)
scores = [adjusted_rand_score(*pair) for pair in zip(truths, found.labels, strict=True)]
numbers = [[len(row.unique()) for row in labels] for labels in (truths, found.labels)]
off = [abs(a - b) for a, b in zip(*numbers, strict=True)]
print(
    f"adjusted Rand index {sum(scores) / len(scores):.2f}, and {sum(off) / len(off):.2f} clusters"
)
print(f"too many or too few; {int(found.failed.sum())} of {len(sets)} sets failed")

# %% [markdown]
# ## Raw data
#
# 178 wines of three growers, with 13 measurements in different units. Standardized, and brought to
# two principal components of standard deviation one, they are on the scale of the model.

# %%
wine = load_wine(dtype=torch.float64)
raw = torch.cat([wine.train_inputs, wine.test_inputs]) * wine.input_scale + wine.input_loc
growers = torch.cat([wine.train_targets, wine.test_targets])
standardized = (raw - raw.mean(0)) / raw.std(0)
components = standardized @ torch.linalg.svd(standardized, full_matrices=False).Vh[:2].T
x = components / components.std(0)

started = time.process_time()
guess = clusterer.cluster(x, seed=0)
print(
    f"{int(guess.num_passes)} passes in {1000 * (time.process_time() - started):.0f} ms: clusters "
    f"of {guess.labels.bincount().tolist()} wines, failed: {bool(guess.failed)}"
)

# %% [markdown]
# Anchors are drawn, so another seed may give another guess. Copies of the data are clustered side
# by side, and the mean log likelihood says which guess fits best. Agreement with the growers, whom
# no method knows, is there to see, with k-means that is told their number beside it.

# %%
guesses = clusterer.cluster(x.expand(8, *x.shape), seed=1)
assert guesses.log_likelihood is not None  # it is where the network has no density
fits = guesses.log_likelihood
best = int(fits.argmax())
for number, (labels, value) in enumerate(zip(guesses.labels, fits, strict=True)):
    score = adjusted_rand_score(growers, labels)
    print(
        f"{len(labels.unique()):2} clusters, log likelihood {value:.2f}, index {score:.2f}"
        + ("  <- fits best" if number == best else "")
    )
told = KMeans(3, n_init=10, random_state=0).fit_predict(x)
print(f"k-means, told the number: index {adjusted_rand_score(growers, told):.2f}")

# %% [markdown]
# ## On to the posterior
#
# The posterior is that of a Dirichlet process mixture of Gaussians whose sizes and shapes are
# unknown. As `init`, a kernel takes labels or a function of the data, which each chain calls for
# itself: four chains start at four guesses. A start is forgotten in the end, so it may be anything;
# that the guesses differ makes R-hat honest.


# %%
def prior() -> DirichletProcess:
    """Dirichlet process of unknown concentration."""
    return DirichletProcess(pyro.sample("concentration", dist.Gamma(1.0, 1.0)))


def first_labels(points: Tensor) -> Tensor:
    """Clusters that the network finds."""
    return clusterer.cluster(points).labels


kernel = TreeGuided(prior, GaussianCluster.hyperprior(x), init=first_labels)
mcmc = MCMC(
    kernel,
    num_samples=page.length(600, smoke=5),
    warmup_steps=page.length(100, smoke=2),
    num_chains=4,
    seed=0,
    progress=False,
).run(x)
data = to_arviz(mcmc)
shown = ["concentration", "assignment_num_clusters", "assignment_entropy"]
print(az.summary(data, var_names=shown).to_string())

# %% [markdown]
# R-hat and effective sample sizes are of the number of clusters and of the entropy of the
# partition, which `to_arviz` adds. Labels themselves mean nothing from draw to draw. Below, the
# partition that is closest to all draws, between the best guess and the growers: it has joined most
# of what the network had cut, and lies nearer to the growers. For the number of clusters itself,
# R-hat of more than 1.01 asks for longer chains.

# %%
draws = mcmc.get_samples(group_by_chain=True)["assignment"]
estimate = point_estimate(draws[:, ::20], seed=0).labels
panels = {
    "the network": guesses.labels[best],
    "the posterior": estimate,
    "the growers": growers,
}
figure, axes_row = plt.subplots(1, 3, figsize=(10, 3.6), sharey=True, layout="constrained")
for axes, (name, labels) in zip(axes_row, panels.items(), strict=True):
    axes.scatter(*x.T, s=12, c=labels, cmap="tab10", vmin=0, vmax=9)
    score = adjusted_rand_score(growers, labels)
    axes.set(title=f"{name}: {len(labels.unique())} clusters ({score:.2f})", xlabel="component 1")
axes_row[0].set(ylabel="component 2")
page.figure("wines", figure)

figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
for chain in draws:
    axes.plot([len(row.unique()) for row in chain[::5]], lw=0.7)
axes.set(xlabel="every fifth draw", ylabel="clusters")
page.figure("chains", figure, despine=True)

# %% [markdown]
# ## What the start saves
#
# On many points a chain that starts at one cluster or at a draw of the prior takes long to get
# anywhere. `init="ibhc"` therefore clusters the points by Bayesian hierarchical clustering first,
# with the evidence of the very model, which is hard to beat. Here are three data sets of 10,000
# points from the model. For both starts: CPU seconds until the first step, the adjusted Rand index
# of the start, and the log joint density of the chain as time goes by, the start included, less
# that of a chain which starts at the true clusters.

# %%
NUM_POINTS, SECONDS = page.length(10_000, smoke=200), page.length(4, smoke=1)


class Climb(NamedTuple):
    """A chain from its beginning: its start, and the log joint density after each step."""

    start: Tensor
    times: list[float]
    values: list[float]


def climb(kernel: ConjugateKernel, points: Tensor, seconds: float = SECONDS) -> Climb:
    """Run a chain for some CPU seconds, those of its start included."""
    pyro.set_rng_seed(0)
    started = time.process_time()
    kernel.setup(0, points)
    state = kernel.initial_params
    start, times, values = state["assignment"], [time.process_time() - started], []
    while times[-1] < seconds:
        state = kernel.sample(state)
        times.append(time.process_time() - started)
        values.append(kernel.statistics()["lp"])
    return Climb(start, times, values)


large, large_truths = mixtures(3, NUM_POINTS)
LIMITS = (SECONDS / 4, SECONDS / 2, SECONDS)
rows: dict[str, dict[str, object]] = {}
figure, axes_row = plt.subplots(1, 3, figsize=(11, 3.2), sharex=True, layout="constrained")
for number, (points, truth, axes) in enumerate(
    zip(large.double(), large_truths, axes_row, strict=True)
):
    cluster = GaussianCluster.hyperprior(points)
    # What is compiled at the first call is no part of the comparison.
    climb(TreeGuided(prior, cluster, init="ibhc"), points[:100], seconds=0.2)
    level = climb(TreeGuided(prior, cluster, init=truth), points).values[-1]
    for name, init in (("network", first_labels), ("ibhc", "ibhc")):
        run = climb(TreeGuided(prior, cluster, init=init), points)
        gains = [value - level for value in run.values]
        axes.plot(run.times[1:], gains, label=name)
        rows[f"set {number + 1}, {name}"] = {
            "seconds": run.times[0],
            "index": adjusted_rand_score(truth, run.start),
        } | {
            f"after {limit:g} s": next(
                (
                    f"{gain:.0f}"
                    for t, gain in zip(run.times[:0:-1], gains[::-1], strict=True)
                    if t <= limit
                ),
                "not yet",
            )
            for limit in LIMITS
        }
    axes.axhline(0.0, color="0.6", lw=0.8, ls=":")
    axes.set(title=f"set {number + 1}: {len(truth.unique())} clusters", xlabel="CPU seconds")
axes_row[0].set(ylabel="log joint, less that from the truth")
axes_row[0].legend(frameon=False)
page.figure("starts", figure, despine=True)
page.table(rows)

# %% [markdown]
# The network saves the time of the start, a fraction of a second in place of one to three, and no
# more than that. At the end of these seconds both chains are far below the log joint density of one
# from the true clusters, and which of the two is ahead depends on the data set: large clusters that
# were merged or cut at the start are hard to mend. (Where a curve falls, the pieces of a cluster
# that was cut grow into each other. Each such partition is less probable, but there are very many.)
#
# - **One data set**: take `init="ibhc"`, whose start needs no training and has the model's own
#   evidence; the network's training takes about as long as twenty of its starts.
# - **Many data sets of one kind**, or an answer in milliseconds: train a network. Its fringes are
#   rough: points that a pass leaves over make small clusters, so that there are too many rather
#   than too few.
# - **A number of clusters, or an uncertainty**: run the chains. On the wines they join what the
#   network has cut, and R-hat and effective sample sizes say how far they can be believed.
