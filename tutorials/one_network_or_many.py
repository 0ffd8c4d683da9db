"""One network or many: what averages, ensembles and cheap stand-ins give for what they cost."""

# %% [markdown]
# # One network or many
#
# Several networks that were trained apart predict better together than each does alone, and cost
# several times as much. This page puts what there is between one network and many on the same data:
# averages of weights along a training, paths between two networks, heads that stand for a network,
# ensembles that are distilled into one, and a sparse network. For each it says how accurate and how
# well calibrated it is, also on images that are rotated, and what a prediction costs. It ends with
# a table to choose by. `python tutorials/one_network_or_many.py` runs it.

# %%
import math
from collections.abc import Callable
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.flop_counter import FlopCounterMode

from pyro_ext.datasets import random_shifts
from pyro_ext.diagnostics import metrics
from pyro_ext.inference import Trainer
from pyro_ext.inference.averaging import (
    SWAG,
    BezierPath,
    MagnitudePruner,
    SparseWeightAveraging,
    align_units,
)
from pyro_ext.inference.training import ShuffledBatches
from pyro_ext.models.ensembles import (
    BatchEnsembleDistiller,
    BridgeEnsemble,
    BridgeNetwork,
    BridgeSource,
    DiffusionBridgeNetwork,
    base_networks,
)
from pyro_ext.nn import MLP
from pyro_ext.reproduction import Page

page = Page("one-network-or-many")
torch.manual_seed(0)  # of first weights

# %% [markdown]
# ## Five networks
#
# A multilayer perceptron with two hidden layers of 100 units, trained five times on 2,500 images of
# digits, with other first weights and orders each time. The pages on papers start from the same
# networks, which are trained once on a machine. Of 2,500 other images 500 are there to choose a
# temperature by, and 2,000 to test.

# %%
base = base_networks(5, seed=0, num_epochs=page.length(50, smoke=2), progress=False)
first, second = base.networks[:2]
images, labels = base.train_inputs, base.train_targets
validation, validation_labels = base.test_inputs[:500], base.test_targets[:500]
test, test_labels = base.test_inputs[500:], base.test_targets[500:]


def rotated(inputs: Tensor, degrees: float) -> Tensor:
    """Images turned about their centers."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]]).expand(len(inputs), 2, 3)
    grid = affine_grid(turn, list(inputs.shape), align_corners=False)
    return grid_sample(inputs, grid, align_corners=False)


turned = rotated(test, 30.0)

# %% [markdown]
# A row of the table is a function from images to the probabilities of one or several members, whose
# mean is the prediction. Its cost is the number of floating-point operations of that function,
# those of one network being 1. `networks` says how many have to be trained before. Temperatures are
# fitted on the validation images: what is left of the loss then is not a matter of confidence.

# %%
Predict = Callable[[Tensor], Tensor]
rows: dict[str, dict[str, float]] = {}


def operations(predict: Predict) -> int:
    """Floating-point operations for the test images."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        predict(test)
    total: int = counter.get_total_flops()
    return total


def members(*networks: nn.Module) -> Predict:
    """Probabilities of each network."""
    return lambda inputs: torch.stack([network(inputs).softmax(-1) for network in networks])


ONE = operations(members(first))


def add(name: str, predict: Predict, networks: int, cost: float | None = None) -> None:
    """Put a row into the table."""
    with torch.no_grad():
        scaling = metrics.temperature_scale(predict(validation), validation_labels)
        found, found_turned = predict(test), predict(turned)
    rows[name] = {
        "networks": networks,
        "cost": operations(predict) / ONE if cost is None else cost,
        "accuracy": metrics.accuracy(found, test_labels),
        "nll": metrics.nll(found, test_labels),
        "ece": metrics.ece(found, test_labels),
        "scaled nll": metrics.nll(scaling(found), test_labels),
        "rotated nll": metrics.nll(found_turned, test_labels),
        "rotated ece": metrics.ece(found_turned, test_labels),
    }


for size in (1, 2, 3, 5):
    name = "one network" if size == 1 else f"ensemble of {size}"
    add(name, members(*base.networks[:size]), size)

# %% [markdown]
# ## Averages along one training
#
# The first network is trained on with a constant learning rate, and its weights are collected twice
# an epoch. Training for longer helps a little by itself. The average of the weights, SWA, helps
# more, and costs what one network costs. SWAG makes a normal distribution of them, of which ten
# draws are an ensemble.

# %%
EPOCHS = page.length(20, smoke=1)
swag = SWAG(max_rank=20)
moving = nn.Sequential(nn.Flatten(), *MLP(784, [100, 100], 10, nn.ReLU))
moving.load_state_dict(first.state_dict())
adam = partial(torch.optim.Adam, lr=2e-3)
trainer = Trainer(moving, adam, stateful=[swag], seed=0)
batches = ShuffledBatches(images, labels, batch_size=64)


def moving_loss(inputs: Tensor, targets: Tensor) -> Tensor:
    """Collect twice an epoch."""
    if trainer.num_steps % (len(batches) // 2) == 0:
        swag.collect(moving)
    return cross_entropy(moving(random_shifts(inputs, 3)), targets)


trainer.run(moving_loss, EPOCHS * len(batches), batches, progress=False)
add("trained for longer", members(moving), 1)
add("SWA", members(swag.module(moving)), 1)
generator = torch.Generator().manual_seed(0)
draws = [swag.module(moving, swag.sample(generator=generator)) for _ in range(10)]
add("SWAG, 10 draws", members(*draws), 1)

# %% [markdown]
# ## Between two networks
#
# The average of the weights of two networks that were trained apart is no network at all: their
# hidden units mean other things. Put into the same order first it is better, and on a path that is
# bent until its loss is low, it is as good as its ends and differs from them. Two heads on features
# of the ends learn what the middle of the path says: one on a single network, one on both.

# %%
middle = BezierPath(first, second)
add("average of 2", members(middle.module_at(0.5)), 2)
aligned = align_units(first, second, images)
add("average of 2, aligned", members(BezierPath(first, aligned).module_at(0.5)), 2)
shuffled = ShuffledBatches(images, labels, batch_size=128)
STEPS = page.length(80 * len(shuffled), smoke=10)


def train(module: nn.Module, loss: Callable[..., Tensor], lr: float = 2e-3) -> None:
    """Minimize a loss of shifted images and labels along a cosine of the learning rate."""
    Trainer(
        module,
        partial(torch.optim.Adam, lr=lr),
        scheduler=partial(CosineAnnealingLR, T_max=STEPS),
        seed=0,
    ).run(
        lambda inputs, targets: loss(random_shifts(inputs, 3), targets),
        STEPS,
        shuffled,
        progress=False,
    )


train(middle, lambda inputs, targets: cross_entropy(middle(inputs, torch.rand(())), targets))
add("middle of the path", members(middle.module_at(0.5)), 2)
add("2 and the middle", members(first, second, middle.module_at(0.5)), 2)
for kind, width in ((1, 100), (2, 200)):
    bridge = BridgeNetwork(middle, "2", MLP(width, [64], 10), kind=kind)
    train(bridge, lambda inputs, targets, bridge=bridge: bridge.loss(inputs))
    ensemble = BridgeEnsemble([bridge])
    add(f"{kind} and a bridge", ensemble.probabilities, 2)

# %% [markdown]
# ## An ensemble behind one network
#
# A diffusion bridge starts at the logits of one network and ends at a draw of those of an ensemble,
# in a few steps of a small network. Distillation goes further: one network of the same size is all
# that is left. Through a batch ensemble, whose members learn from a teacher each and whose factors
# are averaged in the end, it keeps more than a student of all teachers at once.

# %%
teachers = base.networks[:4]
diffusion = DiffusionBridgeNetwork(BridgeSource(first, images[:2]))
augment = partial(random_shifts, max_shift=3)
diffusion.fit(images, base.networks[:3], STEPS, augment=augment, seed=0, progress=False)
add("1 and a diffusion bridge", lambda inputs: diffusion.probs(inputs, seed=0), 3)
one_step = diffusion.distill(
    images, base.networks[:3], STEPS // 2, augment=augment, seed=0, progress=False
)
add("the same in one step", lambda inputs: one_step.probs(inputs, seed=0), 3)

student = nn.Sequential(nn.Flatten(), *MLP(784, [100, 100], 10, nn.ReLU))
distiller = BatchEnsembleDistiller(student, teachers)
sgd = partial(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True)
Trainer(
    distiller.student,
    sgd,
    scheduler=partial(CosineAnnealingLR, T_max=STEPS),
    max_norm=5.0,
    seed=0,
).run(
    lambda inputs, targets: distiller.loss(random_shifts(inputs, 3)),
    STEPS,
    shuffled,
    progress=False,
)
add("distilled from 4", members(distiller.merge()), 4)

# %% [markdown]
# ## A sparse network
#
# Pruning by magnitude, SWAMP: in each cycle four particles are trained from the same early weights,
# their weights are averaged along the way and with each other, and half of the weights that are
# left go. All of that is training of one small network after the other, twenty times as much as
# for the first one, and what comes out is small. The cost counts the weights that are left, as if
# zeros cost nothing; that needs sparse products.


# %%
class RandomShifts(nn.Module):
    """Shifts images in training."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Shift each image."""
        return random_shifts(inputs, 3) if self.training else inputs


sparse = nn.Sequential(RandomShifts(), nn.Flatten(), *MLP(784, [100, 100], 10, nn.ReLU))
cycles = SparseWeightAveraging(
    sparse,
    ticket_epochs=page.length(3, smoke=1),
    cycle_epochs=page.length(20, smoke=1),
    pruner=MagnitudePruner(rate=0.5),
    seed=0,
).run(ShuffledBatches(images, labels, batch_size=64), page.length(5, smoke=2), progress=False)
sparse.load_state_dict(cycles[-1].state)
sparse.eval()
add(f"sparse, {cycles[-1].sparsity:.0%} pruned", members(sparse), 1, 1.0 - cycles[-1].sparsity)

# %% [markdown]
# ## The table

# %%
page.table(rows, title="method")
figure, panels = plt.subplots(1, 2, figsize=(10, 5), sharey=True, layout="constrained")
shown = sorted(set(rows) - {"average of 2"}, key=lambda name: rows[name]["cost"])  # far off
for axes, column, title in (
    (panels[0], "nll", "images as they are"),
    (panels[1], "rotated nll", "images turned by 30 degrees"),
):
    axes.plot([rows[name][column] for name in shown], range(len(shown)), "o")
    axes.axvline(rows["one network"][column], color="0.8", zorder=0)
    axes.axvline(rows["ensemble of 5"][column], color="0.8", zorder=0)
    axes.set(xlabel="NLL", title=title)
costs = [f"{name}  ({rows[name]['cost']:.2g})" for name in shown]
panels[0].set_yticks(range(len(shown)), costs)
panels[0].set_ylabel("method (cost of a prediction)")
page.figure("cost", figure, despine=True)

# %% [markdown]
# ## What to take
#
# | you can train | a prediction may cost | take |
# |---|---|---|
# | one network, a bit longer | one network | `SWA` of the last epochs, at one learning rate |
# | one network for long, again and again | less than one network | `MagnitudePruner` |
# | several networks | several networks | the ensemble, best also on images unlike those before |
# | several networks | one network | `BatchEnsembleDistiller`, or the middle of a `BezierPath` |
# | several networks | little more | `BridgeNetwork` of type I, `DiffusionBridgeNetwork` |
# | two networks | little more than both | `BridgeNetwork` of type II beside them |
#
# Of rows that differ by .01 in NLL another seed may turn the order. All but ensembles are worse
# where the images are unlike those of the training: what is distilled is what the ensemble says of
# its own kind of images. A temperature that was fitted on such images mends little there.
#
# What this table leaves out: checkpoints of one fine-tuning, whose best mixture is searched for by
# validation metrics (`ModelFusion`); classes of which there are few examples
# (`StochasticRepresentations`); predictions far from all data (`PriorAugmentedELBO`); and data that
# may not leave where they are (`FederatedServer`). Each has a page of its own among the papers.
#
# What this page claims, checked:

# %%
if not page.smoke:
    loss = {name: row["nll"] for name, row in rows.items()}
    sparse_name = next(name for name in rows if name.startswith("sparse"))
    assert loss["SWA"] < loss["trained for longer"] - 0.01, loss
    assert loss["average of 2"] > loss["middle of the path"] + 0.5, loss
    assert loss["average of 2, aligned"] < loss["average of 2"] - 0.3, loss
    assert loss["1 and a bridge"] < loss["one network"] - 0.006, loss
    assert loss["2 and a bridge"] < loss["ensemble of 2"] - 0.002, loss
    for name in ("1 and a diffusion bridge", "the same in one step", "distilled from 4"):
        assert loss[name] < loss["one network"] - 0.005, (name, loss)
    assert loss[sparse_name] < loss["one network"], loss
    turned_loss = {name: row["rotated nll"] for name, row in rows.items()}
    assert min(turned_loss, key=lambda name: turned_loss[name]) == "ensemble of 5", turned_loss
