"""Which random measure gives which power law, in pictures, on real counts and in a Pyro model."""

# %% [markdown]
# # Random measures and their power laws
#
# A mixture needs weights, a graph needs popularities, a text needs frequencies of words. Where
# there is no end to the kinds of things, these are the weights of a random measure, and which
# measure it is decides how fast they fall. This page shows the measures of
# `pyro_ext.random_measures`: what they are as values, which power laws they have, which of them
# fits the words of a real text, and how they stand in a Pyro model.

# %%
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
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
from pyro_ext.random_measures.plots import plot_ranked_weights, plot_tail
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
# tiny: their sum, the total mass, is finite. A series gives them one after the other and says what
# mass is still to come; `tolerance` goes on until that is a small fraction.

# %%
measure = GeneralizedGammaProcess(mass=2.0, discount=0.4, tilt=1.5)
total = measure.total_mass().sample((1_000 if page.smoke else 100_000,))
print(f"total mass: mean {measure.mean:.4f}, of draws {total.mean():.4f}")
weights, _, lost = measure.series(tolerance=0.01, seed=1)
print(f"tolerance of 1%: {len(weights)} jumps, {lost / weights.sum():.4f} of their mass is lost")

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
# The line is the mean and the points are one draw. Read with the axes exchanged, it is the picture
# of the ranked weights: the k-th largest falls like `k ** (-1 / discount)`, and the first few like
# `k ** (-1 / tail_index)`.
#
# ## Partitions
#
# Divided by its total mass, a measure is a random probability measure. Samples of it that are equal
# form a cluster, and a sample of size n is a partition. With a discount of σ the number of clusters
# grows like n to the power σ. The tail index is seen in the sizes of the largest clusters.

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
    print(f"{name:11} {late.mean():7.0f} clusters, order of their growth {slopes[name]:.2f}")

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
# partition, `log_eppf`. For normalized measures that is an integral over an auxiliary variable u.
# `log_joint`, which has u for an argument, is cheaper by far: u is one more parameter to maximize
# over, and the integral is done once, at the end.

# %%
Prior = NormalizedRandomMeasure | PitmanYor


def two_indices(family: Callable[..., CompletelyRandomMeasure], x: Tensor) -> Prior:
    """Measure whose tail index exceeds its discount."""
    discount = x[1].sigmoid()
    return family(x[0].exp(), discount, discount + x[2].exp()).normalize()


FITTED: dict[str, tuple[int, Callable[[Tensor], Prior]]] = {
    "Dirichlet": (1, lambda x: DirichletProcess(x[0].exp())),
    "Pitman-Yor": (2, lambda x: PitmanYor(x[1].sigmoid(), x[0].exp())),
    "NGGP": (2, lambda x: GeneralizedGammaProcess(x[0].exp(), x[1].sigmoid(), 1.0).normalize()),
    "GBFRY": (3, partial(two_indices, GeneralizedBFRYProcess)),
    "beta prime": (3, partial(two_indices, BetaPrimeProcess)),
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
likelihoods = {name: float(best.log_eppf(sizes, multiplicity)) for name, best in fits.items()}
for name, best in fits.items():
    gain = likelihoods[name] - likelihoods["Pitman-Yor"]
    print(f"{name:11} log EPPF {likelihoods[name]:.1f}, {gain:+.1f} vs Pitman-Yor: {best!r}")

# %% [markdown]
# Texts of the same length, drawn anew, have these ranked counts of their words: median and a band
# of 90% of the draws. The real ones are black.

# %%
draws, seen = {}, {}
for name, best in fits.items():
    rows = [row.bincount() for row in best.partition(len(words)).sample((2 if page.smoke else 20,))]
    least = min(len(row) for row in rows)
    draws[name] = torch.stack([row.sort(descending=True).values[:least] for row in rows]).double()
    low, high = draws[name].quantile(torch.tensor([0.05, 0.95]), dim=0)
    inside = ((counts[:least] >= low) & (counts[:least] <= high)).double()
    parts = {"most frequent": draws[name][:, 0].median(), "top 100 in band": inside[:100].mean()}
    seen[name] = {k: float(v) for k, v in (parts | {"others": inside[100:].mean()}).items()}
page.table(seen)
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
# measures with a second power law gain much, with a tail index near 1, which is Zipf's law; but
# with it to account for the frequent words, both put the discount at zero: the rare words of this
# text, a manual with a vocabulary of its own, show no power law. None of the five is right; the
# double power law is less wrong.
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


num_draws, num_warmup, depth = page.length((250, 150, 8), smoke=(5, 5, 3))
mcmc = MCMC(
    NUTS(text, max_tree_depth=depth), num_draws, num_warmup, num_chains=4, seed=0, progress=False
).run(sizes, multiplicity)
summary = az.summary(to_arviz(mcmc, log_likelihood=False))
print(summary.to_string())

# %% [markdown]
# The posterior mean of the discount is where the likelihood was largest, and the posterior is
# narrow: so many words say what it is, if the distribution is the right one.
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
print(az.summary(data, var_names=["discount"], kind="stats").to_string())
weights = torch.tensor(data["posterior"]["G_weights"].values[0])
shown = weights.mean(0).sort(descending=True)
print("mean weights:", " ".join(f"{value:.3f}" for value in shown.values[:8]))

# %% [markdown]
# A few components hold nearly all wines, and other weights are smaller by orders of magnitude. The
# guide is one of independent normal variables, so its spread is too narrow, and a different start
# may end elsewhere. What so few wines say about the discount is little, as it should be.
#
# What this page says, checked:

# %%
if not page.smoke:
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
