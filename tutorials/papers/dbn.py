"""Diffusion bridge networks: an ensemble's prediction from one network and a few cheap steps."""

# %% [markdown]
# # Diffusion bridge networks
#
# A deep ensemble of three networks predicts better than one, and costs three times as much. Its
# members agree on most inputs, and where they do not, a hidden layer of one of them should say more
# of the ensemble than its logits alone. H. Kim, J. Yoon, J. Lee (2024), Fast ensembling with
# diffusion Schrödinger bridge, learn a bridge, a random path whose start and end are given, from
# the logits of one network to those of the ensemble: a small network, which sees the hidden layer,
# takes noisy logits from the start to the end in a few steps.
#
# One bridge should be worth more than two networks at little more than the cost of one, and more
# than a student of the ensemble. Here networks with two hidden layers of 100 units learn from 2,500
# images of MNIST; 2,500 are for tests. `pyro-ext reproduce dbn` runs the page.

# %%
from collections.abc import Callable
from functools import partial
from itertools import combinations
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Predictive
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.flop_counter import FlopCounterMode

from pyro_ext.datasets import random_shifts
from pyro_ext.diagnostics.metrics import accuracy, deep_ensemble_equivalent, nll
from pyro_ext.inference import MCMC, NUTS
from pyro_ext.inference.averaging import BezierPath
from pyro_ext.inference.training import ShuffledBatches, Trainer
from pyro_ext.models.ensembles import (
    BridgeEnsemble,
    BridgeNetwork,
    BridgeSchedule,
    BridgeSource,
    DiffusionBridgeNetwork,
    ScoreMLP,
    average_bridges,
    base_networks,
    dirichlet_distillation,
    distillation,
)
from pyro_ext.nn import MLP
from pyro_ext.random import seeded
from pyro_ext.reproduction import Page

page = Page(
    "dbn",
    paper="H. Kim, J. Yoon, J. Lee (2024), Fast ensembling with diffusion Schrödinger bridge, "
    "arXiv 2404.15814",
)
SEEDS, CIFAR = page.seeds, "Kim et al. (2024), results on CIFAR-10"

# %% [markdown]
# ## A bridge as a Pyro program
#
# A bridge is a Markov chain from a start to an end, and `BridgeSchedule` has its steps. Here the
# end has a prior around the start. The chain is observed after four of its five steps, and NUTS
# infers the rest of it and the end.

# %%
SCHEDULE = BridgeSchedule(0.5, 0.5, num_steps=5)


def chain(start: Tensor) -> None:
    """Bridges to unknown ends. **Shape of the start:** ``(num_bridges, 3)``."""
    with pyro.plate("bridges", len(start)):
        here, end = start, pyro.sample("end", dist.Normal(0.7 * start, 0.5).to_event(1))
        for n in pyro.markov(range(5, 1, -1)):
            here = pyro.sample(f"l_{n - 1}", SCHEDULE.posterior(n, end, here))


with seeded(0):
    start = 2.0 * torch.randn(20, 3)
    drawn = {name: draws[0] for name, draws in Predictive(chain, num_samples=1)(start).items()}
seen = pyro.condition(chain, {"l_1": drawn["l_1"]})
nuts = MCMC(NUTS(seen), page.length(600, smoke=5), num_chains=4, seed=0, progress=False)
inferred = nuts.run(start).get_samples()["end"].mean(0)
guesses = {"prior": 0.7 * start, "observed point": drawn["l_1"], "posterior": inferred}
for name, guess in guesses.items():
    error = (guess - drawn["end"]).square().mean().sqrt()
    print(f"root mean square error of the end by the {name}: {error:.3f}")

# %% [markdown]
# The posterior mean of the end is nearest: of all functions of what is observed, it has the least
# squared error. `fit` below minimizes that error for a network, whose output then stands for the
# end in the chain. `DiffusionBridgeNetwork` is this Pyro program, and `Predictive` draws from it.
#
# ## The networks
#
# Each seed has five networks, another split of images and other shifts. The first is the source.
# Ensembles of $m$ networks are measured by the mean over those with the source. The deep ensemble
# equivalent (DEE) of a method is the size of the ensemble with the same negative log likelihood.

# %%
NUM_NETWORKS = 5
epochs = page.length(50, smoke=1)
data = {s: base_networks(NUM_NETWORKS, seed=s, num_epochs=epochs, progress=False) for s in SEEDS}
shifted = partial(random_shifts, max_shift=3)


def nll_by_size(probs: Tensor, labels: Tensor) -> list[float]:
    """Mean NLL of ensembles of 1, 2, ..., 5 networks that the first one belongs to."""
    groups = [list(combinations(range(1, NUM_NETWORKS), size)) for size in range(NUM_NETWORKS)]
    return [fmean(nll(probs[[0, *chosen]], labels) for chosen in group) for group in groups]


with torch.no_grad():
    members = {
        seed: torch.stack([network(base.test_inputs).softmax(-1) for network in base.networks])
        for seed, base in data.items()
    }
reference = {seed: nll_by_size(members[seed], base.test_targets) for seed, base in data.items()}

# %% [markdown]
# ## The bridges
#
# A bridge stands for three networks, of which the source is one. Its score network sees the first
# hidden layer of the source, and has two hidden layers of 64 units, so that a step costs about a
# seventh of a forward pass of the source, as in the paper. It learns from images that are shifted
# and mixed in pairs, without labels; then a bridge of one step learns from that of five steps and
# from the ensemble. Two bridges, of the source and two other networks each, stand for five.

# %%
NUM_STEPS, NOISE = page.length(1200, smoke=2), 0.01  # the noise: its variance at time one


def bridges(seed: int, source: BridgeSource, *partners: int) -> list[DiffusionBridgeNetwork]:
    """Bridges to the ensemble of the source and its partners, of five steps and of one."""
    x, chosen = data[seed].train_inputs, [data[seed].networks[k] for k in (0, *partners)]
    torch.manual_seed(seed)
    schedule, score = BridgeSchedule(NOISE, NOISE, 5), ScoreMLP(10, 100, [64, 64])
    five = DiffusionBridgeNetwork(source, schedule, score)
    options: Any = {"augment": shifted, "seed": seed, "progress": False}
    five.fit(x, chosen, NUM_STEPS, **options)
    return [five, five.distill(x, chosen, NUM_STEPS // 2, **options)]


# %% [markdown]
# ## Rivals
#
# Students have the size of the source and learn from the same three networks by the same recipe:
# ensemble distillation (ED) asks for the mean prediction, and Proxy-END2 for a Dirichlet
# distribution of the members' predictions. As a control ED is also trained four times as long, from
# which bridges gained little on other seeds. Bridge networks of type I stand for the networks
# between the source and two partners on curves of low loss, and are averaged with the source.


# %%
def student(seed: int, loss: Callable[[Tensor, Tensor], Tensor], length: int = 1) -> nn.Module:
    """A network that learns from the first three."""
    torch.manual_seed(1000 + seed)
    network = nn.Sequential(nn.Flatten(), *MLP(784, [100, 100], 10, nn.ReLU))

    def of(images: Tensor) -> Tensor:
        images = shifted(images)
        with torch.no_grad():
            teachers = torch.stack([member(images) for member in data[seed].networks[:3]])
        return loss(network(images), teachers).mean()

    batches = ShuffledBatches(data[seed].train_inputs, batch_size=64)
    trainer = Trainer(network, partial(torch.optim.Adam, lr=2e-3), seed=seed)
    trainer.run(of, page.length(2000 * length, smoke=2), batches, progress=False)
    return network


def curve_bridge(seed: int, partner: int) -> BridgeNetwork:
    """A bridge network for the middle of a curve from the source to a partner."""
    base = data[seed]
    path = BezierPath(base.networks[0], base.networks[partner])
    batches = ShuffledBatches(base.train_inputs, base.train_targets, batch_size=128)
    adam = partial(torch.optim.Adam, lr=2e-3)
    on_path = lambda x, y: cross_entropy(path(shifted(x), torch.rand(())), y)  # noqa: E731
    Trainer(path, adam, seed=seed).run(on_path, page.length(1000, smoke=2), batches, progress=False)
    torch.manual_seed(seed)
    found = BridgeNetwork(path, "2", MLP(100, [64], 10), kind=1)
    cosine = partial(CosineAnnealingLR, T_max=NUM_STEPS)
    trainer = Trainer(found, adam, scheduler=cosine, seed=seed)
    trainer.run(lambda x, _: found.loss(shifted(x)), NUM_STEPS, batches, progress=False)
    return found


def methods(seed: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Of each method, what maps images to probabilities."""
    source = BridgeSource(data[seed].networks[0], data[seed].test_inputs[:2])
    five, one = bridges(seed, source, 1, 2)
    other_five, other_one = bridges(seed, source, 3, 4)
    ed, longer = (student(seed, partial(distillation, temperature=4.0), n) for n in (1, 4))
    # In Proxy-END2 the temperature is in the student alone.
    proxy = student(seed, lambda logits, of: dirichlet_distillation(logits, 2.0 * of, 2.0))
    type_one = BridgeEnsemble([curve_bridge(seed, k) for k in (1, 2)])
    return {
        "source": lambda x: data[seed].networks[0](x).softmax(-1),
        "bridge, 5 steps": partial(five.probs, seed=seed),
        "bridge, 1 step": partial(one.probs, seed=seed),
        "2 bridges, 5 steps": partial(average_bridges, [five, other_five], seed=seed),
        "2 bridges, 1 step": partial(average_bridges, [one, other_one], seed=seed),
        "ED": lambda x: ed(x).softmax(-1),
        "ED, 4 times as long": lambda x: longer(x).softmax(-1),
        "Proxy-END2": lambda x: dist.Dirichlet(1.0 + (proxy(x) / 2.0).exp()).mean,
        "2 of type I": lambda x: type_one.probabilities(x).mean(0),
    }


results: dict[str, dict[str, dict[int, float]]] = {}
for seed, base in data.items():
    x, labels = base.test_inputs, base.test_targets
    with FlopCounterMode(display=False) as of_source:
        base.networks[0](x)
    for name, predict in methods(seed).items():
        with FlopCounterMode(display=False) as of_method, torch.no_grad():
            probs = predict(x)
        loss = nll(probs, labels)
        for measure, value in {
            "accuracy": accuracy(probs, labels),
            "NLL": loss,
            "DEE": deep_ensemble_equivalent(loss, torch.tensor(reference[seed])),
            "cost": of_method.get_total_flops() / of_source.get_total_flops(),
        }.items():
            results.setdefault(name, {}).setdefault(measure, {})[seed] = value
rows = {n: {m: fmean(by.values()) for m, by in row.items()} for n, row in results.items()}
page.table(rows, title="mean of seeds")


def gap(first: str, second: str, measure: str = "NLL") -> dict[int, float]:
    """A measure of one method minus that of another."""
    return {s: results[first][measure][s] - results[second][measure][s] for s in SEEDS}


page.claim(
    "A bridge to three networks predicts better than its source (difference of NLL).",
    gap("bridge, 5 steps", "source"),
    "<=",
    -0.005,
    source=f"{CIFAR}; bound preregistered",
)
page.claim(
    "It is as accurate (difference of accuracy).",
    gap("bridge, 5 steps", "source", "accuracy"),
    ">=",
    -0.002,
    source=f"{CIFAR}; bound preregistered",
)
page.claim(
    "It is worth more than one network (deep ensemble equivalent).",
    results["bridge, 5 steps"]["DEE"],
    ">",
    1.1,
    source=f"{CIFAR}; bound preregistered",
)
one_step = results["bridge, 1 step"]
page.claim(
    "Distilled to one step a bridge is worth more networks than it costs (deep ensemble equivalent "
    "minus relative cost).",
    {seed: one_step["DEE"][seed] - one_step["cost"][seed] for seed in SEEDS},
    ">",
    0.0,
    source=f"{CIFAR}: worth 2.4 networks for the cost of 1.2",
)
page.claim(
    "Two bridges for five networks are better than one for three (difference of NLL).",
    gap("2 bridges, 5 steps", "bridge, 5 steps"),
    "<",
    0.0,
    source=CIFAR,
)
page.claim(
    "A bridge is worth more than a student that learns from the same networks by ensemble "
    "distillation (difference of deep ensemble equivalents).",
    gap("bridge, 5 steps", "ED", "DEE"),
    ">",
    0.0,
    source=CIFAR,
    reason="it is on average, but not on every seed, and a student that is trained four times as "
    "long is worth more than the bridge on average: its source is far from what its size allows",
    central=True,
)
page.claim(
    "It is worth more than a student by Proxy-END2 (difference of deep ensemble equivalents).",
    gap("bridge, 5 steps", "Proxy-END2", "DEE"),
    ">",
    0.0,
    source=CIFAR,
)
page.claim(
    "Distilled to one step it is worth more than its source with two bridge networks of type I "
    "(difference of deep ensemble equivalents).",
    gap("bridge, 1 step", "2 of type I", "DEE"),
    ">",
    0.0,
    source=CIFAR,
)

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
axes.plot([1, 3], [1, 3], color="0.6", lw=1, label="deep ensembles")
for name, row in results.items():
    marker = "s" if name.startswith("2") else "o"
    axes.plot(list(row["cost"].values()), list(row["DEE"].values()), marker, ms=5, label=name)
axes.set(xlabel="forward passes of the source", ylabel="deep ensemble equivalent", ylim=(0, 4))
axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
page.figure("cost", figure, despine=True)

# %% [markdown]
# ## In use
#
# Five steps cost more than an equally good ensemble here; one step pays. But at this scale a bridge
# is nearly a regression, and a student of the ensemble, which costs no more than the source, is
# worth more if it is trained for long: try it first.

# %%
page.finish({"num_steps": NUM_STEPS, "noise": NOISE, "bridge_steps": 5})
