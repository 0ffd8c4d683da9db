"""Masked autoencoders with mean teachers: what a teacher does to the gradient, and its cost."""

# %% [markdown]
# # Masked autoencoders with mean teachers
#
# A masked autoencoder learns from images without labels: it sees a quarter of the patches and fills
# in the others. Y. Lee, J. Willette, J. Kim, J. Lee, S. J. Hwang (2023), Exploring the role of mean
# teachers in self-supervised masked auto-encoders, add a mean teacher, an average of the network
# along its training, which fills in the same patches, and which the network is drawn to. For a
# linear network they show what that does: it takes back past steps of the gradient, as far as
# the inputs that they came from are like the one at hand.
#
# The paper adds that its masked autoencoder with a teacher, RC-MAE, is as good as one without or
# better, and needs less memory than other methods that teach themselves. Its gains of accuracy are
# below what a small experiment can tell; here, on digits, it should do no harm.
#
# `pyro-ext reproduce rc-mae` runs the page.

# %%
from functools import partial
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.optim import PyroOptim
from scipy.stats import linregress
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad
from torch.utils.flop_counter import FlopCounterMode

from pyro_ext.datasets import load_digits, load_mnist_5k
from pyro_ext.handlers import consistency
from pyro_ext.models.vision import MaskedAutoencoder
from pyro_ext.nn import MLP, MeanTeacher, teacher_gradient_decomposition
from pyro_ext.random import seeded
from pyro_ext.reproduction import Page

page = Page(
    "rc-mae",
    paper="Y. Lee, J. Willette, J. Kim, J. Lee, S. J. Hwang (2023), Exploring the role of mean "
    "teachers in self-supervised masked auto-encoders, ICLR, arXiv 2210.02077",
)
SEEDS = page.seeds

# %% [markdown]
# ## A masked autoencoder with a mean teacher as a Pyro program
#
# The method needs no transformer and no images. This program fills in waves of 32 points, three
# quarters of which are hidden; the site `"noise"` says which. The handler `consistency` runs the
# teacher with the same mask, and adds its divergence from the student at the site `"x"`.


# %%
def fill_in(network: nn.Module, waves: Tensor) -> None:
    """Hide points at random; they are normal around what a network predicts from the others."""
    pyro.module("network", network)
    with pyro.plate("waves", len(waves), dim=-2), pyro.plate("points", 32, dim=-1):
        hidden = pyro.sample("noise", dist.Uniform(0.0, 1.0)) < 0.75
        loc = network(torch.cat([waves.masked_fill(hidden, 0.0), hidden.float()], -1))
        pyro.sample("x", dist.Normal(loc, 0.3).mask(hidden), obs=waves)


with seeded(0):
    waves = torch.linspace(0, 3, 32) * (1 + 2 * torch.rand(2500, 1)) + 7 * torch.rand(2500, 1)
    waves, noise = waves.sin(), torch.rand(500, 32)
for weight in (0.0, 1.0):
    pyro.clear_param_store()
    with seeded(1):
        network = MLP(64, [64, 64], 32, nn.ReLU)
        follower = MeanTeacher(network, 0.95, num_steps=page.length(400, smoke=3))
        program, teaching = partial(fill_in, network), partial(fill_in, follower.teacher)
        taught = consistency(teaching, ["x"], weight)(program)
        guide = poutine.block(program, expose=["noise"])
        svi = SVI(taught, guide, PyroOptim(torch.optim.Adam, {"lr": 0.005}), Trace_ELBO())
        for step in range(page.length(400, smoke=3)):
            svi.step(waves[torch.randint(2000, (32,))])
            follower.update(step)
        free = pyro.condition(poutine.uncondition(program), {"noise": noise})
        filled = Predictive(free, num_samples=50)(waves[2000:])["x"].mean(0)
        rmse = (filled - waves[2000:])[noise < 0.75].square().mean().sqrt()
        trace: Any = poutine.trace(consistency(teaching, ["x"])(program)).get_trace(waves[2000:])
        apart = -trace.nodes["consistency"]["fn"].log_factor.item() / 500
        summary = f"RMSE {float(rmse):.3f} in new waves, {apart:.2f} nats a wave from the teacher"
        print(f"weight {weight:g}: {summary}")
print(f"standard deviation of waves: {float(waves.std()):.3f}")

# %% [markdown]
# The student stays nearer to its teacher and fills in as well as without. `MaskedAutoencoder.model`
# has such sites, too, and `fit`, which is used for the digits below, takes the gradient of the same
# `Trace_ELBO`: the divergence of normal distributions is the squared distance of their means.
#
# ## What a teacher does to the gradient
#
# A matrix reconstructs the 64 pixels of a digit from 16 of them, by steps of size $\lambda$ on one
# image each. Its teacher is its average, with the momentum $\alpha$. From the gradients and inputs
# of all steps, `teacher_gradient_decomposition` says what part of the step before the gradient of
# the consistency term takes back. By theory that is $\lambda\alpha$ times the similarity of the two
# inputs, on average: nothing where no pixel was visible in both.

# %%
STEP_SIZE, MOMENTUM = 0.05, 0.5
of_digits = load_digits()
digits = torch.cat([of_digits.train_inputs, of_digits.test_inputs])
digits = ((digits * of_digits.input_scale + of_digits.input_loc) / 16.0).double()


def linear_run(seed: int) -> tuple[Tensor, Tensor]:
    """Gradients and inputs of all steps of a matrix that is trained with its teacher."""
    generator = torch.Generator().manual_seed(seed)
    student = nn.Linear(64, 64, bias=False, dtype=torch.float64)
    nn.init.zeros_(student.weight)
    teacher = MeanTeacher(student, MOMENTUM, "constant")
    optimizer = torch.optim.SGD(student.parameters(), lr=STEP_SIZE)
    gradients, inputs = [], []
    for _ in range(page.length(1500, smoke=60)):
        x = digits[torch.randint(len(digits), (), generator=generator)]
        visible = torch.randperm(64, generator=generator)[:16]
        inputs.append(torch.zeros_like(x).index_copy(0, visible, x[visible]))
        output = student(inputs[-1])
        loss = (output - x).square().sum() + (output - teacher(inputs[-1])).square().sum()
        (student.weight.grad,) = torch.autograd.grad(0.5 * loss, student.weight)
        gradients.append(student.weight.grad)
        optimizer.step()
        teacher.update()
    return torch.stack(gradients), torch.stack(inputs)


linear = {seed: linear_run(seed) for seed in SEEDS}
parts = {s: teacher_gradient_decomposition(*run, MOMENTUM, STEP_SIZE) for s, run in linear.items()}
lines = {seed: linregress(part.similarity, part.undone) for seed, part in parts.items()}
page.claim(
    "The part of the last step that the teacher takes back goes with the similarity of the inputs "
    "(correlation over steps).",
    {seed: line.rvalue for seed, line in lines.items()},
    ">",
    0.95,
    source="Lee et al. (2023), abstract: gradients are removed as features are similar; bound "
    "preregistered",
)
page.claim(
    "Its slope is step size times momentum (relative deviation).",
    {seed: abs(line.slope / (STEP_SIZE * MOMENTUM) - 1.0) for seed, line in lines.items()},
    "<=",
    0.1,
    source="Lee et al. (2023), analysis of the linear model; bound preregistered",
)

figure, axes = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
similarity, undone = parts[SEEDS[0]].similarity, parts[SEEDS[0]].undone
axes.scatter(similarity, undone, s=4, alpha=0.4, label="a step")
ends = torch.stack([similarity.min(), similarity.max()])
axes.plot(ends, STEP_SIZE * MOMENTUM * ends, color="tab:red", label=r"slope $\lambda\alpha$")
axes.set(xlabel="similarity to the input before", ylabel="part of the last step taken back")
axes.legend(frameon=False)
page.figure("gradient", figure, despine=True)

# %% [markdown]
# ## Digits
#
# Small transformers see 4 of the 16 patches of images of MNIST and fill in the others. With one
# seed all start from the same weights and see the same minibatches and masks. The error is that of
# hidden patches of other images, over that of the mean of each pixel in images to train on. The
# probe is a ridge regression of labels on features of whole images. Bounds were set for smaller
# patches, where all networks predicted the mean; hence a claim that something is learned here.

# %%
NUM_LABELS, NUM_TESTS = page.length(1000, smoke=200), page.length(1000, smoke=50)
mnist = load_mnist_5k()
images, test_images = mnist.train_inputs, mnist.test_inputs[:NUM_TESTS]
labels, test_labels = mnist.train_targets, mnist.test_targets[:NUM_TESTS]


def probe(network: MaskedAutoencoder) -> float:
    """Accuracy of a linear classifier of features."""
    train, test = network.features(images[:NUM_LABELS]), network.features(test_images)
    loc, scale = train.mean(0), train.std(0) + 1e-6
    train, test = (pad((x - loc) / scale, (0, 1), value=1.0) for x in (train, test))
    penalty = 0.01 * len(train) * torch.eye(train.shape[1])
    targets = one_hot(labels[:NUM_LABELS], 10).float()
    weights = torch.linalg.solve(train.mT @ train + penalty, train.mT @ targets)
    return float(((test @ weights).argmax(-1) == test_labels).float().mean())


@torch.no_grad()
def error(network: MaskedAutoencoder) -> float:
    """Mean squared error of hidden patches, with the same masks for all, by that of pixel means."""
    order = network.random_order(len(test_images), seed=1000)
    distance = network.patchify(test_images) - network.patchify(images).mean(0)
    of_means = distance.square().mean(-1)[~network.visible(order)].mean()
    return float(network.terms(test_images, order).reconstruction / of_means)


Pair = tuple[MaskedAutoencoder, MaskedAutoencoder]


def trained(seed: int, num_steps: int, **options: Any) -> Pair:
    """A student and its teacher."""
    torch.manual_seed(seed)
    student = MaskedAutoencoder((1, 28, 28), 7)
    teacher = student.fit(images, num_steps, batch_size=25, seed=seed, progress=False, **options)
    return student, teacher


def table(networks: dict[str, dict[int, Pair]]) -> list[dict[str, dict[int, float]]]:
    """Print and return errors and probes."""
    found = []
    for by_seed in networks.values():
        errors = {seed: error(student) for seed, (student, _) in by_seed.items()}
        probes = {seed: probe(student) for seed, (student, _) in by_seed.items()}
        of_teacher = {seed: probe(teacher) for seed, (_, teacher) in by_seed.items()}
        found.append({"error": errors, "probe": probes, "teacher's probe": of_teacher})
    means = [{name: fmean(row.values()) for name, row in rows.items()} for rows in found]
    page.table(dict(zip(networks, means, strict=True)), title="mean of seeds")
    return found


NUM_STEPS = page.length(1000, smoke=2)
networks = {
    "MAE": {seed: trained(seed, NUM_STEPS, consistency=0.0) for seed in SEEDS},
    "RC-MAE": {seed: trained(seed, NUM_STEPS) for seed in SEEDS},
}
mae, rc_mae = table(networks)
page.claim(
    "RC-MAE predicts hidden patches better than the mean of each pixel does (ratio of errors).",
    rc_mae["error"],
    "<",
    1.0,
    source="control: without it the next two claims say nothing",
)
page.claim(
    "A teacher costs no reconstruction (ratio of errors of RC-MAE and MAE).",
    {seed: rc_mae["error"][seed] / mae["error"][seed] for seed in SEEDS},
    "<=",
    1.02,
    source="Lee et al. (2023), table of fine-tuning: as good as MAE or better; bound preregistered",
    across="mean",
)
page.claim(
    "Features of the teacher are as good for a linear classifier as those of MAE (difference of "
    "accuracies).",
    {seed: rc_mae["teacher's probe"][seed] - mae["probe"][seed] for seed in SEEDS},
    ">=",
    -0.02,
    source="Lee et al. (2023), table of fine-tuning: as good as MAE or better; bound preregistered",
    across="mean",
    central=True,
)

seen, (student, teacher) = test_images[:: NUM_TESTS // 8][:8], networks["RC-MAE"][SEEDS[0]]
order = student.random_order(8, seed=1)
hidden = ~student.visible(order)[..., None]
rows_shown = {
    "visible": student.unpatchify(student.patchify(seen).masked_fill(hidden, 1.0)),
    "MAE": networks["MAE"][SEEDS[0]][0].reconstruct(seen, order),
    "RC-MAE": student.reconstruct(seen, order),
    "its teacher": teacher.reconstruct(seen, order),
    "image": seen,
}
figure, panels = plt.subplots(len(rows_shown), 1, figsize=(6.4, 4.4), layout="constrained")
for panel, (name, row) in zip(panels, rows_shown.items(), strict=True):
    panel.imshow(torch.cat(list(row[:, 0]), 1).numpy(), cmap="gray", vmin=-0.4, vmax=2.8)
    panel.set_ylabel(name, rotation=0, ha="right", va="center")
    panel.set(xticks=[], yticks=[])
page.figure("reconstructions", figure)

# %% [markdown]
# ## A teacher that is too slow
#
# By default the teacher remembers about a fortieth of the training, and more toward the end. One
# that remembers more of a short training pulls the student back to where it began.

# %%
NUM_SHORT_STEPS = page.length(300, smoke=2)
short = {
    "RC-MAE": {seed: trained(seed, NUM_SHORT_STEPS) for seed in SEEDS},
    "slow teacher": {seed: trained(seed, NUM_SHORT_STEPS, momentum=0.99) for seed in SEEDS},
}
usual, slow = table(short)
page.claim(
    "A teacher that remembers too much of a short training holds the student back (ratio of errors "
    "to RC-MAE).",
    {seed: slow["error"][seed] / usual["error"][seed] for seed in SEEDS},
    ">",
    1.02,
    source="Lee et al. (2023), analysis: a momentum of one pulls to where training began; bound "
    "preregistered",
)

# %% [markdown]
# ## What a teacher costs
#
# Others that teach themselves encode whole images with the teacher; here it sees visible patches.

# %%
with FlopCounterMode(display=False) as of_teacher, torch.no_grad():
    teacher(seen, order)
with FlopCounterMode(display=False) as of_whole, torch.no_grad():
    teacher.encode(seen)
page.claim(
    "A pass of the teacher costs less than to encode whole images (ratio of operations).",
    of_teacher.get_total_flops() / of_whole.get_total_flops(),
    "<",
    1.0,
    source="Lee et al. (2023), abstract: less memory than other methods that teach themselves",
)

# %% [markdown]
# ## In use
#
# Train a `MaskedAutoencoder` by `fit`, which returns the teacher, or put `consistency` around a
# program of your own. Choose the momentum by the length of training: what the teacher remembers,
# the student cannot leave quickly. Here it does no harm, but gains nothing that one could tell.

# %%
page.finish({"steps": NUM_STEPS, "steps of a short training": NUM_SHORT_STEPS})
