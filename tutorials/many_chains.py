"""Many chains at once: what NUTS, ChEES and MEADS make of them, and how short runs are judged."""

# %% [markdown]
# # Many chains
#
# All kernels of this library take each step for all of their chains together, so that 64 chains
# cost far less than 64 times as much as one. This page is about what that is good for. Draws come
# from more places, and a sampler can learn from all chains at once how it should move; but each
# chain has to find the posterior first, and many short chains must be judged in another way than a
# few long ones. `python tutorials/many_chains.py` prints the tables.

# %%
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ext.inference import MCMC, MEADS, NUTS, ChEES
from pyro_ext.posterior.convergence import rank_diagnostics
from pyro_ext.reproduction import Page

page = Page("many-chains")
torch.set_default_dtype(torch.float64)
TOTAL = page.length(4096, smoke=256)  # draws of a run, of all of its chains
WARMUP = page.length(0, smoke=30) or None  # as MCMC chooses


class Posterior(NamedTuple):
    """A model and the exact means and standard deviations of its sites, flat."""

    model: Callable[[], None]
    mean: Tensor
    sd: Tensor


# %% [markdown]
# ## Three posteriors with exact answers
#
# A regression on 20 columns, each in its own unit and some correlated; the eight schools, with
# effects as independent noise, whose moments are integrals over two numbers; and 100 independent
# normal sites whose scales go from a tenth to ten.

# %%
with torch.random.fork_rng():
    torch.manual_seed(0)
    columns = torch.randn(300, 20) @ (torch.eye(20) + 0.3 * torch.randn(20, 20))
    columns = columns * torch.logspace(-1.0, 1.0, 20)
    targets = columns @ torch.randn(20) + torch.randn(300)


def regression() -> None:
    """A linear regression with noise of variance one."""
    weights = pyro.sample("weights", dist.Normal(torch.zeros(20), 10.0).to_event(1))
    pyro.sample("y", dist.Normal(columns @ weights, 1.0).to_event(1), obs=targets)


EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools() -> None:
    """Effects of coaching in eight schools."""
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.HalfNormal(10.0))
    with pyro.plate("schools", 8):
        noise = pyro.sample("noise", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean + scale * noise, ERRORS), obs=EFFECTS)


SCALES = torch.logspace(-1.0, 1.0, 100)


def normal() -> None:
    """Independent sites of different scales."""
    pyro.sample("x", dist.Normal(torch.zeros(100), SCALES).to_event(1))


def of_schools() -> tuple[Tensor, Tensor]:
    """Means and standard deviations of mean, scale and noise, by sums over a grid of the former."""
    mean, scale = (
        torch.linspace(-50, 50, 1001)[:, None, None],
        torch.linspace(0.02, 50, 1000)[:, None],
    )
    spread = (scale**2 + ERRORS**2).sqrt()
    density = dist.Normal(mean, spread).log_prob(EFFECTS).sum(-1)
    density = density + dist.Normal(0.0, 10.0).log_prob(mean[..., 0])
    weights = (density + dist.HalfNormal(10.0).log_prob(scale[..., 0])).flatten().softmax(0)
    first = scale * (EFFECTS - mean) / spread**2  # of noise, given the two numbers
    second = first**2 + ERRORS**2 / spread**2
    shape = first.shape[:2]
    numbers = torch.stack([mean[..., 0].expand(shape), scale[..., 0].expand(shape)], -1)
    means = weights @ torch.cat([numbers, first], -1).flatten(0, 1)
    squares = weights @ torch.cat([numbers**2, second], -1).flatten(0, 1)
    return means, (squares - means**2).sqrt()


covariance = torch.linalg.inv(columns.T @ columns + 0.01 * torch.eye(20))
POSTERIORS = {
    "regression": Posterior(
        regression, covariance @ columns.T @ targets, covariance.diagonal().sqrt()
    ),
    "schools": Posterior(schools, *of_schools()),
    "normal": Posterior(normal, torch.zeros(100), SCALES),
}

# %% [markdown]
# ## The same number of draws from few and from many chains
#
# Each run gives the same number of draws, of more chains the fewer each, by the default warm-up and
# thinning. The error is the root mean square of the errors of all means and standard deviations, in
# standard deviations. `per s` are the effective draws for a second of the processor, warm-up and
# recording of the model included, of the parameter that has fewest.

# %%
FAR = 0.05
KINDS: dict[str, tuple[Any, int]] = {
    "NUTS, 4 chains": (NUTS, 4),
    "NUTS, 16 chains": (NUTS, 16),
    "NUTS, 64 chains": (NUTS, 64),
    "ChEES, 16 chains": (ChEES, 16),
    "ChEES, 64 chains": (ChEES, 64),
    "ChEES, 256 chains": (ChEES, 256),
    "MEADS, 64 chains": (MEADS, 64),
    "MEADS, 256 chains": (MEADS, 256),
}


def flat(draws: dict[str, Tensor]) -> Tensor:
    """Return the draws of all sites side by side, ``(num_chains, num_draws, size)``."""
    return torch.cat(
        [value.flatten(2) if value.dim() > 2 else value[..., None] for value in draws.values()], -1
    )


def measured(of: Posterior, kernel: Any, num_chains: int) -> dict[str, Any]:
    """Run a sampler; return its time, its error, its effective draws and number of warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        started = time.process_time()
        mcmc = MCMC(
            kernel(of.model),
            TOTAL // num_chains,
            num_chains=num_chains,
            seed=0,
            progress=False,
            warmup_steps=WARMUP,
        )
        found = flat(mcmc.run().get_samples(group_by_chain=True))
        seconds = time.process_time() - started
    own = found.flatten(0, 1)
    offsets = torch.cat([(own.mean(0) - of.mean) / of.sd, own.std(0) / of.sd - 1.0])
    sizes = rank_diagnostics(found)
    size = float(torch.minimum(sizes.bulk, sizes.tail).min())
    error = float(offsets.square().mean().sqrt())
    return {
        "CPU s": seconds,
        "error": error,
        "effective": size,
        "per s": size / seconds,
        "warnings": len(caught),
    }


tables = {
    name: {kind: measured(of, *KINDS[kind]) for kind in list(KINDS)[:: page.length(1, smoke=3)]}
    for name, of in POSTERIORS.items()
}
for name, rows in tables.items():
    page.table(rows, title=name, number_format=".3g")
page.claim(
    "A run whose error is above 0.05 has a warning (number of runs without).",
    sum(
        row["error"] > FAR and not row["warnings"] for by in tables.values() for row in by.values()
    ),
    "<",
    1,
    source="what a warning is for; added when MEADS was off by more on the regression",
)

# %%
figure, panels = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
for axes, (name, rows) in zip(panels, tables.items(), strict=True):
    for kernel, color in (("NUTS", "#444444"), ("ChEES", "#2a6f97"), ("MEADS", "#e09f3e")):
        own = [(KINDS[kind][1], row["per s"]) for kind, row in rows.items() if kernel in kind]
        axes.plot(*zip(*own, strict=True), "o-", color=color, label=kernel)
    axes.set(xscale="log", yscale="log", title=name, xlabel="chains")
panels[0].set_ylabel("effective draws per CPU second")
panels[-1].legend(frameon=False)
page.figure("per-second", figure, despine=True)

# %% [markdown]
# Of `NUTS`, 16 chains cost no more than four, and 64 of them more, since each warms up on its own.
# `ChEES` learns from all of its chains together, and needs few steps of each. `MEADS` takes a
# gradient a step, 1,000 of them to warm up, and knows scales, not directions: on the correlated
# weights of the regression its steps are short, and its warnings say that it has not got far.
#
# ## How short chains are judged
#
# The mean of a chain of 16 draws differs from that of the next however well both mix, and R-hat
# compares means of chains: of many short chains it is always above its bound. `MCMC` therefore
# looks, of 16 chains or more, at what lasts: chains whose first half is off where their second half
# is off, too, and shifts that all chains share. Beside the regression, a site with two modes far
# apart, between which no chain goes: R-hat of both is too large, and only one is warned of.
# (`pyro_ext.diagnostics.nested_rhat` is for chains that start in groups from the same points.)


# %%
def two_modes() -> None:
    """A site with two modes."""
    sides = dist.Normal(torch.tensor([-8.0, 8.0]), 1.0)
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), sides))


rows, told = {}, {}
for name, model in {"regression": regression, "two modes": two_modes}.items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mcmc = MCMC(
            ChEES(model), 16, page.length(300, smoke=30), num_chains=256, seed=1, progress=False
        ).run()
    draws = flat(mcmc.get_samples(group_by_chain=True))
    told[name] = [str(each.message) for each in caught if "do not agree" in str(each.message)]
    rows[name] = {
        "R-hat": float(rank_diagnostics(draws).r_hat.max()),
        "warnings of R-hat": len(told[name]),
    }
page.table(rows, title="256 chains of 16 draws", number_format=".2f")
print(told["two modes"][0])
page.claim(
    "Of 256 chains of 16 draws those that disagree are warned of, and those that agree are not "
    "(runs judged rightly, of two).",
    float(bool(told["two modes"])) + float(not told["regression"]),
    ">=",
    2,
    source="what a warning is for; bound preregistered",
)

# %% [markdown]
# ## What to take
#
# - **To begin with**: `NUTS` with four chains. Its warnings say most, and it needs no choice.
# - **Many draws, or a model whose steps are cheap for many chains**: `ChEES` with 64 chains.
# - **Hundreds of chains, parameters that are hardly correlated**: `MEADS` needs no step size, no
#   lengths and no end of its tuning. Look at its warnings.

# %%
page.finish({"total": TOTAL})
