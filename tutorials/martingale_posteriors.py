"""Martingale posteriors: a mean, a model and a median, beside the Bayesian answers."""

# %% [markdown]
# # Martingale posteriors
#
# A posterior without a prior: give a rule that predicts the next observation from those before.
# Draw the rest of the population from it, one observation after the other, and compute what you
# want to know from the whole population. Do it again, many times. What differs between the results
# is what has not been seen.
#
# This page starts from a sample mean, where all answers are known, and puts those of martingale
# posteriors beside the Bayesian ones. For rules that learn a density, a regression or a
# classification see `copula_densities.py`. `pyro-ext reproduce martingale-posteriors` runs it.

# %%
import math
import warnings
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Predictive
from scipy.stats import binom
from torch import Tensor

from pyro_ext.datasets import Dataset, load_breast_cancer, load_wine
from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import (
    NUTS,
    CopulaDensity,
    MartingalePosterior,
    PolyaUrn,
    PosteriorPredictive,
)
from pyro_ext.inference.martingale import (
    Mean,
    NormalPredictive,
    PlugInNormal,
    PredictiveRule,
    Quantile,
    StudentTPredictive,
)
from pyro_ext.reproduction import Page

page = Page(
    "martingale-posteriors",
    paper="E. Fong, C. Holmes, S. G. Walker (2023), Martingale posterior distributions",
)
SEEDS = page.seeds
FIRST = SEEDS[0]  # the seed of figures and tables
torch.set_default_dtype(torch.float64)
pyro.set_rng_seed(FIRST)
MANY = page.length(2000, smoke=40)  # draws where one costs little
SOME = page.length(500, smoke=20)  # draws of copulas


def column(data: Dataset, name: str) -> Tensor:
    """All values of a column in its own unit and in the order of the source."""
    inputs = torch.cat([data.train_inputs, data.test_inputs])
    order = torch.cat([data.train_indices, data.test_indices]).argsort()
    position = list(data.feature_names or ()).index(name)
    return (inputs * data.input_scale + data.input_loc)[order, position]


def run(
    rule: PredictiveRule, functional: Any, *data: Tensor, number: int = MANY, **options: Any
) -> MartingalePosterior:
    """Run a martingale posterior; short runs have a short horizon and do not warn of it."""
    options = {"horizon": math.inf, "seed": FIRST} | options
    if page.smoke:
        options["tolerance"] = 1.0
        if options["horizon"] != math.inf:
            options["horizon"] = min(options["horizon"], 60)
    return MartingalePosterior(rule, functional, number, progress=False, **options).run(*data)


# %% [markdown]
# ## A sample mean
#
# Twenty wines, the percentage of alcohol in each. What is the mean over all such wines? Three rules
# predict the next wine:
#
# - `PolyaUrn`: it is one of the wines before, each as likely as any other. This is the Bayesian
#   bootstrap.
# - `NormalPredictive`: it is normal around their mean $\bar y_i$ with the variance
#   $\sigma^2 (1 + 1/i)$, what Bayes' rule says under a flat prior.
# - `PlugInNormal`: it is normal around their mean with the variance $\sigma^2$, as if that mean
#   were the true one. No prior gives this rule.
#
# Under all three the mean is a martingale: the wines to come do not move it, on average.
# `MartingalePosterior` takes a rule, a functional of the population, and the horizon, which is how
# many wines to add.

# %%
wine = load_wine(dtype=torch.float64)
alcohol = column(wine, "alcohol")
SCALE = round(float(alcohol.std()), 2)  # of an observation, taken as known
few = alcohol[::9]  # growers stand one after the other
n = len(few)
RULES: dict[str, PredictiveRule] = {
    "Polya urn": PolyaUrn(),
    "normal": NormalPredictive(SCALE),
    "plug-in": PlugInNormal(SCALE),
}
rows = {"sample mean": {"mean": float(few.mean()), "sd": SCALE / math.sqrt(n)}}
for name, rule in RULES.items():
    theta = run(rule, Mean(), few, horizon=2000).get_samples()["theta"]
    rows[name] = {"mean": float(theta.mean()), "sd": float(theta.std())}
page.table(rows)

# %% [markdown]
# ## How long a horizon
#
# Of a population of $N$ a part is known, the data, so that the variance of its mean is too small:
# exactly $\sigma^2 (1/n - 1/N)$ for the normal rule. For the urn it is $s^2 (N - n) / (N (n + 1))$,
# with the variance $s^2$ of the data. The plug-in rule ends at nearly the same variance.


# %%
def exact_variance(name: str, size: int) -> float:
    """Variance of the mean of a population of this size."""
    if name == "normal":
        return SCALE**2 * (1 / n - 1 / size)
    return float(few.var(correction=0)) * (size - n) / (size * (n + 1))


SIZES = [n + horizon for horizon in page.length((5, 20, 80, 400, 2000), smoke=(5, 20, 60))]


def furthest(name: str, seed: int) -> float:
    """Largest distance of a variance from the exact one, in standard errors."""
    ratios = []
    for size in SIZES:
        done = run(RULES[name], Mean(), few, horizon=size - n, seed=seed, num_checks=1)
        ratios.append(float(done.get_samples()["theta"].var()) / exact_variance(name, size))
    return max(abs(ratio - 1) for ratio in ratios) / math.sqrt(2 / (MANY - 1))


page.claim(
    "With the normal rule the mean of a population of N has the variance 1/n - 1/N, times that "
    "of an observation, at every horizon (largest distance in standard errors).",
    {seed: furthest("normal", seed) for seed in SEEDS},
    "<=",
    4,
    source="derived; one of 1,000 sets of three seeds would fail",
)
page.claim(
    "With the Polya urn it has the variance (N - n) / (N (n + 1)), times that of the data "
    "(largest distance in standard errors).",
    {seed: furthest("Polya urn", seed) for seed in SEEDS},
    "<=",
    4,
    source="derived; as before",
)

# %% [markdown]
# What is missing falls as $n / N$. `run` estimates it from how far the functional moved while the
# population doubled for the last time, without knowing a formula, and warns where it is more than a
# twentieth of the variance. With 20 wines and a horizon of 20 half is missing:

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    short = MartingalePosterior(PolyaUrn(), Mean(), MANY, 20, seed=FIRST, progress=False).run(few)
print(*(warning.message for warning in caught))

# %% [markdown]
# The urn and the normal rules know their limits: `horizon=math.inf` draws the infinite population
# itself, faster than any finite one. For other rules `plot_drift` shows how far the functional has
# moved from that of the data, which has to level off.
#
# ## With the predictions of a model it is the Bayesian posterior
#
# Predictions of a Bayesian model are exchangeable, and the martingale posterior with them is what
# Bayes' rule gives. `PosteriorPredictive` takes any Pyro model with a plate of points, and any
# inference: a kernel, draws, or a guide. Here it is NUTS on a normal model with a prior, for which
# all is known exactly: given the posterior $\mathcal N(m, v)$, the mean of a population of $N$ has
# the mean $(n \bar y + (N - n) m) / N$ and the variance $(1 - n/N)^2 v + (N - n) \sigma^2 / N^2$.


# %%
def model(y: Tensor) -> None:
    """Wines of unknown mean."""
    loc = pyro.sample("loc", dist.Normal(12.0, 0.5))
    with pyro.plate("wines", len(y)):
        pyro.sample("y", dist.Normal(loc, SCALE), obs=y)


HORIZON = page.length(2000, smoke=60)
precision = n / SCALE**2 + 1 / 0.5**2
center = float((few.sum() / SCALE**2 + 12.0 / 0.5**2) / precision)
exact_mean = (n * float(few.mean()) + HORIZON * center) / (n + HORIZON)
exact_sd = math.sqrt(HORIZON**2 / precision + HORIZON * SCALE**2) / (n + HORIZON)
LENGTHS: dict[str, Any] = {"num_samples": page.length(500, smoke=5)}
LENGTHS["warmup_steps"] = page.length(300, smoke=10)
by_nuts = {}
for seed in SEEDS:
    rule = PosteriorPredictive(model, NUTS(model), **LENGTHS, num_chains=4, progress=False)
    by_nuts[seed] = run(rule, Mean(), few, horizon=HORIZON, seed=seed).get_samples()["theta"]

page.claim(
    "With the predictions of a Bayesian model the martingale posterior has the mean of the "
    "Bayesian one (distance in its standard deviations).",
    {s: abs(float(x.mean()) - exact_mean) / exact_sd for s, x in by_nuts.items()},
    "<=",
    0.2,
    source="derived; the draws of NUTS count for about 700, a standard error of 0.045",
)
page.claim(
    "With the predictions of a Bayesian model the martingale posterior has the standard "
    "deviation of the Bayesian one (relative distance).",
    {s: abs(float(x.std()) / exact_sd - 1) for s, x in by_nuts.items()},
    "<=",
    0.1,
    source="derived; the standard error is about 0.03",
)
figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
axes.hist(by_nuts[FIRST], 40, density=True, label="martingale posterior")
positions = torch.linspace(exact_mean - 4 * exact_sd, exact_mean + 4 * exact_sd, 200)
axes.plot(positions, dist.Normal(exact_mean, exact_sd).log_prob(positions).exp(), label="Bayes")
axes.set(xlabel="mean of alcohol", ylabel="posterior density")
axes.legend()
page.figure("bayesian-model", figure)

# %% [markdown]
# ## Quantiles, and whatever else
#
# A functional is any function of the population: something with `mean`, `variance`, `cdf` and
# `icdf`. The column here is `area error` of 569 breast masses, which is as skewed as columns come.
# Asked is its median.
#
# Three rules answer. The urn knows only the data. `StudentTPredictive` is the Bayesian normal model
# of unknown mean and variance, which is wrong here. `CopulaDensity` learns a density that starts
# from a normal one, and therefore gets the logarithms; the median is transformed back.

# %%
masses = load_breast_cancer(dtype=torch.float64)
area = column(masses, "area error")
medians = {
    seed: run(PolyaUrn(), Quantile(0.5), area, seed=seed).get_samples()["theta"] for seed in SEEDS
}
logs = area.log()
copula = run(CopulaDensity(), Quantile(0.5), logs, number=SOME, horizon=25 * len(logs))
answers = {
    "Polya urn": medians[FIRST],
    "normal model": run(StudentTPredictive(), Quantile(0.5), area).get_samples()["theta"],
    "copula of logs": copula.get_samples()["theta"].exp(),
}
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
for label, draws in answers.items():
    axes.hist(draws, 30, density=True, histtype="step", label=label)
axes.axvline(float(area.quantile(0.5)), color="black", ls=":", label="data")
axes.set(xlabel="median of area error", ylabel="posterior density")
axes.legend()
page.figure("functionals", figure)

# %% [markdown]
# The normal model is sure of a median near the mean,
# far above that of the data: its posterior is narrow, and around the wrong value. The urn has no
# model that could be wrong. The copula is near the urn, but its distribution of the logarithms is
# too smooth, and its median too high.
#
# What the urn says of a median is known exactly: that of an odd number $n$ of values is the $k$th
# smallest with the probability $\binom{n-1}{k-1} 2^{1-n}$.


# %%
def distance_to_exact(draws: Tensor, values: Tensor) -> float:
    """Largest distance of distribution functions, of draws of the median from the exact one."""
    positions = values.unique()
    number = torch.searchsorted(values.sort().values, positions, right=True)
    exact = torch.from_numpy(binom.cdf(number.numpy() - 1, len(values) - 1, 0.5))
    return float(((draws[:, None] <= positions).double().mean(0) - exact).abs().max())


page.claim(
    "The median under the Polya urn has the distribution of the Bayesian bootstrap (largest "
    "distance of distribution functions).",
    {seed: distance_to_exact(draws, area) for seed, draws in medians.items()},
    "<=",
    0.0436,
    source="Rubin (1981); 0.1% quantile of Kolmogorov's statistic for 2,000 draws",
)

# %% [markdown]
# ## On with ArviZ and Pyro
#
# A posterior that has run goes where those of samplers go: to ArviZ, and its draws into
# `pyro.infer.Predictive`. What the functional names are the sites of the model.


# %%
def moments(population: Any) -> dict[str, Tensor]:
    """Location and scale of a normal distribution."""
    return {"loc": population.mean, "scale": population.variance.sqrt()}


def new_mass() -> None:
    """One more mass."""
    loc = pyro.sample("loc", dist.Normal(3.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    pyro.sample("area", dist.LogNormal(loc, scale))


log_moments = run(PolyaUrn(), moments, logs)
print(az.summary(to_arviz(log_moments), kind="stats").to_string())
pyro.set_rng_seed(FIRST)
predicted = Predictive(new_mass, log_moments.get_samples())()["area"]
print(f"a new mass: median {predicted.median():.1f}, 90% below {predicted.quantile(0.9):.1f}")

# %% [markdown]
# These predictions are those of a log-normal model whose parameters have a posterior that does not
# believe in it: they fit the mean and the variance of the logarithms, and no more.

# %%
page.finish({"draws": MANY, "draws of copulas": SOME})
