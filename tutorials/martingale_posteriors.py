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
# classification see `tutorials/copula_densities.py`.
#
# `python tutorials/martingale_posteriors.py` prints the numbers and saves the figures in
# `figures/martingale-posteriors`.

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
    plot_drift,
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
BLUE, RED, GRAY, LIGHT = "#2a6f97", "#d1495b", "0.45", "#b8d4e3"
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


def print_row(name: str, draws: list[Tensor]) -> None:
    """Print posterior means and standard deviations."""
    print(f"{name:20}" + "".join(f"{f'{x.mean():.3f} +- {x.std():.3f}':>18}" for x in draws))


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
for name, rule in RULES.items():
    print_row(name, [run(rule, Mean(), few, horizon=2000).get_samples()["theta"]])
print(f"sample mean {few.mean():.3f}, sd over sqrt(n) {SCALE / math.sqrt(n):.3f}")

# %% [markdown]
# ## How long a horizon
#
# Of a population of $N$ a part is known, the data, so that the variance of its mean is too small:
# exactly $\sigma^2 (1/n - 1/N)$ for the normal rule. For the urn it is $s^2 (N - n) / (N (n + 1))$,
# with the variance $s^2$ of the data, and for the plug-in rule a difference of trigamma functions.
# Points in the picture are measured, lines are these formulas.


# %%
def exact_variance(name: str, size: int) -> float:
    """Variance of the mean of a population of this size."""
    if name == "normal":
        return SCALE**2 * (1 / n - 1 / size)
    if name == "Polya urn":
        return float(few.var(correction=0)) * (size - n) / (size * (n + 1))
    ends = torch.tensor([n + 1.0, size + 1.0])
    return SCALE**2 * float(-torch.special.polygamma(1, ends).diff())


SIZES = [n + horizon for horizon in ((5, 20, 60) if page.smoke else (5, 20, 80, 400, 2000))]
variances: dict[str, dict[int, list[float]]] = {name: {} for name in RULES}
for name, rule in RULES.items():
    for seed in SEEDS:
        draws = [
            run(rule, Mean(), few, horizon=size - n, seed=seed, num_checks=1).get_samples()["theta"]
            for size in SIZES
        ]
        variances[name][seed] = [float(theta.var()) for theta in draws]


def furthest(name: str, seed: int) -> float:
    """Largest distance of a variance from the exact one, in standard errors."""
    ratios = [
        variance / exact_variance(name, size)
        for variance, size in zip(variances[name][seed], SIZES, strict=True)
    ]
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
for warning in caught:
    print(f"{warning.category.__name__}: {warning.message}")
print(
    f"fraction that is missing, estimated {short.diagnostics()['theta']['remaining_fraction']:.3f}"
)

# %% [markdown]
# The urn and the normal rules know their limits: `horizon=math.inf` draws the infinite population
# itself, faster than any finite one. For other rules look at `plot_drift`. The solid line is the
# distance from the data, and has to level off.

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 3.8), layout="constrained")
fine = torch.logspace(math.log10(SIZES[0]), math.log10(SIZES[-1]), 40).round().int().tolist()
for name, color in zip(RULES, (BLUE, RED, GRAY), strict=True):
    left.plot(SIZES, variances[name][FIRST], "o", color=color, label=name)
    left.plot(fine, [exact_variance(name, size) for size in fine], color=color, lw=1)
left.set(xscale="log", xlabel="size of the population", ylabel="variance of the mean")
left.legend(frameon=False)
plot_drift(run(PolyaUrn(), Mean(), few, horizon=2000, name="mean"), ax=middle)
limit = run(PolyaUrn(), Mean(), few)
for done, label, color in ((short, "horizon 20", RED), (limit, "infinite horizon", BLUE)):
    theta = done.get_samples()["theta"]
    right.hist(theta, 40, density=True, histtype="step", color=color, label=label)
right.set(xlabel="mean of alcohol", ylabel="posterior density")
right.legend(frameon=False)
page.figure("horizon", figure)

# %% [markdown]
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
LENGTHS = page.length((500, 300), smoke=(5, 10))
by_nuts = {}
for seed in SEEDS:
    rule = PosteriorPredictive(
        model,
        NUTS(model),
        num_samples=LENGTHS[0],
        warmup_steps=LENGTHS[1],
        num_chains=4,
        progress=False,
    )
    by_nuts[seed] = run(rule, Mean(), few, horizon=HORIZON, seed=seed).get_samples()["theta"]
    print_row(f"NUTS, seed {seed}", [by_nuts[seed]])
print(f"Bayes, exactly {exact_mean:.3f}, sd {exact_sd:.3f}")

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
axes.hist(by_nuts[FIRST], 40, density=True, color=LIGHT, label="martingale posterior")
positions = torch.linspace(exact_mean - 4 * exact_sd, exact_mean + 4 * exact_sd, 200)
axes.plot(
    positions, dist.Normal(exact_mean, exact_sd).log_prob(positions).exp(), color=RED, label="Bayes"
)
axes.set(xlabel="mean of alcohol", ylabel="posterior density")
axes.legend(frameon=False)
page.figure("bayesian-model", figure)

# %% [markdown]
# ## Quantiles, and whatever else
#
# A functional is any function of the population: something with `mean`, `variance`, `cdf` and
# `icdf`. The column here is `area error` of 569 breast masses, which is as skewed as columns come.
# Three things are asked: its median, its interquartile range, and the fraction of masses above 100.
#
# Three rules answer. The urn knows only the data. `StudentTPredictive` is the Bayesian normal model
# of unknown mean and variance, which is wrong here. `CopulaDensity` is an estimate
# of the density that starts from a normal distribution, and therefore gets the logarithms; what is
# asked is transformed back.

# %%
masses = load_breast_cancer(dtype=torch.float64)
area = column(masses, "area error")


def summaries(population: Any, is_log: bool = False) -> dict[str, Tensor]:
    """Median, interquartile range, and the share above 100."""
    quartiles = Quantile((0.25, 0.5, 0.75))(population)
    lower, median, upper = (quartiles.exp() if is_log else quartiles).unbind(-1)
    above = 1 - population.cdf(torch.tensor(100.0).log() if is_log else torch.tensor(100.0))
    return {"median": median, "range": upper - lower, "share above 100": above}


def of_logarithms(population: Any) -> dict[str, Tensor]:
    """The same, given the distribution of the logarithms."""
    return summaries(population, is_log=True)


logs = area.log()
answers = {
    "Polya urn": run(PolyaUrn(), summaries, area),
    "normal model": run(StudentTPredictive(), summaries, area),
    "copula of logs": run(
        CopulaDensity(), of_logarithms, logs, number=SOME, horizon=25 * len(logs)
    ),
}
observed = {
    "median": area.quantile(0.5),
    "range": area.quantile(0.75) - area.quantile(0.25),
    "share above 100": (area > 100).double().mean(),
}
print(f"{'':20}" + "".join(f"{name:>18}" for name in observed))
print(f"{'data':20}" + "".join(f"{float(value):18.3f}" for value in observed.values()))
for name, done in answers.items():
    print_row(name, list(done.get_samples().values()))

# %% [markdown]
# The normal model is sure of a median near 40, which is the mean, while half of the masses are
# below 25: its posterior is narrow, and around the wrong value. The urn has no model that could be
# wrong. The copula is near the urn, but its distribution of the logarithms is too smooth: it puts
# the median two standard deviations too high.
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


medians = {
    seed: run(PolyaUrn(), Quantile(0.5), area, seed=seed).get_samples()["theta"] for seed in SEEDS
}
page.claim(
    "The median under the Polya urn has the distribution of the Bayesian bootstrap (largest "
    "distance of distribution functions).",
    {seed: distance_to_exact(draws, area) for seed, draws in medians.items()},
    "<=",
    0.0436,
    source="Rubin (1981); 0.1% quantile of Kolmogorov's statistic for 2,000 draws",
)
figure, panels = plt.subplots(1, 3, figsize=(14, 3.6), layout="constrained")
for axes, (name, value) in zip(panels, observed.items(), strict=True):
    for (label, done), color in zip(answers.items(), (BLUE, RED, GRAY), strict=True):
        values = done.get_samples()[name]
        axes.hist(values, 30, density=True, histtype="step", color=color, label=label)
    axes.axvline(float(value), color="black", lw=1, ls=":")
    axes.set(xlabel=f"area error, {name}")
panels[0].legend(frameon=False)
page.figure("functionals", figure)

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
#
# ## The claims

# %%
page.finish(
    {
        "draws": MANY,
        "draws of copulas": SOME,
    }
)
