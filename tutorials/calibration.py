"""Calibration of an inference by simulation: NUTS and SGHMC."""

# %% [markdown]
# # Calibration
#
# R-hat and effective sample sizes tell whether chains agree with each other. Whether they agree
# with the posterior is another question: a step size that is too large makes chains that mix well,
# and all of them draw from the same wrong distribution. This page shows how to find out.
#
# `python tutorials/calibration.py` prints the numbers and saves the figures in
# `figures/calibration`.

# %%
import time
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ext.datasets import load_diabetes
from pyro_ext.diagnostics import SBCResult, sbc
from pyro_ext.diagnostics.plots import plot_sbc
from pyro_ext.inference import MCMC, NUTS, SGHMC
from pyro_ext.potential import Potential
from pyro_ext.reproduction import Page

page = Page("calibration")
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## The idea
#
# Draw parameters from the prior, data from the likelihood, and draws from the posterior given those
# data. The parameters that made the data are then one more draw from the posterior, so their rank
# among the others is equally likely to be any number. Do that many times: if the ranks are not
# uniform, then inference is not right.
#
# First a model whose posterior is known, eight measurements of eight unknown numbers, and four
# samplers: a right one and three wrong ones. `sbc` hands each of them the model with simulated
# data in it.


# %%
def measurements(x: Tensor) -> None:
    """Each number is measured once, with an error of variance 1."""
    with pyro.plate("numbers", len(x)):
        number = pyro.sample("number", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(number, 1.0), obs=x)


def sampler(shift: float = 0.0, scale: float = 1.0) -> Callable[..., dict[str, Tensor]]:
    """Draws from the posterior, Normal(x / 2, sqrt(1 / 2)), or from a distribution beside it."""

    def run(model: Callable[..., Any], x: Tensor) -> dict[str, Tensor]:
        x = Potential(model, x, backend="eager").observations()["x"]
        return {"number": x / 2 + 0.5**0.5 * (shift + scale * torch.randn(100, len(x)))}

    return run


num_simulations = page.length(100, smoke=10)
samplers = {
    "right": sampler(),
    "too high": sampler(shift=0.5),
    "too narrow": sampler(scale=0.6),
    "too wide": sampler(scale=1.6),
}
known = {
    name: sbc(
        measurements,
        run,
        num_simulations,
        torch.zeros(8),
        log_likelihood=False,
        seed=0,
        progress=False,
    )
    for name, run in samplers.items()
}

# %% [markdown]
# Each line below is the distribution function of the ranks of one number, less that of uniform
# ranks. The band holds all of a line in 95 of 100 cases if inference is right, so about one line in
# twenty leaves it by chance; of the eight lines of the right sampler, two do. The histograms are
# easier to read and less sharp.
#
# - Too high: most true values rank low, and the line is an arch.
# - Too narrow: true values fall beyond the draws on either side, and the histogram is a bowl.
# - Too wide: true values lie in the middle, and the histogram is a hill.

# %%
together = SBCResult({name: result.ranks["number"] for name, result in known.items()}, 100)
figure, axes = plt.subplots(2, 4, figsize=(12, 5), layout="constrained")
plot_sbc(together, ax=axes[0])
plot_sbc(together, kind="histogram", ax=axes[1])
page.figure("shapes", figure)

# %% [markdown]
# In numbers: `mean_rank` should be 0.5, `spread` 1, and small p-values are bad. The numbers are
# independent of each other, so their ranks may be pooled.

# %%
together.summary(pool=True)
shapes = together.uniformity(pool=True)

# %% [markdown]
# ## What ranks of parameters do not see
#
# A sampler that ignores the data and draws from the prior has uniform ranks: the true values come
# from the prior too. So `sbc` ranks one more thing, the log likelihood of the simulated data.
# Draws that ignore the data explain them worse than the truth does, every time. `quantities={...}`
# takes functions of your own, of parameters and data alike.


# %%
def prior_sampler(model: Callable[..., Any], x: Tensor) -> dict[str, Tensor]:
    """Draws from the prior."""
    return {"number": torch.randn(100, len(x))}


blind = sbc(measurements, prior_sampler, num_simulations, torch.zeros(8), seed=0, progress=False)
blind.summary(pool=["number"])

# %% [markdown]
# ## A real inference
#
# Logistic regression with minibatches: whether each of 200 patients recovers, given three
# measurements. The measurements are real, the recoveries are simulated by `sbc`; it looks at no
# others, and zeros stand in their place.

# %%
patients = load_diabetes(num_train=200, num_test=1, dtype=torch.float64)
features = list(patients.feature_names or ())
inputs = patients.train_inputs[:, [features.index(name) for name in ("bmi", "bp", "s5")]]
nobody = torch.zeros(len(inputs))


def regression(inputs: Tensor, recovered: Tensor, batch_size: int | None = None) -> None:
    """Logistic regression."""
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    weight = pyro.sample("weight", dist.Normal(inputs.new_zeros(3), 1.0).to_event(1))
    with pyro.plate("patients", len(inputs), subsample_size=batch_size) as index:
        logits = level + inputs[index] @ weight
        pyro.sample("recovered", dist.Bernoulli(logits=logits), obs=recovered[index])


# %% [markdown]
# What `sbc` takes is a function that runs the inference, written as you would write it for your own
# data. It takes the model and its arguments, and returns the sampler, draws, or a guide. It should
# not fix a seed: then all simulations would share the same noise. Chains run side by side, so that
# many short ones cost less than as many in a row, and their draws are nearly independent.


# %%
def run_nuts(model: Callable[..., Any], *args: Any, **kwargs: Any) -> MCMC:
    """NUTS on all of the data: twenty chains of five draws."""
    kernel = NUTS(model, max_tree_depth=5)
    mcmc = MCMC(kernel, num_samples=5, warmup_steps=60, num_chains=20, progress=False)
    return mcmc.run(*args, **kwargs)


def run_sghmc(step_size: float, thinning: int) -> Callable[..., MCMC]:
    """SGHMC on minibatches, likewise."""

    def run(model: Callable[..., Any], *args: Any, **kwargs: Any) -> MCMC:
        kernel = SGHMC(model, step_size=step_size, momentum_decay=0.5)
        mcmc = MCMC(
            kernel,
            num_samples=5,
            warmup_steps=2 * thinning,
            thinning=thinning,
            num_chains=20,
            progress=False,
        )
        return mcmc.run(*args, **kwargs)

    return run


inferences: dict[str, tuple[Callable[..., MCMC], int | None]] = {
    "NUTS": (run_nuts, None),
    "SGHMC, step size 0.02": (run_sghmc(0.02, 120), 50),
    "SGHMC, step size 0.15": (run_sghmc(0.15, 20), 50),
}
results = {}
for name, (run, batch_size) in inferences.items():
    started = time.perf_counter()
    results[name] = sbc(
        regression,
        run,
        2 if page.smoke else 50,
        inputs,
        nobody,
        batch_size=batch_size,
        seed=1,
        progress=False,
    )
    print(f"\n{name}: {time.perf_counter() - started:.0f} seconds")
    results[name].summary()

# %% [markdown]
# A step size of 0.15 is stable. But the noise of the minibatches, which grows with the step size,
# has heated the chains: the posterior is too wide. The log likelihood shows it best, since draws
# that are scattered too widely explain the data worse than the truth does.

# %%
figure, axes = plt.subplots(3, 3, figsize=(9.6, 7.5), layout="constrained")
for row, (name, result) in zip(axes, results.items(), strict=True):
    plot_sbc(result, ax=row)
    row[0].set_ylabel(f"{name}\nECDF difference")
page.figure("regression", figure)

# %% [markdown]
# Does R-hat see it? One run on one simulated data set, with the step size that is too large:

# %%
wide = results["SGHMC, step size 0.15"]
recovered = Potential(regression, inputs, nobody).prior(1, seed=0)["recovered"][0]
with torch.random.fork_rng():
    torch.manual_seed(0)
    mcmc = MCMC(
        SGHMC(regression, step_size=0.15, momentum_decay=0.5),
        num_samples=20 if page.smoke else 200,
        warmup_steps=40,
        thinning=20,
        num_chains=10,
        progress=False,
    ).run(inputs, recovered, batch_size=50)
r_hat = float(mcmc.diagnostics()["weight"]["r_hat"].max())
print(f"largest r_hat {r_hat:.3f}")

# %% [markdown]
# ## How many simulations?
#
# Uniform ranks are no proof, they bound the error. How often is a posterior found out whose
# standard deviation is off by a factor? For one of five parameters, at the level 0.01 for all:


# %%
def found(num_simulations: int, scale: float) -> float:
    """Compute how often so wide a posterior is found, from 50 repetitions with ranks of normals."""
    truth = torch.randn(num_simulations, 50, 1)
    ranks = (scale * torch.randn(num_simulations, 50, 100) < truth).sum(-1)
    table = SBCResult({"site": ranks.numpy()}, 100).uniformity()
    return float((table["p_value"] < 0.01 / 5).mean())


SCALES = {50: (0.5, 2.0), 200: (0.75, 1.4), 1000: (0.85, 1.2)}
page.table(
    {
        f"{number} simulations": {
            "too narrow": narrow,
            "found": found(number, narrow),
            "too wide": wide,
            "found ": found(number, wide),
        }
        for number, (narrow, wide) in SCALES.items()
    },
    number_format=".2f",
)

# %% [markdown]
# So fifty simulations find gross errors only, and a posterior that is too wide is harder to see. To
# see finer, simulate more. That is easy to do in parallel, since simulations are independent of
# each other: `sbc(..., executor=...)` takes a pool of processes or the executor of a Dask client,
# and gives the same ranks wherever they run.
#
# Draws should be all but independent of each other. Where they are not, ranks pile up at both ends,
# as if the posterior were too narrow: thin more.
#
# What this page claims, checked:

# %%
if not page.smoke:
    assert shapes.loc["right", "p_value"] > 0.01, shapes
    assert (shapes.drop("right")["p_value"] < 1e-6).all(), shapes
    assert shapes.loc["too high", "mean_rank"] < 0.45, shapes
    assert shapes.loc["too wide", "spread"] < 0.9 < 1.1 < shapes.loc["too narrow", "spread"], shapes
    assert blind.is_calibrated(names=["number"]), blind.uniformity()
    assert not blind.is_calibrated(1e-6, names=["log_likelihood"]), blind.uniformity()
    assert results["NUTS"].is_calibrated(), results["NUTS"].uniformity()
    good = results["SGHMC, step size 0.02"]
    assert good.is_calibrated(), good.uniformity()
    assert not wide.is_calibrated(1e-6, names=["log_likelihood"]), wide.uniformity()
    assert wide.uniformity(["level", "weight"])["spread"].max() < 0.9, wide.uniformity()
    assert r_hat < 1.02, r_hat
