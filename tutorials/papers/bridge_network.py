"""Bridge networks: members of an ensemble that cost a head each, learned from low-loss paths."""

# %% [markdown]
# # Bridge networks
#
# Networks that were trained from different starts lie in different valleys of the loss, and on the
# straight line between their weights there is a barrier. A curve goes around it, and the network in
# its middle is a good member of an ensemble with those at its ends, at the cost of one network
# more. E. Yun, H. Lee, G. Nam, J. Lee (2023), Traversing between modes in function space for fast
# ensembling, save that cost: a bridge network is a small head on features that an end has computed
# anyway, and learns to say what the network in the middle would say.
#
# Here networks with two hidden layers learn half of 5,000 digits of MNIST. Bridges of type I take
# features of one end, those of type II of both. Rivals are deep and batch ensembles, distillation
# and stochastic weight averaging (SWA). `pyro-ext reproduce bridge-network` runs the page.

# %%
import copy
from collections.abc import Callable
from functools import partial
from itertools import combinations
from statistics import mean

import matplotlib.pyplot as plt
import pyro
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.optim import ClippedAdam
from sklearn.metrics import r2_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext.datasets import random_shifts
from pyro_ext.diagnostics import metrics
from pyro_ext.inference.averaging import SWA, BezierPath
from pyro_ext.inference.training import ShuffledBatches, Trainer
from pyro_ext.models.ensembles import BridgeEnsemble, BridgeNetwork, base_networks
from pyro_ext.nn import MLP, BatchEnsemble, BayesianClassifier, BayesianModule
from pyro_ext.random import seeded
from pyro_ext.reproduction import Page

page = Page(
    "bridge-network",
    paper="E. Yun, H. Lee, G. Nam, J. Lee (2023), Traversing between modes in function space for "
    "fast ensembling, arXiv 2306.11304",
)
SEEDS = page.seeds
Loss = Callable[[Tensor, Tensor], Tensor]
RIVALS = "Yun et al. (2023), baselines of the comparison; direction ours"

# %% [markdown]
# ## A path and its bridge as a Pyro program
#
# A Bayesian network tells quadrants of the plane apart. A path is a guide of its weights: it draws
# a position, and has the weights there. A new path is a straight line; SVI trains its control point
# for likelihood and prior to be high along it. A bridge learns what the middle of the curve says.

# %%
classifier = BayesianClassifier(BayesianModule(MLP(2, [16, 16], 2), 3.0))
with seeded(0):
    x, new_x = torch.randn(300, 2), torch.randn(1000, 2)
    y, new_y = ((points.prod(-1) > 0).long() for points in (x, new_x))
    modes = nn.ModuleList([MLP(2, [16, 16], 2), MLP(2, [16, 16], 2)])
num_steps, adam = page.length(300, smoke=3), partial(torch.optim.Adam, lr=0.01)
Trainer(modes, adam, seed=0).run(
    lambda: cross_entropy(torch.cat([m(x) for m in modes]), y.repeat(2)), num_steps, progress=False
)
path = BezierPath(*modes)


def along_path(*args: Tensor) -> dict[str, Tensor]:
    """Weights at a random position, with the control point as a parameter."""
    pyro.module("control", path.control)
    return path.guide(*args)


svi = SVI(classifier, along_path, ClippedAdam({"lr": 0.01}), Trace_ELBO())
with seeded(0):
    for name, number in {"straight line": 0, "curve": num_steps}.items():
        for _ in range(number):
            svi.step(x, y)
        drawn = Predictive(classifier, guide=path.guide, num_samples=200)(new_x)["label"]
        print(f"{name}: accuracy {float((drawn == new_y).double().mean()):.3f}")
    small = BridgeNetwork(path, "3", MLP(32, [16], 2), kind=2)
Trainer(small, adam, seed=0).run(lambda: small.loss(x), num_steps, progress=False)
members = BridgeEnsemble([small]).probabilities(new_x)
print(f"the ends and the bridge: accuracy {metrics.accuracy(members, new_y):.3f}")

# %% [markdown]
# ## Networks, curves and bridges
#
# Five networks of MNIST for each seed, trained by Adam with a constant learning rate on images that
# are shifted at random. Curves go from the first to two others. Bridges, heads of one hidden layer
# on the first hidden layer of one end or of both, learn the middle of a curve at mixtures of
# images, with a learning rate that decays.

# %%
num_epochs = page.length(50, smoke=1)
bases = {s: base_networks(5, seed=s, num_epochs=num_epochs, progress=False) for s in SEEDS}


def trained(
    module: nn.Module, loss: Loss, seed: int, num_epochs: int, average: SWA | None = None
) -> None:
    """Train a module on shifted images; an average takes in its weights after each epoch."""
    batches = ShuffledBatches(bases[seed].train_inputs, bases[seed].train_targets, batch_size=128)
    num_epochs, generator = page.length(num_epochs, smoke=1), torch.Generator().manual_seed(seed)
    decay = partial(CosineAnnealingLR, T_max=num_epochs * len(batches))
    scheduler = decay if isinstance(module, BridgeNetwork) else None
    adam = partial(torch.optim.Adam, lr=2e-3)
    trainer = Trainer(module, adam, scheduler=scheduler, stateful=[generator], seed=seed)
    for epoch in range(1, num_epochs + 1):
        trainer.run(
            lambda x, y: loss(random_shifts(x, 3, generator), y),
            epoch * len(batches),
            batches,
            progress=False,
        )
        if average is not None:
            average.collect(module)


def curve(seed: int, j: int) -> BezierPath:
    """A trained path from the first network to another."""
    path = BezierPath(bases[seed].networks[0], bases[seed].networks[j])
    trained(path, lambda x, y: cross_entropy(path(x, torch.rand(())), y), seed, 100)
    return path


curves = {(seed, j): curve(seed, j) for seed in SEEDS for j in (1, 2)}


def bridge(seed: int, j: int, kind: int) -> BridgeNetwork:
    """A trained bridge."""
    with seeded(seed):
        head = MLP(100 * kind, [64], 10)
    found = BridgeNetwork(curves[seed, j], "2", head, kind)
    trained(found, lambda x, _: found.loss(x), seed, 80)
    return found


ones = {(seed, j): bridge(seed, j, kind=1) for seed in SEEDS for j in (1, 2)}
twos = {seed: bridge(seed, 1, kind=2) for seed in SEEDS}


@torch.no_grad()
def fit(found: BridgeNetwork, seed: int) -> float:
    """Coefficient of determination of the probabilities in the middle by those of the bridge."""
    middle = found.target(bases[seed].test_inputs).softmax(-1)
    own = found.log_prob(bases[seed].test_inputs).exp()
    return float(r2_score(middle, own, multioutput="variance_weighted"))


page.claim(
    "Bridges of type I say what the network in the middle says (R^2 of probabilities).",
    {seed: fit(ones[seed, 1], seed) for seed in SEEDS},
    ">=",
    0.94,
    source="Yun et al. (2023), R^2 of bridges; bound preregistered",
)
page.claim(
    "Bridges of type II do (R^2 of probabilities).",
    {seed: fit(twos[seed], seed) for seed in SEEDS},
    ">=",
    0.96,
    source="Yun et al. (2023), R^2 of bridges; bound preregistered",
)

# %% [markdown]
# ## Networks to compare with
#
# A network distilled from the average of three, on the same images; one whose weights are averaged
# over more epochs of training, at the same learning rate; and a batch ensemble, three networks that
# share their weights but for factors of inputs and outputs.


# %%
def rivals(seed: int) -> dict[str, nn.Module]:
    """A distilled network, averaged weights, and a batch ensemble whose factors start as signs."""
    base, swa = bases[seed], SWA()
    with seeded(seed):
        student = nn.Sequential(nn.Flatten(), *MLP(784, [100, 100], 10, nn.ReLU))
        batch = BatchEnsemble(copy.deepcopy(student), 3)
        for factors in batch.factors().values():
            factors.data = torch.randint(2, factors.shape) * 2.0 - 1.0

    def teach(x: Tensor, _: Tensor) -> Tensor:
        target = torch.stack([network(x).softmax(-1) for network in base.networks[:3]]).mean(0)
        return kl_div(student(x).log_softmax(-1), target, reduction="batchmean")

    trained(student, teach, seed, 100)
    trained(batch, lambda x, y: cross_entropy(batch(x).mT, y.expand(3, -1)), seed, 100)
    first = copy.deepcopy(base.networks[0]).requires_grad_()
    trained(first, lambda x, y: cross_entropy(first(x), y), seed, 25, average=swa)
    return {"batch ensemble": batch, "distilled": student, "SWA": swa.module(first)}


others = {seed: rivals(seed) for seed in SEEDS}

# %% [markdown]
# ## What bridges add, and what they cost
#
# Temperatures are fitted on 500 of the test images, and all is evaluated on the others. The deep
# ensemble equivalent (DEE) is how many networks an ensemble needs for as low a calibrated negative
# log likelihood (NLL). The cost counts floating-point operations in units of one network.


# %%
def calibrated_nll(probabilities: Tensor, labels: Tensor) -> float:
    """NLL of the images after the first ones, at the best temperature for those."""
    scaling = metrics.temperature_scale(probabilities[:, :500], labels[:500])
    return metrics.nll(scaling(probabilities[:, 500:]), labels[500:])


results: dict[int, dict[str, dict[str, float]]] = {seed: {} for seed in SEEDS}
for seed, base in bases.items():
    inputs, labels, reference = base.test_inputs, base.test_targets, []
    ends = torch.stack([network(inputs).softmax(-1) for network in base.networks])
    found = {f"DE-{m}": (ends[:m], float(m)) for m in range(1, 6)}
    middle = twos[seed].target(inputs).softmax(-1)[None]
    found["DE-2 + midpoint"] = torch.cat([ends[:2], middle]), 3.0
    for name, network in others[seed].items():
        own = network(inputs).softmax(-1).detach().reshape(-1, *middle.shape[1:])
        found[name] = own, float(len(own))
    for name, bridges in {
        "one + 1 type I": [ones[seed, 1]],
        "one + 2 type I": [ones[seed, 1], ones[seed, 2]],
        "DE-2 + 1 type II": [twos[seed]],
    }.items():
        ensemble = BridgeEnsemble(bridges)
        found[name] = ensemble.probabilities(inputs), ensemble.relative_cost(inputs)
    for size in range(1, 6):
        chosen = [ends[[*some]] for some in combinations(range(5), size)]
        reference.append(mean(calibrated_nll(one, labels) for one in chosen))
    for name, (probabilities, cost) in found.items():
        row = {"NLL": metrics.nll(probabilities[:, 500:], labels[500:]), "cost": cost}
        nll = calibrated_nll(probabilities, labels)
        row["DEE"] = metrics.deep_ensemble_equivalent(nll, reference)
        results[seed][name] = row | {"DEE - cost": row["DEE"] - cost}
means = {
    name: {column: mean(results[seed][name][column] for seed in SEEDS) for column in row}
    for name, row in results[SEEDS[0]].items()
}
page.table(means, title="means over seeds")


def difference(column: str, name: str, other: str) -> dict[int, float]:
    """Difference of two ensembles in a column, for each seed."""
    return {seed: row[name][column] - row[other][column] for seed, row in results.items()}


page.claim(
    "To one network a bridge of type I adds more than it costs (in networks: deep ensemble "
    "equivalent less relative cost).",
    difference("DEE - cost", "one + 1 type I", "DE-1"),
    ">",
    0.0,
    source="Yun et al. (2023), abstract: fast ensembles",
)
page.claim(
    "To two networks a bridge of type II adds more than it costs (in networks).",
    difference("DEE - cost", "DE-2 + 1 type II", "DE-2"),
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
    source=RIVALS,
    reason="with one seed the two are alike, up to a few ten-thousandths of a nat, whose sign is "
    "another one on another processor",
)
page.claim(
    "One network with two bridges is better than one distilled from three (difference of test "
    "NLL).",
    difference("NLL", "one + 2 type I", "distilled"),
    "<",
    0.0,
    source=RIVALS,
    reason="with the first seed the network that the bridges stand on is one of the worst of five, "
    "and has a third of the votes; with the others bridges are ahead",
)
page.claim(
    "One network with two bridges is better than averaged weights (difference of test NLL).",
    difference("NLL", "one + 2 type I", "SWA"),
    "<",
    0.0,
    source=RIVALS,
    central=True,
    reason="the networks were trained at a constant learning rate, and bridges keep its noise, "
    "which averaging takes out",
)

# %%
figure, axes = plt.subplots(figsize=(5.6, 3.8), layout="constrained")
axes.plot(range(1, 6), [means[f"DE-{m}"]["DEE"] for m in range(1, 6)], "o-", color="0.5")
for name, row in means.items():
    axes.plot(row["cost"], row["DEE"], "o", color="C0" if "type" in name else "0.5")
    axes.annotate(name, (row["cost"], row["DEE"]), (5, -4), textcoords="offset points", fontsize=7)
axes.set(xlabel="relative cost", ylabel="deep ensemble equivalent", xlim=(0.6, 5.8))
page.figure("cost", figure, despine=True)

# %% [markdown]
# A bridge is worth about a network and costs little, while a second one of type I adds hardly
# anything. What goes the other way: a network whose weights are averaged costs no more than one,
# and does better than two bridges, as it has none of the noise of a constant learning rate.
#
# ## In use
#
# Where an ensemble is too slow, train a `BezierPath` between its networks, give a `BridgeNetwork`
# the features that they compute anyway, and predict by `BridgeEnsemble`. If training used a
# constant learning rate, try `SWA` first.

# %%
page.finish({"means": means})
