"""FedSVD: adapters that clients train with noise, and what orthonormal rows have to do with it."""

# %% [markdown]
# # FedSVD
#
# Clients fine-tune a frozen network together and show each other nothing but low-rank adapters
# $B A$, trained with DP-SGD. Where both factors are noisy, so is the product of the noise; where
# $A$ stays as it was drawn (FFA-LoRA), progress is slow. S. Lee, S. Park, D. B. Lee, D. Wagner,
# H. Seong, T. Bocklet, J. Lee, S. J. Hwang (2025), FedSVD: adaptive orthogonalization for private
# federated learning with LoRA, let clients train $B$ alone, and after each round replace the
# factors by those of a singular value decomposition of $B A$, so that the rows of $A$ are
# orthonormal.
#
# Here a network that knows upright digits learns digits that are turned by 90 degrees, from six
# clients that see the classes in different proportions. Beside the paper's rivals stands FFA-LoRA
# with orthonormal rows from the start.
#
# `pyro-ext reproduce fedsvd` runs the page; claims and figures are saved in `figures/fedsvd`.

# %%
from functools import cache, partial
from typing import NamedTuple

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO, infer_discrete
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from pyro_ext.datasets import load_mnist_5k
from pyro_ext.inference import Trainer
from pyro_ext.inference.training import ShuffledBatches
from pyro_ext.models.federated import STRATEGIES, FederatedServer, dirichlet_split
from pyro_ext.nn import MLP
from pyro_ext.random import seeded, spawn_seed
from pyro_ext.reproduction import Page

page = Page(
    "fedsvd",
    paper="S. Lee, S. Park, D. B. Lee, D. Wagner, H. Seong, T. Bocklet, J. Lee, S. J. Hwang "
    "(2025), FedSVD: adaptive orthogonalization for private federated learning with LoRA, arXiv "
    "2505.12805",
)
SEEDS = page.seeds
COLORS = {"fedavg": "#d1495b", "ffa": "#e09f3e", "fedsvd": "#2a6f97", "ffa_orth": "#8d99ae"}

# %% [markdown]
# ## A client's loss as a Pyro program
#
# `FederatedServer` takes any loss of outputs and targets, and so the bound of a Pyro model. At six
# hospitals only two in five of the ill are reported, and nobody else is. Who is ill is a latent
# site, over which `TraceEnum_ELBO` sums; afterwards `infer_discrete` draws it. The rival takes the
# reports for the truth.


# %%
def cases(logits: Tensor, reported: Tensor | None = None) -> None:
    """Draw who is ill, and who of these is reported."""
    with pyro.plate("patients", len(logits)):
        illness = dist.Bernoulli(logits=logits[:, 0])
        ill = pyro.sample("ill", illness, infer={"enumerate": "parallel"})
        pyro.sample("reported", dist.Bernoulli(0.4 * ill), obs=reported)


def negative_bound(logits: Tensor, reported: Tensor) -> Tensor:
    """Negative evidence lower bound of a patient; there is no site left for a guide."""
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    total: Tensor = elbo.differentiable_loss(cases, lambda *_: None, logits, reported)
    return total / len(logits)


def reports_as_truth(logits: Tensor, reported: Tensor) -> Tensor:
    """Negative log likelihood of the reports themselves."""
    return binary_cross_entropy_with_logits(logits[:, 0], reported)


with seeded(0):
    symptoms = torch.randn(3000, 5)
    ill = symptoms.sum(1) + 0.3 * torch.randn(3000) > 0
    reported = (ill & (torch.rand(3000) < 0.4)).float()
hospitals = list(zip(symptoms[:2400].split(400), reported[:2400].split(400), strict=True))
for name, client_loss in {"reports": reports_as_truth, "Pyro model": negative_bound}.items():
    with seeded(0):
        network = MLP(5, [32], 1)
    hospital_server = FederatedServer(
        network, "fedsvd", rank=4, loss=client_loss, batch_size=50, seed=0
    )
    hospital_server.run(hospitals, page.length(20, smoke=1), progress=False)
    with torch.no_grad():
        logits = hospital_server.module(symptoms)
    correct = ((logits[2400:, 0] > 0) == ill[2400:]).double().mean()
    print(f"loss of the {name}: {correct:.3f} of other patients are classified correctly")
with seeded(0):
    inferred = infer_discrete(cases, first_available_dim=-2, temperature=1)
    drawn = pyro.poutine.trace(inferred).get_trace(logits[:2400], reported[:2400])
print(f"{int(reported[:2400].sum())} reported, {int(ill[:2400].sum())} are ill", end=", ")
print(f"a draw of the posterior has {int(drawn.nodes['ill']['value'].sum())}")

# %% [markdown]
# ## The task
#
# 1,000 images train the network, 3,000 others, turned, are those of the clients, and 1,000 the
# test. Adapters of rank 8 are on both hidden layers; the last layer is frozen. In each of 40 rounds
# three clients take five steps, with minibatches of 128 images on average. Noise has a standard
# deviation of $\sigma$ times 2, the norm to which the gradient of each image is clipped. Without
# privacy the gradient of a minibatch is clipped to 1, and the learning rate is 0.5, with it 1, the
# same for all strategies.
#
# With much noise accuracies differ a good deal from one split to another, so that there each seed
# stands for the mean of two tasks: networks, splits, adapters and noise of their own. That the
# mean of seeds is judged was decided after trials had shown these differences, and tuned learning
# rates came after a first run, in which the equality of products, in single precision, failed, too.

# %%
NUM_ROUNDS = page.length(40, smoke=2)
NUM_TASKS = page.length(2, smoke=1)
NUM_STEPS, BATCH_SIZE, DELTA = 5, 128, 1e-5
data = load_mnist_5k()
images = torch.cat([data.train_inputs, data.test_inputs]) * data.input_scale + data.input_loc
images /= 255
labels = torch.cat([data.train_targets, data.test_targets])


class Task(NamedTuple):
    """A network, the clients' data and a test."""

    network: nn.Module
    clients: list[tuple[Tensor, Tensor]]
    test: tuple[Tensor, Tensor]


@cache
def task(seed: int) -> Task:
    """Train a network on upright digits, and divide turned ones."""
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(seed))
    upright, turned = images.flatten(1), images.rot90(1, (2, 3)).flatten(1)
    first, second, third = order.split([1000, 3000, 1000])
    with seeded(seed):
        network = MLP(784, [128, 128], 10, nn.ReLU)
    trainer = Trainer(network, partial(torch.optim.Adam, lr=1e-3), seed=seed)
    batches = ShuffledBatches(upright[first], labels[first], batch_size=64)
    num_steps = page.length(20, smoke=1) * len(batches)
    trainer.run(lambda x, y: cross_entropy(network(x), y), num_steps, batches, progress=False)
    parts = dirichlet_split(labels[second], 6, 0.5, seed=seed)
    clients = [(turned[second][part], labels[second][part]) for part in parts]
    return Task(network, clients, (turned[third], labels[third]))


@torch.no_grad()
def accuracy(network: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    """Fraction of right classes."""
    return float((network(test[0]).argmax(1) == test[1]).double().mean())


def server(name: str, sigma: float, rate: float, seed: int) -> FederatedServer:
    """A server of the task of a seed; without noise one without privacy."""
    privacy = {"noise_multiplier": sigma, "max_norm": 2.0} if sigma else {"max_norm": 1.0}
    return FederatedServer(
        task(seed).network,
        name,
        layers=["0", "2"],
        rank=8,
        num_local_steps=NUM_STEPS,
        batch_size=BATCH_SIZE,
        optimizer=partial(torch.optim.SGD, lr=rate),
        seed=seed,
        **privacy,  # type: ignore[arg-type]
    )


class Run(NamedTuple):
    """A server after all rounds, and the accuracy after each fourth."""

    server: FederatedServer
    accuracies: list[float]


@cache
def run(name: str, sigma: float, rate: float, seed: int) -> Run:
    """Go through all rounds."""
    one, found = server(name, sigma, rate, seed), []
    for number in range(NUM_ROUNDS):
        one.round(task(seed).clients)
        if (number + 1) % 4 == 0 or number + 1 == NUM_ROUNDS:
            found.append(accuracy(one.module, task(seed).test))
    return Run(one, found)


def final(name: str, sigma: float, rate: float, num_tasks: int = 1) -> dict[int, float]:
    """Accuracy after the last round for each seed, the mean over its tasks."""
    return {
        seed: sum(
            run(name, sigma, rate, spawn_seed(seed, k)).accuracies[-1] for k in range(num_tasks)
        )
        / num_tasks
        for seed in SEEDS
    }


def mean(values: dict[int, float]) -> float:
    """Mean over the seeds."""
    return sum(values.values()) / len(values)


def difference(one: dict[int, float], other: dict[int, float]) -> dict[int, float]:
    """Differences by seed."""
    return {seed: one[seed] - other[seed] for seed in SEEDS}


tasks = {seed: task(spawn_seed(seed, 0)) for seed in SEEDS}
before = {seed: accuracy(one.network, one.test) for seed, one in tasks.items()}
print(f"accuracy on turned digits before: {mean(before):.3f}")
print(f"rows of clients, first seed: {[len(x) for x, _ in tasks[SEEDS[0]].clients]}")

# %% [markdown]
# ## With and without noise
#
# The crossover is the paper's phenomenon: without noise nothing is as good as training both factors
# and averaging them, with much noise that ends nowhere, at the same learning rate. That FedAvg wins
# without noise is the opposite of the paper's language models, and stays in the table of claims.

# %%
without = {name: final(name, 0.0, 0.5) for name in STRATEGIES}
noisy = {name: final(name, 10.0, 1.0, NUM_TASKS) for name in STRATEGIES}
page.table(
    {
        name: {
            f"sigma {sigma}, seed {seed}": value
            for sigma, row in ((0, without[name]), (10, noisy[name]))
            for seed, value in row.items()
        }
        for name in STRATEGIES
    },
    title="accuracy on turned digits, the same learning rate",
)
page.claim(
    "With much noise FedSVD is more accurate than FFA-LoRA at the same learning rate (sigma = 10, "
    "difference of accuracies).",
    difference(noisy["fedsvd"], noisy["ffa"]),
    ">=",
    0.03,
    source="Lee et al. (2025), abstract; bound preregistered",
    across="mean",
    reason="the difference is near the bound itself, which was set where two tasks had 0.059; with "
    "orthonormal rows both the steps and their noise change the product more",
)
page.claim(
    "With much noise FedSVD is more accurate than FedAvg (sigma = 10, difference of accuracies).",
    difference(noisy["fedsvd"], noisy["fedavg"]),
    ">=",
    0.15,
    source="Lee et al. (2025), abstract; bound preregistered",
    across="mean",
)
page.claim(
    "Without noise FedSVD is more accurate than FFA-LoRA at the same learning rate (difference of "
    "accuracies).",
    difference(without["fedsvd"], without["ffa"]),
    ">=",
    0.08,
    source="Lee et al. (2025), table of tasks without privacy; bound preregistered",
    across="mean",
)
page.claim(
    "Without noise FedSVD is more accurate than FedAvg (difference of accuracies).",
    difference(without["fedsvd"], without["fedavg"]),
    ">",
    0.0,
    source="Lee et al. (2025), table of tasks without privacy",
    across="mean",
    reason="FedSVD stays in eight directions of the pixels, drawn at random before the digits were "
    "seen, as a claim below shows; FedAvg and FedEx learn theirs",
)

# %%
MAIN = ("fedavg", "ffa", "fedsvd", "ffa_orth")
SIGMAS = (0.0, 4.0, 10.0)
LABELS = {"fedavg": "FedAvg", "ffa": "FFA-LoRA", "fedsvd": "FedSVD", "ffa_orth": "FFA, orthonormal"}
at_noise = {
    name: {0.0: without[name], 4.0: final(name, 4.0, 1.0), 10.0: noisy[name]} for name in MAIN
}
figure, panels = plt.subplots(1, 3, figsize=(10.5, 3.3), layout="constrained")
positions = range(len(SIGMAS))
for name in MAIN:
    line = "--" if name == "ffa_orth" else "-"
    means = [mean(at_noise[name][sigma]) for sigma in SIGMAS]
    panels[0].plot(positions, means, line + "o", color=COLORS[name], label=LABELS[name], ms=4)
    for x, sigma in zip(positions, SIGMAS, strict=True):
        values = list(at_noise[name][sigma].values())
        panels[0].plot([x] * len(values), values, ".", color=COLORS[name], ms=3, alpha=0.6)
    for axes, sigma, rate in zip(panels[1:], (0.0, 10.0), (0.5, 1.0), strict=True):
        curves = [run(name, sigma, rate, spawn_seed(seed, 0)).accuracies for seed in SEEDS]
        average = torch.tensor(curves).mean(0)
        rounds = [min(4 * k, NUM_ROUNDS) for k in range(1, len(average) + 1)]
        axes.plot(rounds, average, line, color=COLORS[name], lw=1.5)
panels[0].set(xlabel="noise multiplier", ylabel="accuracy after 40 rounds")
panels[0].set_xticks(positions, [f"{sigma:g}" for sigma in SIGMAS])
panels[0].legend(frameon=False, fontsize=8)
panels[1].set(xlabel="round", title="no noise", ylabel="accuracy")
panels[2].set(xlabel="round", title="noise multiplier 10")
page.figure("crossover", figure, despine=True)

# %% [markdown]
# ## What it costs
#
# Noise buys privacy: $\varepsilon$ of an example of the client that took part most often and of the
# one that did least, at $\delta = 10^{-5}$, by the distribution of the privacy loss. It is the same
# for all strategies, since what the server does with what clients have sent reveals nothing more.

# %%
budgets = {}
for sigma in SIGMAS[1:]:
    spent = run("ffa", sigma, 1.0, spawn_seed(SEEDS[0], 0)).server.epsilon(DELTA)
    budgets[sigma] = max(spent)
    print(f"sigma = {sigma:g}: epsilon from {min(spent):.2f} to {max(spent):.2f}")

# %% [markdown]
# ## Where the gain comes from
#
# The right singular vectors of $B A$ lie in the row space of $A$. FedSVD thus never leaves the
# eight dimensions of the inputs that the first $A$ was drawn with; it turns the basis there. Steps
# of SGD, clipped norms and Gaussian noise look the same in any orthonormal basis, so that turning
# it changes nothing: from the same orthonormal start and with the same minibatches FFA-LoRA makes
# the same products. This is our derivation and not the paper's. It does not hold for Adam, whose
# steps depend on the basis. Both run in double precision here, since training makes rounding grow:
# in single precision the products differ by up to 0.004 of their norm after 40 rounds.

# %%
gaps, left = {}, {}
for seed, one in tasks.items():
    start = server("ffa_orth", 0.0, 0.5, spawn_seed(seed, 0))
    start.module.double()
    for layer in start.adapters.values():
        layer.orthonormalize()
    clients = [(x.double(), y) for x, y in one.clients]
    pair = [
        FederatedServer(
            start.module,
            name,
            num_local_steps=NUM_STEPS,
            optimizer=partial(torch.optim.SGD, lr=0.5),
            seed=seed,
        )
        for name in ("fedsvd", "ffa_orth")
    ]
    rows_before = {name: layer.A.detach().clone() for name, layer in start.adapters.items()}
    gap = 0.0
    for _ in range(NUM_ROUNDS):
        for each in pair:
            each.round(clients)
        for name, layer in pair[0].adapters.items():
            product = pair[1].adapters[name].delta().detach()
            gap = max(gap, float((layer.delta().detach() - product).norm() / product.norm()))
    gaps[seed] = gap
    left[seed] = max(
        float(1.0 - torch.linalg.svdvals(layer.A.detach() @ rows_before[name].T).min())
        for name, layer in pair[0].adapters.items()
    )
page.claim(
    "From orthonormal rows FedSVD makes the products of FFA-LoRA at every round (no noise, largest "
    "relative difference in double precision).",
    gaps,
    "<",
    1e-9,
    source="our derivation",
)
page.claim(
    "The rows of A stay in the space of the first ones (one minus the smallest cosine of a "
    "principal angle).",
    left,
    "<",
    1e-5,
    source="our derivation; bound set after a run in single precision",
)

# %% [markdown]
# What is left is the length of the rows. Those that are drawn have a norm of about 0.58, so the
# same gradient of outputs changes the product up to three times as much along orthonormal ones. To
# see what remains, each strategy has the best of four learning rates, by the same test for all, in
# the first task of each seed. FedAvg gains most: smaller steps keep the product of noise small.

# %%
RATES = (0.1, 0.3, 1.0, 3.0)
by_rate = {name: {rate: final(name, 10.0, rate, num_tasks=1) for rate in RATES} for name in MAIN}
best = {
    name: RATES[int(torch.tensor([mean(row[rate]) for rate in RATES]).argmax())]
    for name, row in by_rate.items()
}
page.table(
    {
        LABELS[name]: {
            **{f"rate {rate:g}": mean(row[rate]) for rate in RATES},
            "the same rate": mean(row[1.0]),
            "its best rate": mean(row[best[name]]),
            "epsilon": budgets[10.0],
        }
        for name, row in by_rate.items()
    },
    title="accuracy with noise, sigma = 10, means over the seeds",
)
page.claim(
    "With the best learning rate of each FedSVD is more accurate than FFA-LoRA (sigma = 10, "
    "difference of accuracies).",
    difference(by_rate["fedsvd"][best["fedsvd"]], by_rate["ffa"][best["ffa"]]),
    ">",
    0.0,
    source="Lee et al. (2025), abstract; at a tuned learning rate",
    across="mean",
)
page.claim(
    "With the best learning rate of each FedSVD is more accurate than FedAvg (sigma = 10, "
    "difference of accuracies).",
    difference(by_rate["fedsvd"][best["fedsvd"]], by_rate["fedavg"][best["fedavg"]]),
    ">",
    0.0,
    source="Lee et al. (2025), abstract; at a tuned learning rate",
    across="mean",
)

# %%
figure, axes = plt.subplots(figsize=(5.8, 3.2), layout="constrained")
for name, row in by_rate.items():
    means = [mean(row[rate]) for rate in RATES]
    axes.plot(RATES, means, "-o", color=COLORS[name], label=LABELS[name], ms=4)
axes.set(xlabel="learning rate", ylabel="accuracy, noise multiplier 10", xscale="log")
axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
axes.minorticks_off()
axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
page.figure("learning-rates", figure, despine=True)

# %% [markdown]
# ## The claims

# %%
page.finish(
    {
        "rounds": NUM_ROUNDS,
        "tasks of a seed": NUM_TASKS,
        "epsilon": {f"{sigma:g}": spent for sigma, spent in budgets.items()},
        "accuracy": {
            name: {f"{sigma:g}": mean(row[sigma]) for sigma in SIGMAS}
            for name, row in at_noise.items()
        },
        "best learning rates": best,
    }
)
