"""Pseudocoresets: a few learned observations, and how near their posterior is to the full one."""

# %% [markdown]
# # Pseudocoresets
#
# A pseudocoreset is a small data set that is learned, so that its posterior is near that of the
# data. It is a guide whose parameters are pseudo observations, and a divergence between the two
# posteriors trains it. Whatever samples a posterior then runs on a hundred rows instead of on
# a hundred thousand.
#
# This page shows the parts on models whose posteriors are known: where pseudo observations go in
# the plane, their weights and learned labels, a large regression made small, and the subsets of the
# data that a coreset has to beat. `pyro-ext reproduce pseudocoresets` runs it.

# %%
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import arviz as az
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.optim import Adam

from pyro_ext import datasets
from pyro_ext.inference import MCMC, LaplaceHMC
from pyro_ext.inference.pseudocoresets import (
    AutoPseudocoreset,
    ForwardKL,
    GaussianSurrogate,
    evaluate_coreset,
    gaussian_kl,
    herding_subset,
    k_means_subset,
    random_subset,
    standard_deviation_ratios,
    standardized_mean_differences,
)
from pyro_ext.reproduction import Page

page = Page(
    "pseudocoresets",
    paper="B. Kim, J. Choi, S. Lee, Y. Lee, J.-W. Ha, J. Lee (2022), On divergence measures for "
    "Bayesian pseudocoresets",
)
SEEDS = page.seeds
FIRST = SEEDS[0]  # the seed of figures and tables
torch.set_default_dtype(torch.float64)


class Distance(NamedTuple):
    """Distance of the posterior of a coreset from that of the data, by Gaussians at the modes."""

    divergence: float
    scale: float


def distance(guide: AutoPseudocoreset, surrogate: GaussianSurrogate) -> Distance:
    """Forward divergence, and the largest ratio of standard deviations."""
    data, coreset = surrogate.data_gaussian(guide), surrogate.coreset_gaussian(guide)
    variances = [covariance.detach().diag() for _, covariance in (data, coreset)]
    ratio = (variances[1] / variances[0]).sqrt().max()
    return Distance(float(gaussian_kl(*data, *coreset).detach()), float(ratio))


# %% [markdown]
# ## Twenty pseudo patients
#
# Linear regression of the progress of diabetes on ten measures of 442 patients. With known noise
# the posterior is Gaussian, and the divergences of `GaussianSurrogate` are exact. With
# `weights="scaled"` each of twenty pseudo patients counts as 442 / 20, all together as much as the
# data. Training starts from a random subset.

# %%
NOISE = 0.7
table = datasets.load_diabetes()
x = torch.cat([table.train_inputs, table.test_inputs]).double()
y = torch.cat([table.train_targets, table.test_targets]).double()
x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def linear(x: Tensor, y: Tensor) -> None:
    """Linear regression with known noise."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, NOISE), obs=y)


STEPS = page.length(300, smoke=5)
fast = partial(Adam, lr=0.02)
before, after = {}, {}
for seed in SEEDS:
    guide = AutoPseudocoreset(linear, x, y, size=20, weights="scaled", seed=seed)
    surrogate = GaussianSurrogate()
    before[seed] = distance(guide, surrogate)
    guide.fit(ForwardKL(surrogate), STEPS, optimizer=fast, progress=False)
    after[seed] = distance(guide, surrogate)

page.claim(
    "Twenty scaled pseudo observations of a linear regression leave little of the divergence "
    "of a random subset (fraction).",
    {s: after[s].divergence / before[s].divergence for s in SEEDS},
    "<",
    0.05,
    source="preregistered",
)

# %% [markdown]
# ## Where pseudo observations go, and learned labels
#
# Logistic regression in the plane, with eight pseudo observations. Their inputs are learned; labels
# keep the values they start with, half of them ones. With `learnable=["x", "y"]` labels are learned
# too: each pseudo observation gets a probability of each class, and counts with it for both. With
# `weights="uniform"` eight pseudo observations count as eight: their posterior is wide, unless they
# go far out, of which `fit` warns. Without a word, weights start as scaled and are learned.

# %%
CLASSES = 600


def logistic(x: Tensor, y: Tensor) -> None:
    """Logistic regression with an intercept."""
    size = (x.shape[1] + 1,)
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(size), x.new_tensor(3.0)).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=weight[0] + x @ weight[1:]), obs=y)


generator = torch.Generator().manual_seed(0)
plane = torch.randn(CLASSES, 2, generator=generator) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]])
labels = (
    torch.rand(CLASSES, generator=generator) < (plane @ torch.tensor([1.5, -1.0]) - 0.5).sigmoid()
)
labels = labels.double()

KINDS: dict[str, dict[str, Any]] = {
    "weights of one": {"weights": "uniform"},
    "scaled weights": {"weights": "scaled"},
    "learned labels": {"weights": "scaled", "learnable": ["x", "y"]},
}
in_plane: dict[str, dict[int, Distance]] = {name: {} for name in KINDS}
figure, panels = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained", sharey=True)
for (name, options), axes in zip(KINDS.items(), panels, strict=True):
    for seed in reversed(SEEDS):
        surrogate = GaussianSurrogate()
        guide = AutoPseudocoreset(logistic, plane, labels, size=8, seed=seed, **options)
        guide.fit(ForwardKL(surrogate), 2 * STEPS, optimizer=fast, progress=False)
        in_plane[name][seed] = distance(guide, surrogate)
    inputs, ones = guide.pseudodata  # of the first seed
    ones = ones if ones.dim() == 1 else ones[:, 1]
    axes.scatter(*plane.T, c=labels, cmap="coolwarm", s=6, alpha=0.25)
    axes.scatter(*inputs.T, c=ones, cmap="coolwarm", vmin=0, vmax=1, s=100, edgecolors="black")
    axes.set(title=f"{name}: divergence {in_plane[name][FIRST].divergence:.3f}")
page.figure("in-the-plane", figure)
page.claim(
    "In the plane eight pseudo observations with learned labels are nearer to the posterior "
    "than those with labels that stay (ratio of divergences).",
    {
        s: in_plane["learned labels"][s].divergence / in_plane["scaled weights"][s].divergence
        for s in SEEDS
    },
    "<",
    1.0,
    source="preregistered",
)
page.claim(
    "Weights of one leave the posterior too wide (largest ratio of standard deviations).",
    {s: in_plane["weights of one"][s].scale for s in SEEDS},
    ">",
    1.5,
    source="preregistered",
)

# %% [markdown]
# ## A hundred thousand observations
#
# Twenty correlated covariates. Pyro's NUTS runs on all of the data, and `sample_posterior` on a
# coreset of a hundred pseudo observations with learned labels. It takes Hamiltonian Monte Carlo
# in the coordinates of a Laplace approximation, with as many chains side by side as one likes; any
# other kernel of Pyro or of ours runs on `guide.condition()`. Only the coreset has to be trained
# once more for other seeds, so that NUTS runs for one of them. A long run on all data says how far
# the coresets are off: means are right, and some standard deviations are too wide after so short a
# training.

# %%
NUM_POINTS, NUM_COVARIATES = page.length((100_000, 20), smoke=(2_000, 3))
generator = torch.Generator().manual_seed(1)
positions = torch.arange(NUM_COVARIATES)
covariance = 0.5 ** (positions[:, None] - positions).abs().double()
many = torch.randn(NUM_POINTS, NUM_COVARIATES, generator=generator)
many = many @ torch.linalg.cholesky(covariance).mT
truth = 0.5 * torch.randn(NUM_COVARIATES, generator=generator)
ones = (torch.rand(NUM_POINTS, generator=generator) < (many @ truth).sigmoid()).double()


def effective(run: Any) -> float:
    """Smallest effective sample size."""
    draws = run.get_samples(group_by_chain=True)["weight"]
    return float(az.ess(az.convert_to_dataset({"weight": draws.numpy()}))["weight"].min())


COUNT = page.length(100, smoke=20)
started = time.process_time()
pyro.set_rng_seed(FIRST)
on_all = pyro.infer.MCMC(
    pyro.infer.NUTS(logistic),
    COUNT,
    warmup_steps=COUNT,
    initial_params={"weight": torch.zeros(NUM_COVARIATES + 1)},
    disable_progbar=True,
)
on_all.run(many, ones)
seconds_on_all = time.process_time() - started
long_run = MCMC(LaplaceHMC(logistic), 2 * COUNT, 10, num_chains=4, seed=1, progress=False)
reference = long_run.run(many, ones).get_samples()

rows, sampling, off = {}, {}, {}
for seed in SEEDS:
    started = time.process_time()
    guide = AutoPseudocoreset(
        logistic, many, ones, size=100, weights="scaled", learnable=["x", "y"], seed=seed
    )
    guide.fit(ForwardKL(), STEPS, optimizer=fast, progress=False)
    building = time.process_time() - started
    started = time.process_time()
    run = guide.sample_posterior(100, warmup_steps=10, num_chains=16)
    seconds = time.process_time() - started
    sampling[seed] = (seconds_on_all / effective(on_all)) / (seconds / effective(run))
    draws = run.get_samples()
    off[seed] = float(standardized_mean_differences(draws, reference)["weight"].abs().max())
    ratios = standard_deviation_ratios(draws, reference)["weight"]
    rows[f"seed {seed}"] = {
        "s to train": building,
        "s to draw": seconds,
        "effective draws": effective(run),
        "means off by": off[seed],
        "scales off by": float((ratios - 1).abs().max()),
    }
print(f"Pyro's NUTS on all: {seconds_on_all:.1f} s, {effective(on_all):.0f} effective draws")
page.table(rows, number_format=".2f")
page.claim(
    "A hundred pseudo observations of a logistic regression of a hundred thousand have its "
    "posterior means (largest distance in standard deviations).",
    off,
    "<=",
    0.2,
    source="preregistered",
)
page.claim(
    "An effective draw from the coreset takes less CPU time than one of Pyro's NUTS on all data "
    "(ratio).",
    sampling,
    ">=",
    20.0,
    source="preregistered",
)

# %% [markdown]
# ## Subsets to beat
#
# A subset of the data is a coreset that is not trained. `random_subset`, `k_means_subset` and
# `herding_subset` choose one, and are ways to start. `evaluate_coreset` draws from a coreset and
# scores the draws on test data: predictions, and how far the posterior is from that of the data.

# %%
generator = torch.Generator().manual_seed(2)
covariates = torch.randn(4000, 6, generator=generator)
truth = torch.linspace(1.5, -1.5, 6)
targets = (torch.rand(4000, generator=generator) < (covariates @ truth).sigmoid()).double()
train, test = (covariates[:2000], targets[:2000]), (covariates[2000:], targets[2000:])
kernel, number = LaplaceHMC(logistic), page.length(100, smoke=5)
whole = MCMC(kernel, number, 10, num_chains=8, seed=0, progress=False).run(*train)
reference = whole.get_samples()


def variation(seed: int, init: Callable[..., Any], **options: Any) -> float:
    """Total variation distance of the predictions from those of the posterior of the data."""
    guide = AutoPseudocoreset(
        logistic, *train, size=20, weights="scaled", init=init, seed=seed, **options
    )
    if options:
        guide.fit(ForwardKL(), STEPS, optimizer=fast, progress=False)
    score = evaluate_coreset(
        guide.condition(),
        *test,
        reference=reference,
        num_samples=page.length(50, smoke=10),
        warmup_steps=page.length(50, smoke=5),
        options={"seed": seed, "num_chains": 8},
    )
    assert score.total_variation is not None
    return score.total_variation


by_herding = variation(FIRST, herding_subset)  # nothing in it is random
subsets = {
    s: min(variation(s, random_subset), variation(s, k_means_subset), by_herding) for s in SEEDS
}
trained = {s: variation(s, random_subset, learnable=["x", "y"]) for s in SEEDS}
page.claim(
    "Predictions of a coreset are nearer to those of the data than those of the best of three "
    "subsets (ratio of total variations).",
    {s: trained[s] / subsets[s] for s in SEEDS},
    "<",
    0.5,
    source="preregistered",
)

# %% [markdown]
# `guide.save(path)` writes a coreset as a small file, which is all that another machine needs to
# sample the posterior of the data.

# %%
page.finish({"steps": STEPS, "points": NUM_POINTS})
