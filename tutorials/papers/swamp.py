"""SWAMP: sparse networks that are averages of several particles, against single ones."""

# %% [markdown]
# # Sparse weight averaging with multiple particles
#
# Iterative magnitude pruning trains a network, removes its smallest weights, sets the others back
# to where they were early on, and begins again. M. Choi, H. Lee, G. Nam, J. Lee (2024), Sparse
# weight averaging with multiple particles for iterative magnitude pruning, change what is trained:
# several copies start from the same weights, take their minibatches in different orders and average
# their weights, along the way and with each other. The average is one sparse network, no larger
# than any of them, and decides what is pruned next.
#
# This page prunes a small network of digits to one weight in a hundred. Beside SWAMP stand its
# parts, averages of one particle and several particles without averages along the way; an ensemble
# of two pruned networks, which costs twice as much to predict with; and pruning at once.
#
# `pyro-ext reproduce swamp` runs the page, and so does `python tutorials/papers/swamp.py`. Both
# print a table of claims and save it with the figures in `figures/swamp`.

# %%
import copy
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Predictive
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from pyro_ext.datasets import load_digits
from pyro_ext.diagnostics import metrics
from pyro_ext.inference.averaging import (
    BezierPath,
    MagnitudePruner,
    SparseAverage,
    SparseWeightAveraging,
    hutchinson_trace,
    path_losses,
    snip_scores,
    synflow_scores,
)
from pyro_ext.inference.training import ShuffledBatches
from pyro_ext.nn import MLP, BayesianModule
from pyro_ext.random import seeded
from pyro_ext.reproduction import Page

page = Page(
    "swamp",
    paper="M. Choi, H. Lee, G. Nam, J. Lee (2024), Sparse weight averaging with multiple particles "
    "for iterative magnitude pruning, arXiv 2305.14852",
)
SEEDS = page.seeds
SPEC = "Choi et al. (2024)"
NUM_CYCLES = page.length(10, smoke=3)
NUM_EPOCHS = page.length(30, smoke=1)
RATE = 0.4
NOISE = (
    "no barrier lies between particles even where they are dense, so that averages change little: "
    "less than the difference varies by from seed to seed"
)
SPARSE = range(NUM_CYCLES // 2, NUM_CYCLES)  # the cycles that claims are about


# %% [markdown]
# ## SWAMP as a Pyro program
#
# The weights of a network are sites of a model of labels. `SparseWeightAveraging` trains and prunes
# that network: `particles` are the copies of its last cycle, with the mask applied, and the last
# of `run` is their average. `Predictive` takes either as draws of the sites: four draws for an
# ensemble of the particles, and a single one for the sparse average.


# %%
own = MLP(4, [64], 2)
prior = BayesianModule(own)


def sparse_model(x: Tensor, y: Tensor | None = None) -> None:
    """Labels by a network whose weights have a prior."""
    logits = pyro.deterministic("logits", prior(x), event_dim=2)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=logits), obs=y)


with seeded(0):
    toy_x = torch.randn(1300, 4)
    toy_y = dist.Bernoulli(logits=4.0 * toy_x[:, 0] * toy_x[:, 1]).sample().long()
    toy = ShuffledBatches(toy_x[:300], toy_y[:300], batch_size=30)
    pruner = MagnitudePruner(0.5)
    own_swamp = SparseWeightAveraging(own, cycle_epochs=20, pruner=pruner, seed=0)
    sparse = own_swamp.run(toy, 4, progress=False)[-1]
    ticket = own_swamp.ticket(toy, progress=False)
    four = own_swamp.particles(toy, ticket, sparse.masks, 3, progress=False)
    average = {name: value[None] for name, value in sparse.state.items()}
    for name, draws in {"four particles": four, "their average": average}.items():
        new = Predictive(sparse_model, draws)(toy_x[300:])["logits"].reshape(-1, 1000, 2)
        loss = metrics.nll(new.softmax(-1), toy_y[300:])
        print(f"{name}, {1.0 - sparse.sparsity:.0%} of the weights: NLL {loss:.3f}")

# %% [markdown]
# ## Data and methods
#
# There are 300 images to train with and 900 to test. Each cycle takes 30 epochs from the weights
# after 3, and each round of pruning removes 40 % of what is left. Averages are over the ends of the
# last 15 epochs. Each seed stands for two splits of the data, of which results are the mean.


# %%
class Problem(NamedTuple):
    """Images and labels, and a network to begin with."""

    batches: ShuffledBatches
    images: Tensor
    labels: Tensor
    network: nn.Module


def problem(split: int) -> Problem:
    """Of a permutation of all images, 300 to train with and 900 others."""
    data = load_digits(num_train=897, split_seed=split)

    def pixels(inputs: Tensor) -> Tensor:
        return (inputs * data.input_scale + data.input_loc) / 16

    torch.manual_seed(split)
    network = MLP(64, [256, 128], 10, activation=nn.ReLU)
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    batches = ShuffledBatches(
        pixels(data.train_inputs[:300]), data.train_targets[:300], batch_size=32
    )
    return Problem(batches, pixels(data.test_inputs), data.test_targets, network)


METHODS: dict[str, dict[str, Any]] = {
    "IMP": {"num_particles": 1, "swa_start": 1.0, "swa_lr": 0.0},
    "IMP + SWA": {"num_particles": 1},
    "4 particles": {"swa_start": 1.0, "swa_lr": 0.0},
    "SWAMP": {},
}


def method(name: str, seed: int, network: nn.Module, **options: Any) -> SparseWeightAveraging:
    """One of the methods, with the settings of the page."""
    settings = {"ticket_epochs": 3, "swa_start": 0.5, "pruner": MagnitudePruner(RATE)}
    return SparseWeightAveraging(
        network, cycle_epochs=NUM_EPOCHS, seed=seed, **{**settings, **METHODS[name], **options}
    )


NUM_SPLITS = page.length(2, smoke=1)
SPLITS = {seed: range(2 * seed, 2 * seed + NUM_SPLITS) for seed in SEEDS}
tasks = {split: problem(split) for pair in SPLITS.values() for split in pair}
runs: dict[str, dict[int, list[SparseAverage]]] = {
    name: {
        split: method(name, split, task.network).run(task.batches, NUM_CYCLES, progress=False)
        for split, task in tasks.items()
    }
    for name in METHODS
}
others = {  # a second network for the ensemble, from other weights in other orders
    split: method("IMP", 1000 + split, problem(1000 + split).network).run(
        task.batches, NUM_CYCLES, progress=False
    )
    for split, task in tasks.items()
}
LEVELS = [cycle.sparsity for cycle in runs["SWAMP"][SPLITS[SEEDS[0]][0]]]


# %% [markdown]
# ## Accuracy and likelihood at each sparsity


# %%
def score(task: Problem, *states: dict[str, Tensor]) -> dict[str, float]:
    """Of a network or an ensemble, on the test images."""
    with torch.no_grad():
        found = torch.stack(
            [functional_call(task.network, state, (task.images,)).softmax(-1) for state in states]
        )
    return {
        "accuracy": metrics.accuracy(found, task.labels),
        "nll": metrics.nll(found, task.labels),
    }


scores = {
    name: {split: [score(tasks[split], c.state) for c in cycles] for split, cycles in found.items()}
    for name, found in runs.items()
}
scores["2 x IMP"] = {
    split: [
        score(tasks[split], first.state, second.state)
        for first, second in zip(runs["IMP"][split], cycles, strict=True)
    ]
    for split, cycles in others.items()
}


def level(name: str, number: int, measure: str) -> float:
    """Mean over all splits at one sparsity."""
    return fmean(found[number][measure] for found in scores[name].values())


def advantage(name: str, rival: str, measure: str) -> dict[int, float]:
    """By how much one exceeds another, on average over sparse networks and a seed's splits."""
    found, others = scores[name], scores[rival]
    return {
        seed: fmean(found[s][n][measure] - others[s][n][measure] for s in pair for n in SPARSE)
        for seed, pair in SPLITS.items()
    }


for measure in ("accuracy", "nll"):
    page.table(
        {
            f"{LEVELS[number]:.3f}": {name: level(name, number, measure) for name in scores}
            for number in range(NUM_CYCLES)
        },
        title=f"{measure} at sparsity",
        number_format=".4f",
    )
cut_off = {split: cycles[-1].cut_off for split, cycles in runs["SWAMP"].items()}
print(f"units without weights in the sparsest network of SWAMP, by split: {cut_off}")
page.claim(
    "From a sparsity of 92 % to 99 % SWAMP is more accurate than IMP (mean difference).",
    advantage("SWAMP", "IMP", "accuracy"),
    ">=",
    0.003,
    source=f"{SPEC}, abstract: outperforms existing baselines; data and bound preregistered",
    across="mean",
    reason=NOISE,
)
page.claim(
    "Its negative log likelihood is lower than that of IMP (mean difference).",
    advantage("IMP", "SWAMP", "nll"),
    ">=",
    0.005,
    source=f"{SPEC}, abstract: outperforms existing baselines; data and bound preregistered",
    across="mean",
    reason=NOISE,
)
page.claim(
    "It is as accurate as averages of a single particle, or more (mean difference).",
    advantage("SWAMP", "IMP + SWA", "accuracy"),
    ">=",
    0.0,
    source=f"{SPEC}: particles and averages together are better than either; preregistered",
    across="mean",
    reason=NOISE,
)
page.claim(
    "It is as accurate as particles without averages along the way, or more (mean difference).",
    advantage("SWAMP", "4 particles", "accuracy"),
    ">=",
    0.0,
    source=f"{SPEC}: particles and averages together are better than either; preregistered",
    across="mean",
)
page.claim(
    "One network of SWAMP is on a par with an ensemble of two of IMP (mean difference of "
    "accuracies).",
    advantage("SWAMP", "2 x IMP", "accuracy"),
    ">=",
    -0.005,
    source=f"{SPEC}, abstract: performance comparable to an ensemble of two; bound preregistered",
    across="mean",
    reason="the ensemble averages over two starts as well, and gains 0.007 to 0.012 over IMP at "
    "these sparsities, more than SWAMP with four particles from one start",
)

# %%
COLORS = dict(zip(scores, ("0.6", "#e09f3e", "#76a5af", "#2a6f97", "#d1495b"), strict=True))
figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
remaining = [100 * (1 - sparsity) for sparsity in LEVELS]
for axes, measure in zip(panels, ("accuracy", "nll"), strict=True):
    for name, color in COLORS.items():
        line = [level(name, number, measure) for number in range(NUM_CYCLES)]
        style = "--" if name == "2 x IMP" else "-"
        axes.plot(remaining, line, style, marker="o", ms=3, color=color, label=name)
    axes.set(xscale="log", xlabel="remaining weights, %", ylabel=measure)
    axes.invert_xaxis()
panels[1].set_ylabel("negative log likelihood")
panels[1].legend(frameon=False)
page.figure("sparsity", figure, despine=True)


# %% [markdown]
# ## Pruning at once
#
# The sparsest network again, but all is removed in one round: by magnitude after training, or
# before training by the scores of SNIP or SynFlow. They are trained for a cycle, too.


# %%
DENSITY = (1 - RATE) ** (NUM_CYCLES - 1)
NUM_ROUNDS = page.length(100, smoke=5)


def synflow_pruner(task: Problem) -> MagnitudePruner:
    """Many small rounds, with scores of what the last one left."""
    pruner = MagnitudePruner(1 - DENSITY ** (1 / NUM_ROUNDS))
    network = copy.deepcopy(task.network)
    for _ in range(NUM_ROUNDS):
        for name, mask in pruner.step(synflow_scores(network, task.images)).items():
            network.get_parameter(name).data *= mask
    return pruner


AT_ONCE = ("magnitude", "SNIP", "SynFlow")


def at_once(task: Problem, seed: int) -> dict[str, float]:
    """Accuracies of networks that are pruned in one go."""
    images, labels = task.batches.rows
    snip = MagnitudePruner(1 - DENSITY)
    snip.step(snip_scores(task.network, lambda: cross_entropy(task.network(images), labels)))
    found = {}
    for name, pruner in zip(
        AT_ONCE, (MagnitudePruner(1 - DENSITY), snip, synflow_pruner(task)), strict=True
    ):
        num_cycles = 1 if pruner.masks else 2
        run = method("IMP", seed, task.network, pruner=pruner)
        found[name] = score(task, run.run(task.batches, num_cycles, progress=False)[-1].state)
    return {name: row["accuracy"] for name, row in found.items()}


pruned_at_once = {seed: at_once(tasks[split], split) for seed, (split, *_) in SPLITS.items()}
for seed, (split, *_) in SPLITS.items():
    pruned_at_once[seed] |= {n: scores[n][split][-1]["accuracy"] for n in ("IMP", "SWAMP")}
page.table(
    {f"seed {seed}": row for seed, row in pruned_at_once.items()},
    title=f"accuracy at {LEVELS[-1]:.3f}",
)
page.claim(
    "At the highest sparsity SWAMP is more accurate than the best way to prune at once (difference "
    "of accuracies).",
    {s: row["SWAMP"] - max(row[n] for n in AT_ONCE) for s, row in pruned_at_once.items()},
    ">",
    0.0,
    source=f"{SPEC}, abstract: outperforms existing baselines, one-shot pruning among them",
)


# %% [markdown]
# ## What lies between particles
#
# Averages of weights are of use where no barrier lies between them. Here is the likelihood on the
# line between two particles. A barrier is how far the worst point lies above the mean of the ends.
# There is none at any sparsity here, dense networks included. All particles fit the 300 images, and
# end so near to each other that little is left to average: what SWAMP gains is small, and smaller
# than what it differs by from seed to seed.


# %%
TIMES = torch.linspace(0.0, 1.0, 11)


def along(task: Problem, first: dict[str, Tensor], second: dict[str, Tensor]) -> list[float]:
    """Negative log likelihoods on a line between two networks."""
    ends = [copy.deepcopy(task.network) for _ in range(2)]
    for network, state in zip(ends, (first, second), strict=True):
        network.load_state_dict(state)
    losses: list[float] = path_losses(
        BezierPath(*ends), lambda net: cross_entropy(net(task.images), task.labels), TIMES
    ).tolist()
    return losses


def barrier(line: list[float]) -> float:
    """Of a loss along a line."""
    return max(line) - (line[0] + line[-1]) / 2


CYCLES = sorted({0, NUM_CYCLES // 4, NUM_CYCLES // 2, NUM_CYCLES - 1})
between: dict[int, dict[int, list[float]]] = {}
for seed, (split, *_) in SPLITS.items():
    task, swamp = tasks[split], method("SWAMP", split, tasks[split].network)
    cycles, ticket = runs["SWAMP"][split], swamp.ticket(task.batches, progress=False)
    between[seed] = {}
    for number in CYCLES:
        particles = swamp.particles(
            task.batches, ticket, cycles[number].masks, number, progress=False
        )
        first, second = ({n: p[i] for n, p in particles.items()} for i in (0, 1))
        between[seed][number] = along(task, first, second)
    rows = {f"{LEVELS[number]:.3f}": barrier(line) for number, line in between[seed].items()}
    texts = ", ".join(f"{value:.4f} at {name}" for name, value in rows.items())
    print(f"seed {seed}: barrier between particles {texts}")
page.claim(
    "Between particles of sparse networks there is no barrier (largest excess of the negative log "
    "likelihood over the mean of the ends).",
    {
        seed: max(barrier(line) for number, line in lines.items() if number in SPARSE)
        for seed, lines in between.items()
    },
    "<=",
    0.01,
    source=f"{SPEC}: no barrier from moderate sparsity upward; bound preregistered",
)

# %%
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for number, color in zip(CYCLES, ("0.7", "#e09f3e", "#76a5af", "#2a6f97"), strict=False):
    for seed in SEEDS:
        label = f"sparsity {LEVELS[number]:.3f}" if seed == SEEDS[0] else None
        values = torch.tensor(between[seed][number])
        axes.plot(TIMES, values - (values[0] + values[-1]) / 2, color=color, label=label)
axes.set(xlabel="from one particle to another", ylabel="excess negative log likelihood")
axes.legend(frameon=False, fontsize=8)
page.figure("between-particles", figure, despine=True)


# %% [markdown]
# ## Flatness
#
# The trace of the Hessian of the training loss in the weights that are left, at the highest
# sparsity. Here the particles do make a difference, though little of it reaches the test images.

# %%
NUM_PROBES = page.length(30, smoke=2)


def trace(task: Problem, average: SparseAverage, seed: int) -> float:
    """Estimated from random signs."""
    images, labels = task.batches.rows

    def loss(weights: dict[str, Tensor]) -> Tensor:
        left = {name: w * average.masks.get(name, 1) for name, w in weights.items()}
        return cross_entropy(functional_call(task.network, left, (images,)), labels)

    return hutchinson_trace(loss, average.state, NUM_PROBES, seed=seed).mean


traces = {
    seed: {name: trace(tasks[split], runs[name][split][-1], seed) for name in ("IMP", "SWAMP")}
    for seed, (split, *_) in SPLITS.items()
}
page.table({f"seed {seed}": row for seed, row in traces.items()}, title="trace")
page.claim(
    "The trace of the Hessian is smaller for SWAMP than for IMP (ratio).",
    {seed: row["SWAMP"] / row["IMP"] for seed, row in traces.items()},
    "<",
    1.0,
    source=f"{SPEC}: SWAMP ends in flatter minima than IMP",
    across="mean",
)

# %% [markdown]
# ## The claims

# %%
page.finish(
    {
        "levels": LEVELS,
        "accuracy": {n: [level(n, c, "accuracy") for c in range(NUM_CYCLES)] for n in scores},
        "nll": {n: [level(n, c, "nll") for c in range(NUM_CYCLES)] for n in scores},
        "splits": len(tasks),
    }
)
