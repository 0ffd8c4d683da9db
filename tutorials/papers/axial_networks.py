"""Axial networks: trained on images, used on volumes."""

# %% [markdown]
# # Axial networks
#
# A convolution knows how many axes its input has. H. Kim, J. Park, J. Bruna, H. Yang, J. Lee
# (2025), Axial neural networks for dimension-free foundation models, take the axes of a field as
# elements of a set, or as nodes of a graph: what works along one axis, or on a pair of axes, is
# applied along each, and aggregated. Such a network commutes with permutations of the axes, and has
# as many parameters for volumes as for images.
#
# Two experiments have exact truth: networks that are trained on images tell kernels of Gaussian
# processes apart in volumes, and solvers of two equations in 2-D are tuned on a few in 3-D.
#
# `pyro-ext reproduce axial-networks` runs the page; claims and figures are saved in
# `figures/axial-networks`.

# %%
from collections.abc import Callable
from copy import deepcopy
from functools import partial, reduce
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext.inference.training import ShuffledBatches, Trainer
from pyro_ext.models.symmetry import XMPP, XCViT, kernel_fields, transport_fields
from pyro_ext.nn.axial import GXCNN, SXCNN, check_axis_equivariance
from pyro_ext.random import seeded
from pyro_ext.reproduction import Page
from pyro_ext.tutorials.papers._axial_rivals import ConvNetwork, ConvSolver, inflated

page = Page(
    "axial-networks",
    paper="H. Kim, J. Park, J. Bruna, H. Yang, J. Lee (2025), Axial neural networks for "
    "dimension-free foundation models, arXiv 2510.13665",
)
SEEDS = page.seeds
BLUE, RED, GRAY, YELLOW, GREEN = "#2a6f97", "#d1495b", "#8d99ae", "#e09f3e", "#588157"

# %% [markdown]
# ## An axial network as a guide
#
# A network for fields of any rank can be the guide of a model of such fields. Here these are draws
# of a Gaussian process, and only a noisy sign of each cell is seen. The guide maps these signs to
# means and scales, and is trained on images; `AutoNormal` is trained on the volumes themselves.


# %%
def signs(num_axes: int, num_fields: int, y: Tensor | None = None) -> None:
    """Draw smooth fields with any number of axes, and noisy signs of their cells."""
    root = reduce(torch.kron, [line] * num_axes)
    with pyro.plate("fields", num_fields):
        z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(len(root)), scale_tril=root))
        pyro.sample("y", dist.Bernoulli(logits=4 * z).to_event(1), obs=y)


def guide(num_axes: int, num_fields: int, y: Tensor) -> None:
    """Draw fields given the signs, by one network for any number of axes."""
    pyro.module("encoder", encoder)
    outputs = encoder(y.reshape(num_fields, *[6] * num_axes, 1))
    loc, log_scale = outputs.flatten(1, -2).unbind(-1)
    with pyro.plate("fields", num_fields):
        pyro.sample("z", dist.Normal(loc, (log_scale - 1).exp()).to_event(1))


pyro.clear_param_store()
with seeded(0):
    lag = torch.arange(6.0) - torch.arange(6.0)[:, None]
    line = torch.linalg.cholesky((-lag.square() / 2).exp() + 0.1 * torch.eye(6))
    encoder = nn.Sequential(GXCNN(1, channels=16, num_layers=3, agg="mean"), nn.Linear(16, 2))
    images_by_20 = Predictive(signs, num_samples=1)(2, 200)["y"][0].split(20)
    drawn = Predictive(signs, num_samples=1)(3, 10)
    truth, volumes = drawn["z"][0], drawn["y"][0]
    print(f"error of the prior mean in volumes: {float(truth.square().mean().sqrt()):.2f}")
    for name, one, num_axes, batches, num_steps in (
        ("GXCNN", guide, 2, images_by_20, page.length(250, smoke=2)),
        ("AutoNormal", AutoNormal(signs, init_scale=0.3), 3, [volumes], page.length(1000, smoke=2)),
    ):
        svi = SVI(signs, one, PyroOptim(torch.optim.Adam, {"lr": 0.02}), Trace_ELBO())
        for step in range(num_steps):
            y = batches[step % len(batches)]
            svi.step(num_axes, len(y), y)
        z = Predictive(signs, guide=one, num_samples=200)(3, 10, volumes)["z"]
        distance = float((z.mean(0) - truth).square().mean().sqrt())
        bound = -svi.evaluate_loss(3, 10, volumes) / volumes.numel()
        print(f"{name}: error of posterior means {distance:.2f}, bound of a cell {bound:.2f}")

# %% [markdown]
# The network has seen no volume, and recovers these nearly as well as `AutoNormal`, which learns a
# mean and a scale for each of their cells. Below, such networks tell kernels apart and solve
# equations: they are trained on images and used on volumes, with a loss in place of the bound.
#
# ## Kernels of Gaussian processes
#
# 600 fields of $16 \times 16$ are draws of a Gaussian process with an RBF kernel or with a periodic
# one, standardized. The axial networks are smaller than the paper's. Their rival is the paper's 3-D
# CNN, which sees an image as the first slice of a cube of zeros, as in the public code.

# %%
NUM_TRAIN, NUM_EPOCHS = page.length(600, smoke=64), page.length(8, smoke=1)
NUM_TEST = dict(enumerate(page.length((200, 300, 200), smoke=(8, 8, 8)), 1))  # by axes
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "SXCNN": lambda: SXCNN(1, 1, channels=24, num_layers=4),
    "GXCNN": lambda: GXCNN(1, 1, channels=16, num_layers=3),
    "CNN, padded": lambda: ConvNetwork(3),
}


def classifier(name: str, seed: int) -> nn.Module:
    """A network that has learned from images."""
    torch.manual_seed(seed)
    network = NETWORKS[name]()
    batches = ShuffledBatches(*kernel_fields(NUM_TRAIN, 2, seed=seed), batch_size=32)
    trainer = Trainer(network, partial(torch.optim.Adam, lr=2e-3), seed=seed)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(network(x)[:, 0], y.float())

    trainer.run(loss, NUM_EPOCHS * len(batches), batches, progress=False)
    return network


@torch.no_grad()
def accuracy(network: nn.Module, num_axes: int, seed: int) -> float:
    """Fraction of new fields of which the kernel is told."""
    fields, labels = kernel_fields(NUM_TEST[num_axes], num_axes, seed=1000 * num_axes + seed)
    logits = torch.cat([network(some)[:, 0] for some in fields.split(20)])
    return float(((logits > 0) == labels.bool()).float().mean())


Seeds = dict[int, float]
accuracies: dict[str, dict[int, Seeds]] = {name: {k: {} for k in NUM_TEST} for name in NETWORKS}
equivariance: Seeds = {}
for name in NETWORKS:
    for seed in SEEDS:
        network = classifier(name, seed)
        for num_axes in NUM_TEST:
            if name != "CNN, padded" or num_axes > 1:
                accuracies[name][num_axes][seed] = accuracy(network, num_axes, seed)
        if isinstance(network, GXCNN):
            sizes = (2, 4, 5, 6, 1)
            equivariance[seed] = check_axis_equivariance(network.backbone, sizes, tolerance=1.0)
page.table(
    {
        f"{name}, {num_axes}-D": {f"seed {seed}": value for seed, value in by_seed.items()}
        for name, by_axes in accuracies.items()
        for num_axes, by_seed in by_axes.items()
        if by_seed
    },
    title="accuracy",
)

# %% [markdown]
# Fields of one axis are not in the claims: for these GXCNN repeats the field along a new axis,
# which is unlike anything in an image, and has to be tuned.

# %%
images, volumes = (kernel_fields(2, num_axes, seed=0)[0] for num_axes in (2, 3))
figure, axes = plt.subplots(2, 5, figsize=(10, 4.2), layout="constrained")
for row, kernel in enumerate(("RBF", "periodic")):
    x = volumes[row, ..., 0]
    cuts = [images[row, ..., 0], x[8], x[:, 8], x[:, :, 4], x[:, :, 12]]
    titles = ["image", "first axis", "second axis", "third axis", "third axis"]
    for ax, cut, title in zip(axes[row], cuts, titles, strict=True):
        ax.imshow(cut.numpy(), cmap="viridis", vmin=-2.5, vmax=2.5)
        ax.set(xticks=[], yticks=[], title=title if row == 0 else "")
    axes[row, 0].set_ylabel(kernel)
figure.suptitle("What is learned from, left, and slices of volumes that are never seen before")
page.figure("fields", figure)

figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
for place, (name, color) in enumerate(zip(NETWORKS, (BLUE, GREEN, GRAY), strict=True)):
    for num_axes, by_seed in accuracies[name].items():
        for seed, value in by_seed.items():
            label = name if (num_axes, seed) == (2, SEEDS[0]) else None
            ax.plot(num_axes + 0.15 * (place - 1), value, "o", color=color, label=label)
ax.axhline(0.5, color="k", lw=0.8, ls=":")
ax.set(xticks=[1, 2, 3], xticklabels=["1-D", "2-D (trained)", "3-D"], ylabel="accuracy")
ax.legend()
page.figure("accuracy", figure, despine=True)

# %% [markdown]
# ## Equations in two and in three dimensions
#
# The heat equation, each field with its own diffusivity, and the advection equation, each with its
# own speed, are solved exactly by Fourier multipliers on a torus with 8 positions along each axis.
# From two states a network predicts the third, measured by the relative error
# $\|\hat x - x\| / \|x\|$. One X-MPP learns both equations in 2-D, and X-CViT, which is asked at
# random points, learns the heat equation. Then they are tuned on 32 solutions in 3-D, and the same
# networks start from scratch there, with as many steps of the same size.
#
# The rival is a CNN in 2-D with kernels that are inflated: repeated along a new axis and divided by
# their size. In 2-D it is better than X-MPP after as many steps, and on the heat equation it is at
# one seed better from scratch in 3-D than anything that was tuned: these equations are linear and
# local. What is claimed is that an axial network gains from another number of dimensions.

# %%
SIZE, NUM_STEPS = 8, 2
NUM_PRETRAIN, NUM_TUNE, NUM_SOLUTIONS, NUM_TESTS = page.length((150, 32, 256, 32), (2, 2, 8, 4))
EQUATIONS = ("heat", "advection")


class Solutions(NamedTuple):
    """Pairs of states, and the states that follow."""

    history: Tensor
    following: Tensor


def solutions(number: int, num_axes: int, equation: str, seed: int) -> Solutions:
    """Solutions of an equation."""
    states = transport_fields(number, num_axes, SIZE, NUM_STEPS + 1, equation=equation, seed=seed)
    return Solutions(states[:, :-1], states[:, -1])


def points_of(field: Tensor, number: int | None = None) -> tuple[Tensor, Tensor]:
    """Coordinates of the cells of a field, or of some of them, and which they are."""
    sizes = field.shape[1:-1]
    cells = torch.cartesian_prod(*(torch.arange(size) for size in sizes))
    if number is not None:
        cells = cells[torch.randperm(len(cells))[:number]]
    return (cells + 0.5) / torch.tensor(sizes), cells


def error(network: nn.Module, data: Solutions, num_points: int | None = None) -> Tensor:
    """Relative error of each field, for X-CViT at cells."""
    if isinstance(network, XCViT):
        points, cells = points_of(data.following, num_points)
        places: tuple[Any, ...] = (slice(None), *cells.unbind(1))
        difference = network(data.history, points) - data.following[places]
    else:
        difference = network(data.history) - data.following
    above, below = (x.flatten(1).square().mean(1).sqrt() for x in (difference, data.following))
    return above / below


def train(network: nn.Module, every: list[Solutions], num_steps: int, seed: int) -> None:
    """Minimize squared relative errors of a few fields of each equation in each step."""
    size = 8 if every[0].following.dim() == 4 else 4
    batches = [ShuffledBatches(*data, batch_size=size) for data in every]

    def loss(some: list[tuple[Tensor, ...]]) -> Tensor:
        return torch.stack([error(network, Solutions(*x), 64).square().mean() for x in some]).sum()

    optimizer = partial(torch.optim.Adam, lr=3e-3)
    decay = partial(CosineAnnealingLR, T_max=num_steps)
    Trainer(network, optimizer, scheduler=decay, max_norm=1.0, seed=seed).run(
        loss, num_steps, lambda drawn: [x.batch(0, drawn) for x in batches], progress=False
    )


SOLVERS: dict[str, tuple[Callable[[int], nn.Module], tuple[str, ...]]] = {
    "X-MPP": (lambda _: XMPP(channels=16, num_blocks=1, padding_mode="circular"), EQUATIONS),
    "X-CViT": (lambda _: XCViT(channels=16, padding_mode="circular"), ("heat",)),
    "CNN": (lambda num_axes: ConvSolver(num_axes, NUM_STEPS), EQUATIONS),
}
tuned: dict[tuple[str, str], nn.Module] = {}
errors: dict[tuple[str, str, str], dict[int, float]] = {}
tests: dict[tuple[str, int, int], Solutions] = {
    (equation, num_axes, seed): solutions(NUM_TESTS, num_axes, equation, 10_000 * num_axes + seed)
    for equation in EQUATIONS
    for num_axes in (2, 3)
    for seed in SEEDS
}


@torch.no_grad()
def record(key: tuple[str, str, str], network: nn.Module, num_axes: int, seed: int) -> None:
    """Keep the mean relative error on new solutions."""
    errors.setdefault(key, {})[seed] = float(error(network, tests[key[1], num_axes, seed]).mean())


for name, (make, equations) in SOLVERS.items():
    for seed in SEEDS:
        torch.manual_seed(seed)
        flat = make(2)
        data = [solutions(NUM_SOLUTIONS, 2, equation, seed) for equation in equations]
        train(flat, data, NUM_PRETRAIN, seed)
        for equation in equations:
            record((name, equation, "2-D"), flat, 2, seed)
            few = solutions(32, 3, equation, 5000 + seed)
            started = inflated(flat) if isinstance(flat, ConvSolver) else deepcopy(flat)
            record((name, equation, "3-D, untuned"), started, 3, seed)
            train(started, [few], NUM_TUNE, seed)
            record((name, equation, "3-D, tuned"), started, 3, seed)
            torch.manual_seed(seed)
            scratch = make(3)
            train(scratch, [few], NUM_TUNE, seed)
            record((name, equation, "3-D, from scratch"), scratch, 3, seed)
            tuned.setdefault((name, equation), started)
page.table(
    {
        f"{name}, {equation}, {kind}": {f"seed {seed}": value for seed, value in by_seed.items()}
        for (name, equation, kind), by_seed in errors.items()
    },
    title="relative error",
)

# %%
figure, axes = plt.subplots(2, 6, figsize=(11, 4.2), layout="constrained")
for row, equation in enumerate(EQUATIONS):
    solved = tests[equation, 3, SEEDS[0]]
    with torch.no_grad():
        found = tuned["X-MPP", equation](solved.history[:1])[0, ..., 0]
    truth, last = solved.following[0, ..., 0], solved.history[0, -1, ..., 0]
    limit = float(truth.abs().max())
    panels: dict[str, Tensor] = {}
    for title, volume in {"last state": last, "next state": truth, "X-MPP": found}.items():
        panels |= {f"{title}, first axis": volume[4], f"{title}, third axis": volume[:, :, 4]}
    for ax, (title, cut) in zip(axes[row], panels.items(), strict=True):
        ax.imshow(cut.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="bicubic")
        ax.set(xticks=[], yticks=[])
        ax.set_title(title if row == 0 else "", fontsize=8)
    axes[row, 0].set_ylabel(equation)
figure.suptitle("Slices of solutions in three dimensions, after training in two")
page.figure("solutions", figure)

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
kinds = {"3-D, untuned": GRAY, "3-D, tuned": BLUE, "3-D, from scratch": RED}
for ax, equation in zip(axes, EQUATIONS, strict=True):
    names = [name for name, (_, equations) in SOLVERS.items() if equation in equations]
    for shift, (kind, color) in enumerate(kinds.items()):
        for place, name in enumerate(names):
            values = errors[name, equation, kind].values()
            height, at = sum(values) / len(values), place + 0.25 * (shift - 1)
            ax.bar(at, height, 0.22, color=color, label=kind if place == 0 else None)
    ax.set(xticks=range(len(names)), xticklabels=names, title=equation)
axes[0].set_ylabel("relative error")
axes[0].legend()
page.figure("errors", figure, despine=True)

# %% [markdown]
# ## Claims


# %%
def gain(name: str) -> dict[int, float]:
    """Accuracy in 3-D minus that of the padded CNN."""
    rival = accuracies["CNN, padded"][3]
    return {seed: value - rival[seed] for seed, value in accuracies[name][3].items()}


def ratio(name: str, equation: str, other: tuple[str, str]) -> dict[int, float]:
    """Error in 3-D after tuning, divided by that of a network of some kind."""
    above, below = errors[name, equation, "3-D, tuned"], errors[other[0], equation, other[1]]
    return {seed: value / below[seed] for seed, value in above.items()}


at_least: dict[str, Any] = {"comparison": ">=", "bound": 0.80}
at_least["source"] = "Kim et al. (2025), Gaussian process experiment; bound preregistered"
page.claim(
    "SXCNN, trained on images, tells kernels apart in volumes (accuracy).",
    accuracies["SXCNN"][3],
    **at_least,
)
page.claim(
    "GXCNN, trained on images, tells kernels apart in volumes (accuracy).",
    accuracies["GXCNN"][3],
    **at_least,
)
at_least = {
    "comparison": ">=",
    "bound": 0.08,
    "source": "Kim et al. (2025): 0.81 and 0.67 in 3-D; bound preregistered",
    "reason": "padded as in the public code, the CNN does better on volumes than in the trial that "
    "the bound comes from, where its accuracy was 0.735",
}
page.claim(
    "SXCNN does so better than the padded CNN (difference of accuracies).",
    gain("SXCNN"),
    **at_least,
)
page.claim(
    "GXCNN does so better than the padded CNN (difference of accuracies).",
    gain("GXCNN"),
    **at_least,
)
page.claim(
    "After training GXCNN commutes with permutations of axes (largest difference of outputs).",
    equivariance,
    "<",
    1e-4,
    source="Kim et al. (2025), equivariance; float32, outputs of some units",
)
less: dict[str, Any] = {"comparison": "<", "bound": 1.0}
less["source"] = "Kim et al. (2025), fine-tuning on unseen dimensions; bound preregistered"
page.claim(
    "X-MPP learns the heat equation in 3-D better after 2-D than from scratch (ratio of errors).",
    ratio("X-MPP", "heat", ("X-MPP", "3-D, from scratch")),
    **less,
)
page.claim(
    "X-MPP learns advection in 3-D better after 2-D than from scratch (ratio of errors).",
    ratio("X-MPP", "advection", ("X-MPP", "3-D, from scratch")),
    **less,
)
page.claim(
    "X-CViT learns the heat equation in 3-D better after 2-D than from scratch (ratio of errors).",
    ratio("X-CViT", "heat", ("X-CViT", "3-D, from scratch")),
    **less,
)
less |= {"source": "Kim et al. (2025), fine-tuning against inflated kernels", "across": "mean"}
page.claim(
    "X-MPP is better than a CNN with inflated kernels on the heat equation (ratio of errors).",
    ratio("X-MPP", "heat", ("CNN", "3-D, tuned")),
    **less,
)
page.claim(
    "X-MPP is better than a CNN with inflated kernels on the advection equation (ratio of errors).",
    ratio("X-MPP", "advection", ("CNN", "3-D, tuned")),
    **less,
    reason="X-MPP sees patches of two positions, and in so few steps learns a shift by less than "
    "one position worse than the CNN does, in two dimensions already",
)
settings = {"num_train": NUM_TRAIN, "num_epochs": NUM_EPOCHS, "size": SIZE}
page.finish(settings | {"num_pretrain": NUM_PRETRAIN, "num_tune": NUM_TUNE})
