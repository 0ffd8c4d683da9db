"""Deep amortized clustering: a network that takes clusters out of a set, one by one."""

# %% [markdown]
# # Deep amortized clustering
#
# J. Lee, Y. Lee, Y. W. Teh (2019), Deep amortized clustering. A network learns from many sets whose
# clusters are known how to cluster a new one. It looks at all points at once and returns a single
# cluster: which points are in it, and the parameters of its density. These points are taken out,
# and the network looks at the rest, until nothing is left. So nobody says how many clusters there
# are, and there may be more than the network has ever seen.
#
# It is trained in two ways. By the *minimum loss* it may return any cluster, and is held to the one
# that it comes nearest to. With an *anchor* it has to return the cluster of a given point, which is
# drawn among those that are left.
#
# The paper claims that the network clusters new data sets accurately, also with more clusters than
# it was trained on. Here, small networks of both kinds learn from mixtures of at most 4 Gaussians
# and cluster up to 12; then an anchored one clusters images of handwritten digits. Of its rivals,
# k-means is told the number of clusters, and a variational mixture of Gaussians gets two components
# more than that; the network is told nothing. `pyro-ext reproduce dac` runs the page.

# %%
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import arviz
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import BayesianGaussianMixture
from torch import Tensor, nn

from pyro_ext.datasets import load_mnist_5k
from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MCMC, NUTS
from pyro_ext.models.sets import (
    AmortizedClusterer,
    FilteringNetwork,
    gaussian_mixtures,
    labeled_mixtures,
)
from pyro_ext.random import seeded, spawn_seed
from pyro_ext.reproduction import Page

page = Page(
    "dac",
    paper="J. Lee, Y. Lee, Y. W. Teh (2019), Deep amortized clustering, arXiv 1909.13433",
)
SEEDS = page.seeds
warnings.simplefilter("ignore", ConvergenceWarning)
Sets = list[tuple[Tensor, Tensor]]
Method = Callable[[Tensor, int], Tensor]
Score = tuple[float, float]

# %% [markdown]
# ## Networks
#
# The generator of sets is a Pyro model. Networks, sets and training are smaller than in the paper.

# %%
NUM_STEPS, IMAGE_STEPS, NUM_SETS = page.length((600, 1200, 50), smoke=(5, 5, 2))
KINDS = {"minimum loss": False, "anchored": True}
SIZES = {4: 120, 8: 240, 12: 360}
gaussians = partial(gaussian_mixtures, num_sets=16, num_points=(36, 120), max_clusters=4)


def trained(kind: str, seed: int) -> AmortizedClusterer:
    """A network for mixtures of Gaussians."""
    with seeded(spawn_seed(seed, 0)):
        sizes: Any = {"width": 48, "num_blocks": 2, "num_inducing": 8}
        network = FilteringNetwork(2, "diagonal", anchored=KINDS[kind], **sizes)
    clusterer = AmortizedClusterer(network, standardize=False)
    adam = partial(torch.optim.Adam, lr=2e-3, fused=True)
    clusterer.fit(gaussians, NUM_STEPS, optimizer=adam, seed=seed, progress=False)
    return clusterer


clusterers = {kind: {seed: trained(kind, seed) for seed in SEEDS} for kind in KINDS}

# %% [markdown]
# ## A mixture as a Pyro program that starts at these clusters
#
# NUTS sums the labels of a mixture out, but from random starts each chain has the clusters in an
# order of its own, and averages over chains mean nothing. The network says at once how many there
# are and where. Each chain below starts at these clusters, with centers moved by as much as their
# points are spread, so that R-hat still tests convergence.


# %%
def mixture(x: Tensor, num_clusters: int) -> None:
    """Points of clusters, each with a center and a scale of its own."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(num_clusters)))
    with pyro.plate("clusters", num_clusters):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    with pyro.plate("points", len(x)):
        kind = pyro.sample("kind", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[kind], scale[kind][..., None]).to_event(1), obs=x)


with seeded(11):
    points, truth = (part[0] for part in gaussian_mixtures(1, (90, 90), 8))
labels = clusterers["anchored"][SEEDS[0]].cluster(points, seed=0).labels
members = [points[labels == k] for k in labels.unique()]
weights = torch.tensor([len(each) / len(points) for each in members])
loc = torch.stack([each.mean(0) for each in members])
scale = torch.stack([each.std(0, correction=0).mean().clamp(min=0.05) for each in members])
with seeded(12):
    loc = loc + scale[..., None] * torch.randn(4, *loc.shape)
starts = {"weights": weights.expand(4, -1), "loc": loc, "scale": scale.expand(4, -1)}
print(f"{len(truth.unique())} clusters in truth, the network finds {len(members)}")
for name, initial_params in (("at random", None), ("at the network's clusters", starts)):
    with warnings.catch_warnings(action="ignore"):  # what the first run says is the point
        options: Any = {"initial_params": initial_params, "num_chains": 4, "progress": False}
        mcmc = MCMC(NUTS(mixture), page.length(300, smoke=10), seed=0, **options)
        r_hat = float(arviz.rhat(to_arviz(mcmc.run(points, len(members))))["loc"].max())
    print(f"chains that start {name}: R-hat of the centers {r_hat:.2f}")

# %% [markdown]
# ## More clusters than in training
#
# New sets have at most 4 clusters, as in training, at most 8, and at most 12. Measures are the
# adjusted Rand index with the true clusters, and how far off the number of clusters is.


# %%
def k_means(x: Tensor, number: int) -> Tensor:
    """k-means that is told the number of clusters."""
    return torch.from_numpy(KMeans(number, n_init=3, random_state=0).fit_predict(x)).long()


def variational(x: Tensor, number: int) -> Tensor:
    """A variational mixture of Gaussians with two components more than needed."""
    options: Any = {"covariance_type": "diag", "max_iter": 500, "random_state": 0}
    options["n_components"] = number + 2
    return torch.from_numpy(BayesianGaussianMixture(**options).fit_predict(x))


def scores(method: Method, sets: Sets) -> Score:
    """Mean adjusted Rand index, and mean error of the number of clusters."""
    pairs = [(labels, method(x, len(labels.unique()))) for x, labels in sets]
    errors = [abs(len(truth.unique()) - len(found.unique())) for truth, found in pairs]
    return float(np.mean([adjusted_rand_score(*pair) for pair in pairs])), float(np.mean(errors))


def new_sets(max_clusters: int, seed: int) -> Sets:
    """Mixtures of Gaussians that no network was trained on."""
    bounds = (int(0.3 * SIZES[max_clusters]), SIZES[max_clusters])
    with seeded(spawn_seed(seed, 1, max_clusters)):
        drawn = [gaussian_mixtures(1, bounds, max_clusters) for _ in range(NUM_SETS)]
    return [(x[0], labels[0]) for x, labels in drawn]


def network_of(clusterer: AmortizedClusterer) -> Method:
    """The network, which is not told the number of clusters."""
    return lambda x, _: clusterer.cluster(x, seed=0).labels


def table(found: dict[tuple[str, str], dict[int, Score]]) -> None:
    """Print means over seeds, by method and kind of sets."""
    rows: dict[str, dict[str, str]] = {}
    for (name, kind), by_seed in found.items():
        rows.setdefault(name, {})[kind] = "{:.3f} / {:.2f}".format(*np.mean([*by_seed.values()], 0))
    page.table(rows, title="adjusted Rand index / error of the number of clusters, means of seeds")


found: dict[tuple[str, str], dict[int, Score]] = defaultdict(dict)
for size, seed in product(SIZES, SEEDS):
    sets = new_sets(size, seed)
    methods = {kind: network_of(by_seed[seed]) for kind, by_seed in clusterers.items()}
    methods |= {"k-means, told K": k_means, "variational": variational}
    for name, method in methods.items():
        found[name, f"K <= {size}"][seed] = scores(method, sets)
table(found)


def least(function: Callable[[str, int], float]) -> dict[int, float]:
    """The smaller number of the two kinds of networks, for each seed."""
    return {seed: min(function(kind, seed) for kind in KINDS) for seed in SEEDS}


page.claim(
    "Trained on at most 4 clusters, networks of both kinds find up to 12 (adjusted Rand index, the "
    "smaller one).",
    least(lambda kind, seed: found[kind, "K <= 12"][seed][0]),
    ">=",
    0.85,
    source="Lee et al. (2019), abstract: clusters new data sets accurately; bound preregistered",
)
page.claim(
    "On up to 12 clusters they are as accurate as on up to 4 (difference of adjusted Rand indices, "
    "the smaller one).",
    least(lambda kind, seed: found[kind, "K <= 12"][seed][0] - found[kind, "K <= 4"][seed][0]),
    ">=",
    -0.08,
    source="Lee et al. (2019): more clusters than in training; bound preregistered",
)
page.claim(
    "They know how many of up to 12 clusters there are (mean error, the larger one).",
    {seed: max(found[kind, "K <= 12"][seed][1] for kind in KINDS) for seed in SEEDS},
    "<",
    1.2,
    source="Lee et al. (2019): the number of clusters need not be known; bound preregistered",
)
page.claim(
    "They are nearer to the number of up to 12 clusters than the variational mixture (its error "
    "less the network's, the smaller difference).",
    least(lambda k, s: found["variational", "K <= 12"][s][1] - found[k, "K <= 12"][s][1]),
    ">",
    0.0,
    source="Lee et al. (2019): against a variational mixture of Gaussians",
)

# %%
figure, panels = plt.subplots(2, 4, figsize=(10, 4.8), layout="constrained")
with seeded(7):
    examples = [gaussian_mixtures(1, 300, size, 3.0) for size in (4, 8, 12, 16)]
for column, (x, labels) in zip(panels.T, examples, strict=True):
    own = clusterers["anchored"][SEEDS[0]].cluster(x[0], seed=0).labels
    for axes, (name, chosen) in zip(column, (("truth", labels[0]), ("network", own)), strict=True):
        axes.scatter(*x[0].T, s=4, c=chosen, cmap="tab20", vmin=0, vmax=19)
        axes.set(title=f"{name}, K = {len(chosen.unique())}", xticks=[], yticks=[])
page.figure("clusterings", figure)

# %% [markdown]
# ## Images
#
# Images of handwritten digits, as 64 principal components of their pixels. An anchored network
# without a density learns on images of digits 0 to 6; then it clusters others of the same digits,
# at most 4 digits as in training and at most 7; and at last digits 7 to 9, which it has not seen.
# Sets of a single digit are left out, since their index is zero or one.

# %%
WIDTH = 64
mnist = load_mnist_5k()
source_rows = torch.cat([mnist.train_indices, mnist.test_indices]).argsort()
pixels = torch.cat([mnist.train_inputs, mnist.test_inputs])[source_rows].flatten(1)
digits = torch.cat([mnist.train_targets, mnist.test_targets])[source_rows]
pixels = (pixels * mnist.input_scale.flatten() + mnist.input_loc.flatten()) / 255
is_even = torch.arange(len(pixels)) % 2 == 0
centered = pixels - pixels[is_even].mean(0)
axes_of_even = torch.linalg.svd(centered[is_even], full_matrices=False).Vh[:WIDTH]
components = centered @ axes_of_even.T
is_known = digits < 7


def image_clusterer(seed: int) -> AmortizedClusterer:
    """A network for images of the first seven digits."""
    chosen = is_even & is_known
    tasks = partial(labeled_mixtures, components[chosen], digits[chosen], 16, (18, 60))
    with seeded(spawn_seed(seed, 2)):
        layers = nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.2), nn.Linear(WIDTH, WIDTH)
        sizes: Any = {"width": WIDTH, "num_blocks": 1, "num_inducing": 8, "anchored": True}
        network = FilteringNetwork(WIDTH, None, embedding=nn.Sequential(*layers), **sizes)
    clusterer = AmortizedClusterer(network, standardize=False)
    adam = partial(torch.optim.Adam, lr=1e-3, weight_decay=1e-4, fused=True)
    clusterer.fit(tasks, IMAGE_STEPS, optimizer=adam, seed=seed, progress=False)
    return clusterer


def image_sets(chosen: Tensor, max_clusters: int, seed: int) -> Sets:
    """Sets of test images, of two digits or more."""
    images = components[~is_even & chosen], digits[~is_even & chosen]
    with seeded(spawn_seed(seed, 3, max_clusters)):
        drawn = [labeled_mixtures(*images, 1, (24, 80), max_clusters) for _ in range(60)]
    several = [(x[0], labels[0]) for x, labels in drawn if len(labels.unique()) > 1]
    return several[:2] if page.smoke else several


TESTS = {"digits 0 to 6, K <= 4": (is_known, 4), "digits 0 to 6, K <= 7": (is_known, 7)}
TESTS["digits 7 to 9, K <= 3"] = (~is_known, 3)
images: dict[tuple[str, str], dict[int, Score]] = defaultdict(dict)
for seed in SEEDS:
    network = network_of(image_clusterer(seed))
    for name, (chosen, size) in TESTS.items():
        sets = image_sets(chosen, size, seed)
        images[name, "anchored"][seed] = scores(network, sets)
        images[name, "k-means, told K"][seed] = scores(k_means, sets)
table(images)
lead = {
    test: {s: images[test, "anchored"][s][0] - images[test, "k-means, told K"][s][0] for s in SEEDS}
    for test in TESTS
}
page.claim(
    "On other images of digits that it knows, an anchored network beats k-means (difference of "
    "adjusted Rand indices, up to 4 clusters).",
    lead["digits 0 to 6, K <= 4"],
    ">=",
    0.2,
    source="Lee et al. (2019), abstract: image data; data and bound preregistered",
    central=True,
)
page.claim(
    "So it does with more clusters than in training (difference of adjusted Rand indices, up to 7 "
    "clusters).",
    lead["digits 0 to 6, K <= 7"],
    ">=",
    0.2,
    source="Lee et al. (2019), abstract: image data; data and bound preregistered",
)

# %% [markdown]
# ## In use
#
# Train an `AmortizedClusterer` on sets like yours. Its clusters are starts for MCMC, or an answer
# themselves; their number may be new, but not what a cluster is. Digits that it has not seen it
# clusters worse than k-means: seven classes are too few to learn what a class is.

# %%
page.finish({"steps": [NUM_STEPS, IMAGE_STEPS], "sets": NUM_SETS})
