"""Which random measure gives which power law, in pictures, on real counts and in a Pyro model."""

# %% [markdown]
# # Random measures and their power laws
#
# A mixture needs weights, a graph needs popularities, a text needs frequencies of words. Where
# there is no end to the kinds of things, these are the weights of a random measure, and which
# measure it is decides how fast they fall. This page shows the measures of
# `pyro_ext.random_measures`: what they are as values, which power laws they have, which of them
# fits the words of a real text, and how they stand in a Pyro model.
#
# `python tutorials/random_measures.py` prints the numbers and saves the figures in
# `figures/random-measures`.

# %%
import re
from collections import Counter
from collections.abc import Callable
from pydoc_data.topics import topics

import arviz as az
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_ext.datasets import load_wine
from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MCMC, NUTS
from pyro_ext.random_measures import (
    BetaPrimeProcess,
    CompletelyRandomMeasure,
    DirichletProcess,
    GeneralizedBFRYProcess,
    GeneralizedGammaProcess,
    NormalizedRandomMeasure,
    ParetoMixtureProcess,
    PitmanYor,
    random_measure,
)
from pyro_ext.random_measures.plots import (
    plot_cluster_sizes,
    plot_num_clusters,
    plot_ranked_weights,
    plot_tail,
)
from pyro_ext.reproduction import Page

page = Page("random-measures")
torch.set_default_dtype(torch.float64)
pyro.set_rng_seed(0)

# %% [markdown]
# ## A measure as a value
#
# A completely random measure is a sum of point masses: atoms at independent places, with weights
# that are the points of a Poisson process on the positive numbers. The density of that process is
# the Lévy density, and it is all there is to choose. The generalized gamma process has
# `w ** (-1 - discount) * exp(-tilt * w)`, times its mass and a constant.
#
# Its integral is infinite at zero, so there are infinitely many weights, all but a few of them
# tiny: their sum, the total mass, is finite. Here are its mean and variance, and its Laplace
# exponent, which is minus the logarithm of `E exp(-t S)`, exactly and by draws of the total mass.

# %%
measure = GeneralizedGammaProcess(mass=2.0, discount=0.4, tilt=1.5)
print(measure)
for level in (1.0, 0.1, 0.01, 0.001):
    print(f"weights above {level:5}: {measure.tail(level):8.3f} on average")
total = measure.total_mass().sample((1_000 if page.smoke else 100_000,))
print(f"total mass: mean {measure.mean:.4f}, of draws {total.mean():.4f}")
print(f"        variance {measure.variance:.4f}, of draws {total.var():.4f}")
exponent = float(measure.laplace_exponent(1.0))
sampled = float(-(-total).exp().mean().log())
print(f"Laplace exponent {exponent:.4f}, of draws {sampled:.4f}")

# %% [markdown]
# To have weights one has to stop somewhere. A series gives them one after the other and says what
# mass is still to come; `tolerance` goes on until that is a small fraction.

# %%
for method in ("inverse_levy", "size_biased"):
    weights, _, lost = measure.series(10, method, seed=1)
    print(f"{method}: {' '.join(f'{weight:.3f}' for weight in weights)}; lost {lost:.3f}")
    print(f"  jumps for 1% of the mean: {measure.num_jumps(0.01, method)}")
weights, _, lost = measure.series(tolerance=0.01, seed=1)
print(f"tolerance of 1%: {len(weights)} jumps, {lost / weights.sum():.4f} of their mass is lost")

# %% [markdown]
# A finite approximation is another way: a number of independent weights whose sum has nearly the
# distribution of the total mass. What they are drawn from has a density, which a Pyro model can
# hold. The error is that of the Laplace exponent.

# %%
print(f"finite approximations are {type(measure.finite(10)).__name__} variables")
for num_atoms in (10, 100, 1000):
    distribution = measure.finite(num_atoms)
    error = float(measure.finite_error(num_atoms, 1.0))
    mean = float(num_atoms * distribution.mean)
    print(f"{num_atoms:5} atoms: mean {mean:.4f}, error of the Laplace exponent {error:.1e}")

# %% [markdown]
# ## Two ends, two power laws
#
# The tail of the Lévy density is the mean number of weights above a level. Against the level, both
# on logarithmic scales, a power law is a line with its index for slope:
#
# - The gamma process has no power law: the number of small weights grows like a logarithm.
# - The generalized gamma process has one, for small weights.
# - The other three have one for small weights and another for large ones. The mixture adds Pareto
#   weights to a generalized gamma process; in the generalized BFRY and the beta prime process one
#   distribution passes into the other.

# %%
MEASURES: dict[str, CompletelyRandomMeasure] = {
    "gamma": GeneralizedGammaProcess(500.0, 0.0, 1.0),
    "generalized gamma": GeneralizedGammaProcess(500.0, 0.5, 1.0),
    "generalized BFRY": GeneralizedBFRYProcess(500.0, 0.5, 1.5),
    "beta prime": BetaPrimeProcess(500.0, 0.5, 1.5),
    "Pareto mixture": ParetoMixtureProcess(500.0, 0.5, 1.0, 500.0, 2.0, 1.5),
}
NUM_WEIGHTS = page.length(5_000, smoke=100)
for name, process in MEASURES.items():
    print(f"{name:18} {process.index_at_zero:.1f} at zero, {process.index_at_infinity} at infinity")
figure, panels = plt.subplots(1, 5, figsize=(15, 3.2), sharex=True, sharey=True)
figure.set_layout_engine("constrained")
for axes, (name, process) in zip(panels, MEASURES.items(), strict=True):
    lowest = process.inverse_tail(float(NUM_WEIGHTS))
    plot_tail(process, process.jumps_above(lowest, seed=0)[0], ax=axes)
    axes.set(title=name, xlim=(1e-4, 1e3), ylim=(0.5, 2 * NUM_WEIGHTS))
    axes.get_legend().remove()
page.figure("tails", figure)

# %% [markdown]
# The line is the mean and the points are one draw. Read the same picture with the axes exchanged
# and it is that of the ranked weights: the k-th largest falls like `k ** (-1 / discount)`, and the
# first few like `k ** (-1 / tail_index)`.

# %%
ranked = {
    name: process.series(NUM_WEIGHTS // 2, "inverse_levy", seed=0, sample_shape=(4,)).weights
    for name, process in MEASURES.items()
}
fractions = {name: values / values.sum(-1, keepdim=True) for name, values in ranked.items()}
figure, axes = plt.subplots(figsize=(4.8, 3.6), layout="constrained")
plot_ranked_weights(fractions, ax=axes)
axes.set(ylim=(1e-7, 1.0))
page.figure("ranked-weights", figure)

# %% [markdown]
# ## Partitions
#
# Divided by its total mass, a measure is a random probability measure. Samples of it that are equal
# form a cluster, and a sample of size n is a partition. With a discount of σ the number of clusters
# grows like n to the power σ, and the fraction of clusters of size j falls like j to the power
# -1-σ. The tail index is seen in the sizes of the largest clusters.

# %%
NUM_SAMPLES = page.length(100_000, smoke=2_000)
DISTRIBUTIONS: dict[str, NormalizedRandomMeasure | PitmanYor] = {
    "Dirichlet": DirichletProcess(20.0),
    "Pitman-Yor": PitmanYor(0.5, 20.0),
    "NGGP": GeneralizedGammaProcess(20.0, 0.5, 1.0).normalize(),
    "GBFRY": GeneralizedBFRYProcess(20.0, 0.5, 1.5).normalize(),
}
labels = {
    name: distribution.partition(NUM_SAMPLES).sample((5,))
    for name, distribution in DISTRIBUTIONS.items()
}
slopes = {}
for name, values in labels.items():
    late = values.max(-1).values.double() + 1
    early = values[:, : NUM_SAMPLES // 10].max(-1).values.double() + 1
    slopes[name] = float((late / early).log10().mean())
    singles = [float((row.bincount() == 1).sum()) / float(row.max() + 1) for row in values]
    print(
        f"{name:11} {late.mean():7.0f} clusters, order of their growth {slopes[name]:.2f}, "
        f"fraction of singletons {sum(singles) / 5:.2f}"
    )

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
plot_num_clusters(labels, ax=left)
plot_cluster_sizes(labels, ax=right)
page.figure("partitions", figure)

# %% [markdown]
# ## The words of a text
#
# Python comes with its own documentation, the module `pydoc_data.topics`. Its words are samples,
# equal words are a cluster. What matters for the probability of the partition is how many words
# occur how often.

# %%
words = re.findall("[a-z]+", " ".join(topics.values()).lower())
counts = torch.tensor(sorted(Counter(words).values(), reverse=True), dtype=torch.float64)
sizes, multiplicity = counts.unique(return_counts=True)
print(f"{len(words)} words, {len(counts)} different ones, {len(sizes)} different counts;")
print(f"the most frequent occurs {counts[0]:.0f} times, {multiplicity[0]} occur once")

# %% [markdown]
# Five distributions are fitted by maximum likelihood. The likelihood is the probability of the
# partition, `log_eppf`. For normalized measures that is an integral over an auxiliary variable u,
# and `log_joint`, which has u for an argument, is cheaper by far and as good to fit by: u is one
# more parameter to maximize over, and the integral is done once, at the end. Masses fix the scale,
# since the tilt, the cutoff and the rate are 1.

# %%
Prior = NormalizedRandomMeasure | PitmanYor
FITTED: dict[str, tuple[int, Callable[[Tensor], Prior]]] = {
    "Dirichlet": (1, lambda x: DirichletProcess(x[0].exp())),
    "Pitman-Yor": (2, lambda x: PitmanYor(x[1].sigmoid(), x[0].exp())),
    "NGGP": (2, lambda x: GeneralizedGammaProcess(x[0].exp(), x[1].sigmoid(), 1.0).normalize()),
    "GBFRY": (
        3,
        lambda x: GeneralizedBFRYProcess(
            x[0].exp(), x[1].sigmoid(), x[1].sigmoid() + x[2].exp()
        ).normalize(),
    ),
    "beta prime": (
        3,
        lambda x: BetaPrimeProcess(
            x[0].exp(), x[1].sigmoid(), x[1].sigmoid() + x[2].exp()
        ).normalize(),
    ),
}


def fit(name: str) -> Prior:
    """Law with the largest likelihood."""
    number, make = FITTED[name]
    # log mass, logit of the discount, log of the tail index less the discount; and log u
    x = torch.tensor([4.0, 0.0, 0.0][:number] + [7.0], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [x], max_iter=5 if page.smoke else 200, line_search_fn="strong_wolfe", tolerance_change=1e-7
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        distribution = make(x)
        if isinstance(distribution, PitmanYor):
            value = -distribution.log_eppf(sizes, multiplicity)
        else:
            value = -distribution.log_joint(sizes, x[-1].exp(), multiplicity) - x[-1]
        value.backward()
        return value

    optimizer.step(loss)
    return make(x.detach())


fits = {name: fit(name) for name in FITTED}
likelihoods = {
    name: float(distribution.log_eppf(sizes, multiplicity)) for name, distribution in fits.items()
}
for name, best in fits.items():
    gain = likelihoods[name] - likelihoods["Pitman-Yor"]
    print(f"{name:11} log EPPF {likelihoods[name]:.1f}, {gain:+.1f} vs Pitman-Yor: {best!r}")

# %% [markdown]
# What do such distributions predict? Texts of the same length, drawn anew, and the ranked counts of
# their words: median and 90% of the draws. The real ones are black.

# %%
draws = {}
for name, best in fits.items():
    rows = [row.bincount() for row in best.partition(len(words)).sample((2 if page.smoke else 20,))]
    least = min(len(row) for row in rows)
    draws[name] = torch.stack([row.sort(descending=True).values[:least] for row in rows]).double()
    low, high = draws[name].quantile(torch.tensor([0.05, 0.95]), dim=0)
    is_inside = ((counts[:least] >= low) & (counts[:least] <= high)).double()
    print(
        f"{name:11} {least} to {max(len(row) for row in rows)} different words, the most frequent "
        f"{draws[name][:, 0].median():.0f} times; real counts inside of the band: "
        f"{is_inside[:100].mean():.0%} of the first 100, {is_inside[100:].mean():.0%} of the others"
    )
figure, panels = plt.subplots(1, 5, figsize=(15, 3.2), sharex=True, sharey=True)
figure.set_layout_engine("constrained")
for axes, (name, values) in zip(panels, draws.items(), strict=True):
    plot_ranked_weights(values, ax=axes)
    axes.plot(range(1, len(counts) + 1), counts, color="black", linewidth=1)
    axes.set(title=name, ylabel="count")
page.figure("words", figure)

# %% [markdown]
# Pitman-Yor and the NGGP come to the same: with one power law, a discount that suits the many rare
# words leaves the frequent ones far too rare. A Dirichlet process is worse at both ends. The two
# measures with a second power law gain nearly a hundred nats, with a tail index near 1, which is
# Zipf's law. Their draws scatter widely, and the bands hold one half to three quarters of the first
# hundred words, where those of the others hold a tenth.
#
# Two things are not as one might expect. With their tail index to account for the frequent words,
# both put the discount at zero: the rare words of this text, a manual with a vocabulary of its own,
# show no power law. And beyond the hundredth word the real counts are at the upper edge of what
# these two draw, or above it. So none of the five is right; the double power law is less wrong.
#
# ## Its parameters in a Pyro model
#
# Parameters of a measure may be latent like any others. The likelihood of the counts is a factor,
# with u for one more latent number.


# %%
def text(sizes: Tensor, multiplicity: Tensor) -> None:
    """Words of a text as samples of a normalized generalized gamma process."""
    mass = pyro.sample("mass", dist.LogNormal(4.0, 2.0))
    discount = pyro.sample("discount", dist.Beta(1.0, 1.0))
    log_tilt = pyro.sample("log_tilt", dist.Normal(7.0, 5.0))
    distribution = GeneralizedGammaProcess(mass, discount, 1.0).normalize()
    prior = dist.Normal(7.0, 5.0).log_prob(log_tilt)
    # The distribution of log u comes from the measure alone, so its prior is taken out again.
    joint = distribution.log_joint(sizes, log_tilt.exp(), multiplicity) + log_tilt
    pyro.factor("counts", joint - prior)


mcmc = MCMC(
    NUTS(text, max_tree_depth=3 if page.smoke else 8),
    num_samples=5 if page.smoke else 250,
    warmup_steps=5 if page.smoke else 150,
    num_chains=4,
    seed=0,
    progress=False,
).run(sizes, multiplicity)
summary = az.summary(to_arviz(mcmc, log_likelihood=False))
print(summary.to_string())

# %% [markdown]
# The posterior mean of the discount is where the likelihood was largest, and its standard deviation
# is a hundredth: 64,000 words say what it is, if the distribution is the right one.
#
# ## A random measure as a primitive
#
# `random_measure` puts atoms and weights into a model, here the components of a mixture. 178 wines
# of three growers, two measurements of each; the growers are not told. The number of atoms is only
# that of the approximation; how many of them the wines need is left to the posterior, and so is the
# discount.

# %%
wines = load_wine(test_fraction=0.2, dtype=torch.float64)
columns = [list(wines.feature_names or ()).index(name) for name in ("flavanoids", "proline")]
tasted = wines.train_inputs[:, columns]


def mixture(wines: Tensor, num_atoms: int = 20) -> None:
    """Mixture of Gaussians with a normalized generalized gamma process."""
    discount = pyro.sample("discount", dist.Beta(1.0, 2.0))
    distribution = GeneralizedGammaProcess(torch.ones(()), discount, 1.0).normalize()
    base = dist.Normal(torch.tensor([0.0, 0.0, -0.7, -0.7]), torch.tensor([1.0, 1.0, 0.5, 0.5]))
    measure = random_measure("G", distribution, base.to_event(1), num_atoms)
    positions, log_scales = measure.atoms.chunk(2, -1)
    components = dist.Normal(positions, log_scales.exp()).to_event(1)
    pyro.deterministic("largest", measure.weights.sort(descending=True).values[:4])
    with pyro.plate("wines", len(wines)):
        kind = dist.Categorical(measure.weights)
        pyro.sample("wine", dist.MixtureSameFamily(kind, components), obs=wines)


pyro.set_rng_seed(0)
chosen = tasted[torch.randperm(len(tasted))[:20]]
start = {"G_atoms": torch.cat([chosen, torch.full_like(chosen, -0.7)], -1)}
guide = AutoNormal(mixture, init_loc_fn=init_to_value(values=start), init_scale=0.05)
svi = SVI(mixture, guide, PyroOptim(torch.optim.Adam, {"lr": 0.02}), Trace_ELBO())
losses = [svi.step(tasted) for _ in range(30 if page.smoke else 1_500)]
print(f"loss per wine {losses[0] / len(tasted):.2f} to {sum(losses[-20:]) / 20 / len(tasted):.2f}")

# %%
data = to_arviz(guide, tasted, model=mixture, num_samples=20 if page.smoke else 300, seed=0)
posterior = data["posterior"]
print(az.summary(data, var_names=["discount"], kind="stats").to_string())
weights = torch.tensor(posterior["G_weights"].values[0])
atoms = torch.tensor(posterior["G_atoms"].values[0])
shown = weights.mean(0).sort(descending=True)
print("mean weights:", " ".join(f"{value:.3f}" for value in shown.values[:8]))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
left.scatter(*tasted.T, s=8, color="0.4")
positions, scales = atoms.mean(0)[:, :2], atoms.mean(0)[:, 2:].exp()
for position, scale, weight in zip(positions, scales, weights.mean(0), strict=True):
    left.errorbar(*position, *scale, color="#2a6f97", alpha=min(1.0, 4 * float(weight)))
left.set(xlabel="flavanoids", ylabel="proline")
left.spines[["top", "right"]].set_visible(False)
plot_ranked_weights({"posterior": weights}, ax=right)
right.set(ylim=(1e-6, 1.0))
page.figure("mixture", figure)

# %% [markdown]
# Four components hold nearly all wines, and the weights after them fall by orders of magnitude. The
# guide is one of independent normal variables, so its spread is too narrow, and a different start
# may end elsewhere. What the data say about the discount is little, as it should be with 142 wines.
#
# What this page claims, checked:

# %%
if not page.smoke:
    assert abs(exponent - sampled) < 0.02, (exponent, sampled)
    assert slopes["Dirichlet"] < 0.2, slopes
    assert all(0.45 < slopes[name] < 0.58 for name in ("Pitman-Yor", "NGGP", "GBFRY")), slopes
    assert abs(likelihoods["NGGP"] - likelihoods["Pitman-Yor"]) < 5, likelihoods
    assert likelihoods["Dirichlet"] < likelihoods["Pitman-Yor"] - 100, likelihoods
    assert likelihoods["GBFRY"] > likelihoods["Pitman-Yor"] + 50, likelihoods
    assert likelihoods["beta prime"] > likelihoods["Pitman-Yor"] + 50, likelihoods
    fitted = float(fits["NGGP"].index_at_zero)
    mean = float(summary["mean"]["discount"])
    assert abs(mean - fitted) < 0.03, (mean, fitted)
    assert float(shown.values[:4].sum()) > 0.8, shown
