"""SetVAE: what latent variables at several scales gain for sets, and sets of any size."""

# %% [markdown]
# # SetVAE
#
# A set has no order and no fixed size, and neither may what generates it. J. Kim, J. Yoo, J. Lee,
# S. Hong (2021), SetVAE: learning hierarchical composition for generative modeling of
# set-structured data, let the elements of a set look at a few inducing points and those at the
# elements, and put latent variables between. One after the other, scales with more and more
# inducing points compose a set of parts of parts.
#
# Here sets are the dark pixels of handwritten digits, as points in the unit square. Its rivals are
# a network of the same kind with a single scale, and a variational autoencoder that pools a set by
# its mean and makes each point of the latent variables and noise of its own.
#
# `pyro-ext reproduce setvae` runs the page, and so does `python tutorials/papers/setvae.py`. Both
# print a table of claims and save it with the figures in `figures/setvae`.

# %%
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from pyro_ext.datasets import load_digits
from pyro_ext.diagnostics.sets import (
    chamfer_distance,
    coverage,
    minimum_matching_distance,
    occupancy_divergence,
    one_nearest_neighbor_accuracy,
)
from pyro_ext.inference.training import ShuffledBatches, Trainer
from pyro_ext.models.sets import GaussianMixtureSet, SetVAE, SetVAETerms
from pyro_ext.nn import MLP
from pyro_ext.random import seeded, spawn_seed
from pyro_ext.reproduction import Page

page = Page(
    "setvae",
    paper="J. Kim, J. Yoo, J. Lee, S. Hong (2021), SetVAE: learning hierarchical composition for "
    "generative modeling of set-structured data, arXiv 2103.15619",
)
SEEDS = page.seeds
BLUE, RED, GRAY, YELLOW = "#2a6f97", "#d1495b", "#8d99ae", "#e09f3e"

# %% [markdown]
# ## Digits as sets
#
# The pixels of an 8 x 8 image with more than 6 of 16 levels of gray, each moved by a random part of
# a pixel: 22 points on average, at most 32. What the random part adds nobody can know, so that no
# distance to a reconstruction can be near zero.


# %%
def as_points(images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Points of images and where there are any, as many as the largest set has."""
    generator = torch.Generator().manual_seed(seed)
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    pixels = torch.stack([column, 7 - row], -1).flatten(0, 1)
    points = (pixels + torch.rand(len(images), 64, 2, generator=generator)) / 8
    is_dark = images > 6
    # Those that are there first, in any order.
    order = (torch.rand(images.shape, generator=generator) - is_dark.float()).argsort()
    order = order[:, : int(is_dark.sum(1).max())]
    mask = is_dark.gather(1, order)
    points = points.gather(1, order[..., None].expand(-1, -1, 2))
    return points.masked_fill(~mask[..., None], 0), mask


digits = load_digits(num_train=1400, num_test=397)
train_images, test_images = (
    (inputs * digits.input_scale + digits.input_loc).round()
    for inputs in (digits.train_inputs, digits.test_inputs)
)
train, test = as_points(train_images, 0), as_points(test_images, 1)
print(f"{float(train[1].sum(1).float().mean()):.1f} points, at most {train[1].shape[1]}")

# %% [markdown]
# ## Three autoencoders
#
# All have the same data, loss and optimizer. The loss is the Chamfer distance, summed over points,
# plus a thousandth of the divergence of posteriors from priors, a weight that grows over the first
# half of the steps.


# %%
class MeanPoolVAE(nn.Module):
    """A variational autoencoder of sets with a single vector of latent variables."""

    def __init__(self, latent_size: int = 32, noise_size: int = 8) -> None:
        super().__init__()
        self.latent_size, self.noise_size = latent_size, noise_size
        self.embedding = MLP(2, [64], 64, nn.ReLU)
        self.posterior = nn.Linear(64, 2 * latent_size)
        self.decoder = MLP(latent_size + noise_size, [64, 64, 64], 2, nn.ReLU)

    def terms(self, x: Tensor, mask: Tensor) -> SetVAETerms:
        """Distance to a reconstruction, and divergence, as those of a SetVAE."""
        embedded = self.embedding(x).relu() * mask[..., None]
        pooled = embedded.sum(1) / mask.sum(1, keepdim=True)
        loc, log_variance = self.posterior(pooled).chunk(2, -1)
        posterior = Normal(loc, (log_variance.clamp(-4, 3) / 2).exp())
        kl = kl_divergence(posterior, Normal(0.0, 1.0)).sum(-1, keepdim=True)
        points = self.points(posterior.rsample(), mask)
        return SetVAETerms(chamfer_distance(x, points, mask, mask), kl)

    def points(self, latent: Tensor, mask: Tensor) -> Tensor:
        """As many points as the mask has, all with the same latent variables."""
        noise = torch.randn(*mask.shape, self.noise_size)
        both = torch.cat([latent[:, None].expand(-1, mask.shape[1], -1), noise], -1)
        return (self.decoder(both).tanh() + 1) / 2


def hierarchical() -> SetVAE:
    """Four scales."""
    return SetVAE(2, (1, 2, 4, 8), initial_set=GaussianMixtureSet(8, 4), **SIZES)


def single_scale() -> SetVAE:
    """The finest of the four scales alone."""
    return SetVAE(2, (8,), initial_set=GaussianMixtureSet(8, 4), **SIZES)


SIZES: dict[str, Any] = dict(hidden_size=32, latent_size=8, num_heads=4, unit_cube=True)
MAKERS: dict[str, Callable[[], Any]] = {
    "hierarchical": hierarchical,
    "single scale": single_scale,
    "mean pool": MeanPoolVAE,
}
COLORS = {"hierarchical": BLUE, "single scale": YELLOW, "mean pool": GRAY}
NUM_STEPS = page.length(1200, smoke=12)
BETA = 1e-3


def trained(name: str, seed: int) -> Any:
    """A network that has taken all steps."""
    with seeded(seed):
        network = MAKERS[name]()
    trainer = Trainer(network, partial(torch.optim.Adam, lr=1e-3, fused=True), seed=seed)

    def loss(x: Tensor, mask: Tensor) -> Tensor:
        terms = network.terms(x, mask)
        beta = BETA * min(1.0, (trainer.num_steps + 1) / (NUM_STEPS / 2))
        return (terms.distance + beta * terms.kl.sum(-1)).mean()

    batches = ShuffledBatches(*train, batch_size=32)
    trainer.run(loss, NUM_STEPS, batches, description=f"{name}, seed {seed}")
    return network


@torch.no_grad()
def on_test_sets(network: Any, seed: int, num_draws: int = 5) -> tuple[float, float]:
    """Chamfer distance and divergence, on average over test sets and draws."""
    with seeded(seed):
        draws = [network.terms(*test) for _ in range(num_draws)]
    distance = torch.stack([draw.distance for draw in draws])
    kl = torch.stack([draw.kl.sum(-1) for draw in draws])
    return float(distance.mean()), float(kl.mean())


networks: dict[str, dict[int, Any]] = {name: {} for name in MAKERS}
distances: dict[str, dict[int, float]] = {name: {} for name in MAKERS}
divergences: dict[str, dict[int, float]] = {name: {} for name in MAKERS}
seconds = dict.fromkeys(MAKERS, 0.0)
for name in MAKERS:
    for seed in SEEDS:
        started = time.process_time()
        networks[name][seed] = trained(name, seed)
        seconds[name] += time.process_time() - started
        distances[name][seed], divergences[name][seed] = on_test_sets(networks[name][seed], seed)
page.table(
    {
        name: {
            "parameters": sum(p.numel() for p in networks[name][SEEDS[0]].parameters()),
            **{f"distance {seed}": distances[name][seed] for seed in SEEDS},
            **{f"KL {seed}": divergences[name][seed] for seed in SEEDS},
            "CPU s": seconds[name],
        }
        for name in MAKERS
    }
)
