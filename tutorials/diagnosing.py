"""What to look at after a run, what goes wrong, and how each failure shows itself."""

# %% [markdown]
# # Diagnosing
#
# Stochastic-gradient samplers neither accept nor reject, so a run that went wrong ends like one
# that went well: with draws. This page makes runs fail in every way we know of, and shows what
# each failure looks like and which of the usual numbers do not see it. NUTS, which takes no
# minibatches and adapts its step size, gives the answer to compare with. A table at the end leads
# from symptom to cause and remedy. `python tutorials/diagnosing.py` runs the page.

# %%
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide.initialization import init_to_sample
from torch import Tensor

from pyro_ext.datasets import load_diabetes, load_wine
from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MCMC, NUTS, SGHMC, SGMCMCKernel
from pyro_ext.reproduction import Page

page = Page("diagnosing")
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## Data, model and reference
#
# 354 diabetes patients. Six measurements of each are to explain how far the disease had progressed
# a year later, on a scale that we take in hundreds. A linear regression: eight numbers to learn.

# %%
patients = load_diabetes(dtype=torch.float64)
features = ("age", "sex", "bmi", "bp", "s3", "s5")
columns = [list(patients.feature_names or ()).index(feature) for feature in features]
inputs = patients.train_inputs[:, columns]
progression = (patients.train_targets * patients.target_scale + patients.target_loc) / 100.0


def coefficients(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Level, weights and scale of a regression, from their prior."""
    level = pyro.sample("level", dist.Normal(1.5, 1.0))
    weight = pyro.sample("weight", dist.Normal(inputs.new_zeros(6), 0.5).to_event(1))
    return level, weight, pyro.sample("scale", dist.HalfNormal(1.0))


def regression(inputs: Tensor, progression: Tensor, batch_size: int | None = None) -> None:
    """Linear regression."""
    level, weight, scale = coefficients(inputs)
    with pyro.plate("patients", len(inputs), subsample_size=batch_size) as index:
        mean = level + inputs[index] @ weight
        pyro.sample("progression", dist.Normal(mean, scale), obs=progression[index])


depth, num_samples, num_warmup = page.length((10, 200, 150), smoke=(3, 5, 10))
nuts = NUTS(regression, max_tree_depth=depth)
reference = MCMC(nuts, num_samples, num_warmup, num_chains=4, seed=1, progress=False)
reference.run(inputs, progression)

# %% [markdown]
# Five numbers tell most of what there is to know about a run:
#
# - R-hat compares the chains with each other, ESS counts what the draws are worth; here the worst
#   over all sites.
# - The kinetic temperature is the mean square of the momentum. It should be the temperature of the
#   run, which is 1. Minibatches and long steps heat it.
# - Two luxuries: how far posterior means are from those of NUTS, at worst, in posterior standard
#   deviations; and how wide the posterior is, as a multiple of that of NUTS, on average.


# %%
def run(kernel: SGMCMCKernel, num_samples: int = 200, thinning: int = 20, **options: Any) -> MCMC:
    """Run eight chains on minibatches of 64 patients."""
    settings = {"warmup_steps": 1000, "num_chains": 8, "seed": 0, "progress": False} | options
    if page.smoke:
        num_samples, thinning = num_samples // 10, max(thinning // 10, 1)
        settings["warmup_steps"] //= 20
    mcmc = MCMC(kernel, num_samples=num_samples, thinning=thinning, **settings)
    return mcmc.run(inputs, progression, batch_size=64)


def flat(samples: dict[str, Tensor]) -> Tensor:
    """Draws of the eight parameters, side by side."""
    return torch.cat([samples[name].reshape(-1, size) for name, size in SIZES.items()], -1)


SIZES = {"level": 1, "weight": 6, "scale": 1}
exact = flat(reference.get_samples())


def look(mcmc: MCMC) -> dict[str, float]:
    """Measure what a run is worth."""
    draws, diagnostics = flat(mcmc.get_samples()), mcmc.diagnostics()
    sites = [diagnostics[site] for site in SIZES]
    return {
        "R-hat": max(float(site["r_hat"].max()) for site in sites),
        "ESS": min(float(site["n_eff"].min()) for site in sites),
        "temperature": float(mcmc.sample_statistics()["kinetic_temperature"].mean()),
        "off by": float(((draws.mean(0) - exact.mean(0)) / exact.std(0)).abs().max()),
        "width": float((draws.std(0) / exact.std(0)).log().mean().exp()),
    }


# %% [markdown]
# ## Far too large a step
#
# Eight chains whose noise scales were drawn from the prior. Those with a small one find themselves
# where the potential is steep, and a step that is small enough elsewhere is far too large there. A
# chain that diverges stops; the others go on, and a warning says which.

# %%
generator = torch.Generator().manual_seed(1)
start = {
    "level": torch.full((8,), 1.5),
    "weight": torch.zeros(8, 6),
    "scale": torch.randn(8, generator=generator).abs(),
}
too_steep = SGHMC(regression, step_size=0.006, friction=10.0)
begun = run(too_steep, thinning=1, warmup_steps=0, initial_params=start)
for number, chain in begun.stopped_chains.items():
    values = " ".join(f"{value:.2g}" for value in chain["samples"]["scale"].tolist())
    print(f"chain {number} of 8: {chain['reason']}\nscale: {values}")

# %% [markdown]
# `stopped_chains` keeps what a chain drew before it was lost. Look at where it began: here the
# smallest scale is lost, and the remedy is a smaller step or a better start. (The default, the
# median of a few draws from the prior, is one.) A chain that is lost late has found a place in the
# posterior where the step is too large, to which the others did not go: don't trust them either.
#
# ## Too large a step
#
# The first run here is in order: chains agree, draws are nearly independent, the temperature is
# right, and so is the answer. Then steps get longer, and there are fewer of them between two draws.
# This is the failure to fear, because nothing breaks.

# %%
runs = {}
for step_size in (0.002, 0.006, 0.012, 0.024):
    kernel = SGHMC(regression, step_size=step_size, friction=10.0)
    runs[f"step size {step_size}"] = run(kernel, thinning=min(40, round(0.12 / step_size)))
results = {name: look(mcmc) for name, mcmc in runs.items()}
page.table(results)

# %%
figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
for name, mcmc in runs.items():
    bmi, temperature = mcmc.get_samples()["weight"][:, 2], results[name]["temperature"]
    label = f"{name}, temperature {temperature:.1f}"
    axes.hist(bmi, bins=60, range=(-0.2, 0.7), density=True, histtype="step", label=label)
axes.hist(exact[:, 3], bins=30, range=(0.0, 0.45), density=True, alpha=0.4, label="NUTS")
axes.set(xlabel="weight of bmi", ylabel="posterior density")
axes.legend()
page.figure("too-large", figure, despine=True)

# %% [markdown]
# R-hat is good in every row, and ESS is high: the chains agree with each other, on a posterior that
# is far too wide. The temperature sees it. It exaggerates, since momenta heat sooner than
# positions: the width would be its square root if they were equally hot. Below 1.1 all is well; at
# 1.4 the posterior is a tenth too wide; at 3 stop and take a smaller step, a larger batch or more
# friction.
#
# SGLD and PSGLD have no momentum, and no thermometer. Run them twice, once with half the step size:
# where the answer stays, it was small enough. SGNHT turns its friction up until the momentum has
# the right temperature: look at how far its `thermostat` is over the `friction` it began with.
#
# ## Too small a step
#
# The opposite: chains that are still on their way.

# %%
runs["step size 3e-5"] = run(SGHMC(regression, step_size=3e-5, friction=10.0))
results["step size 3e-5"] = look(runs["step size 3e-5"])
page.table({name: results[name] for name in ("step size 0.002", "step size 3e-5")})

# %% [markdown]
# This is the failure that R-hat and ESS are made for; traces are smooth lines that drift instead of
# noise around a level. Here the temperature is high too, as the chains are still falling. Several
# chains are needed to see it, and they have to start apart from each other.
#
# ## A likelihood that is counted wrongly
#
# Two slips in the model. The first forgets `subsample_size`: the plate has the size of the batch,
# so the chains see the first 64 patients and no others. The second scales by hand what the plate
# scales already.


# %%
def too_few(inputs: Tensor, progression: Tensor, batch_size: int) -> None:
    """A plate of the size of a batch, in place of a plate of all patients that takes batches."""
    level, weight, scale = coefficients(inputs)
    with pyro.plate("patients", batch_size) as index:
        mean = level + inputs[index] @ weight
        pyro.sample("progression", dist.Normal(mean, scale), obs=progression[index])


def twice(inputs: Tensor, progression: Tensor, batch_size: int) -> None:
    """The likelihood is scaled by the plate, and once more."""
    level, weight, scale = coefficients(inputs)
    by_hand = pyro.poutine.scale(scale=len(inputs) / batch_size)
    with pyro.plate("patients", len(inputs), subsample_size=batch_size) as index, by_hand:
        mean = level + inputs[index] @ weight
        pyro.sample("progression", dist.Normal(mean, scale), obs=progression[index])


slips = {"as it should be": runs["step size 0.002"]}
slips["too few patients"] = run(SGHMC(too_few, step_size=0.002, friction=10.0), thinning=40)
slips["scaled twice"] = run(SGHMC(twice, step_size=5e-4, friction=10.0), thinning=40)
results |= {name: look(mcmc) for name, mcmc in slips.items()}
page.table({name: results[name] for name in slips})
counted = {}
for name, mcmc in slips.items():
    groups = to_arviz(mcmc)
    each = groups["log_likelihood"]["progression"]
    counted[name] = {
        "patients": each.sizes["patients"],
        "log likelihood": float(each.sum("patients").mean()),
        "lp": float(groups["sample_stats"]["lp"].mean()),
    }
page.table(counted, number_format=".1f")

# %% [markdown]
# Again the chains agree among themselves. One posterior is far too wide, since it knows a sixth of
# the data, the other is too narrow. Two looks find them out:
#
# - The group `log_likelihood` has an entry for each observation. Are all of them there?
# - `lp`, the log joint density that a step saw on its minibatch, should be near the log likelihood
#   of all of the data, give or take the prior. Where the likelihood is scaled twice it is 354/64
#   times as large. `to_arviz` does not scale: an observation counts once.
#
# ## Several modes
#
# A mixture of two normal distributions, for the proline of 160 wines. Which component comes first
# is a matter of chance, so chains differ. What the mixture says of wines does not depend on it, and
# that is what to diagnose: `quantities` takes functions of a draw, and records them with it.

# %%
wines = load_wine(test_fraction=0.1, dtype=torch.float64)
proline = wines.train_inputs[:, list(wines.feature_names or ()).index("proline")]
positions = torch.linspace(-2.0, 3.0, 61)


def normals(share: Tensor, loc: Tensor, scale: Tensor) -> dist.MixtureSameFamily:
    """A mixture of normal distributions."""
    return dist.MixtureSameFamily(dist.Categorical(share), dist.Normal(loc, scale))


def mixture(proline: Tensor) -> None:
    """Two normal distributions."""
    share = pyro.sample("share", dist.Dirichlet(torch.full((2,), 2.0)))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.5).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(torch.full((2,), -0.7), 0.5).to_event(1))
    with pyro.plate("wines", len(proline), subsample_size=40) as index:
        pyro.sample("proline", normals(share, loc, scale), obs=proline[index])


def density(sample: dict[str, Tensor]) -> Tensor:
    """Density of a mixture at some places."""
    values: Tensor = normals(**sample).log_prob(positions).exp()
    return values


sampler = SGHMC(mixture, step_size=0.01, friction=10.0, init_strategy=init_to_sample)
num_samples, num_warmup, thinning = page.length((300, 1000, 20), smoke=(20, 50, 2))
settings: dict[str, Any] = {"num_chains": 6, "thinning": thinning, "seed": 0, "progress": False}
mixed = MCMC(sampler, num_samples, num_warmup, quantities={"density": density}, **settings)
mixed.run(proline)
mixed_data = to_arviz(mixed, log_likelihood=False)
mixed_r_hat = {name: float(value.max()) for name, value in az.rhat(mixed_data).items()}
print("means of chains:", mixed.get_samples(group_by_chain=True)["loc"].mean(1).tolist())
print("largest R-hat:", {name: round(value, 2) for name, value in mixed_r_hat.items()})

# %% [markdown]
# R-hat of shares, places and scales is bad, and yet nothing is wrong: all chains have found the
# same mixture, some of them under the other names. R-hat of the density is near 1. The
# weights of a network are such a case too: diagnose its predictions. Were R-hat of the density bad
# as well, the chains would sit in modes that differ. Longer runs seldom help there; cyclical step
# sizes may, see `choosing_a_sampler.py`.
#
# ## Symptom, cause, remedy
#
# | symptom | cause | remedy |
# |---|---|---|
# | some chains diverged | step far too large where they were | smaller steps, better start |
# | all chains diverged | step far too large | divide it by ten |
# | `kinetic_temperature` of SGHMC over 1.1 | too large a step | smaller steps, larger batch |
# | `thermostat` of SGNHT far over `friction` | too large a step | smaller steps, larger batch |
# | answer changes with half the step size | step too large | go on halving |
# | R-hat over 1.05, traces that drift | too few steps, or too small | `thinning`, larger steps |
# | flat traces apart from each other | far too small a step, or no noise | larger steps |
# | `log_likelihood` lacks observations | plate of the size of a batch | give it `subsample_size` |
# | `lp` many times the log likelihood | likelihood scaled by hand | leave that to the plate |
# | R-hat bad, but good for predictions | labels switched | none: use predictions |
# | R-hat bad for predictions too | different modes | `CyclicalSchedule`, more chains |
#
# If all is in order and you doubt it, simulate data and see, as in `calibration.py`. Whether the
# model fits the data is another question, for predictive checks as in `quickstart.py`. What this
# page claims, checked:

# %%
if not page.smoke:
    good = results["step size 0.002"]
    assert good["R-hat"] < 1.01 and good["temperature"] < 1.1 and good["off by"] < 0.2, good
    assert int(start["scale"].argmin()) in begun.stopped_chains and len(begun.stopped_chains) < 8
    larger = [results[f"step size {step_size}"] for step_size in (0.006, 0.012, 0.024)]
    assert all(row["R-hat"] < 1.01 and row["ESS"] > 1000 for row in larger), larger
    assert 1.25 < larger[0]["temperature"] < 1.55 and 1.05 < larger[0]["width"] < 1.25, larger
    assert larger[1]["temperature"] > 2.5 and larger[2]["width"] > 2.2, larger
    assert results["step size 3e-5"]["R-hat"] > 1.5 and results["step size 3e-5"]["ESS"] < 100
    few, twofold = results["too few patients"], results["scaled twice"]
    assert few["R-hat"] < 1.05 and twofold["R-hat"] < 1.01, (few, twofold)
    assert few["width"] > 2.0 and twofold["width"] < 0.6, (few, twofold)
    assert [row["patients"] for row in counted.values()] == [354, 64, 354], counted
    assert counted["scaled twice"]["lp"] < 5.0 * counted["scaled twice"]["log likelihood"], counted
    assert min(mixed_r_hat[site] for site in ("share", "loc", "scale")) > 1.3, mixed_r_hat
    assert mixed_r_hat["density"] < 1.05, mixed_r_hat
