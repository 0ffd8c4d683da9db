"""Stochastic representations: classifiers of long tails that learn from averages of weights."""

# %% [markdown]
# # Stochastic representations for long tails
#
# Where most examples are of a few classes, a network neglects the others. Decoupled training learns
# the representation from the data as they are, and then trains the classifier alone, with classes
# in balance. G. Nam, S. Jang, J. Lee (2023), Decoupled training for long-tailed classification with
# stochastic representations, take an average of weights (SWA) as the extractor, and give the
# classifier several representations of each image, by networks around the average (SWAG), from
# which it distills itself. They report better accuracy and uncertainty estimates than of earlier
# ways to balance a classifier. Rivals here are three of these on a network trained by SGD: a new
# classifier, learned factors of the logits, and logits less log frequencies.
#
# `pyro-ext reproduce long-tailed-srepr` runs the page.

# %%
import math
from functools import partial
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Predictive
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from pyro_ext.datasets import load_mnist_5k, random_shifts
from pyro_ext.diagnostics.metrics import ece, nll
from pyro_ext.inference import Trainer
from pyro_ext.inference.averaging import SWAG
from pyro_ext.inference.training import ShuffledBatches
from pyro_ext.models.ensembles import (
    BalancedBatches,
    LearnableScales,
    StochasticRepresentations,
    accuracy_by_count,
    exponential_profile,
    logit_adjusted,
)
from pyro_ext.nn import MLP
from pyro_ext.random import seeded
from pyro_ext.reproduction import Page

page = Page(
    "long-tailed-srepr",
    paper="G. Nam, S. Jang, J. Lee (2023), Decoupled training for long-tailed classification with "
    "stochastic representations, arXiv 2304.09426",
    reconstruction="the section on the method was not at hand; loss, weight, temperature and "
    "numbers of draws are ours.",
)
SEEDS = page.seeds

# %% [markdown]
# ## The data
#
# Digits, of which there are 300 zeros and 3 nines to train with, and 150 of each to test with.

# %%
COUNTS = exponential_profile(300, 10, 100.0)
images = load_mnist_5k()
order = torch.cat([images.train_indices, images.test_indices]).argsort()
pixels = torch.cat([images.train_inputs, images.test_inputs])[order]
pixels = (pixels * images.input_scale + images.input_loc) / 255
digits = torch.cat([images.train_targets, images.test_targets])[order]


def split(seed: int) -> SimpleNamespace:
    """Part the images of each class."""
    generator = torch.Generator().manual_seed(seed)
    every = [(digits == digit).nonzero()[:, 0] for digit in range(10)]
    every = [own[torch.randperm(len(own), generator=generator)] for own in every]
    train = torch.cat([own[:count] for own, count in zip(every, COUNTS.tolist(), strict=True)])
    test = torch.cat([own[-150:] for own in every])
    return SimpleNamespace(train=(pixels[train], digits[train]), test=(pixels[test], digits[test]))


shifted = partial(random_shifts, max_shift=2)

# %% [markdown]
# ## The first stage
#
# Two networks on the same data: one whose learning rate falls to zero, and one whose rate stays at
# 0.02 in the last quarter, where every fifth step gives weights to the average.

# %%
NUM_STEPS, WARM = page.length(720, smoke=80), 0.75
sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def rate(step: int) -> float:
    """Factor of the learning rate: a cosine, and then a constant."""
    done = min(step / (WARM * NUM_STEPS), 1.0)
    return 0.4 + 0.6 * (1.0 + math.cos(math.pi * done)) / 2


def trained(rows: tuple[Tensor, Tensor], seed: int, schedule: Any, *swags: SWAG) -> nn.Sequential:
    """A network, as a sequence of extractor and classifier; collectors follow its weights."""
    torch.manual_seed(seed)
    *hidden, last = MLP(784, [128, 128], 10, nn.ReLU)
    network = nn.Sequential(nn.Sequential(nn.Flatten(), *hidden), last)
    trainer = Trainer(network, sgd, scheduler=schedule, stateful=swags, seed=seed)

    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        if swags and trainer.num_steps >= WARM * NUM_STEPS and trainer.num_steps % 5 == 0:
            for swag, part in zip(swags, (network[0], network), strict=True):
                swag.collect(part)
        return cross_entropy(network(shifted(inputs)), labels)

    trainer.run(loss, NUM_STEPS, ShuffledBatches(*rows, batch_size=64), progress=False)
    return network


bases = {}
for seed in SEEDS:
    data, extractors, whole = split(seed), SWAG(), SWAG()
    plain = trained(data.train, seed, partial(CosineAnnealingLR, T_max=NUM_STEPS))
    path = trained(data.train, seed, partial(LambdaLR, lr_lambda=rate), extractors, whole)
    networks = {"SGD": plain, "SWA": whole.module(path)}
    bases[seed] = SimpleNamespace(data=data, networks=networks, extractors=extractors, whole=whole)

# %% [markdown]
# ## Stochastic representations as a Pyro program
#
# The weights along the end of the second training have a normal distribution, and so are a site: an
# extractor drawn from it gives each image a representation, which the classifier sees. `Predictive`
# of this model gives what the second stage below learns from. Where representations of rare classes
# are as steady as others and their labels are wrong, the classifier is what needs more training.


# %%
def drawn_representations(images: Tensor) -> None:
    """Draw an extractor from the end of its training, and labels of images with it."""
    extractor, head = some.networks["SWA"]
    vector = pyro.sample("extractor", some.extractors.distribution())
    weights = some.extractors.weights(vector)
    representation = functional_call(extractor, weights, images)
    pyro.deterministic("representation", representation, event_dim=1)
    with pyro.plate("images", len(images)):
        pyro.sample("label", dist.Categorical(logits=head(representation)))


some = bases[SEEDS[0]]
with seeded(0), torch.no_grad():
    predictive = Predictive(drawn_representations, num_samples=page.length(50, smoke=4))
    drawn = predictive(some.data.test[0])
    _, labels = some.data.test
representation, right = drawn["representation"], (drawn["label"] == labels).float().mean(0)
spread = representation.std(0).norm(dim=-1) / representation.mean(0).norm(dim=-1)
is_rare = (COUNTS < COUNTS.median())[labels]
for name, rows in {"common": ~is_rare, "rare": is_rare}.items():
    varies = f"representations vary by {spread[rows].mean():.0%}"
    print(f"{name} classes: {varies}, {right[rows].mean():.0%} of drawn labels are right")

# %% [markdown]
# ## The second stage
#
# Classifiers on frozen extractors: a new one with balanced minibatches (cRT), learned factors of
# the logits (LWS), and logits less log frequencies. Those two that are trained also take stochastic
# representations of eight draws: as further inputs alone, or with distillation in several forms.

# %%
NUM_RETRAINING = page.length(400, smoke=10)


def retrained(
    base: SimpleNamespace, name: str, kind: str, seed: int, variant: str = "", **options: Any
) -> StochasticRepresentations:
    """A classifier with balanced minibatches."""
    extractor, classifier = base.networks[name]
    torch.manual_seed(seed)
    head = nn.Linear(128, 10) if kind == "cRT" else LearnableScales(classifier)
    swag, options["variant"] = (base.extractors, variant) if variant else (None, "none")
    model = StochasticRepresentations(extractor, swag, head, seed=seed, **options)
    batches = BalancedBatches(*base.data.train, batch_size=64)
    cosine = partial(CosineAnnealingLR, T_max=NUM_RETRAINING)
    training: Any = {"scheduler": cosine, "augment": shifted, "seed": seed, "progress": False}
    model.fit(batches, NUM_RETRAINING, **training)
    return model


by_seed: dict[int, dict[str, dict[str, float]]] = {seed: {} for seed in SEEDS}
for seed, base in bases.items():
    models: dict[str, nn.Module] = {}
    for name, network in base.networks.items():
        models[name] = network
        models[f"{name}, logits"] = nn.Sequential(network[0], logit_adjusted(network[1], COUNTS))
        for kind in ("cRT", "LWS"):
            models[f"{name}, {kind}"] = retrained(base, name, kind, seed)
    for kind in ("cRT", "LWS"):
        for variant in ("none", "kd", "kd_weighted", "dirichlet"):
            models[f"SRepr, {kind}, {variant}"] = retrained(base, "SWA", kind, seed, variant)
        models[f"SRepr, {kind}, wide kd"] = retrained(base, "SWA", kind, seed, "kd", scale=2.0)
    inputs, labels = base.data.test
    for name, model in models.items():
        probs = model.eval()(inputs).softmax(-1).detach()
        scores = {"NLL": nll(probs, labels), "ECE": ece(probs, labels)}
        by_seed[seed][name] = accuracy_by_count(probs, labels, COUNTS) | scores

# %% [markdown]
# The table has means over seeds; groups are classes with more than 100, 20 to 100, and fewer than
# 20 training images. NLL is the mean negative log likelihood, ECE the expected calibration error.
# Logits less log frequencies on the average, for which nothing is trained, are more accurate and
# more likely than all classifiers that are. Other forms of distillation, by weights of examples
# (`kd_weighted`), of Dirichlet distributions, or from wider draws, give no more.

# %%
METHODS, COLUMNS = list(by_seed[SEEDS[0]]), ("all", "many", "medium", "few", "NLL", "ECE")
table = {
    name: {column: fmean(row[name][column] for row in by_seed.values()) for column in COLUMNS}
    for name in METHODS
}
page.table(table, title="method")


def gain(column: str, first: str, second: str) -> dict[int, float]:
    """Subtract the score of one method from that of another."""
    return {seed: by_seed[seed][first][column] - by_seed[seed][second][column] for seed in SEEDS}


page.claim(
    "Classifiers that are retrained in balance are more accurate than the network (least gain over "
    "all kinds of cRT).",
    {
        seed: min(row[name]["all"] for name in METHODS if "cRT" in name) - row["SWA"]["all"]
        for seed, row in by_seed.items()
    },
    ">=",
    0.06,
    source="Nam et al. (2023), abstract: decoupled training; bound preregistered",
    across="mean",
)
page.claim(
    "With learned factors the average is a better extractor (gain in accuracy over SGD).",
    gain("all", "SWA, LWS", "SGD, LWS"),
    ">=",
    0.003,
    source="Nam et al. (2023), abstract: SWA improves the extractor; bound preregistered",
    across="mean",
)
page.claim(
    "Distillation from stochastic representations improves the likelihood of LWS on the average "
    "(difference of NLL).",
    gain("NLL", "SRepr, LWS, kd", "SWA, LWS"),
    "<=",
    -0.008,
    source="Nam et al. (2023), abstract: uncertainty estimates; bound preregistered",
    across="mean",
)
page.claim(
    "It improves the calibration of LWS on the average (difference of ECE).",
    gain("ECE", "SRepr, LWS, kd", "SWA, LWS"),
    "<",
    0.0,
    source="Nam et al. (2023), abstract: uncertainty estimates",
    across="mean",
)
page.claim(
    "It costs LWS on the average no accuracy (loss of accuracy).",
    gain("all", "SWA, LWS", "SRepr, LWS, kd"),
    "<=",
    0.005,
    source="Nam et al. (2023), abstract; bound preregistered",
    across="mean",
)


def against_decoupled(column: str, pick: Any) -> dict[int, float]:
    """Worst difference to the same classifier on the network trained by SGD."""
    pairs = [gain(column, f"SRepr, {kind}, kd", f"SGD, {kind}") for kind in ("cRT", "LWS")]
    return {seed: pick(pair[seed] for pair in pairs) for seed in SEEDS}


page.claim(
    "Average and stochastic representations together are at least as accurate as decoupled "
    "training by SGD, with cRT and with LWS (lesser gain).",
    against_decoupled("all", min),
    ">=",
    0.0,
    source="Nam et al. (2023), abstract: better than earlier decoupled methods",
    across="mean",
    central=True,
)
page.claim(
    "Together they are better calibrated than decoupled training by SGD, with cRT and with LWS "
    "(larger difference of ECE).",
    against_decoupled("ECE", max),
    "<",
    0.0,
    source="Nam et al. (2023), abstract: better uncertainty estimates than decoupled methods",
    across="mean",
    reason="it is so for LWS; a new classifier in balance is calibrated before, and distillation "
    "from its own predictions makes it less sure than it is accurate",
)

# %%
SHOWN = ["SGD", "SWA, logits", "SGD, LWS", "SRepr, LWS, kd", "SGD, cRT", "SRepr, cRT, kd"]
figure, axes = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
for name in SHOWN:
    axes.plot(COLUMNS[1:4], [table[name][group] for group in COLUMNS[1:4]], "o-", label=name)
axes.set(xlabel="training images of the class", ylabel="accuracy")
axes.legend(fontsize=8)
page.figure("accuracy", figure, despine=True)

# %% [markdown]
# ## In use
#
# Average the weights first. Then subtract log frequencies from the logits, which gains most, or
# retrain the classifier in balance. `StochasticRepresentations` help where it keeps rows of the
# first stage, which are too sure of themselves; a new classifier does not need them.

# %%
page.finish({"counts": COUNTS.tolist(), "steps": NUM_STEPS, "means": table})
