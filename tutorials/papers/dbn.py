"""Diffusion bridge networks: an ensemble's prediction from one network and a few cheap steps."""

# %% [markdown]
# # Diffusion bridge networks
#
# A deep ensemble of three networks predicts better than one, and costs three times as much. Its
# members agree on most inputs, and where they do not, a hidden layer of one of them predicts the
# ensemble better than its logits alone. H. Kim, J. Yoon, J. Lee (2024), Fast ensembling with
# diffusion Schrödinger bridge, learn a bridge, a random path whose start and end are given, from
# the logits of one network to those of the ensemble: a small network, which sees the hidden layer,
# takes noisy logits from the start to the end in a few steps.
#
# Here networks with two hidden layers of 100 units learn from 2,500 images of MNIST; 2,500 are for
# tests.
#
# `pyro-ext reproduce dbn` runs the page, and so does `python tutorials/papers/dbn.py`. Both print a
# table of claims and save it with the figures in `figures/dbn`.

# %%
from collections.abc import Callable
from functools import partial
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Predictive
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.flop_counter import FlopCounterMode

from pyro_ext.datasets import random_shifts
from pyro_ext.diagnostics.metrics import (
    accuracy,
    deep_ensemble_equivalent,
    ece,
    nll,
    temperature_scale,
)
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
SEEDS = page.seeds
BLUE, RED, GRAY, YELLOW, GREEN = "#2a6f97", "#d1495b", "#8d99ae", "#e09f3e", "#588157"

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
# Each seed has five networks, another split of the images and other shifts of them. The first is
# the source of all bridges. The learning rate is constant; if it decays, the members agree more.
#
# An ensemble of $m$ networks is measured by the mean over all those that the source belongs to. The
# deep ensemble equivalent (DEE) of a method is the size of the ensemble with the same negative log
# likelihood, interpolated linearly, and below one extrapolated.

# %%
NUM_NETWORKS = 5
epochs = page.length(50, smoke=1)
data = {s: base_networks(NUM_NETWORKS, seed=s, num_epochs=epochs, progress=False) for s in SEEDS}
shifted = partial(random_shifts, max_shift=3)


@torch.no_grad()
def member_probs(seed: int, x: Tensor) -> Tensor:
    """Probabilities of each network, **Shape:** ``(num_networks, n, 10)``."""
    return torch.stack([network(x).softmax(-1) for network in data[seed].networks])


def mean_over_ensembles(
    metric: Callable[[Tensor, Tensor], float], probs: Tensor, labels: Tensor
) -> list[float]:
    """A metric of ensembles of 1, 2, ..., 5 networks that the first one belongs to."""
    means = []
    for size in range(NUM_NETWORKS):
        others = list(combinations(range(1, NUM_NETWORKS), size))
        means.append(fmean(metric(probs[[0, *chosen]], labels) for chosen in others))
    return means


members = {seed: member_probs(seed, base.test_inputs) for seed, base in data.items()}
reference = {
    seed: mean_over_ensembles(nll, members[seed], base.test_targets) for seed, base in data.items()
}

# %% [markdown]
# ## The bridges
#
# A bridge stands for three networks, of which the source is one. Its score network sees the first
# hidden layer of the source, and has two hidden layers of 64 units, so that a step costs 0.15 of a
# forward pass of the source, as in the paper. It learns from images that are shifted and mixed in
# pairs, without labels, for 60 epochs; then a bridge of one step learns from that of five steps and
# from the ensemble. Two bridges, of the source and two other networks each, stand for five. The
# noise has the variance 0.01 at time one.

# %%
NUM_STEPS = page.length(1200, smoke=2)


def bridge(
    seed: int, partners: tuple[int, ...] = (1, 2), num_steps: int = 5, noise: float = 0.01
) -> DiffusionBridgeNetwork:
    """A bridge to the ensemble of the source and its partners."""
    base = data[seed]
    torch.manual_seed(seed)
    made = DiffusionBridgeNetwork(
        sources[seed], BridgeSchedule(noise, noise, num_steps), ScoreMLP(10, 100, [64, 64])
    )
    chosen = [base.networks[0], *(base.networks[k] for k in partners)]
    made.fit(base.train_inputs, chosen, NUM_STEPS, augment=shifted, seed=seed, progress=False)
    return made


def one_step(
    seed: int, teacher: DiffusionBridgeNetwork, partners: tuple[int, ...] = (1, 2)
) -> DiffusionBridgeNetwork:
    """The bridge of one step that learns from one of five."""
    base = data[seed]
    chosen = [base.networks[0], *(base.networks[k] for k in partners)]
    return teacher.distill(
        base.train_inputs, chosen, NUM_STEPS // 2, augment=shifted, seed=seed, progress=False
    )


sources = {
    seed: BridgeSource(base.networks[0], base.test_inputs[:2]) for seed, base in data.items()
}
bridges = {seed: [bridge(seed), bridge(seed, (3, 4))] for seed in SEEDS}
distilled = {
    seed: [one_step(seed, pair[0]), one_step(seed, pair[1], (3, 4))]
    for seed, pair in bridges.items()
}
with seeded(0):
    drawn = Predictive(bridges[SEEDS[0]][0], num_samples=20)(data[SEEDS[0]].test_inputs[:100])
spread = {name: float(drawn[name].std(0).mean()) for name in sorted(drawn) if name != "obs"}
print("deviation of logits over draws:", {name: round(value, 3) for name, value in spread.items()})

# %% [markdown]
# ## Rivals
#
# Students have the size of the source and learn from the same three networks by the same recipe:
# ensemble distillation (ED) asks for the mean prediction, and Proxy-END2 for a Dirichlet
# distribution of the members' predictions. Bridge networks of type I stand for the networks between
# the source and its two partners on curves of low loss, and are averaged with the source.


# %%
def student(
    seed: int, loss: Callable[[Tensor, Tensor, float], Tensor], temperature: float
) -> nn.Module:
    """A network that learns from the first three."""
    base = data[seed]
    torch.manual_seed(1000 + seed)
    network = nn.Sequential(nn.Flatten(), *MLP(784, [100, 100], 10, nn.ReLU))

    def of(images: Tensor) -> Tensor:
        images = shifted(images)
        with torch.no_grad():
            teachers = torch.stack([member(images) for member in base.networks[:3]])
        return loss(network(images), teachers, temperature).mean()

    batches = ShuffledBatches(base.train_inputs, batch_size=64)
    trainer = Trainer(network, partial(torch.optim.Adam, lr=2e-3), seed=seed)
    trainer.run(of, page.length(2000, smoke=2), batches, progress=False)
    return network


def proxy_loss(logits: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    """That of Proxy-END2, with the temperature in the student alone."""
    return dirichlet_distillation(logits, temperature * teachers, temperature)


def curve_bridge(seed: int, partner: int) -> BridgeNetwork:
    """A bridge network for the middle of a curve from the source to a partner."""
    base = data[seed]
    path = BezierPath(base.networks[0], base.networks[partner])
    batches = ShuffledBatches(base.train_inputs, base.train_targets, batch_size=128)
    adam = partial(torch.optim.Adam, lr=2e-3)
    Trainer(path, adam, seed=seed).run(
        lambda x, y: cross_entropy(path(shifted(x), torch.rand(())), y),
        page.length(1000, smoke=2),
        batches,
        progress=False,
    )
    torch.manual_seed(seed)
    found = BridgeNetwork(path, "2", MLP(100, [64], 10), kind=1)
    cosine = partial(CosineAnnealingLR, T_max=NUM_STEPS)
    Trainer(found, adam, scheduler=cosine, seed=seed).run(
        lambda x, _: found.loss(shifted(x)), NUM_STEPS, batches, progress=False
    )
    return found


students = {seed: student(seed, distillation, 4.0) for seed in SEEDS}
proxies = {seed: student(seed, proxy_loss, 2.0) for seed in SEEDS}
type_one = {seed: BridgeEnsemble([curve_bridge(seed, k) for k in (1, 2)]) for seed in SEEDS}


def proxy_probs(logits: Tensor) -> Tensor:
    """Mean of the Dirichlet distribution that a student's logits stand for."""
    concentration = 1.0 + (logits / 2.0).exp()
    return concentration / concentration.sum(-1, keepdim=True)


def flops(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Floating-point operations of a pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(x)
    total: int = counter.get_total_flops()
    return total


METHODS: dict[str, Callable[[int, Tensor], Tensor]] = {
    "source": lambda seed, x: member_probs(seed, x)[0],
    "bridge, 5 steps": lambda seed, x: bridges[seed][0].probs(x, seed=seed),
    "bridge, 1 step": lambda seed, x: distilled[seed][0].probs(x, seed=seed),
    "2 bridges, 5 steps": lambda seed, x: average_bridges(bridges[seed], x, seed=seed),
    "2 bridges, 1 step": lambda seed, x: average_bridges(distilled[seed], x, seed=seed),
    "ED": lambda seed, x: students[seed](x).softmax(-1),
    "Proxy-END2": lambda seed, x: proxy_probs(proxies[seed](x)),
    "2 of type I": lambda seed, x: type_one[seed].probabilities(x).mean(0),
}


class Result(NamedTuple):
    """What a method reaches on test images."""

    accuracy: float
    nll: float
    ece: float
    dee: float
    cost: float


@torch.no_grad()
def result(name: str, seed: int) -> Result:
    """Metrics, and the cost in forward passes of the source."""
    base = data[seed]
    x, labels = base.test_inputs, base.test_targets
    probs = METHODS[name](seed, x)
    loss = nll(probs, labels)
    equivalent = deep_ensemble_equivalent(loss, torch.tensor(reference[seed]))
    cost = flops(partial(METHODS[name], seed), x) / flops(base.networks[0], x)
    if name == "source":
        cost = 1.0  # all five are run above
    return Result(accuracy(probs, labels), loss, ece(probs, labels), equivalent, cost)


results = {name: {seed: result(name, seed) for seed in SEEDS} for name in METHODS}
rows = {
    name: {field: fmean(getattr(r, field) for r in by_seed.values()) for field in Result._fields}
    for name, by_seed in results.items()
}
for size in (2, 3, 5):
    means = [
        fmean(mean_over_ensembles(f, members[s], data[s].test_targets)[size - 1] for s in SEEDS)
        for f in (accuracy, nll, ece)
    ]
    rows[f"ensemble of {size}"] = dict(zip(Result._fields, [*means, size, size], strict=True))
page.table(rows, title="mean of seeds")
for name, by_seed in results.items():
    texts = (f"{r.nll:.4f} ({r.dee:.2f})" for r in by_seed.values())
    print(f"{name:20s} NLL (DEE) by seed: {', '.join(texts)}")


# %% [markdown]
# A bridge might only correct the overconfidence of the source. The source at its best temperature,
# chosen by the labels of the test images themselves, says how far that goes; the R2 of the
# ensemble's probabilities says whether the bridge has learned from the ensemble.


# %%
def unexplained(probs: Tensor, target: Tensor) -> float:
    """Fraction of the variance of the ensemble's probabilities that is left."""
    return float((probs - target).square().sum() / (target - target.mean(0)).square().sum())


tempered, explained = {}, {}
for seed in SEEDS:
    own, labels = members[seed][0], data[seed].test_targets
    tempered[seed] = nll(temperature_scale(own, labels)(own), labels)
    of_bridge, target = METHODS["bridge, 5 steps"](seed, data[seed].test_inputs), members[seed][:3]
    own_r2, bridge_r2 = (1.0 - unexplained(probs, target.mean(0)) for probs in (own, of_bridge))
    explained[seed] = {"source": own_r2, "bridge": bridge_r2}
    print(
        f"seed {seed}: source at its best temperature NLL {tempered[seed]:.4f}; "
        f"R2 of source {own_r2:.4f}, bridge {bridge_r2:.4f}"
    )


def gap(first: str, second: str, measure: str = "nll") -> dict[int, float]:
    """A measure of one method minus that of another."""
    mine, its = ({s: getattr(r, measure) for s, r in results[n].items()} for n in (first, second))
    return {seed: mine[seed] - its[seed] for seed in SEEDS}


page.claim(
    "A bridge to three networks predicts better than its source (difference of NLL).",
    gap("bridge, 5 steps", "source"),
    "<=",
    -0.005,
    source="Kim et al. (2024), results on CIFAR-10; bound preregistered",
)
page.claim(
    "It is as accurate (difference of accuracy).",
    gap("bridge, 5 steps", "source", "accuracy"),
    ">=",
    -0.002,
    source="Kim et al. (2024), results on CIFAR-10; bound preregistered",
)
page.claim(
    "It is worth more than one network (deep ensemble equivalent).",
    {seed: results["bridge, 5 steps"][seed].dee for seed in SEEDS},
    ">",
    1.1,
    source="Kim et al. (2024), results on CIFAR-10; bound preregistered",
)
page.claim(
    "It is not better than what it learns from (deep ensemble equivalent).",
    {seed: results["bridge, 5 steps"][seed].dee for seed in SEEDS},
    "<",
    3.0,
    source="Kim et al. (2024), results on CIFAR-10; bound preregistered",
)
page.claim(
    "It is better than the source at the best temperature for the test images (difference of NLL).",
    {seed: results["bridge, 5 steps"][seed].nll - tempered[seed] for seed in SEEDS},
    "<",
    0.0,
    source="control: a bridge is more than a temperature",
)
page.claim(
    "It explains more of the ensemble's probabilities on test images than the source does (ratio "
    "of unexplained fractions).",
    {seed: (1.0 - row["bridge"]) / (1.0 - row["source"]) for seed, row in explained.items()},
    "<",
    1.0,
    source="control: a bridge is more than a temperature",
)
page.claim(
    "Distilled to one step a bridge is worth more networks than it costs (deep ensemble equivalent "
    "minus relative cost).",
    {seed: r.dee - r.cost for seed, r in results["bridge, 1 step"].items()},
    ">",
    0.0,
    source="Kim et al. (2024), results on CIFAR-10: worth 2.4 networks for the cost of 1.2",
)
page.claim(
    "Distilled to one step it keeps half of the gain over the source at least (ratio of gains).",
    {s: gap("source", "bridge, 1 step")[s] / gap("source", "bridge, 5 steps")[s] for s in SEEDS},
    ">=",
    0.5,
    source="Kim et al. (2024): step distillation; bound set after trials with two seeds",
)
page.claim(
    "Two bridges for five networks are better than one for three (difference of NLL).",
    gap("2 bridges, 5 steps", "bridge, 5 steps"),
    "<",
    0.0,
    source="Kim et al. (2024), results on CIFAR-10",
)
page.claim(
    "A bridge is worth more than a student that learns from the same networks by ensemble "
    "distillation (difference of deep ensemble equivalents).",
    gap("bridge, 5 steps", "ED", "dee"),
    ">",
    0.0,
    source="Kim et al. (2024), results on CIFAR-10",
    reason="a student that sees as many shifted images as its teachers did is worth more on two of "
    "three seeds, and on average",
)
page.claim(
    "It is worth more than a student by Proxy-END2 (difference of deep ensemble equivalents).",
    gap("bridge, 5 steps", "Proxy-END2", "dee"),
    ">",
    0.0,
    source="Kim et al. (2024), results on CIFAR-10",
)

page.claim(
    "Distilled to one step it is worth more than its source with two bridge networks of type I "
    "(difference of deep ensemble equivalents).",
    gap("bridge, 1 step", "2 of type I", "dee"),
    ">",
    0.0,
    source="Kim et al. (2024), results on CIFAR-10",
)

# %% [markdown]
# Five steps cost more than an equally good ensemble; one step pays, trained or distilled. A
# student costs no more than the source, and is worth more than a bridge on two of the seeds. Two of
# the three students by Proxy-END2 are below the panel.

# %%
COLORS = {"source": GRAY, "ED": RED, "Proxy-END2": YELLOW, "2 of type I": "black"}
figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
axes.plot([1, 3], [1, 3], color=GRAY, lw=1, label="deep ensembles")
for name, by_seed in results.items():
    found = [by_seed[seed] for seed in SEEDS]
    marker = "s" if name.startswith("2") else "o"
    color = COLORS.get(name, GREEN if "1 step" in name else BLUE)
    costs, sizes = [r.cost for r in found], [r.dee for r in found]
    axes.plot(costs, sizes, marker, color=color, ms=5, alpha=0.8, label=name)
axes.set(xlabel="forward passes of the source", ylabel="deep ensemble equivalent", ylim=(0, 3))
axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
page.figure("cost", figure, despine=True)

# %% [markdown]
# ## Steps and draws
#
# At this scale a bridge is nearly a regression: bridges of 1, 2 and 5 steps are equally good, one
# step is as good when trained as when distilled, and neither more draws nor ten times the noise
# change much.

# %%
STEPS, DRAWS = (1, 2, 5), (1, 2, 4, 8, 16)
by_steps = {
    num: {seed: bridges[seed][0] if num == 5 else bridge(seed, num_steps=num) for seed in SEEDS}
    for num in STEPS
}
by_noise = {0.01: by_steps[5], 0.1: {seed: bridge(seed, noise=0.1) for seed in SEEDS}}


def mean_nll(of_seed: dict[int, DiffusionBridgeNetwork], num_draws: int = 1) -> float:
    """Over seeds."""
    return fmean(
        nll(one.probs(data[seed].test_inputs, num_draws, seed=seed), data[seed].test_targets)
        for seed, one in of_seed.items()
    )


figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2), sharey=True, layout="constrained")
line = [mean_nll(by_steps[num]) for num in STEPS]
left.plot(STEPS, line, "o-", color=BLUE, label="trained with so many")
left.plot([1], [rows["bridge, 1 step"]["nll"]], "D", color=GREEN, label="distilled from 5")
for noise, color in ((0.01, BLUE), (0.1, RED)):
    line = [mean_nll(by_noise[noise], num) for num in DRAWS]
    right.plot(DRAWS, line, "o-", color=color, label=f"variance {noise}")
for axes, label in ((left, "steps"), (right, "draws of 5 steps")):
    for name, line_style in (("source", ":"), ("ensemble of 2", "--"), ("ensemble of 3", "-")):
        axes.axhline(rows[name]["nll"], color=GRAY, lw=1, ls=line_style, label=name)
    axes.set(xlabel=label, xscale="log")
    axes.set_xticks(STEPS if axes is left else DRAWS, STEPS if axes is left else DRAWS)
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=7)
left.set_ylabel("NLL, mean of seeds")
left.set_ylim(top=left.get_ylim()[1] + page.length(0.02, smoke=0.0))
page.figure("steps", figure, despine=True)

# %% [markdown]
# ## Calibration under shift
#
# Test images are turned by an angle that no network has seen in training. The bridge follows the
# ensemble half of the way there, too, and the student hardly.

# %%
ANGLES = (0, 15, 30, 45, 60)
SHOWN = {"source": GRAY, "bridge, 5 steps": BLUE, "2 bridges, 5 steps": GREEN, "ED": RED}
SHOWN["ensemble of 3"] = "black"


def turned(x: Tensor, degrees: float) -> Tensor:
    """Images, rotated about their center."""
    angle = torch.tensor(degrees).deg2rad()
    row = torch.stack([angle.cos(), -angle.sin(), torch.zeros(())])
    other = torch.stack([angle.sin(), angle.cos(), torch.zeros(())])
    grid = affine_grid(torch.stack([row, other]).expand(len(x), 2, 3), list(x.shape), False)
    return grid_sample(x, grid, align_corners=False)


@torch.no_grad()
def predicted(name: str, seed: int, x: Tensor) -> Tensor:
    """Probabilities by a method or by the ensemble of three."""
    return member_probs(seed, x)[:3].mean(0) if name == "ensemble of 3" else METHODS[name](seed, x)


figure, panels = plt.subplots(1, 2, figsize=(7.2, 3.2), layout="constrained")
images = {a: {seed: turned(data[seed].test_inputs, a) for seed in SEEDS} for a in ANGLES}
for name, color in SHOWN.items():
    for panel, metric in zip(panels, (nll, ece), strict=True):
        means = [
            fmean(metric(predicted(name, s, images[a][s]), data[s].test_targets) for s in SEEDS)
            for a in ANGLES
        ]
        panel.plot(ANGLES, means, "o-", ms=3, color=color, label=name)
for panel, label in zip(panels, ("NLL", "expected calibration error"), strict=True):
    panel.set(xlabel="angle in degrees", ylabel=label, xticks=ANGLES)
panels[0].legend(frameon=False, fontsize=7)
page.figure("shift", figure, despine=True)

# %%
page.finish(settings={"num_steps": NUM_STEPS, "noise": 0.01, "bridge_steps": 5})
