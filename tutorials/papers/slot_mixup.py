"""Slot-Mixup with subsampling: one label for a bag of instances."""

# %% [markdown]
# # Slot-Mixup with subsampling
#
# S. Keum, S. Kim, S. Lee, J. Lee (2023), Slot-Mixup with subsampling: a simple regularization for
# WSI classification. **This page is a reconstruction**: neither the paper's code nor all of its
# settings are public, so the layout and sizes of the network, the optimizer and the data are ours.
#
# A slide of tissue is a bag of thousands of patches with one label, and there are few slides. The
# paper has two remedies against overfitting. *Subsampling*: each training step sees a random part
# of a bag. *Slot-Mixup*: attention from a few queries, the same for all bags, summarizes a bag of
# any size by as many slots, and two bags are mixed slot by slot, together with their labels. Both
# should improve predictions and calibration, and keep attention off just a few patches.
#
# Here instances are images of handwritten digits. A bag is positive if there are nines in it.
#
# `pyro-ext reproduce slot-mixup` runs the page, and so does
# `python tutorials/papers/slot_mixup.py`. Both print a table of claims and save it with the figures
# in `figures/slot-mixup`.

# %%
from collections.abc import Callable, Iterable
from functools import partial
from math import comb
from statistics import fmean
from typing import NamedTuple

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from pyro_ext.datasets import load_mnist_5k
from pyro_ext.diagnostics.metrics import accuracy, calibration_bins, ece, nll
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
BLUE, RED, YELLOW, GRAY = "#2a6f97", "#d1495b", "#e09f3e", "#8d99ae"

# %% [markdown]
# ## The bags
#
# An instance is an image by its scores on the 64 principal components of 2,500 training images. A
# bag has 20 to 60 of them. Two settings: 200 training bags with four nines in each positive one,
# and 100 with two; negative bags have none. The 400 test bags are made of 2,500 other images.


# %%
class Setting(NamedTuple):
    """How hard it is."""

    num_positive: int
    num_bags: int
    num_epochs: int


class Bags(NamedTuple):
    """Bags as tensors, with padding."""

    rows: Tensor
    x: Tensor
    mask: Tensor
    labels: Tensor


SETTINGS = {
    "four nines": Setting(4, page.length(200, smoke=20), page.length(40, smoke=2)),
    "two nines": Setting(2, page.length(100, smoke=20), page.length(60, smoke=2)),
}
NUM_FEATURES, MIN_SIZE, MAX_SIZE = 64, 20, 60
images = load_mnist_5k(num_train=2500, num_test=2500)
components = PCA(NUM_FEATURES, svd_solver="covariance_eigh").fit(images.train_inputs.flatten(1))


def scores(pixels: Tensor) -> Tensor:
    """Features of images."""
    return torch.from_numpy(components.transform(pixels.flatten(1).numpy())).float()


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


train_x, test_x = scores(images.train_inputs), scores(images.test_inputs)

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


NUM_SVI_STEPS = page.length(150, smoke=3)
with seeded(0):
    toy, toy_labels = torch.randn(600, 40, 8), torch.arange(600) % 2
    toy[1::2, :2, 0] += 3.0
halved = subsample_instances("instances", 0.5)(bag_model)
for name, model in {"whole bags": bag_model, "random halves": halved}.items():
    pyro.clear_param_store()
    with seeded(1):
        own = SlotMIL(8, 2, num_slots=4, hidden_size=32)
        svi = SVI(model, lambda *_: None, pyro.optim.ClippedAdam({"lr": 3e-3}), Trace_ELBO())
        bounds = [-svi.step(own, toy[:100], toy_labels[:100]) / 100 for _ in range(NUM_SVI_STEPS)]
    new = pyro.poutine.trace(bag_model).get_trace(own, toy[100:], toy_labels[100:])
    fitted = f"{fmean(bounds[-20:]):.2f} in training, {new.log_prob_sum() / 500:.2f} in new bags"
    print(f"{name}: log density of a label {fitted}")
pyro.clear_param_store()
print(f"a half has neither shifted instance with probability {comb(38, 20) / comb(40, 20):.4f}")

# %% [markdown]
# With whole bags the network learns the labels by heart. Random halves prevent that, although some
# halves of positive bags keep their label without a shifted instance. In the experiment below,
# `submix_loss` is minus this ELBO per bag; it draws a half for each bag, and can also mix bags.
#
# ## What is compared
#
# Slots with neither, one or both of the remedies; gated attention pooling (Ilse et al., 2018), the
# usual rival, with and without subsampling; and means and maxima of features. Mixing begins after
# eight epochs, with uniform weights. All train with the same settings of Adam, and see whole bags
# in the test. A seed stands for the mean over two runs, each with bags and starts of its own.


# %%
class Pooled(nn.Module):
    """A layer, its mean or maximum over the instances of a bag, and another layer."""

    def __init__(self, pool: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool
        self.encoder = nn.Sequential(nn.Linear(NUM_FEATURES, 64), nn.ReLU())
        self.output = nn.Linear(64, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Logits of bags."""
        logits: Tensor = self.output(self.pool(self.encoder(x), mask[..., None]))
        return logits


def mean_of(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over instances."""
    return (hidden * mask).sum(-2) / mask.sum(-2)


def maximum_of(hidden: Tensor, mask: Tensor) -> Tensor:
    """Maximum over instances, of features that are not negative."""
    return (hidden * mask).amax(-2)


class Method(NamedTuple):
    """A network, and how it is trained."""

    network: Callable[[], nn.Module]
    rate: float = 1.0
    alpha: float | None = None


new_slots = partial(SlotMIL, NUM_FEATURES, 2, num_slots=8, hidden_size=64)
new_gated = partial(GatedABMIL, NUM_FEATURES, 2, hidden_size=64)
METHODS = {
    "mean": Method(partial(Pooled, mean_of)),
    "maximum": Method(partial(Pooled, maximum_of)),
    "gated attention": Method(new_gated),
    "gated attention + sub": Method(new_gated, rate=0.5),
    "slots": Method(new_slots),
    "slots + sub": Method(new_slots, rate=0.5),
    "slots + mix": Method(new_slots, alpha=1.0),
    "slots + sub + mix": Method(new_slots, rate=0.5, alpha=1.0),
}
NUM_RUNS = page.length(2, smoke=1)
NUM_EPOCHS_UNMIXED = page.length(8, smoke=1)
adam = partial(torch.optim.Adam, lr=1e-3, weight_decay=1e-4)


class Run(NamedTuple):
    """A trained network, and what it says of test bags."""

    network: nn.Module
    test: Bags
    probabilities: Tensor


def train(method: Method, bags: Bags, num_epochs: int, seed: int) -> nn.Module:
    """A network with a start of its own."""
    torch.manual_seed(seed)
    network = method.network()
    batches = ShuffledBatches(bags.x, bags.labels, bags.mask, batch_size=20)
    generator = torch.Generator().manual_seed(seed)
    trainer = Trainer(network, adam, stateful=[generator], seed=seed)

    def loss(x: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        alpha = method.alpha if trainer.num_steps >= NUM_EPOCHS_UNMIXED * len(batches) else None
        return submix_loss(
            network, x, labels, mask, rate=method.rate, alpha=alpha, generator=generator
        )

    trainer.run(loss, num_epochs * len(batches), batches, progress=False)
    return network


@torch.no_grad()
def predicted(network: nn.Module, bags: Bags) -> Tensor:
    """Probabilities of classes, with all instances."""
    logits: Tensor = network(bags.x, bags.mask)
    return logits.softmax(-1)


def runs_of(setting: Setting, seed: int) -> dict[str, list[Run]]:
    """Runs of all methods, on the same bags."""
    found: dict[str, list[Run]] = {name: [] for name in METHODS}
    for run in range(NUM_RUNS):
        of_train, of_test, of_start = (spawn_seed(seed, run, part) for part in range(3))
        nines = setting.num_positive
        bags = draw_bags(train_x, images.train_targets, setting.num_bags, nines, of_train)
        test = draw_bags(test_x, images.test_targets, NUM_TEST_BAGS, nines, of_test)
        for name, method in METHODS.items():
            network = train(method, bags, setting.num_epochs, of_start)
            found[name].append(Run(network, test, predicted(network, test)))
    return found


NUM_TEST_BAGS = page.length(400, smoke=20)
RUNS = {name: {seed: runs_of(each, seed) for seed in SEEDS} for name, each in SETTINGS.items()}

# %% [markdown]
# ## How good, and how sure
#
# The area under the curve (AUC) measures the order of bags; the negative log likelihood (NLL) and
# the expected calibration error (ECE) measure probabilities.


# %%
@torch.no_grad()
def weights_of(run: Run) -> Tensor:
    """Attention to each instance of test bags; of slots the mean over them and heads."""
    assert isinstance(run.network, SlotMIL | GatedABMIL)
    weights = run.network.attention(run.test.x, run.test.mask)
    return weights.mean((-3, -2)) if isinstance(run.network, SlotMIL) else weights


def weight_of_nines(run: Run) -> float:
    """Mean over positive bags."""
    are_nines = images.test_targets[run.test.rows] == 9
    return float((weights_of(run) * are_nines).sum(-1)[run.test.labels == 1].mean())


METRICS: dict[str, Callable[[Run], float]] = {
    "accuracy": lambda run: accuracy(run.probabilities, run.test.labels),
    "AUC": lambda run: float(roc_auc_score(run.test.labels, run.probabilities[:, 1])),
    "NLL": lambda run: nll(run.probabilities, run.test.labels),
    "ECE": lambda run: ece(run.probabilities, run.test.labels),
    "on a tenth": lambda run: float(attention_concentration(weights_of(run), run.test.mask).mean()),
    "on nines": weight_of_nines,
}


def measured(setting: str, method: str, metric: str) -> dict[int, float]:
    """Means over the runs of each seed."""
    return {
        seed: fmean(METRICS[metric](run) for run in by_method[method])
        for seed, by_method in RUNS[setting].items()
    }


def print_table(setting: str, methods: Iterable[str], *metrics: str) -> None:
    """Means over seeds."""
    rows = {
        method: {metric: fmean(measured(setting, method, metric).values()) for metric in metrics}
        for method in methods
    }
    page.table(rows, title=setting)
    print()


for setting in SETTINGS:
    print_table(setting, METHODS, "accuracy", "AUC", "NLL", "ECE")

# %% [markdown]
# With four nines, subsampling alone improves the order of bags. Mixup adds to it where data are
# few, and makes probabilities less confident. Gated attention orders bags better in both settings,
# and has the lowest NLL with four nines; with two, a mean of features has.


# %%
def ratios(setting: str, metric: str, *rivals: str) -> dict[int, float]:
    """Of slots with both remedies over the best of its rivals."""
    both = measured(setting, "slots + sub + mix", metric)
    others = [measured(setting, rival, metric) for rival in rivals]
    return {seed: both[seed] / min(other[seed] for other in others) for seed in SEEDS}


def gain(rival: str) -> dict[int, float]:
    """AUC of slots with both remedies minus that of a rival, with four nines."""
    both, other = (measured("four nines", name, "AUC") for name in ("slots + sub + mix", rival))
    return {seed: both[seed] - other[seed] for seed in SEEDS}


page.claim(
    "With four nines, slots order bags better if they are trained with subsampling and mixup "
    "(difference of AUC).",
    gain("slots"),
    ">=",
    0.03,
    source="Keum et al. (2023), abstract: better generalization; data and bound preregistered",
)
page.claim(
    "With four nines, both together at least halve the negative log likelihood of slots (ratio).",
    ratios("four nines", "NLL", "slots"),
    "<=",
    0.5,
    source="Keum et al. (2023), abstract: better calibration; data and bound preregistered",
)
page.claim(
    "With two nines and half as many bags they halve it, too (ratio).",
    ratios("two nines", "NLL", "slots"),
    "<=",
    0.5,
    source="Keum et al. (2023), abstract: better calibration; data and bound preregistered",
)
page.claim(
    "With two nines, both together reduce the calibration error of slots (ratio of ECE).",
    ratios("two nines", "ECE", "slots"),
    "<=",
    0.6,
    source="Keum et al. (2023), abstract: better calibration; data and bound preregistered",
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
    gain("gated attention"),
    ">",
    0.0,
    source="Keum et al. (2023), abstract: better than the state of the art",
    reason="a nine makes a bag positive by itself, which one attention finds: with gates it has "
    "nine tenths of its weight on the four nines, and little is left for slots to add",
)

# %% [markdown]
# How often predictions of some confidence are right, over all seeds and runs.

# %%
COLORS = dict(zip(list(METHODS)[4:], (GRAY, YELLOW, RED, BLUE), strict=True))
figure, panels = plt.subplots(1, 2, figsize=(7.2, 3.4), sharey=True, layout="constrained")
for axes, (setting, by_seed) in zip(panels, RUNS.items(), strict=True):
    for method, color in COLORS.items():
        runs = [run for by_method in by_seed.values() for run in by_method[method]]
        probabilities = torch.cat([run.probabilities for run in runs])
        labels = torch.cat([run.test.labels for run in runs])
        bins = calibration_bins(probabilities, labels, 10)
        filled = bins.counts > 0
        axes.plot(bins.confidence[filled], bins.accuracy[filled], "o-", color=color, label=method)
    axes.axline((0.5, 0.5), slope=1.0, color="black", lw=0.8, ls=":")
    axes.set(title=setting, xlabel="confidence", xlim=(0.48, 1.02), ylim=(0.3, 1.02))
panels[0].set_ylabel("fraction that is right")
panels[0].legend(frameon=False, fontsize=8)
page.figure("reliability", figure, despine=True)

# %% [markdown]
# ## Where attention goes
#
# How much of the attention is on the tenth of the instances that gets most of it, and how much on
# the nines of a positive bag? Even attention has 0.10 on a tenth, and 0.11 or 0.05 on nines, and
# plain slots are near to that. Subsampling moves them to the nines. Gated attention is on few
# instances, and on fewer without subsampling, as the paper says; no claim was made of that.

# %%
for setting in SETTINGS:
    print_table(setting, list(METHODS)[2:], "on a tenth", "on nines")
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

# %% [markdown]
# One positive bag: the instances that get most attention, with their weights. Nines have a frame.

# %%
NUM_SHOWN, BAG = 10, 1
figure, panels = plt.subplots(4, NUM_SHOWN, figsize=(8.4, 4.6), layout="constrained")
for row, method in zip(panels, COLORS, strict=True):
    run = RUNS["four nines"][SEEDS[0]][method][0]
    weights = weights_of(run)[BAG]
    for axes, position in zip(row, weights.argsort(descending=True).tolist(), strict=False):
        image = run.test.rows[BAG, position]
        axes.imshow(images.test_inputs[image, 0].numpy(), cmap="gray_r")
        axes.set_title(f"{weights[position]:.3f}", fontsize=8)
        is_nine = int(images.test_targets[image]) == 9
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=RED if is_nine else "0.85", linewidth=2.5 if is_nine else 1.0)
    row[0].set_ylabel(method.replace("slots + sub + mix", "sub + mix"), fontsize=8)
page.figure("attention", figure)

# %%
settings = {name: setting._asdict() for name, setting in SETTINGS.items()}
page.finish({"settings": settings, "runs of a seed": NUM_RUNS, "test bags": NUM_TEST_BAGS})
