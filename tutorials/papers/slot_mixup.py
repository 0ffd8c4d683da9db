"""Slot-Mixup with subsampling: one label for a bag of instances."""

# %% [markdown]
# # Slot-Mixup with subsampling
#
# S. Keum, S. Kim, S. Lee, J. Lee (2023), Slot-Mixup with subsampling: a simple regularization for
# WSI classification. **This page is a reconstruction**: neither the paper's code nor all of its
# settings are public, so the layout and sizes of the network, the optimizer and the data are ours.
#
# A slide of tissue is a *bag* of thousands of patches, its *instances*, with one label, and there
# are few slides. The paper has two remedies against overfitting. *Subsampling*: each training step
# sees a random part of a bag. *Slot-Mixup*: attention from a few queries, the same for all bags,
# summarizes a bag of any size by as many slots, and two bags are mixed slot by slot, together with
# their labels. Both together should improve predictions, also over the state of the art, and
# calibration, and keep attention off just a few patches.
#
# Here instances are images of handwritten digits. A bag is positive if there are nines in it. The
# rival is gated attention pooling. `pyro-ext reproduce slot-mixup` runs the page.

# %%
from collections import defaultdict
from functools import partial
from itertools import product
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from pyro_ext.datasets import load_mnist_5k
from pyro_ext.diagnostics.metrics import calibration_bins, ece, nll
from pyro_ext.handlers import subsample_instances
from pyro_ext.inference import Trainer
from pyro_ext.inference.training import ShuffledBatches
from pyro_ext.models.sets import GatedABMIL, SlotMIL, attention_concentration, submix_loss
from pyro_ext.random import seeded, spawn_seed
from pyro_ext.reproduction import Page

page = Page(
    "slot-mixup",
    paper="S. Keum, S. Kim, S. Lee, J. Lee (2023), Slot-Mixup with subsampling: a simple "
    "regularization for WSI classification, arXiv 2311.17466",
    reconstruction="neither code nor all settings are public; layout, sizes, optimizer and data "
    "are ours.",
)
SEEDS = page.seeds
CALIBRATION = "Keum et al. (2023), abstract: better calibration; data and bound preregistered"

# %% [markdown]
# ## Bags as a Pyro program
#
# Instances are in one plate, and the bags, which have the labels, are in another. To train on
# random halves of the bags, put `subsample_instances` around the model: unlike `subsample_size`, it
# does not scale densities up. Two of the 40 instances of a positive bag here are shifted.


# %%
def bag_model(network: nn.Module, x: Tensor, labels: Tensor | None = None) -> Tensor:
    """A network of the instances gives the probabilities of a bag's label."""
    pyro.module("network", network)
    with pyro.plate("instances", x.shape[1]) as index:
        bags = x[:, index]
    with pyro.plate("bags", len(x)):
        return pyro.sample("label", dist.Categorical(logits=network(bags)), obs=labels)


with seeded(0):
    toy, toy_labels = torch.randn(600, 40, 8), torch.arange(600) % 2
    toy[1::2, :2, 0] += 3.0
halved = subsample_instances("instances", 0.5)(bag_model)
for name, model in {"whole bags": bag_model, "random halves": halved}.items():
    pyro.clear_param_store()
    with seeded(1):
        own = SlotMIL(8, 2, num_slots=4, hidden_size=32)
        svi = SVI(model, lambda *_: None, pyro.optim.ClippedAdam({"lr": 3e-3}), Trace_ELBO())
        steps = range(page.length(150, smoke=3))
        bounds = [-svi.step(own, toy[:100], toy_labels[:100]) / 100 for _ in steps]
    new = pyro.poutine.trace(bag_model).get_trace(own, toy[100:], toy_labels[100:])
    fitted = f"{fmean(bounds[-20:]):.2f} in training, {new.log_prob_sum() / 500:.2f} in new bags"
    print(f"{name}: log density of a label {fitted}")

# %% [markdown]
# With whole bags the network learns the labels by heart. Random halves prevent that, although some
# halves of positive bags keep their label without a shifted instance. In the experiment below,
# `submix_loss` is minus this ELBO per bag; it draws a half for each bag, and can also mix bags.
#
# ## What is compared
#
# An instance is an image by its scores on the 64 principal components of training images. There are
# two settings, with four nines in each positive bag, and with two and half as many bags. Methods
# are slots with neither, one or both of the remedies, and gated attention pooling (Ilse et al.,
# 2018), the usual rival, with and without subsampling. Mixing begins after some epochs, with
# uniform weights. All train with the same settings of Adam, and see whole bags in the test. A seed
# stands for the mean over two runs, each with bags and starts of its own.


# %%
class Bags(NamedTuple):
    """Bags as tensors, with padding."""

    rows: Tensor
    x: Tensor
    mask: Tensor
    labels: Tensor


SETTINGS = {  # nines, bags, epochs
    "four nines": (4, page.length(200, smoke=20), page.length(40, smoke=2)),
    "two nines": (2, page.length(100, smoke=20), page.length(60, smoke=2)),
}
NUM_FEATURES, MIN_SIZE, MAX_SIZE = 64, 20, 60
images = load_mnist_5k(num_train=2500, num_test=2500)
components = PCA(NUM_FEATURES, svd_solver="covariance_eigh").fit(images.train_inputs.flatten(1))
train_x, test_x = (
    torch.from_numpy(components.transform(pixels.flatten(1).numpy())).float()
    for pixels in (images.train_inputs, images.test_inputs)
)


def draw_bags(x: Tensor, digits: Tensor, num_bags: int, num_nines: int, seed: int) -> Bags:
    """Every other bag is positive; the nines come first, as the order does not matter."""
    generator = torch.Generator().manual_seed(seed)

    def pick(choice: Tensor, number: int) -> Tensor:
        return choice[torch.randint(len(choice), (num_bags, number), generator=generator)]

    labels = torch.arange(num_bags) % 2
    rows = pick((digits != 9).nonzero().flatten(), MAX_SIZE)
    nines = pick((digits == 9).nonzero().flatten(), num_nines)
    rows[:, :num_nines] = torch.where(labels[:, None] == 1, nines, rows[:, :num_nines])
    sizes = torch.randint(MIN_SIZE, MAX_SIZE + 1, (num_bags, 1), generator=generator)
    return Bags(rows, x[rows], torch.arange(MAX_SIZE) < sizes, labels)


Method = tuple[Any, float, float | None]
new_slots = partial(SlotMIL, NUM_FEATURES, 2, num_slots=8, hidden_size=64)
new_gated = partial(GatedABMIL, NUM_FEATURES, 2, hidden_size=64)
METHODS: dict[str, Method] = {  # network, rate of subsampling, concentration of weights of mixup
    "gated attention": (new_gated, 1.0, None),
    "gated attention + sub": (new_gated, 0.5, None),
    "slots": (new_slots, 1.0, None),
    "slots + sub": (new_slots, 0.5, None),
    "slots + mix": (new_slots, 1.0, 1.0),
    "slots + sub + mix": (new_slots, 0.5, 1.0),
}
NUM_RUNS, NUM_TEST_BAGS, NUM_EPOCHS_UNMIXED = page.length((2, 400, 8), smoke=(1, 20, 1))
adam = partial(torch.optim.Adam, lr=1e-3, weight_decay=1e-4)


def train(method: Method, bags: Bags, num_epochs: int, seed: int) -> nn.Module:
    """A network with a start of its own."""
    torch.manual_seed(seed)
    make, rate, alpha = method
    network: nn.Module = make()
    batches = ShuffledBatches(bags.x, bags.labels, bags.mask, batch_size=20)
    generator = torch.Generator().manual_seed(seed)
    trainer = Trainer(network, adam, stateful=[generator], seed=seed)

    def loss(x: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        is_mixed = trainer.num_steps >= NUM_EPOCHS_UNMIXED * len(batches)
        options: Any = {"rate": rate, "alpha": alpha if is_mixed else None}
        return submix_loss(network, x, labels, mask, generator=generator, **options)

    trainer.run(loss, num_epochs * len(batches), batches, progress=False)
    return network


# %% [markdown]
# ## How good, how sure, and where attention goes
#
# The area under the curve (AUC) measures the order of bags; the negative log likelihood (NLL) and
# the expected calibration error (ECE) measure probabilities. The last columns say how much of the
# attention is on the tenth of the instances that gets most of it, and on the nines of a positive
# bag. Even attention has a tenth on a tenth.


# %%
@torch.no_grad()
def measures(network: Any, test: Bags, probabilities: Tensor) -> dict[str, float]:
    """All of these, of test bags."""
    weights = network.attention(test.x, test.mask)
    if isinstance(network, SlotMIL):
        weights = weights.mean((-3, -2))  # over heads and slots
    on_nines = (weights * (images.test_targets[test.rows] == 9)).sum(-1)
    return {
        "AUC": float(roc_auc_score(test.labels, probabilities[:, 1])),
        "NLL": nll(probabilities, test.labels),
        "ECE": ece(probabilities, test.labels),
        "on a tenth": float(attention_concentration(weights, test.mask).mean()),
        "on nines": float(on_nines[test.labels == 1].mean()),
    }


runs: dict[tuple[str, str, int], list[dict[str, float]]] = defaultdict(list)
said: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = defaultdict(list)
for setting, (num_nines, num_bags, num_epochs) in SETTINGS.items():
    for seed, run in product(SEEDS, range(NUM_RUNS)):
        of_train, of_test, of_start = (spawn_seed(seed, run, part) for part in range(3))
        bags = draw_bags(train_x, images.train_targets, num_bags, num_nines, of_train)
        test = draw_bags(test_x, images.test_targets, NUM_TEST_BAGS, num_nines, of_test)
        for name, method in METHODS.items():
            network = train(method, bags, num_epochs, of_start)
            probabilities = network(test.x, test.mask).softmax(-1).detach()
            said[setting, name].append((probabilities, test.labels))
            runs[setting, name, seed].append(measures(network, test, probabilities))


def measured(setting: str, method: str, metric: str) -> dict[int, float]:
    """Means over the runs of each seed."""
    return {seed: fmean(one[metric] for one in runs[setting, method, seed]) for seed in SEEDS}


names = list(runs["four nines", "slots", SEEDS[0]][0])
for setting in SETTINGS:
    found = {m: {n: fmean(measured(setting, m, n).values()) for n in names} for m in METHODS}
    page.table(found, title=setting)

# %% [markdown]
# With four nines, subsampling alone improves the order of bags. Mixup adds to it where data are
# few, and makes probabilities less confident. Gated attention orders bags better in both settings.
# With two nines no method beats a fair coin in NLL, which is log 2: all are too sure.


# %%
def ratios(setting: str, metric: str, *rivals: str) -> dict[int, float]:
    """Of slots with both remedies over the best of its rivals."""
    both = measured(setting, "slots + sub + mix", metric)
    others = [measured(setting, rival, metric) for rival in rivals]
    return {seed: both[seed] / min(other[seed] for other in others) for seed in SEEDS}


auc = {name: measured("four nines", name, "AUC") for name in METHODS}
page.claim(
    "With four nines, slots order bags better if they are trained with subsampling and mixup "
    "(difference of AUC).",
    {s: auc["slots + sub + mix"][s] - auc["slots"][s] for s in SEEDS},
    ">=",
    0.03,
    source="Keum et al. (2023), abstract: better generalization; data and bound preregistered",
)
page.claim(
    "With four nines, both together at least halve the negative log likelihood of slots (ratio).",
    ratios("four nines", "NLL", "slots"),
    "<=",
    0.5,
    source=CALIBRATION,
)
page.claim(
    "With two nines and half as many bags they halve it, too (ratio).",
    ratios("two nines", "NLL", "slots"),
    "<=",
    0.5,
    source=CALIBRATION,
)
page.claim(
    "With two nines, both together reduce the calibration error of slots (ratio of ECE).",
    ratios("two nines", "ECE", "slots"),
    "<=",
    0.6,
    source=CALIBRATION,
)
page.claim(
    "With two nines, both together are better than each alone (ratio of NLL to the better of "
    "subsampling and mixup).",
    ratios("two nines", "NLL", "slots + sub", "slots + mix"),
    "<",
    1.0,
    source="Keum et al. (2023), abstract: the gain is that of the combination",
)
page.claim(
    "With four nines, slots with both order bags better than gated attention, which has neither "
    "(difference of AUC).",
    {s: auc["slots + sub + mix"][s] - auc["gated attention"][s] for s in SEEDS},
    ">",
    0.0,
    source="Keum et al. (2023), abstract: better than the state of the art",
    central=True,
    reason="a nine makes a bag positive by itself, which one attention finds: with gates it has "
    "nine tenths of its weight on the four nines, and little is left for slots to add",
)
page.claim(
    "With four nines, attention of slots with both is less concentrated on a tenth of the "
    "instances than that of plain slots (ratio).",
    ratios("four nines", "on a tenth", "slots"),
    "<",
    1.0,
    source="Keum et al. (2023), abstract: subsampling keeps attention from concentrating",
    reason="attention of plain slots is nearly even here, with 20 to 60 instances in a bag and "
    "not thousands, and subsampling helps it to find the nines; that of gated attention is "
    "concentrated, and less so with subsampling",
)

# %%
figure, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
for name in list(METHODS)[2:]:
    probabilities, labels = map(torch.cat, zip(*said["two nines", name], strict=True))
    bins = calibration_bins(probabilities, labels, 10)
    filled = bins.counts > 0
    axes.plot(bins.confidence[filled], bins.accuracy[filled], "o-", label=name)
axes.axline((0.5, 0.5), slope=1.0, color="black", lw=0.8, ls=":")
axes.set(title="two nines", xlabel="confidence", ylabel="fraction that is right")
axes.legend(frameon=False, fontsize=8)
page.figure("reliability", figure, despine=True)

# %% [markdown]
# ## In use
#
# Put `subsample_instances` around a model of bags, or train by `submix_loss`: subsampling helps
# slots and gated attention to order bags, and mixup tempers what a network says of few bags. Where
# one instance decides, take gated attention rather than slots.

# %%
page.finish({"runs of a seed": NUM_RUNS, "test bags": NUM_TEST_BAGS})
