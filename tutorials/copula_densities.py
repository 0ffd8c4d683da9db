"""Densities, regression and classification that learn by copulas, beside the Bayesian answers."""

# %% [markdown]
# # Copula densities
#
# `tutorials/martingale_posteriors.py` says what a martingale posterior is. Its rules there predict
# what was seen before, or a normal distribution. The rules here learn a whole density, from which
# any functional can be taken: of numbers, of a response given covariates, or of a label. This page
# shows them on real columns, what their posteriors agree on with a Dirichlet process mixture, and
# where they are too wide or too narrow.
#
# `python tutorials/copula_densities.py` prints the numbers and saves the figures in
# `figures/copula-densities`.

# %%
import math
import warnings
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ext.datasets import Dataset, load_breast_cancer, load_diabetes, load_wine
from pyro_ext.distributions import GaussianCluster
from pyro_ext.inference import (
    MCMC,
    CopulaClassifier,
    CopulaDensity,
    CopulaRegression,
    MartingalePosterior,
    PolyaUrn,
    SplitMerge,
)
from pyro_ext.inference.martingale import (
    Mean,
    PredictiveRule,
    Quantile,
    density_drift,
)
from pyro_ext.models.nonparametric import NRMMixture
from pyro_ext.random import chain_keys
from pyro_ext.random_measures import DirichletProcess
from pyro_ext.reproduction import Page

page = Page(
    "copula-densities",
    paper="E. Fong, C. Holmes, S. G. Walker (2023), Martingale posterior distributions",
)
SEEDS = page.seeds
FIRST = SEEDS[0]  # the seed of figures and tables
torch.set_default_dtype(torch.float64)
pyro.set_rng_seed(FIRST)
BLUE, RED, GRAY, LIGHT = "#2a6f97", "#d1495b", "0.45", "#7fb2d1"
NUM_DRAWS = page.length(500, smoke=20)


def in_order(data: Dataset, values: tuple[Tensor, Tensor]) -> Tensor:
    """Rows of the training and the test part, in the order of the source."""
    order = torch.cat([data.train_indices, data.test_indices]).argsort()
    return torch.cat(values)[order]


def column(data: Dataset, name: str) -> Tensor:
    """All values of a column in its own unit."""
    inputs = in_order(data, (data.train_inputs, data.test_inputs))
    position = list(data.feature_names or ()).index(name)
    return (inputs * data.input_scale + data.input_loc)[:, position]


def run(
    rule: PredictiveRule, functional: Any, *data: Tensor, number: int = NUM_DRAWS, **options: Any
) -> MartingalePosterior:
    """Run a martingale posterior; short runs have a short horizon and do not warn of it."""
    options = {"horizon": 5000, "seed": FIRST} | options
    if page.smoke:
        options["tolerance"] = 1.0
        if options["horizon"] != math.inf:
            options["horizon"] = min(options["horizon"], 60)
    return MartingalePosterior(rule, functional, number, progress=False, **options).run(*data)


def band(draws: Tensor) -> Tensor:
    """Pointwise 95% interval and median. **Shape:** ``(3, *event)``."""
    return draws.quantile(torch.tensor([0.025, 0.5, 0.975]), 0)


def print_row(name: str, draws: list[Tensor]) -> None:
    """Print posterior means and standard deviations."""
    print(f"{name:20}" + "".join(f"{f'{x.mean():.3f} +- {x.std():.3f}':>18}" for x in draws))


# %% [markdown]
# ## A density that learns
#
# `CopulaDensity` starts from a normal distribution, and each observation adds mass around itself,
# by a copula of correlation $\rho$. The larger this bandwidth, the narrower what is added. Unless
# one is given, it is the one that predicts each observation best from those before. Malic acid in
# 178 wines has a peak and something beside it.
#
# Beside it stands the Bayesian answer, a Dirichlet process mixture of normal distributions.
# `SplitMerge` draws partitions of the wines. Given one, the weights of the mixture and the
# parameters of its clusters have closed distributions, so that each draw becomes a random density.

# %%
wine = load_wine(dtype=torch.float64)
acid = column(wine, "malic_acid")
LOC, WIDTH = acid.mean(), acid.std(correction=0)
x = (acid - LOC) / WIDTH
grid = torch.linspace(-0.5, 8.0, 40 if page.smoke else 120)
wide_grid = torch.linspace(-6.0, 8.0, 2000)  # standardized
LEVELS = (0.1, 0.5, 0.9)
CLUSTER = GaussianCluster(torch.zeros(1), 0.1, 6.0, torch.eye(1))


def prior() -> DirichletProcess:
    """Dirichlet process of unknown concentration."""
    return DirichletProcess(pyro.sample("concentration", dist.Gamma(1.0, 1.0)))


def random_density(
    labels: Tensor, concentration: Tensor, num_sticks: int = 20
) -> dist.MixtureSameFamily:
    """A draw of the mixture given a partition: clusters of the data, and sticks for the rest."""
    groups = [x[labels == label, None] for label in labels.unique()]
    parts = [CLUSTER.posterior(group) for group in groups] + [CLUSTER] * num_sticks
    sizes = torch.tensor([float(len(group)) for group in groups])
    fractions = dist.Dirichlet(torch.cat([sizes, concentration.reshape(1)])).sample()
    broken = dist.Beta(torch.ones(num_sticks), concentration).sample()
    broken[-1] = 1.0
    left = torch.cat([torch.ones(1), (1 - broken[:-1]).cumprod(0)])
    weights = torch.cat([fractions[:-1], fractions[-1] * broken * left])
    rates = torch.stack([part.scale[0, 0] for part in parts]) / 2
    precision = dist.Gamma(torch.stack([part.dof for part in parts]) / 2, rates).sample()
    spread = (precision * torch.stack([part.loc_precision for part in parts])).rsqrt()
    loc = dist.Normal(torch.stack([part.loc[0] for part in parts]), spread).sample()
    return dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, precision.rsqrt()))


def quantiles_of(density: dist.MixtureSameFamily) -> Tensor:
    """Quantiles at the levels, by interpolation."""
    cdf, wanted = density.cdf(wide_grid), torch.tensor(LEVELS)
    position = torch.searchsorted(cdf, wanted).clamp(1, len(cdf) - 1)
    fraction = (wanted - cdf[position - 1]) / (cdf[position] - cdf[position - 1])
    quantiles: Tensor = wide_grid[position - 1] + fraction * wide_grid.diff()[position - 1]
    return quantiles


def mixture_answer(seed: int) -> dict[str, Tensor]:
    """Densities, means and quantiles of draws of the mixture, and its predictive density."""
    mcmc = MCMC(
        SplitMerge(prior, CLUSTER, num_proposals=10),
        num_samples=NUM_DRAWS,
        warmup_steps=5 if page.smoke else 200,
        thinning=1 if page.smoke else 2,
        seed=seed,
        progress=False,
    )
    samples = mcmc.run(x[:, None]).get_samples()
    pyro.set_rng_seed(seed)
    positions = (grid - LOC) / WIDTH
    mixtures = [
        random_density(labels, concentration)
        for labels, concentration in zip(
            samples["assignment"], samples["concentration"], strict=True
        )
    ]
    predictive = NRMMixture(prior, CLUSTER).predictive_log_prob(
        positions[:, None], x[:, None], samples
    )
    return {
        "density": torch.stack([one.log_prob(positions).exp() for one in mixtures]) / WIDTH,
        "predictive": predictive.exp() / WIDTH,
        "mean": torch.stack([one.mean for one in mixtures]) * WIDTH + LOC,
        "quantiles": torch.stack([quantiles_of(one) for one in mixtures]) * WIDTH + LOC,
    }


# %% [markdown]
# Moments and quantiles of a population are interpolated between some knots. Its density is exact at
# any point, since a population keeps the keys of its random numbers and repeats its steps.


# %%
def mean_and_quantiles(population: Any) -> dict[str, Tensor]:
    """What is asked of malic acid."""
    return {"mean": population.mean, "quantiles": Quantile(LEVELS)(population)}


def bandwidth_of(copula: CopulaDensity) -> float:
    """The bandwidth of a fitted copula."""
    assert copula.bandwidth is not None
    return float(copula.bandwidth[0])


def densities(copula: CopulaDensity, values: Tensor, points: Tensor, seed: int) -> Tensor:
    """Densities of populations at points. **Shape:** ``(num_draws, num_points)``."""

    def functional(population: Any) -> Tensor:
        density: Tensor = population.log_prob(points[:, None]).exp().T
        return density

    return run(copula, functional, values, seed=seed, num_checks=1).get_samples()["theta"]


def share_outside(draws: Tensor, density: Tensor) -> float:
    """Share of the points where a density is outside of the 95% band of draws."""
    low, _, high = band(draws)
    return float(((density < low) | (density > high)).double().mean())


copulas, populations, mixtures = {}, {}, {}
distances, outside = {}, {}
for seed in SEEDS:
    copulas[seed] = CopulaDensity(seed=seed).fit(acid)
    populations[seed] = densities(copulas[seed], acid, grid, seed)
    mixtures[seed] = mixture_answer(seed)
    density = copulas[seed].log_prob(grid).exp()
    outside[seed] = share_outside(populations[seed], density)
    difference = (density - mixtures[seed]["predictive"]).abs()
    distances[seed] = float(torch.trapezoid(difference, grid)) / 2
    print(
        f"seed {seed}: bandwidth {bandwidth_of(copulas[seed]):.3f}, total variation between the "
        f"copula and the mixture {distances[seed]:.3f}"
    )
several = {
    "copula, fitted": run(copulas[FIRST], mean_and_quantiles, acid).get_samples(),
    "copula, 0.5": run(CopulaDensity(0.5), mean_and_quantiles, acid).get_samples(),
    "mixture": mixtures[FIRST],
    "Bayesian bootstrap": run(PolyaUrn(), mean_and_quantiles, acid, horizon=math.inf).get_samples(),
}
print(f"{'':20}{'mean':>18}" + "".join(f"{f'{level:.0%} quantile':>18}" for level in LEVELS))
for name, found in several.items():
    print_row(name, [found["mean"], *found["quantiles"].unbind(1)])

page.claim(
    "Copula density and Dirichlet process mixture give malic acid nearly the same density "
    "(total variation).",
    distances,
    "<=",
    0.1,
    source="bound preregistered",
)
page.claim(
    "The 95% band of the density of populations contains the density given the data, on "
    "malic acid (fraction of points outside).",
    outside,
    "<=",
    0,
    source="Fong, Holmes and Walker (2023): populations are a martingale around that density",
)
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
for axes, title, draws, line in (
    (left, "copula", populations[FIRST], copulas[FIRST].log_prob(grid).exp()),
    (middle, "mixture", mixtures[FIRST]["density"], mixtures[FIRST]["predictive"]),
):
    axes.hist(acid, 30, density=True, color="0.88")
    axes.fill_between(grid, band(draws)[0], band(draws)[2], color=BLUE, alpha=0.25, lw=0)
    axes.plot(grid, line, color=BLUE)
    axes.set(title=f"{title}: density and 95% band", xlabel="malic acid", ylim=(0, 1.0))
for (name, found), color in zip(several.items(), (BLUE, LIGHT, RED, GRAY), strict=True):
    right.hist(found["mean"], 30, density=True, histtype="step", color=color, label=name)
right.set(title="posterior of the mean", xlabel="mean of malic acid")
right.legend(frameon=False, fontsize=8)
page.figure("density", figure)

# %% [markdown]
# Copula and mixture agree on the peak and on the tail. Between them the mixture has a second bump,
# where the copula has a shoulder: one distribution that is bent step by step, it is smoother.
# Posterior means of the mean and of the quantiles are close, but the posteriors of the copula are
# wider than those of the mixture and of the bootstrap, which for the mean are as wide as the
# standard deviation over $\sqrt n$.
#
# ## How wide a posterior is, the bandwidth decides
#
# This is no error of sampling. Under a normal distribution an observation moves the mean by
# $\alpha_i \rho z$, with a normal number $z$ and $\alpha_i \approx 2 / i$, so that the standard
# deviation of the mean is about $2 \rho$ times the usual one. Data that ask for narrow bumps get a
# posterior of the mean that is up to twice too wide. Data that look normal get a bandwidth of zero,
# with which no observation changes the distribution: a good density, and a posterior without any
# width, of which the code warns.


# %%
def widths(copula: CopulaDensity, values: Tensor, horizon: int, seed: int) -> tuple[float, float]:
    """Standard deviation of the mean over the usual one, and what it is for a normal start."""
    draws = run(copula, Mean(), values, horizon=horizon, seed=seed).get_samples()["theta"]
    usual = float(copula.variance.sqrt()) / math.sqrt(len(values))
    last = len(values) + (min(horizon, 60) if page.smoke else horizon)
    steps = torch.arange(len(values) + 1.0, last + 1.0)
    moved = ((2 - 1 / steps) / (steps + 1)).square().sum().sqrt()
    normal = bandwidth_of(copula) * float(moved) * math.sqrt(len(values))
    return float(draws.std()) / usual, normal


print("width of the posterior of the mean, in standard deviations over sqrt(n):")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for name in ("malic_acid", "flavanoids", "alcohol", "hue"):
        values = column(wine, name)
        fitted = CopulaDensity().fit(values)
        width, normal = widths(fitted, values, 4000, FIRST)
        alone = dist.Normal(values.mean(), values.std(correction=0)).log_prob(values).sum()
        print(
            f"{name:12} bandwidth {bandwidth_of(fitted):8.2g}, width {width:.2f}, and {normal:.2f} "
            f"for a normal distribution; gain {float(fitted.prequential_log_prob - alone):6.2f}"
        )
for message in sorted({str(warning.message) for warning in caught}):
    print(f"RuntimeWarning: {message}")

# %% [markdown]
# What to do about it? Take the fitted bandwidth where a density is wanted, or what depends on its
# shape. For a mean there are the urn and the Bayesian models, or `CopulaDensity(0.5)`, whose width
# is about right and whose density is too smooth: see its quantiles in the table above.
#
# `gain` is that in log likelihood over the normal distribution, which a bandwidth of zero is. For
# alcohol and hue there is none to be had: the likelihood has a second maximum at a larger
# bandwidth, but is a little higher at zero, where the posterior has no width at all.
#
# ## Does the bandwidth predict?
#
# The body mass of the first 100 diabetes patients, standardized by all 442, so that
# `standardize=False`. The prequential log likelihood, the sum of the log densities with which each
# value was predicted from those before it, says how good a bandwidth is: the larger, the better.

# %%
diabetes = load_diabetes(dtype=torch.float64)
body_mass = column(diabetes, "bmi")
standard_mass = ((body_mass - body_mass.mean()) / body_mass.std(correction=0))[:100]
mass_grid = torch.linspace(-3.0, 3.5, 20 if page.smoke else 80)
base = float(dist.Normal(0.0, 1.0).log_prob(standard_mass).sum())
gains, gains_over_normal, ratios, outside_masses = {}, {}, {}, {}
for seed in SEEDS:
    fitted = CopulaDensity(standardize=False, seed=seed).fit(standard_mass)
    half = CopulaDensity(0.5, standardize=False, seed=seed).fit(standard_mass)
    score = float(fitted.prequential_log_prob)
    gains[seed] = score - float(half.prequential_log_prob)
    gains_over_normal[seed] = score - base
    draws = densities(fitted, standard_mass, mass_grid, seed)
    outside_masses[seed] = share_outside(draws, fitted.log_prob(mass_grid).exp())
    width, normal = widths(fitted, standard_mass, 3000, seed)
    ratios[seed] = abs(width / normal - 1)
    print(
        f"seed {seed}: bandwidth {bandwidth_of(fitted):.3f}, log likelihood {score:.3f}, with 0.5 "
        f"{score - gains[seed]:.3f}, of N(0, 1) {base:.3f}; width {width:.3f} and {normal:.3f}"
    )

page.claim(
    "The 95% band of the density of populations contains the density given the data, on body "
    "mass (fraction of points outside).",
    outside_masses,
    "<=",
    0,
    source="Fong, Holmes and Walker (2023), as for malic acid",
)
page.claim(
    "On body mass the fitted bandwidth predicts better than 0.5 (difference of prequential "
    "log likelihoods).",
    gains,
    ">",
    0,
    source="Fong, Holmes and Walker (2023), choice of the bandwidth",
)
page.claim(
    "On body mass the copula density predicts better than N(0, 1) (difference of prequential "
    "log likelihoods).",
    gains_over_normal,
    ">",
    0,
    source="Fong, Holmes and Walker (2023), choice of the bandwidth",
)
page.claim(
    "On body mass the posterior of the mean is about twice the bandwidth times as wide as "
    "usual, what holds for a normal distribution (relative distance).",
    ratios,
    "<=",
    0.15,
    source="derived for a normal distribution, of which the body mass is not far; the standard "
    "error is about 0.03",
)

# %% [markdown]
# Where no functional is chosen yet, `density_drift` shows whether the populations have settled: the
# mean over points of $|p_N - p_n|$.

# %%
state = fitted.begin((standard_mass,), chain_keys(FIRST, range(50)))
for num_steps in (10, 20) if page.smoke else (100, 800, 2000, 4000):
    state = fitted.advance(state, num_steps)
    drift = density_drift(fitted.population(state), fitted, mass_grid)
    print(f"size of the population {state.size:5}, drift of the density {drift.mean():.4f}")

# %% [markdown]
# ## Regression and classification
#
# `CopulaRegression` predicts the distribution of a response at covariates, here the progression of
# diabetes given the body mass, and `CopulaClassifier` the probability of a label, here that a mass
# is malignant given its radius. Populations are followed at the `queries`. Covariates to come are
# those of the data, weighted by the Bayesian bootstrap.

# %%
number = page.length(150, smoke=40)
targets = in_order(diabetes, (diabetes.train_targets, diabetes.test_targets))
progression = (targets * diabetes.target_scale + diabetes.target_loc)[:number]
masses_there = body_mass[:number]
mass_queries = torch.linspace(*masses_there.aminmax(), 4 if page.smoke else 20)
regression = CopulaRegression(queries=mass_queries)
options = {"number": 10 if page.smoke else 200, "horizon": 25 * number}
lines = run(regression, Quantile((0.1, 0.5, 0.9)), masses_there, progression, **options)

tumours = load_breast_cancer(dtype=torch.float64)
labels = in_order(tumours, (tumours.train_targets, tumours.test_targets))[:number]
is_malignant = labels == (tumours.class_names or ()).index("malignant")
radius = column(tumours, "mean radius")[:number]
radius_queries = torch.linspace(*radius.aminmax(), 5 if page.smoke else 40)
classifier = CopulaClassifier(queries=radius_queries)
probabilities = run(classifier, Mean(), radius, is_malignant, horizon=50 * number)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
left.scatter(masses_there, progression, s=6, color="0.6")
for quantile, color in zip(lines.get_samples()["theta"].unbind(-1), (RED, BLUE, RED), strict=True):
    low, middle_line, high = band(quantile)
    left.fill_between(mass_queries, low, high, color=color, alpha=0.2, lw=0)
    left.plot(mass_queries, middle_line, color=color)
left.set(xlabel="body mass", ylabel="progression", title="10%, 50% and 90% quantiles")
low, middle_line, high = band(probabilities.get_samples()["theta"])
right.fill_between(radius_queries, low, high, color=BLUE, alpha=0.25, lw=0)
right.plot(radius_queries, middle_line, color=BLUE)
right.plot(radius, is_malignant.double(), "|", color="0.4")
right.set(xlabel="mean radius", ylabel="probability of a malignant mass")
page.figure("regression-and-classification", figure)

# %% [markdown]
# ## The claims

# %%
page.finish(
    {
        "draws": NUM_DRAWS,
    }
)
