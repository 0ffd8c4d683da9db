"""Wide networks with dependent weights: mixtures of Gaussian processes that can be pruned."""

# %% [markdown]
# # Networks with dependent weights
#
# A network with independent weights becomes a Gaussian process as it grows wide, and no single node
# of it matters. H. Lee, F. Ayed, P. Jung, J. Lee, H. Yang, F. Caron (2023), Deep neural networks
# with dependent weights, give each node a random variance that all of its outgoing weights share.
# If their sum tends to one of random jumps, a few of them large, a few nodes stay visible at any
# width. The limit is a mixture of Gaussian processes: outputs depend on each other, may have heavy
# tails, and theory says what pruning nodes costs. Rivals have one Gaussian process as their limit:
# equal variances (independent weights) and inverse gamma ones. Transfer of features is left out.

# %%
import math
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam
from scipy import stats
from torch import Tensor

from pyro_ext.datasets import load_digits
from pyro_ext.diagnostics import metrics
from pyro_ext.inference import MCMC, SGHMC
from pyro_ext.models import wide_networks as wide
from pyro_ext.models.wide_networks import DependentWeightNetwork, NodeVariances
from pyro_ext.nn import BayesianClassifier, init_to_module, largest_nodes
from pyro_ext.random import seeded
from pyro_ext.random_measures import GeneralizedBFRYProcess
from pyro_ext.reproduction import Page

page = Page(
    "mogp",
    paper="H. Lee, F. Ayed, P. Jung, J. Lee, H. Yang, F. Caron (2023), Deep neural networks with "
    "dependent weights: Gaussian process mixture limit, heavy tails, sparsity and "
    "compressibility",
)
SEEDS = page.seeds

# %% [markdown]
# ## Random variances as a Pyro program
#
# A `DependentWeightNetwork` is a Pyro model of outputs. Its sites have the names of its modules:
# here 3 scales the hidden nodes by their variances, and 4 has the weights that leave them. The
# horseshoe has squares of half-Cauchy variables, tiny ones and a few huge ones. A guide is fitted;
# then only a fifth of the nodes, those of largest variance, keep their weights, and `Predictive`
# runs what is left. Errors are from noisy outputs, and cannot be much below the noise of 0.3.


# %%
def regression(network: DependentWeightNetwork, x: Tensor, y: Tensor | None = None) -> None:
    """Outputs of a network, and noise."""
    mean = network(x)[:, 0]
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(mean, 0.3), obs=y)


with seeded(0):
    x = 1.5 * torch.randn(1200, 2)
    y = x[:, 0].abs() - x[:, 1] + 0.3 * torch.randn(1200)
with seeded(0):
    own = DependentWeightNetwork(2, [50], 1, wide.horseshoe_variances())
    guide = AutoNormal(regression, init_loc_fn=init_to_module(module=own.module))
    svi = SVI(regression, guide, ClippedAdam({"lr": 0.05}), Trace_ELBO())
    for _ in range(page.length(500, smoke=5)):
        svi.step(own, x[:200], y[:200])
    drawn = Predictive(guide, num_samples=50)(own, x)
    is_kept = largest_nodes(drawn["3.variances"], 0.8)
    left = drawn | {"4.weight": drawn["4.weight"] * is_kept.unsqueeze(-2)}
    for title, sites in {"all nodes": drawn, "a fifth of the nodes": left}.items():
        mean = Predictive(regression, sites)(own, x[200:])["y"].mean(0)
        print(f"{title}: error of new points {(mean - y[200:]).square().mean().sqrt():.2f}")

# %% [markdown]
# ## Width against limit
#
# Variances of nodes are scaled so that their sum has mean one; the horseshoe's has no mean. Those
# of generalized BFRY (Bertoin, Fujita, Roynette, Yor) processes have two power laws, with an index
# $\sigma$ for small ones (`discount`) and $\tau$ for large ones (`tail_index`). Beta variances are
# up to one, mostly tiny; Bernoulli ones are one or mostly zero. Of networks with two hidden layers
# there are 10,000 outputs at each width, and of the limit, by 50 jumps of a series (`"scaled"` is a
# fast one) and the mean of the rest. Their Kolmogorov-Smirnov distance has to fall to noise.


# %%
def generalized_bfry(discount: float, tail_index: float = 5.0) -> NodeVariances:
    """Generalized BFRY variances whose sum has mean one."""
    measure = GeneralizedBFRYProcess(tail_index - discount, discount, tail_index)
    return wide.measure_variances(measure.rescale(1.0 / measure.mean), series_method="scaled")


DISTRIBUTIONS = {
    "equal": wide.equal_variances(),
    "inverse gamma": wide.inverse_gamma_variances(),
    "beta": wide.beta_variances(),
    "horseshoe": wide.horseshoe_variances(),
    "generalized BFRY": generalized_bfry(0.5),
}
NUM_DRAWS, ONE = page.length(10_000, smoke=200), torch.ones(1, 1)
WIDTHS = page.length((10, 30, 100, 300), smoke=(10, 30))
# The largest distance of exact draws is beyond this once in 100 pages, by Kolmogorov's tail.
NOISE = math.sqrt(math.log(200.0 * len(DISTRIBUTIONS) * len(SEEDS)) / 10_000)


def outputs(variances: NodeVariances, seed: int, width: int | None = None) -> Tensor:
    """Outputs of networks with two hidden layers, `(NUM_DRAWS,)`."""
    sizes: Any = {"width": width, "num_hidden": 2, "num_jumps": 50}
    covariances = wide.sample_covariances(ONE, variances, NUM_DRAWS, **sizes, seed=seed)
    return wide.sample_outputs(covariances, 1, seed + 1).flatten()


distances: dict[str, dict[int, list[float]]] = {name: {} for name in DISTRIBUTIONS}
for name, variances in DISTRIBUTIONS.items():
    for seed in SEEDS:
        limit = outputs(variances, 1000 * seed + 500).numpy()
        distances[name][seed] = [
            float(stats.ks_2samp(outputs(variances, 1000 * seed + width, width), limit).statistic)
            for width in WIDTHS
        ]
page.claim(
    "Outputs of networks with two hidden layers come near to those of the limit with each "
    "distribution (largest distance at the largest width).",
    {s: max(by_seed[s][-1] for by_seed in distances.values()) for s in SEEDS},
    "<",
    NOISE,
    source="Lee et al. (2023), the limit theorem; bound: exact draws are beyond once in 100 pages",
)

# %% [markdown]
# With one hidden layer some limits are known exactly. Outputs with the horseshoe have a Cauchy
# distribution of scale one half. Two outputs of one network are uncorrelated, but their squares are
# not, unless the limit is a Gaussian process: they share a random variance, whose moments give the
# correlation. Theory needs second and fourth moments of a rectified normal node, 0.5 and 1.5.

# %%
WIDTH = page.length(1000, smoke=100)
CORRELATED = (wide.equal_variances(), wide.beta_variances(), wide.bernoulli_variances())
cauchy: dict[int, float] = {}
off: dict[int, float] = {}
for seed in SEEDS:
    options = {"num_samples": NUM_DRAWS, "width": WIDTH, "seed": seed}
    covariances = wide.sample_covariances(ONE, wide.horseshoe_variances(), **options)
    draws = wide.sample_outputs(covariances, 1, seed).flatten().numpy()
    cauchy[seed] = float(stats.kstest(draws, stats.cauchy(scale=0.5).cdf).statistic)
    errors = []
    for variances in CORRELATED:
        variance = wide.sample_covariances(ONE, variances, **options).flatten().double()
        correlation = variance.var() / (3.0 * variance.var() + 2.0 * variance.mean().square())
        errors.append(abs(float(correlation) - float(wide.square_correlation(variances, 0.5, 1.5))))
    off[seed] = max(errors)
page.claim(
    "With horseshoe variances outputs have a Cauchy distribution of scale one half (distance).",
    cauchy,
    "<",
    0.0163,
    source="Lee et al. (2023), the limit theorem; bound: 1% of exact draws are beyond",
)
page.claim(
    "The squares of two outputs are as correlated as theory says (largest error of three "
    "distributions).",
    off,
    "<",
    0.03,
    source="Lee et al. (2023), dependence of outputs; preregistered bound",
)

# %% [markdown]
# ## What pruning costs
#
# Of 2,000 nodes in one hidden layer those with variances up to a threshold $\epsilon$ are pruned.
# Theory has the mean square that an output loses in the limit, of order $\epsilon^{1 - \sigma}$. At
# larger $\sigma$, and the smallest threshold, 2,000 nodes do not reach it: the claim has neither.

# %%
NUM_NODES, NUM_NETWORKS = page.length((2000, 2000), smoke=(200, 50))
INDICES, NUM_INPUTS = (0.2, 0.5), 8
THRESHOLDS = torch.tensor([1e-4, 1e-3, 1e-2, 1e-1])


def lost(variances: NodeVariances, seed: int) -> Tensor:
    """Mean square over networks and some inputs of what outputs lose, by the threshold."""
    size = (NUM_NETWORKS, NUM_NODES)
    with seeded(seed):
        drawn = variances.distribution(NUM_NODES).sample(size)
        squares = torch.zeros(size)
        for _ in range(NUM_INPUTS):
            squares += torch.randn(size).relu().square() / NUM_INPUTS
    return torch.stack([(drawn * squares * (drawn <= t)).sum(-1).mean() for t in THRESHOLDS])


theory = {index: wide.pruning_error(generalized_bfry(index), THRESHOLDS, 0.5) for index in INDICES}
pruning = {s: {index: lost(generalized_bfry(index), s) for index in INDICES} for s in SEEDS}
page.claim(
    "Errors of pruning with indices of 0.2 and 0.5 are those of theory (largest relative "
    "difference at thresholds from 0.001 to 0.1).",
    {
        seed: max(float((row[i] / theory[i] - 1.0)[1:].abs().max()) for i in INDICES)
        for seed, row in pruning.items()
    },
    "<",
    0.08,
    source="Lee et al. (2023), compressibility; bound: three standard errors of up to 1.6%, "
    "and 3% that 2,000 nodes lack of the limit",
)

# %% [markdown]
# ## Handwritten digits
#
# Networks with two hidden layers of 200 nodes learn from 1,400 images by SGHMC, one chain for each
# seed. Chains start at variances of one over the width, and have to be long: nodes that the data do
# not need become small slowly, and after shorter chains of smaller steps pruning cost more. Then
# nodes of smallest variance go, in both layers, or of smallest weights where variances are equal.
# Horseshoe, and generalized BFRY variances with $\sigma = 0.5$ and $\tau = 2$, have jumps.

# %%
NUM_HIDDEN, NUM_STEPS, NUM_KEPT = page.length((200, 3200, 16), smoke=(20, 64, 16))
FRACTIONS = (0.0, 0.5, 0.8, 0.9, 0.95)
WITH_JUMPS = ("horseshoe", "generalized BFRY")
digits = load_digits(num_train=1400, num_test=397)
DIGIT_DISTRIBUTIONS = DISTRIBUTIONS | {"generalized BFRY": generalized_bfry(0.5, 2.0)}
del DIGIT_DISTRIBUTIONS["beta"]


def pruned(draws: dict[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """Draws without the least important nodes of both hidden layers."""
    changed = dict(draws)
    for scale, layer in (("3.variances", "4.weight"), ("6.variances", "7.weight")):
        weights = draws[layer]
        importance = draws[scale] if scale in draws else weights.square().sum(-2)
        changed[layer] = weights * largest_nodes(importance, fraction).unsqueeze(-2)
    return changed


def accuracies(name: str) -> dict[int, list[float]]:
    """Accuracy on test images of the average of a chain's draws, by the fraction pruned."""
    network = DependentWeightNetwork(64, [NUM_HIDDEN, NUM_HIDDEN], 10, DIGIT_DISTRIBUTIONS[name])
    classifier = BayesianClassifier(network, batch_size=100)
    start = init_to_module(module=network.module)
    kernel = SGHMC(classifier, step_size=0.02, momentum_decay=0.1, init_strategy=start)
    options: Any = {"num_chains": len(SEEDS), "seed": SEEDS[0], "progress": False}
    half = NUM_STEPS // 2
    mcmc = MCMC(kernel, NUM_KEPT, half, thinning=half // NUM_KEPT, **options)
    mcmc.run(digits.train_inputs, digits.train_targets)
    draws = mcmc.get_samples(group_by_chain=True)
    found: dict[int, list[float]] = {seed: [] for seed in SEEDS}
    for fraction in FRACTIONS:
        probabilities = classifier.probabilities(pruned(draws, fraction), digits.test_inputs)
        for seed, of_chain in zip(SEEDS, probabilities, strict=True):
            found[seed].append(metrics.accuracy(of_chain, digits.test_targets))
    return found


curves = {name: accuracies(name) for name in DIGIT_DISTRIBUTIONS}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
COLORS = dict(zip(DISTRIBUTIONS, ("0.4", "0.7", "#2a6f97", "#d1495b", "#66a182"), strict=True))
for name, color in COLORS.items():
    for number, seed in enumerate(SEEDS):
        label = "" if number else name
        left.loglog(WIDTHS, distances[name][seed], "o-", color=color, ms=3, label=label)
        if name in curves:
            right.plot(FRACTIONS, curves[name][seed], "o-", color=color, ms=3)
left.set(xlabel="width", ylabel="distance to the limit")
right.set(xlabel="fraction of the nodes pruned", ylabel="test accuracy", ylim=(0, 1))
left.legend(frameon=False)
page.figure("limit-and-pruning", figure, despine=True)


# %%
AT = FRACTIONS.index(0.8)


def advantage(rival: str) -> dict[int, float]:
    """Accuracy that a distribution with jumps has over a rival, the lesser of two, by seed."""
    return {s: min(curves[n][s][AT] - curves[rival][s][AT] for n in WITH_JUMPS) for s in SEEDS}


SOURCE = "Lee et al. (2023), pruned networks after SGHMC on images, at another scale"
page.claim(
    "With horseshoe or generalized BFRY variances 80% of the nodes can go at little cost "
    "(larger loss of accuracy).",
    {s: max(curves[n][s][0] - curves[n][s][AT] for n in WITH_JUMPS) for s in SEEDS},
    "<",
    0.05,
    source=f"{SOURCE}, where nothing is lost; preregistered bound",
)
page.claim(
    "With 80% of the nodes pruned networks with jumps are more accurate than one with equal "
    "variances (lesser difference of accuracies).",
    advantage("equal"),
    ">",
    0.15,
    source=f"{SOURCE}; preregistered bound",
)
page.claim(
    "With 80% of the nodes pruned networks with jumps are more accurate than one with inverse "
    "gamma variances, whose limit is a Gaussian process as well (lesser difference of "
    "accuracies).",
    advantage("inverse gamma"),
    ">",
    0.0,
    source=f"{SOURCE}, which does not prune these; only the sign",
    across="mean",
    central=True,
)

# %% [markdown]
# ## In use
#
# To prune a network after training, give its nodes variances with jumps: up to 90% can go at little
# cost. Equal ones fail at 80%. Inverse gamma ones, too, can be pruned to a fifth: they lose more
# on average, if not in every seed. At 95% all lose, and the order of these three can reverse.

# %%
page.finish({"widths": WIDTHS, "draws": NUM_DRAWS, "steps": NUM_STEPS})
