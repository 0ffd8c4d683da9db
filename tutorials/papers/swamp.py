"""SWAMP: sparse networks that are averages of several particles, against single ones."""

# %% [markdown]
# # Sparse weight averaging with multiple particles
#
# Iterative magnitude pruning trains a network, removes its smallest weights, sets the others back
# to where they were early on, and begins again. M. Choi, H. Lee, G. Nam, J. Lee (2024), Sparse
# weight averaging with multiple particles for iterative magnitude pruning, change what is trained:
# several copies start from the same weights, take their minibatches in different orders and average
# their weights, along the way and with each other. The average is one sparse network, no larger
# than any of them, and decides what is pruned next. The paper finds one such network on a par with
# an ensemble of two pruned ones, and ahead of other ways to prune. Here a network of digits is
# pruned to one weight in a hundred. Rivals are averages of one particle, particles alone, the
# ensemble and pruning at once. `pyro-ext reproduce swamp` runs the page.

# %%
import copy
from collections import defaultdict
from functools import partial
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

from pyro_ext.datasets import load_digits
from pyro_ext.diagnostics import metrics
from pyro_ext.inference.averaging import (
    MagnitudePruner,
    SparseWeightAveraging,
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
SEEDS, SPEC = page.seeds, "Choi et al. (2024)"
NUM_CYCLES, RATE = page.length(10, smoke=3), 0.4
SPARSE = range(NUM_CYCLES // 2, NUM_CYCLES)  # the cycles that claims are about

# %% [markdown]
# ## SWAMP as a Pyro program
#
# The weights of a network are sites of a model of labels. `SparseWeightAveraging` trains and prunes
# that network: `particles` are the copies of its last cycle, with the mask applied, and the last
# of `run` is their average. `Predictive` takes either as draws of the sites, four or a single one.


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
# Each cycle takes 30 epochs from the weights after 3; each pruning removes 40 % of what is left.
# Averages are over the last 15 epochs. Each seed stands for the mean of two splits of the data. All
# train with normal noise in the images, as the paper's networks with augmented ones. Earlier runs
# without it had the same bounds: all methods were less accurate, and averages changed little.


# %%
class Noise(nn.Module):
    """Noise of standard deviation 0.2 in training, and otherwise none."""

    def forward(self, x: Tensor) -> Tensor:
        """Add the noise."""
        return x + 0.2 * torch.randn_like(x) if self.training else x


def problem(split: int) -> SimpleNamespace:
    """A network to begin with, 300 images to train with, and 900 others."""
    data = load_digits(num_train=897, split_seed=split)
    parts = (data.train_inputs[:300], data.test_inputs)
    train, test = ((part * data.input_scale + data.input_loc) / 16 for part in parts)
    torch.manual_seed(split)
    network = nn.Sequential(Noise(), *MLP(64, [256, 128], 10, activation=nn.ReLU))
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    batches = ShuffledBatches(train, data.train_targets[:300], batch_size=32)
    return SimpleNamespace(batches=batches, images=test, labels=data.test_targets, network=network)


SETTINGS = {"ticket_epochs": 3, "cycle_epochs": page.length(30, smoke=1), "swa_start": 0.5}
METHODS: dict[str, dict[str, Any]] = {
    "IMP": {"num_particles": 1, "swa_start": 1.0, "swa_lr": 0.0},
    "IMP + SWA": {"num_particles": 1},
    "4 particles": {"swa_start": 1.0, "swa_lr": 0.0},
    "SWAMP": {},
}


def method(name: str, seed: int, network: nn.Module, **options: Any) -> SparseWeightAveraging:
    """One of the methods, with the settings of the page."""
    options = SETTINGS | {"pruner": MagnitudePruner(RATE)} | METHODS[name] | options
    return SparseWeightAveraging(network.train(), seed=seed, **options)


def score(task: SimpleNamespace, *states: dict[str, Tensor]) -> list[float]:
    """Accuracy and negative log likelihood of a network or an ensemble, on the test images."""
    network = task.network.eval()
    with torch.no_grad():
        logits = [functional_call(network, state, (task.images,)) for state in states]
    probs = torch.stack(logits).softmax(-1)
    return [metrics.accuracy(probs, task.labels), metrics.nll(probs, task.labels)]


NUM_SPLITS = page.length(2, smoke=1)
SPLITS = {seed: range(2 * seed, 2 * seed + NUM_SPLITS) for seed in SEEDS}
tasks = {split: problem(split) for pair in SPLITS.values() for split in pair}
runs, found = {}, defaultdict(list)
for split, task in tasks.items():
    for name in METHODS:
        run = method(name, split, task.network).run
        runs[name, split] = run(task.batches, NUM_CYCLES, progress=False)
        found[name].append([score(task, cycle.state) for cycle in runs[name, split]])
    # a second network for the ensemble, from other weights in other orders
    run = method("IMP", 1000 + split, problem(1000 + split).network).run
    pairs = zip(runs["IMP", split], run(task.batches, NUM_CYCLES, progress=False), strict=True)
    found["2 x IMP"].append([score(task, one.state, two.state) for one, two in pairs])
scores = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in found.items()}
levels = [f"{cycle.sparsity:.3f}" for cycle in runs["SWAMP", next(iter(tasks))]]

# %% [markdown]
# ## Accuracy and likelihood at each sparsity


# %%
def advantage(name: str, rival: str, measure: int = 0) -> dict[int, float]:
    """By how much one exceeds another, on average over sparse networks and a seed's splits."""
    differences = (scores[name] - scores[rival])[:, SPARSE, measure].mean(1).chunk(len(SEEDS))
    return {s: float(part.mean()) for s, part in zip(SEEDS, differences, strict=True)}


means = {name: row.mean(0) for name, row in scores.items()}
OTHERS = f"{SPEC}, abstract: outperforms existing baselines; data and bound preregistered"
PARTS = f"{SPEC}: particles and averages together are better than either; preregistered"
page.claim(
    "From a sparsity of 92 % to 99 % SWAMP is more accurate than IMP (mean difference).",
    advantage("SWAMP", "IMP"),
    ">=",
    0.003,
    source=OTHERS,
    across="mean",
)
page.claim(
    "Its negative log likelihood is lower than that of IMP (mean difference).",
    advantage("IMP", "SWAMP", 1),
    ">=",
    0.005,
    source=OTHERS,
    across="mean",
)
page.claim(
    "It is as accurate as averages of a single particle, or more (mean difference).",
    advantage("SWAMP", "IMP + SWA"),
    ">=",
    0.0,
    source=PARTS,
    across="mean",
)
page.claim(
    "It is as accurate as particles without averages along the way, or more (mean difference).",
    advantage("SWAMP", "4 particles"),
    ">=",
    0.0,
    source=PARTS,
    across="mean",
)
page.claim(
    "One network of SWAMP is on a par with an ensemble of two of IMP (mean difference of "
    "accuracies).",
    advantage("SWAMP", "2 x IMP"),
    ">=",
    -0.005,
    source=f"{SPEC}, abstract: performance comparable to an ensemble of two; bound preregistered",
    across="mean",
    central=True,
)

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
remaining = [100 * (1 - RATE) ** number for number in range(NUM_CYCLES)]
for i, measure in enumerate(("accuracy", "negative log likelihood")):
    for name, row in means.items():
        panels[i].plot(remaining, row[:, i], "--" if name == "2 x IMP" else "o-", ms=3, label=name)
    panels[i].set(xscale="log", xlabel="remaining weights, %", ylabel=measure)
    panels[i].invert_xaxis()
panels[1].legend(frameon=False)
page.figure("sparsity", figure, despine=True)

# %% [markdown]
# ## Pruning at once
#
# The sparsest network again, but all is removed in one round: by magnitude after training, or
# before training by the scores of SNIP or SynFlow. They are trained for a cycle, too.

# %%
DENSITY, NUM_ROUNDS = (1 - RATE) ** (NUM_CYCLES - 1), page.length(100, smoke=5)


def synflow_pruner(task: SimpleNamespace) -> MagnitudePruner:
    """Many small rounds, with scores of what the last one left."""
    pruner = MagnitudePruner(1 - DENSITY ** (1 / NUM_ROUNDS))
    network = copy.deepcopy(task.network)
    for _ in range(NUM_ROUNDS):
        for name, mask in pruner.step(synflow_scores(network, task.images)).items():
            network.get_parameter(name).data *= mask
    return pruner


first_split = {seed: splits[0] for seed, splits in SPLITS.items()}
rivals: dict[int, dict[str, float]] = {seed: {} for seed in SEEDS}
for seed, split in first_split.items():
    task, pruners = tasks[split], {n: MagnitudePruner(1 - DENSITY) for n in ("magnitude", "SNIP")}
    network = task.network.eval()
    loss_of = partial(lambda net, x, y: cross_entropy(net(x), y), network, *task.batches.rows)
    pruners["SNIP"].step(snip_scores(network, loss_of))
    pruners["SynFlow"] = synflow_pruner(task)
    for name, pruner in pruners.items():
        run = method("IMP", split, task.network, pruner=pruner).run
        last = run(task.batches, 1 if pruner.masks else 2, progress=False)[-1]
        rivals[seed][name] = score(task, last.state)[0]
swamp = dict(zip(SEEDS, scores["SWAMP"][::NUM_SPLITS, -1, 0].tolist(), strict=True))
rows = {f"seed {seed}": row | {"SWAMP": swamp[seed]} for seed, row in rivals.items()}
page.table(rows, title=f"accuracy at {levels[-1]}")
page.claim(
    "At the highest sparsity SWAMP is more accurate than the best way to prune at once (difference "
    "of accuracies).",
    {seed: swamp[seed] - max(row.values()) for seed, row in rivals.items()},
    ">",
    0.0,
    source=f"{SPEC}, abstract: outperforms existing baselines, one-shot pruning among them",
)

# %% [markdown]
# ## What lies between particles
#
# Averages of weights are of use where no barrier lies between them: on the line between two
# particles, the negative log likelihood should nowhere exceed the mean of its ends.


# %%
def barrier(task: SimpleNamespace, first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """By how much a loss on the line between two networks exceeds the mean of its ends."""
    between = (
        {name: first[name].lerp(second[name], weight) for name in first}
        for weight in torch.linspace(0.0, 1.0, 11)
    )
    line = [score(task, state)[1] for state in between]
    return max(line) - (line[0] + line[-1]) / 2


CYCLES = (0, NUM_CYCLES // 2, NUM_CYCLES - 1)
barriers: dict[int, dict[int, float]] = {}
for seed, split in first_split.items():
    one, batches = method("SWAMP", split, tasks[split].network), tasks[split].batches
    ticket, barriers[seed] = one.ticket(batches, progress=False), {}
    for number in CYCLES:
        masks = runs["SWAMP", split][number].masks
        drawn = one.particles(batches, ticket, masks, number, progress=False)
        pair = ({name: value[i] for name, value in drawn.items()} for i in (0, 1))
        barriers[seed][number] = barrier(tasks[split], *pair)
rows = {f"seed {s}": {levels[n]: x for n, x in row.items()} for s, row in barriers.items()}
page.table(rows, title="barrier at sparsity", number_format=".4f")
page.claim(
    "Between particles of sparse networks there is no barrier (largest excess of the negative log "
    "likelihood over the mean of the ends).",
    {s: max(x for number, x in row.items() if number in SPARSE) for s, row in barriers.items()},
    "<=",
    0.01,
    source=f"{SPEC}: no barrier from moderate sparsity upward; bound preregistered",
)

# %% [markdown]
# ## What to take from it
#
# `SparseWeightAveraging` prunes in rounds, which is far better than at once. Particles pay where
# training is noisy, as with augmented images, so that copies of the network end apart.

# %%
page.finish({"accuracy": {name: row[:, 0].tolist() for name, row in means.items()}})
