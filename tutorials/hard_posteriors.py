"""Hard posteriors: a funnel, a banana, two modes, a Gaussian process, hundreds of parameters."""

# %% [markdown]
# # Hard posteriors
#
# `NUTS` is the sampler to begin with. This page has five posteriors on which it is slow, or wrong
# without knowing it, each with an exact answer, and what to take in its place: another
# parameterization, `TemperedSMC`, elliptical slices within `Gibbs`, `ChEES` or `MAMS`.
#
# Each table has the CPU seconds of a run, the recording of its model included, the error of the
# answer that is asked for, and how many warnings the run gave.
# `python tutorials/hard_posteriors.py` prints them.

# %%
import time
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from pyro_ext.inference import MAMS, MCMC, NUTS, ChEES, EllipticalSlice, Gibbs, TemperedSMC
from pyro_ext.reproduction import Page

page = Page("hard-posteriors")
torch.set_default_dtype(torch.float64)
LENGTHS = {"num_samples": page.length(1000, smoke=20), "warmup_steps": page.length(500, smoke=20)}
CHAINS: dict[str, Any] = {"num_chains": 4, "seed": 0, "progress": False}


def measured(
    run: Callable[[], Any], errors: Callable[[dict[str, Tensor]], dict[str, float]]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Run an inference; return its CPU seconds, errors and number of warnings, and its draws."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        started = time.process_time()
        draws = run().get_samples()
        seconds = time.process_time() - started
    return {"CPU s": seconds, **errors(draws), "warnings": len(caught)}, draws


def chains(kernel: Any, *args: Any, **options: Any) -> Callable[[], Any]:
    """Return a function that samples with a kernel."""
    return lambda: MCMC(kernel, **LENGTHS | CHAINS | options).run(*args)


# %% [markdown]
# ## A funnel
#
# The scale of some effects is unknown, and so are the effects: where the scale is small they must
# be small, too, and no step size suits both ends. The log scale `v` is normal with a standard
# deviation of 3. `NUTS` hardly gets to the narrow end, and its warnings say that something is
# wrong; a smaller step helps, and is not enough. `LocScaleReparam` makes the same model of
# independent noise, and nothing is left of the funnel.


# %%
def funnel() -> None:
    """Ten effects of unknown scale."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("effects", 10):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


def of_funnel(draws: dict[str, Tensor]) -> dict[str, float]:
    """Errors of the mean and of the standard deviation of the log scale, in units of the latter."""
    v = draws["v"]
    return {"error of mean": abs(float(v.mean())) / 3, "of sd": abs(float(v.std()) / 3 - 1)}


decentered = poutine.reparam(funnel, config={"x": LocScaleReparam(0.0)})
rows, funnels = {}, {}
for name, kernel in {
    "NUTS": NUTS(funnel),
    "NUTS, target_accept_prob=.99": NUTS(funnel, target_accept_prob=0.99),
    "NUTS, decentered": NUTS(decentered),
}.items():
    rows[name], funnels[name] = measured(chains(kernel), of_funnel)
page.table(rows, title="funnel", number_format=".2f")

# %% [markdown]
# ## A banana
#
# Two parameters, of which one follows the square of the other. The ends are far along a narrow
# curve: trajectories must be long and steps short, and single chains seldom get there. `NUTS` warns
# of that. `MAMS` and many chains are nearer to the answer, at more cost.


# %%
def banana() -> None:
    """A normal x, and y about its square."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x**2, 0.1))


def of_banana(draws: dict[str, Tensor]) -> dict[str, float]:
    """Errors of the mean and the standard deviation of y, which are 1 and the root of 2.01."""
    y = draws["y"]
    sd = 2.01**0.5
    return {"error of mean": abs(float(y.mean()) - 1) / sd, "of sd": abs(float(y.std()) / sd - 1)}


rows = {}
for name, run in {
    "NUTS": chains(NUTS(banana)),
    "MAMS": chains(MAMS(banana)),
    "ChEES, 32 chains": chains(ChEES(banana), num_chains=32),
}.items():
    rows[name], _ = measured(run, of_banana)
page.table(rows, title="banana", number_format=".2f")

# %% [markdown]
# ## Two modes
#
# A signal is five, plus or minus, in each of six dimensions, and one sign is likelier than the
# other. Chains stay in the mode that they begin in, and where all begin in the same one they agree
# with each other. `TemperedSMC` goes from the prior to the posterior in steps that it chooses, and
# weighs the modes.


# %%
def two_modes(y: Tensor) -> None:
    """A location of which the data give the size but hardly the sign."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(6), 3.0).to_event(1))
    sides = dist.Normal(torch.stack([loc, -loc], -2), 0.5).to_event(1)
    weights = dist.Categorical(torch.tensor([0.8, 0.2]))
    pyro.sample("y", dist.MixtureSameFamily(weights, sides), obs=y)


def of_modes(draws: dict[str, Tensor]) -> dict[str, float]:
    """Error of the mass of the mode of the sign of the data, 0.8."""
    return {"error of mass": abs(float((draws["loc"][:, 0] > 0).double().mean()) - 0.8)}


y = torch.full((6,), 5.0)
num_particles = page.length(1000, smoke=50)
rows = {}
for name, run in {
    "NUTS": chains(NUTS(two_modes), y),
    "TemperedSMC": lambda: TemperedSMC(two_modes, num_particles, seed=0, progress=False).run(y),
}.items():
    rows[name], _ = measured(run, of_modes)
page.table(rows, title="two modes", number_format=".2f")

# %% [markdown]
# ## A Gaussian process
#
# Which of two classes is at a place changes smoothly: 80 values of a Gaussian process, and a label
# for each. `EllipticalSlice` moves all values of a site with a Gaussian prior at once. It has no
# step size and needs no gradient; a second block of `Gibbs` draws the scale. `NUTS` takes minutes
# for this model, but is fast where the process is made of independent noise. The answer is that of
# a long run of the latter.

# %%
places = torch.linspace(0.0, 8.0, 80)
gram = torch.exp(-0.5 * (places[:, None] - places).square()) + 1e-6 * torch.eye(80)
root = torch.linalg.cholesky(gram)
with torch.random.fork_rng():
    torch.manual_seed(1)
    labels = torch.bernoulli((2.0 * root @ torch.randn(80)).sigmoid())


def process(labels: Tensor) -> None:
    """Labels of places, with a Gaussian process of unknown scale."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(80), scale_tril=root))
    pyro.sample("y", dist.Bernoulli(logits=scale * f).to_event(1), obs=labels)


def whitened(labels: Tensor) -> None:
    """The same process, made of independent noise."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    noise = pyro.sample("noise", dist.Normal(torch.zeros(80), 1.0).to_event(1))
    f = pyro.deterministic("f", root @ noise, event_dim=1)
    pyro.sample("y", dist.Bernoulli(logits=scale * f).to_event(1), obs=labels)


def logits(draws: dict[str, Tensor]) -> Tensor:
    """Draws of the logits."""
    f = draws["f"] if "f" in draws else draws["noise"] @ root.T
    return draws["scale"][:, None] * f


long_run = CHAINS | {"num_samples": page.length(5000, smoke=20), "seed": 1}
reference = MCMC(NUTS(whitened, target_accept_prob=0.95), **long_run)
exact = logits(reference.run(labels).get_samples())


def of_process(draws: dict[str, Tensor]) -> dict[str, float]:
    """Largest error of a mean of the logits, in standard deviations, and of one of these."""
    found = logits(draws)
    offset = (found.mean(0) - exact.mean(0)) / exact.std(0)
    return {
        "largest error of mean": float(offset.abs().max()),
        "of sd": float((found.std(0) / exact.std(0) - 1).abs().max()),
    }


slices = Gibbs([(EllipticalSlice(), ["f"]), (NUTS(process), ["scale"])])
rows = {}
for name, run in {
    "elliptical slices and NUTS": chains(slices, labels),
    "NUTS, whitened": chains(NUTS(whitened), labels),
}.items():
    rows[name], _ = measured(run, of_process)
page.table(rows, title="Gaussian process", number_format=".2f")

# %% [markdown]
# ## Hundreds of parameters
#
# A linear regression with 1,000 weights, some well determined and some hardly, whose posterior is
# known. `MAMS` and `ChEES` were made for many parameters: each chain of the former learns how long
# its trajectories should be, and the latter learns one length for all of its chains.

# %%
SIZE = page.length(1000, smoke=20)
generator = torch.Generator().manual_seed(0)
scales = torch.logspace(-1.0, 1.0, SIZE)
inputs = torch.randn(2 * SIZE, SIZE, generator=generator) * scales / SIZE**0.5
targets = inputs @ torch.randn(SIZE, generator=generator)
targets += torch.randn(2 * SIZE, generator=generator)
covariance = torch.linalg.inv(inputs.T @ inputs + torch.eye(SIZE))
mean, sd = covariance @ inputs.T @ targets, covariance.diagonal().sqrt()


def regression(inputs: Tensor, targets: Tensor) -> None:
    """A linear regression with noise of variance one."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(SIZE), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(inputs @ weight, 1.0).to_event(1), obs=targets)


def of_regression(draws: dict[str, Tensor]) -> dict[str, float]:
    """Root mean square errors of means, in standard deviations, and of these."""
    weight = draws["weight"]
    return {
        "error of means": float(((weight.mean(0) - mean) / sd).square().mean().sqrt()),
        "of sds": float((weight.std(0) / sd - 1).square().mean().sqrt()),
    }


short = {"num_samples": page.length(200, smoke=10), "warmup_steps": page.length(200, smoke=10)}
rows = {}
for name, run in {
    "NUTS": chains(NUTS(regression), inputs, targets, **short),
    "MAMS": chains(MAMS(regression), inputs, targets, **short),
    "ChEES, 16 chains": chains(ChEES(regression), inputs, targets, **short | {"num_chains": 16}),
}.items():
    rows[name], _ = measured(run, of_regression)
page.table(rows, title=f"{SIZE} parameters", number_format=".2f")

# %%
figure, panels = plt.subplots(1, len(funnels), figsize=(9, 3), layout="constrained", sharey=True)
for axes, (name, draws) in zip(panels, funnels.items(), strict=True):
    x = draws["x"] if "x" in draws else draws["x_decentered"] * (draws["v"] / 2).exp()[:, None]
    axes.plot(x[:, 0].clamp(-30.0, 30.0), draws["v"], ".", ms=1.5, alpha=0.4)
    axes.set(title=name, xlabel="first effect", ylim=(-10.0, 10.0))
panels[0].set_ylabel("log scale v")
page.figure("funnels", figure, despine=True)

# %% [markdown]
# ## What to take
#
# - **A funnel**: another parameterization. A smaller step is not enough.
# - **A curved posterior with one mode**: `MAMS`, or many chains, as under `ChEES`, or far longer
#   runs of `NUTS`, whose warnings say when they are too short. Or sample the residual, `y - x**2`.
# - **Several modes**: `TemperedSMC`. No warning of a chain can see a mode that no chain has seen.
# - **A Gaussian process**: whiten it, and take `NUTS`; elliptical slices where gradients are dear.
# - **Hundreds of parameters**: compare `NUTS` and `MAMS` in a short run; `ChEES` for many chains.
