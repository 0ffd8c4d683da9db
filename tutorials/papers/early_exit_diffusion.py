"""Early exit: a diffusion transformer that runs fewer blocks where there is more noise."""

# %% [markdown]
# # Early exit for diffusion transformers
#
# The network of a diffusion model predicts the noise in an image, at every step of the sampler.
# T. Moon, M. Choi, E. Yun, J. Yoon, G. Lee, J. Cho, J. Lee (2024), A simple early exiting framework
# for accelerated sampling in diffusion models, find this easy where there is hardly anything but
# noise. Their schedule lets a transformer stop after few of its blocks there and run all of them
# near the data. After a short fine-tuning of the model under the schedule, they report images as
# good as before, with several solvers, for 25 to 30 % less work. The model here is small: eight
# blocks that draw digits of 8 x 8 pixels, in a `DiTPipeline` of diffusers that runs unchanged.
#
# `pyro-ext reproduce early-exit-diffusion` runs the page. Training the model takes two minutes.

# %%
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Predictive
from sklearn.decomposition import PCA
from torch import Tensor, nn

from pyro_ext.inference.diffusion import DiffusionSampler, noise_prediction_loss
from pyro_ext.inference.pseudocoresets import gaussian_wasserstein
from pyro_ext.inference.training import ShuffledBatches
from pyro_ext.models.diffusion import (
    AdaptiveScoreFineTuner,
    EarlyExit,
    ExitSchedule,
    digit_images,
    digit_judge,
    digit_transformer_pipeline,
)
from pyro_ext.random import seeded
from pyro_ext.reproduction import Page

page = Page(
    "early-exit-diffusion",
    paper="T. Moon, M. Choi, E. Yun, J. Yoon, G. Lee, J. Cho, J. Lee (2024), A simple early "
    "exiting framework for accelerated sampling in diffusion models, ICML, arXiv 2408.05927",
)
SEEDS = page.seeds

# %% [markdown]
# ## The model and its schedules
#
# Time is cut into ten bins, and the schedule says how many of the eight blocks run in each: from
# all of them at the data to four at the noise. Two others cost the same three quarters: six blocks
# everywhere, and the same schedule the wrong way round.

# %%
pipeline = digit_transformer_pipeline(page.length(1250, smoke=0), progress=False)
base = pipeline.transformer
NUM_BLOCKS = len(base.transformer_blocks)
schedule = ExitSchedule.linear(NUM_BLOCKS, NUM_BLOCKS // 2)
Schedule = Callable[[Tensor], Tensor]
SCHEDULES: dict[str, Schedule] = {
    "all blocks": ExitSchedule.uniform(NUM_BLOCKS),
    "early exit": schedule,
    "uniform": ExitSchedule.uniform(6),
    "reversed": lambda t: schedule(schedule.num_train_timesteps - 1 - t),
}
print("blocks by bin, from data to noise:", *schedule.depths)

# %% [markdown]
# ## Exits as a Pyro program
#
# `DiffusionSampler` makes a diffusion model a site of a Pyro model. Which blocks run is a matter of
# its network: `EarlyExit.wrap` gives a copy that exits, and the program stays as it is. In this
# one, digits are asked for at random, and a classifier reads the images.

# %%
judge, NO_CLASS = digit_judge(), 1000


class Labeled(nn.Module):
    """A transformer of classes, called as a network that is given text."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self.config = {"cross_attention_dim": 1, "sample_size": 8, "in_channels": 1}

    def forward(self, z: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        """Predict noise."""
        labels = encoder_hidden_states[:, 0, 0].long()
        return (self.transformer(z, t.expand(len(z)), labels)[0],)


def asked_and_seen(network: Any) -> None:
    """Digits that are asked for, images of them, and what a classifier sees."""
    with pyro.plate("images", page.length(100, smoke=10)):
        asked = pyro.sample("asked", dist.Categorical(torch.ones(10)))
        prompt, none = asked[:, None, None].float(), torch.full((1, 1), float(NO_CLASS))
        options: dict[str, Any] = {"guidance_scale": 2.0, "num_steps": page.length(20, smoke=2)}
        digits = DiffusionSampler(Labeled(network), pipeline.scheduler, prompt, none, **options)
        pyro.deterministic("seen", judge(pyro.sample("image", digits)))


untuned = {name: EarlyExit.wrap(base, one) for name, one in SCHEDULES.items()}
for name in ("all blocks", "early exit"):
    with seeded(0):
        drawn = Predictive(asked_and_seen, num_samples=1)(untuned[name])
    calls = untuned[name].early_exit.num_block_calls
    right = (drawn["seen"] == drawn["asked"]).double().mean()
    print(f"{name}: {calls} calls of blocks, {right:.2f} of the images show what was asked for")

# %% [markdown]
# Exits save work, and images get worse: the last layer has never seen what earlier blocks give.
#
# ## Fine-tuning
#
# Short and alike for all schedules: each image comes once in ten times without its class, for
# guidance; what embeds the timestep is frozen, and the result is an average of the weights along
# the way. The schedule of the paper is tuned with each seed, the others with one.

# %%
NUM_TUNING_STEPS, batch_size = page.length((100, 96), smoke=(1, 4))
images, digits = digit_images()
ten_times = digits.repeat(10)
ten_times[: len(digits)] = NO_CLASS
batches = ShuffledBatches(images.repeat(10, 1, 1, 1), ten_times, batch_size=batch_size)


def tuned(schedule: Schedule, seed: int) -> Any:
    """The transformer after fine-tuning under a schedule."""
    adam = partial(torch.optim.AdamW, lr=3e-4, weight_decay=0.0)
    options: dict[str, Any] = {"optimizer": adam, "ema_decay": 0.97, "seed": seed}
    tuner = AdaptiveScoreFineTuner(base, pipeline.scheduler, schedule, **options)
    tuner.run(batches, NUM_TUNING_STEPS, progress=False)
    return tuner.average


once = {name: tuned(one, SEEDS[0]) for name, one in SCHEDULES.items()}
networks = {f"{name}, not tuned": dict.fromkeys(SEEDS, one) for name, one in untuned.items()}
networks |= {f"{name}, tuned": dict.fromkeys(SEEDS, one) for name, one in once.items()}
networks["early exit, tuned"] |= {seed: tuned(schedule, seed) for seed in SEEDS[1:]}

# %% [markdown]
# ## Images
#
# DDIM takes 20 steps with guidance, and each seed draws as many images of each digit, for all
# models from the same noise. Their quality is the Fréchet distance to the real images, between
# normal distributions of 24 principal components, and the fraction of images in which a support
# vector machine sees the digit that was asked for. The model without exits could take 15 steps at
# the price of 20 with exits: that is the last row.

# %%
NUM_STEPS, FEWER_STEPS = page.length((20, 15), smoke=(10, 8))
ASKED = torch.arange(page.length(240, smoke=30)) % 10
pca = PCA(24, random_state=0).fit(images.flatten(1).double().numpy())


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Between normal distributions with the moments of principal components of images."""
    parts = (torch.as_tensor(pca.transform(z.flatten(1).double().numpy())) for z in (x, y))
    (mean_x, cov_x), (mean_y, cov_y) = ((z.mean(0), z.mT.cov()) for z in parts)
    return float(gaussian_wasserstein(mean_x, cov_x, mean_y, cov_y))


def accuracy(x: Tensor) -> float:
    """Fraction of images that show what was asked for."""
    return float((judge(x) == ASKED).double().mean())


def sampled(transformer: Any, seed: int, num_steps: int = NUM_STEPS) -> tuple[Tensor, float]:
    """Images by one run of the pipeline, and its cost in runs of 20 steps without exits."""
    pipeline.transformer = transformer
    exits = transformer.early_exit
    exits.num_block_calls = 0
    found = pipeline(
        ASKED.tolist(),
        guidance_scale=2.0,
        num_inference_steps=num_steps,
        output_type="pt",
        generator=torch.Generator().manual_seed(seed),
    ).images
    return 2.0 * found - 1.0, exits.num_block_calls / (NUM_STEPS * NUM_BLOCKS)


runs = {
    name: {seed: sampled(network, seed) for seed, network in by_seed.items()}
    for name, by_seed in networks.items()
}
plain = untuned["all blocks"]
runs["all blocks, 15 steps"] = {seed: sampled(plain, seed, FEWER_STEPS) for seed in SEEDS}
distances = {
    name: {seed: frechet_distance(drawn, images) for seed, (drawn, _) in by_seed.items()}
    for name, by_seed in runs.items()
}
table: dict[str, dict[str, float]] = {}
for name, by_seed in runs.items():
    table[name] = {"cost": fmean(cost for _, cost in by_seed.values())}
    table[name]["distance"] = fmean(distances[name].values())
    table[name]["accuracy"] = fmean(accuracy(drawn) for drawn, _ in by_seed.values())
page.table(table, title="means over seeds")
tuned_runs = runs["early exit, tuned"]
full, bare = distances["all blocks, not tuned"], distances["early exit, not tuned"]
page.claim(
    "The schedule runs three quarters of the blocks (block calls of a sampling run over those "
    "without exits).",
    {seed: cost for seed, (_, cost) in tuned_runs.items()},
    "<=",
    0.75,
    source="Moon et al. (2024), abstract: faster by 25 to 30 %",
)
page.claim(
    "After fine-tuning under the schedule images are as good as those of all blocks (ratio of "
    "Fréchet distances).",
    {seed: distances["early exit, tuned"][seed] / full[seed] for seed in SEEDS},
    "<=",
    1.15,
    source="Moon et al. (2024), abstract: quality is kept; bound preregistered",
)
page.claim(
    "Without fine-tuning they are not (ratio of Fréchet distances, tuned over not tuned).",
    {seed: distances["early exit, tuned"][seed] / bare[seed] for seed in SEEDS},
    "<=",
    0.6,
    source="Moon et al. (2024), section 3: the model is fine-tuned; bound preregistered",
)
page.claim(
    "They show what was asked for (fraction of images).",
    {seed: accuracy(drawn) for seed, (drawn, _) in tuned_runs.items()},
    ">=",
    0.97,
    source="Moon et al. (2024), abstract: quality is kept; bound preregistered",
)

# %%
SHOWN = ("all blocks, not tuned", "early exit, not tuned", "early exit, tuned", "reversed, tuned")
figure, rows = plt.subplots(len(SHOWN), 1, figsize=(7.5, 3.2), layout="constrained")
for name, axes in zip(SHOWN, rows, strict=True):
    first = runs[name][SEEDS[0]][0][:20, 0]
    axes.imshow(torch.cat(list(first), 1).numpy(), cmap="gray_r", vmin=-1, vmax=1)
    axes.set(title=name, xticks=[], yticks=[])
page.figure("images", figure)

# %% [markdown]
# After fine-tuning, images of 64 pixels tell no schedule from another: six blocks everywhere give a
# distance as small, and the wrong way round is hardly worse. Nor do these images need 20 steps: 15
# with all blocks cost the same and need no fine-tuning.
#
# ## Where depth matters
#
# The observation behind the schedule: let the model exit after four blocks at all times, and tune
# it for that. How much larger is the loss than with all blocks, by the bin of the timestep? All
# models here were tuned with one seed, and see the same images and noise.

# %%
NUM_PER_BIN = page.length(400, smoke=20)


@torch.no_grad()
def loss_by_bin(transformer: Any, seed: int) -> list[float]:
    """Mean loss at random times in each bin."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for number in range(10):
        chosen = torch.randint(len(images), (NUM_PER_BIN,), generator=generator)
        t = 100 * number + torch.randint(100, (NUM_PER_BIN,), generator=generator)
        x, labels = images[chosen], digits[chosen]
        noise = torch.randn(x.shape, generator=generator)
        predict = partial(lambda z, t, y: transformer(z, t, y)[0], y=labels)
        losses.append(float(noise_prediction_loss(predict, pipeline.scheduler, x, t, noise)))
    return losses


half = ExitSchedule.uniform(NUM_BLOCKS // 2)
losses = {
    name: {seed: loss_by_bin(network, seed) for seed in SEEDS}
    for name, network in {**once, "four blocks": tuned(half, SEEDS[0])}.items()
}
gaps = {s: np.subtract(losses["four blocks"][s], losses["all blocks"][s]) for s in SEEDS}
page.claim(
    "Blocks matter more near the data: tuned for four blocks, the model loses more by it in bins 1 "
    "to 3 than in bins 6 to 9 (ratio of mean excess losses).",
    {seed: float(gap[1:4].mean() / gap[6:].mean()) for seed, gap in gaps.items()},
    ">",
    1.5,
    source="Moon et al. (2024), introduction: difficulty depends on the timestep; bound "
    "preregistered",
)

# %% [markdown]
# The loss tells schedules of the same cost apart, as distances of small images do not. Six blocks
# everywhere lose least: under the schedule the final layer has five kinds of states to learn.

# %%
mean_losses = {name: {s: fmean(row[s]) for s in SEEDS} for name, row in losses.items()}
page.table({name: {f"seed {s}": x for s, x in row.items()} for name, row in mean_losses.items()})
of_one_cost = [mean_losses[name].values() for name in ("early exit", "uniform", "reversed")]
page.claim(
    "Of three schedules of the same cost, the paper's loses least (its mean loss, minus the lower "
    "one of uniform and reversed).",
    {s: loss - min(rivals) for s, loss, *rivals in zip(SEEDS, *of_one_cost, strict=True)},
    "<",
    0.0,
    source="Moon et al. (2024), section 3: fewer blocks toward the noise",
    central=True,
    reason="uniform exits lose less, since two of eight small blocks are hardly missed anywhere, "
    "and their final layer has one depth to learn instead of five",
)

# %% [markdown]
# ## In use
#
# Wrap a transformer by `EarlyExit.wrap`, fine-tune it by `AdaptiveScoreFineTuner`, and compare with
# fewer steps of all blocks and with the same depth everywhere: on small images both do as well.

# %%
page.finish({"tuning steps": NUM_TUNING_STEPS, "images": len(ASKED)})
