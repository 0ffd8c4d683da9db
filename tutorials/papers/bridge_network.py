"""Bridge networks: members of an ensemble that cost a head each, learned from low-loss paths."""

# %% [markdown]
# # Bridge networks
#
# E. Yun, H. Lee, G. Nam, J. Lee (2023), Traversing between modes in function space for fast
# ensembling. Networks that were trained from different starts lie in different valleys of the loss,
# and on the straight line between their weights there is a barrier. A curve goes around it, and the
# network in its middle is a good member of an ensemble with those at its ends, at the cost of one
# network more. A bridge network is a small head on features that an end has computed anyway. It
# learns to say what the network in the middle would say, and costs next to nothing.
#
# The networks here have two hidden layers and know half of 5,000 digits of MNIST. The page goes
# along paths between them; trains bridges on features of one end, type I, and of both, type II; and
# sets what they add against what they cost, beside deep and batch ensembles, knowledge distillation
# and stochastic weight averaging.
#
# `pyro-ext reproduce bridge-network` runs the page, and so does
# `python tutorials/papers/bridge_network.py`. Both print a table of claims and save it with the
# figures in `figures/bridge-network`.

# %%
import copy
from collections.abc import Callable
from functools import partial
from itertools import combinations
from statistics import mean

import matplotlib.pyplot as plt
import torch
from sklearn.metrics import r2_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext.datasets import random_shifts
from pyro_ext.diagnostics.metrics import (
    accuracy,
    deep_ensemble_equivalent,
    ece,
    nll,
    temperature_scale,
)
from pyro_ext.inference.averaging import SWA, BezierPath, align_units, path_losses, plane_losses
from pyro_ext.inference.training import ShuffledBatches, Trainer
from pyro_ext.models.ensembles import BridgeEnsemble, BridgeNetwork, base_networks
from pyro_ext.nn import MLP, BatchEnsemble
from pyro_ext.random import seeded
from pyro_ext.reproduction import Page

page = Page(
    "bridge-network",
    paper="E. Yun, H. Lee, G. Nam, J. Lee (2023), Traversing between modes in function space for "
    "fast ensembling, arXiv 2306.11304",
)
SEEDS = page.seeds
BLUE, RED, YELLOW, GRAY = "#2a6f97", "#d1495b", "#e09f3e", "#777777"
NUM_ENDS = 3  # networks that bridges join; deep ensembles have up to five
NUM_CALIBRATION = 500  # of the test images

# %% [markdown]
# ## Networks
#
# Five for each seed, all trained by Adam with a constant learning rate, on images that are shifted
# at random.

# %%
bases = {
    seed: base_networks(5, seed=seed, num_epochs=page.length(50, smoke=1), progress=False)
    for seed in SEEDS
}
adam = partial(torch.optim.Adam, lr=2e-3)


def trained(
    module: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    num_epochs: int,
    *,
    decays: bool = False,
    after_epoch: Callable[[], object] | None = None,
) -> None:
    """Train a module on shifted images, with a learning rate that is constant or decays."""
    batches = ShuffledBatches(bases[seed].train_inputs, bases[seed].train_targets, batch_size=128)
    num_epochs = page.length(num_epochs, smoke=1)
    scheduler = partial(CosineAnnealingLR, T_max=num_epochs * len(batches)) if decays else None
    generator = torch.Generator().manual_seed(seed)
    trainer = Trainer(module, adam, scheduler=scheduler, stateful=[generator], seed=seed)
    for epoch in range(num_epochs):
        trainer.run(
            lambda x, y: loss(random_shifts(x, 3, generator), y),
            (epoch + 1) * len(batches),
            batches,
            progress=False,
        )
        if after_epoch is not None:
            after_epoch()


def test_loss(seed: int, network: nn.Module) -> Tensor:
    """Mean cross-entropy of the test images."""
    return cross_entropy(network(bases[seed].test_inputs), bases[seed].test_targets)


# %% [markdown]
# ## Paths
#
# From one network to another: in a straight line; in a straight line, once the hidden units of the
# second network have been put in the order of those of the first that they are most correlated
# with; and along a curve, whose control point is trained at positions drawn at random.


# %%
def curve(seed: int, i: int, j: int) -> BezierPath:
    """A trained path between two of the networks."""
    path = BezierPath(bases[seed].networks[i], bases[seed].networks[j])
    trained(path, lambda x, y: cross_entropy(path(x, torch.rand(())), y), seed, 100)
    return path


PAIRS = list(combinations(range(NUM_ENDS), 2))
curves = {(seed, *pair): curve(seed, *pair) for seed in SEEDS for pair in PAIRS}
positions = torch.linspace(0.0, 1.0, page.length(21, smoke=3))
along: dict[str, dict[int, Tensor]] = {"straight": {}, "straight, aligned": {}, "curve": {}}
for seed, base in bases.items():
    a, b = base.networks[:2]
    for name, path in (
        ("straight", BezierPath(a, b)),
        ("straight, aligned", BezierPath(a, align_units(a, b, base.train_inputs))),
        ("curve", curves[seed, 0, 1]),
    ):
        along[name][seed] = path_losses(path, partial(test_loss, seed), positions)
middles = {name: {s: float(x[len(x) // 2]) for s, x in row.items()} for name, row in along.items()}
page.table(
    {name: {f"seed {seed}": value for seed, value in row.items()} for name, row in middles.items()},
    title="test NLL in the middle",
)
page.claim(
    "The network in the middle of the straight line is worse than that in the middle of the curve "
    "(difference of test NLL).",
    {seed: middles["straight"][seed] - middles["curve"][seed] for seed in SEEDS},
    ">",
    0.5,
    source="Yun et al. (2023), low-loss Bezier curves; bound preregistered",
)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.6), layout="constrained")
for (name, rows), color in zip(along.items(), (RED, YELLOW, BLUE), strict=True):
    for seed, losses in rows.items():
        label = name if seed == SEEDS[0] else None
        left.plot(positions, losses, color=color, alpha=0.8, label=label)
left.set(xlabel="position r", ylabel="test NLL", yscale="log", title="along paths")
left.set_yticks(ticks := [0.15, 0.2, 0.3, 0.5, 1.0], [f"{tick:g}" for tick in ticks])
left.minorticks_off()
left.legend(frameon=False, fontsize=8, loc="upper left")
shown = curves[SEEDS[0], 0, 1]
plane = plane_losses(
    shown.module_a,
    shown.module_b,
    shown.control,
    partial(test_loss, SEEDS[0]),
    num_points=page.length(17, smoke=3),
)
levels = torch.linspace(-1.8, 1.2, 16).exp().tolist()
contours = right.contourf(
    plane.x, plane.y, plane.losses, levels=levels, cmap="Blues", norm="log", extend="both"
)
figure.colorbar(contours, ax=right, label="test NLL", format="%.2f")
bends = torch.stack([(1 - positions) ** 2, 2 * positions * (1 - positions), positions**2], -1)
right.plot(*(bends @ plane.corners[[0, 2, 1]]).T, color="white", lw=2)
right.plot(*plane.corners[[0, 1]].T, color="white", ls=":", lw=1.5)
right.plot(*plane.corners[[0, 1]].T, "o", color=RED)
right.plot(*plane.corners[2], "x", color=RED)
right.set(title="the plane of the first curve", aspect="equal", xticks=[], yticks=[])
page.figure("paths", figure, despine=True)

# %% [markdown]
# ## Bridges
#
# Heads of one hidden layer, on the first hidden layer of one end or of both, learn the middle of
# each curve at mixtures of images. As a control, one learns what its own end says.


# %%
def bridge(seed: int, i: int, j: int, kind: int, r: float = 0.5) -> BridgeNetwork:
    """A trained bridge."""
    with seeded(seed):
        head = MLP(100 * kind, [64], 10)
    found = BridgeNetwork(curves[seed, i, j], "2", head, kind, r)
    trained(found, lambda x, _: found.loss(x), seed, 80, decays=True)
    return found


ones = {(seed, j): bridge(seed, 0, j, kind=1) for seed in SEEDS for j in range(1, NUM_ENDS)}
twos = {(seed, *pair): bridge(seed, *pair, kind=2) for seed in SEEDS for pair in PAIRS}
controls = {seed: bridge(seed, 0, 1, kind=1, r=0.0) for seed in SEEDS}


@torch.no_grad()
def fit(found: BridgeNetwork, inputs: Tensor) -> float:
    """Coefficient of determination of the probabilities in the middle by those of the bridge."""
    middle, own = found.target(inputs).softmax(-1), found.log_prob(inputs).exp()
    return float(r2_score(middle, own, multioutput="variance_weighted"))


r_squared = {
    "type I": {seed: fit(ones[seed, 1], bases[seed].test_inputs) for seed in SEEDS},
    "type II": {seed: fit(twos[seed, 0, 1], bases[seed].test_inputs) for seed in SEEDS},
}
page.claim(
    "Bridges of type I say what the network in the middle says (R^2 of probabilities).",
    r_squared["type I"],
    ">=",
    0.94,
    source="Yun et al. (2023), R^2 of bridges; bound preregistered",
)
page.claim(
    "Bridges of type II do (R^2 of probabilities).",
    r_squared["type II"],
    ">=",
    0.96,
    source="Yun et al. (2023), R^2 of bridges; bound preregistered",
)
page.claim(
    "Features of both ends tell more of the middle than those of one (difference of R^2).",
    {seed: r_squared["type II"][seed] - r_squared["type I"][seed] for seed in SEEDS},
    ">",
    0.0,
    source="Yun et al. (2023), bridges of type II",
)

# %% [markdown]
# ## Networks to compare with
#
# A network distilled from the average of the three, on the same images; one whose weights are
# averaged over 25 epochs more of training, at the same learning rate; and a batch ensemble, three
# networks that share their weights but for factors of inputs and outputs.


# %%
def distilled(seed: int) -> nn.Module:
    """A new network that learns what the networks say on average."""
    with seeded(seed):
        student = nn.Sequential(nn.Flatten(), *MLP(784, [100, 100], 10, nn.ReLU))
    teachers = bases[seed].networks[:NUM_ENDS]

    def loss(x: Tensor, _: Tensor) -> Tensor:
        target = torch.stack([teacher(x).softmax(-1) for teacher in teachers]).mean(0)
        return kl_div(student(x).log_softmax(-1), target, reduction="batchmean")

    trained(student, loss, seed, 100)
    return student


def averaged(seed: int) -> nn.Module:
    """The average of the first network's weights over more epochs."""
    network = copy.deepcopy(bases[seed].networks[0]).requires_grad_()
    swa = SWA()
    trained(
        network,
        lambda x, y: cross_entropy(network(x), y),
        seed,
        25,
        after_epoch=lambda: swa.collect(network),
    )
    return swa.module(network)


def batch_ensemble(seed: int) -> nn.Module:
    """Three networks in one, whose factors start as random signs."""
    with seeded(seed):
        network = nn.Sequential(nn.Flatten(), *MLP(784, [100, 100], 10, nn.ReLU))
        ensemble = BatchEnsemble(network, NUM_ENDS)
        for factors in ensemble.factors().values():
            factors.data = torch.randint(2, factors.shape) * 2.0 - 1.0
    trained(ensemble, lambda x, y: cross_entropy(ensemble(x).mT, y.expand(NUM_ENDS, -1)), seed, 100)
    return ensemble


batch_ensembles = {seed: batch_ensemble(seed) for seed in SEEDS}
singles = {
    "distilled": {seed: distilled(seed) for seed in SEEDS},
    "SWA": {seed: averaged(seed) for seed in SEEDS},
}

# %% [markdown]
# ## What bridges add, and what they cost
#
# All is evaluated on 2,000 test images. The calibrated NLL is at a temperature that was found on
# the other 500, and the deep ensemble equivalent, DEE, is how many networks an ensemble needs for
# as little of it, by averages over all ensembles of one to five. The cost counts floating-point
# operations in units of one network.
#
# A bridge is worth about a network, at a seventh of its cost or less, and one of type II adds most
# of what the network that it stands for adds. A second one of type I adds hardly anything.
# What goes the other way: a network whose weights are averaged costs no more than one, and is as
# good as nearly four. These networks were trained at a constant learning rate, and averaging takes
# its noise out: single ones after the same epochs have a test NLL of 0.22, 0.16 and 0.16.


# %%
@torch.no_grad()
def members(seed: int) -> dict[str, tuple[Tensor, float]]:
    """Probabilities of the members of each ensemble, and its cost."""
    inputs = bases[seed].test_inputs
    ends = torch.stack([network(inputs).softmax(-1) for network in bases[seed].networks])
    middle = twos[seed, 0, 1].target(inputs).softmax(-1)[None]
    found = {f"DE-{m}": (ends[:m], float(m)) for m in range(1, 6)}
    found["one + midpoint"] = torch.cat([ends[:1], middle]), 2.0
    found["DE-2 + midpoint"] = torch.cat([ends[:2], middle]), 3.0
    found["batch ensemble"] = batch_ensembles[seed](inputs).softmax(-1), float(NUM_ENDS)
    for name, by_seed in singles.items():
        found[name] = by_seed[seed](inputs).softmax(-1)[None], 1.0
    for name, bridges in {
        "one + control": [controls[seed]],
        "one + 1 type I": [ones[seed, 1]],
        "one + 2 type I": [ones[seed, 1], ones[seed, 2]],
        "DE-2 + 1 type II": [twos[seed, 0, 1]],
        "DE-3 + 3 type II": [twos[seed, *pair] for pair in PAIRS],
    }.items():
        ensemble = BridgeEnsemble(bridges)
        found[name] = ensemble.probabilities(inputs), ensemble.relative_cost(inputs)
    return found


def calibrated(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Probabilities of the images after the first ones, at the best temperature for those."""
    scaling = temperature_scale(probabilities[:, :NUM_CALIBRATION], labels[:NUM_CALIBRATION])
    return scaling(probabilities[:, NUM_CALIBRATION:])


results: dict[int, dict[str, dict[str, float]]] = {}
for seed, base in bases.items():
    found = members(seed)
    labels = base.test_targets
    ends = found["DE-5"][0]
    reference = [
        mean(
            nll(calibrated(ends[list(chosen)], labels), labels[NUM_CALIBRATION:])
            for chosen in combinations(range(5), size)
        )
        for size in range(1, 6)
    ]
    results[seed] = {}
    for name, (probabilities, cost) in found.items():
        scaled = nll(calibrated(probabilities, labels), labels[NUM_CALIBRATION:])
        own = probabilities[:, NUM_CALIBRATION:]
        results[seed][name] = {
            "cost": cost,
            "accuracy": accuracy(own, labels[NUM_CALIBRATION:]),
            "ECE": ece(own, labels[NUM_CALIBRATION:]),
            "NLL": nll(own, labels[NUM_CALIBRATION:]),
            "calibrated NLL": scaled,
            "DEE": deep_ensemble_equivalent(scaled, torch.tensor(reference)),
        }
names = list(results[SEEDS[0]])
means = {
    name: {
        column: mean(results[seed][name][column] for seed in SEEDS)
        for column in results[SEEDS[0]][name]
    }
    for name in names
}
page.table(means, title="means over seeds")


def difference(column: str, name: str, other: str) -> dict[int, float]:
    """How much more of something one ensemble has than another, for each seed."""
    return {seed: row[name][column] - row[other][column] for seed, row in results.items()}


page.claim(
    "A bridge of type I makes one network better (difference of test NLL).",
    difference("NLL", "one + 1 type I", "DE-1"),
    "<=",
    -0.006,
    source="Yun et al. (2023), one network with bridges; bound preregistered",
)
page.claim(
    "A bridge of type II makes two networks better (difference of test NLL).",
    difference("NLL", "DE-2 + 1 type II", "DE-2"),
    "<=",
    -0.002,
    source="Yun et al. (2023), two networks with a bridge; bound preregistered",
)
page.claim(
    "It is the middle of the curve that helps: a bridge that learned what its own end says adds "
    "less (difference of test NLL).",
    difference("NLL", "one + 1 type I", "one + control"),
    "<=",
    -0.006,
    source="Yun et al. (2023), mixup exposes where middle and end differ; control and bound ours",
)


def profit(name: str, other: str) -> dict[int, float]:
    """What an ensemble adds to another in deep ensemble equivalents, less what it costs more."""
    gain, price = difference("DEE", name, other), difference("cost", name, other)
    return {seed: gain[seed] - price[seed] for seed in SEEDS}


page.claim(
    "To one network a bridge of type I adds more than it costs (in networks: deep ensemble "
    "equivalent less relative cost).",
    profit("one + 1 type I", "DE-1"),
    ">",
    0.0,
    source="Yun et al. (2023), abstract: fast ensembles",
)
page.claim(
    "To two networks a bridge of type II adds more than it costs (in networks).",
    profit("DE-2 + 1 type II", "DE-2"),
    ">",
    0.0,
    source="Yun et al. (2023), abstract: fast ensembles",
)
page.claim(
    "Two networks with a bridge are better than a batch ensemble of three (difference of test "
    "NLL).",
    difference("NLL", "DE-2 + 1 type II", "batch ensemble"),
    "<",
    0.0,
    source="Yun et al. (2023), baselines of the comparison; direction ours",
    reason="with one seed the two are alike, up to a few ten-thousandths of a nat, whose sign is "
    "another one on another processor",
)
page.claim(
    "One network with two bridges is better than one distilled from three (difference of test "
    "NLL).",
    difference("NLL", "one + 2 type I", "distilled"),
    "<",
    0.0,
    source="Yun et al. (2023), baselines of the comparison; direction ours",
    reason="with the first seed the network that the bridges stand on is one of the worst of five, "
    "with a test NLL of 0.220, and has a third of the votes; with the others bridges are ahead",
)
page.claim(
    "One network with two bridges is better than averaged weights (difference of test NLL).",
    difference("NLL", "one + 2 type I", "SWA"),
    "<",
    0.0,
    source="Yun et al. (2023), baselines of the comparison; direction ours",
    reason="the networks were trained at a constant learning rate, and bridges keep its noise, "
    "which averaging takes out",
)

# %%
figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
for series, marker, color, offset in (
    ([f"DE-{m}" for m in range(1, 6)], "o-", GRAY, (-34, 2)),
    (["DE-1", "one + 1 type I", "one + 2 type I"], "s-", BLUE, (0, 6)),
    (["DE-2", "DE-2 + 1 type II"], "D-", RED, (6, -3)),
    (["DE-3", "DE-3 + 3 type II"], "D-", RED, (6, -3)),
    (["one + midpoint", "DE-2 + midpoint"], "^", YELLOW, (6, 1)),
    (["batch ensemble"], "x", GRAY, (6, -3)),
    (["distilled", "SWA", "one + control"], "x", GRAY, (6, -3)),
):
    points = [(means[name]["cost"], means[name]["DEE"]) for name in series]
    axes.plot(*zip(*points, strict=True), marker, color=color, ms=5)
    for name, point in zip(series, points, strict=True):
        if name == "one + 2 type I":
            axes.annotate(name, point, (6, -10), textcoords="offset points", fontsize=7)
        elif color == GRAY or not name.startswith("DE-") or "+" in name:
            axes.annotate(name, point, offset, textcoords="offset points", fontsize=7)
axes.set(xlabel="relative cost", ylabel="deep ensemble equivalent", xlim=(0.6, 5.2))
page.figure("cost", figure, despine=True)

# %% [markdown]
# ## The claims

# %%
page.finish(
    {
        "middles": {name: list(row.values()) for name, row in middles.items()},
        "R^2": {name: list(row.values()) for name, row in r_squared.items()},
        "means": means,
        "NLL": {name: [row[name]["NLL"] for row in results.values()] for name in names},
    }
)
