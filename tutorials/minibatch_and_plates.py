"""What a subsampled plate means: unbiased potentials, nested plates, local latents, pitfalls."""

# %% [markdown]
# # Minibatches and plates
#
# In Pyro a model says itself which part of the data it looks at: a plate with a `subsample_size`.
# This page shows what the library makes of it, in numbers. You will see that minibatches leave the
# potential unbiased and the prior alone, that plates may be nested and hold latent variables, and
# how to go wrong.
#
# `python tutorials/minibatch_and_plates.py` prints the numbers and saves the figures in
# `figures/minibatch-and-plates`.

# %%
import math
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from pyro_ext.datasets import load_diabetes
from pyro_ext.inference import MCMC, SGHMC, SGLD
from pyro_ext.potential import Backend, Potential
from pyro_ext.reproduction import Page

page = Page("minibatch-and-plates")
BACKEND: Backend = "trace" if page.smoke else "compile"
BLUE, RED, YELLOW, INK = "#2a6f97", "#d1495b", "#e09f3e", "#444444"

# %% [markdown]
# ## The data
#
# Ten measurements of 441 diabetes patients, and how far the disease had progressed a year later.
# Everything is standardized.

# %%
patients = load_diabetes(num_train=441, num_test=1)
measurements, progression = patients.train_inputs, patients.train_targets
num_patients = len(progression)

# %% [markdown]
# ## A plate that subsamples
#
# A linear regression. `Potential` is what every kernel of the library makes of a model: the
# negative log joint density as a function of unconstrained values. It knows which plates subsample,
# and each call takes a fresh minibatch.


# %%
def regression(inputs: Tensor, response: Tensor, batch_size: int, prior_scale: float = 1.0) -> None:
    """Linear regression with normal priors."""
    prior = dist.Normal(inputs.new_zeros(inputs.shape[1]), prior_scale).to_event(1)
    weight = pyro.sample("weight", prior)
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("patients", len(inputs), subsample_size=batch_size) as index:
        pyro.sample("response", dist.Normal(inputs[index] @ weight, scale), obs=response[index])


potential = Potential(regression, measurements, progression, batch_size=63)
position = potential.init(num_chains=1, seed=0)
print(potential.subsampled_plates)
print("two minibatches:", float(potential(position)), float(potential(position)))
print("all of the data:", float(potential.full(position)))

# %% [markdown]
# ## Unbiased
#
# On a minibatch $B$ of the $N$ patients the potential is
#
# $$U_B(\theta) = -\log p(\theta) - \frac{N}{|B|} \sum_{i \in B} \log p(y_i \mid \theta) .$$
#
# Every patient is as likely as any other to be in $B$, so the mean of $U_B$ over all minibatches is
# the potential of all of the data. That is a claim about our code too, so look: evaluate the
# potential at one position on many random minibatches, for several batch sizes. The scatter is
# known as well. With the standard deviation $S$ of the log likelihood over the patients it is
#
# $$\operatorname{sd}(U_B) = N S \sqrt{(1 - |B| / N) / |B|} .$$

# %%
NUM_BATCHES = page.length(4000, smoke=200)
SHOWN = 63
sizes = (9, 21, 63, 147, 294)
full = float(potential.full(position))
log_likelihood = potential.log_likelihood(potential.constrain(position))["response"]
deviation = float(log_likelihood.std())
repeated = {name: value.expand(NUM_BATCHES, *value.shape[1:]) for name, value in position.items()}
values: dict[int, Tensor] = {}
scores: list[float] = []
print(f"{'batch':>6}{'mean':>10}{'std. error':>12}{'z-score':>9}{'sd':>8}{'formula':>9}")
for size in sizes:
    sized = Potential(regression, measurements, progression, batch_size=size)
    generator = torch.Generator().manual_seed(size)
    values[size] = sized(repeated, generator=generator).double()
    mean, sd = float(values[size].mean()), float(values[size].std())
    error = sd / math.sqrt(NUM_BATCHES)
    scores.append((mean - full) / error)
    expected = num_patients * deviation * math.sqrt((1 - size / num_patients) / size)
    print(f"{size:6}{mean:10.2f}{error:12.2f}{scores[-1]:9.2f}{sd:8.1f}{expected:9.1f}")
print(f"{'all':>6}{full:10.2f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.hist(values[SHOWN].numpy(), bins=40, color=BLUE, alpha=0.85)
left.axvline(full, color=RED, label="all of the data")
left.axvline(float(values[SHOWN].mean()), color=YELLOW, linestyle="--", label="mean of minibatches")
left.set(xlabel=f"potential on minibatches of {SHOWN}", yticks=[])
left.legend(frameon=False, fontsize=8, loc="upper left")
grid = torch.linspace(6, num_patients, 200)
formula = num_patients * deviation * ((1 - grid / num_patients) / grid).sqrt()
right.plot(grid, formula, color=INK, linewidth=1, label="formula")
right.plot(sizes, [float(values[size].std()) for size in sizes], "o", color=BLUE, label="measured")
right.set(xlabel="batch size", ylabel="standard deviation of the potential", ylim=(0, None))
right.legend(frameon=False)
page.figure("unbiased", figure, despine=True)

# %% [markdown]
# The driver does not draw minibatches independently. Once an epoch it shuffles the plate, for each
# chain anew, and cuts it into batches as a data loader does. (If the batch size does not divide the
# size of the plate, the rest is skipped in that epoch.) The noise of an epoch then sums to zero:
# the mean over its batches is the potential of all of the data, exactly.

# %%
shuffled = torch.randperm(num_patients, generator=torch.Generator().manual_seed(0))
epoch = [float(potential(position, subsample={"patients": index})) for index in shuffled.split(63)]
print("batches of an epoch:", [round(value, 1) for value in epoch])
print(f"their mean {sum(epoch) / len(epoch):.3f}, all of the data {full:.3f}")

# %% [markdown]
# ## The prior is never scaled
#
# Take two priors and the same minibatch. The potentials differ by the difference of the two log
# prior densities, whatever the batch size. If the prior were scaled by $N/|B|$ as the likelihood
# is, the number would depend on it.

# %%
prior_differences = []
for size in (9, 63, 441):
    index = {"patients": torch.arange(size)} if size < num_patients else None
    narrow, wide = (
        Potential(regression, measurements, progression, size, prior_scale)
        for prior_scale in (1.0, 3.0)
    )
    prior_differences.append(float(narrow(position, index) - wide(position, index)))
weight = position["weight"][0]
exact = float(
    (dist.Normal(0.0, 3.0).log_prob(weight) - dist.Normal(0.0, 1.0).log_prob(weight)).sum()
)
print("batches of 9, 63, 441:", [round(value, 3) for value in prior_differences])
print("by hand:", round(exact, 3))

# %% [markdown]
# ## Nested plates
#
# Plates multiply. Here is a table of patients and six blood serum measurements, of which the model
# sees 63 rows and 2 columns at a time: a cell of the table counts 441/63 x 6/2 = 21 times. The
# column means are *local* latent variables, one for each element of a subsampled plate. The
# potential keeps all six, and a step sees two of them. Their prior terms are scaled by 6/2, since
# two of six are in view: that is the plate at work, and no exception to the rule above.


# %%
def table(cells: Tensor, num_rows: int, num_columns: int) -> None:
    """Measurements with a mean for each column."""
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    rows = pyro.plate("rows", len(cells), subsample_size=num_rows, dim=-2)
    columns = pyro.plate("columns", cells.shape[1], subsample_size=num_columns, dim=-1)
    with columns as column:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with rows as row, columns:
        pyro.sample("cell", dist.Normal(mean, scale), obs=cells[row][:, column])


nested = Potential(table, measurements[:, 4:], num_rows=63, num_columns=2)
print({name: tuple(site.shape) for name, site in nested.sites.items()})
position = nested.init(num_chains=1, seed=1)
repeated = {name: value.expand(NUM_BATCHES, *value.shape[1:]) for name, value in position.items()}
energies = nested(repeated, generator=torch.Generator().manual_seed(0)).double()
error = float(energies.std()) / math.sqrt(NUM_BATCHES)
scores.append((float(energies.mean()) - float(nested.full(position))) / error)
print(
    f"mean over minibatches {energies.mean():.1f} +- {error:.1f}, all of the data "
    f"{float(nested.full(position)):.1f}, z-score {scores[-1]:.2f}"
)

# %% [markdown]
# ## A hierarchical regression with local latents
#
# How much does the body mass index tell about the progression of the disease, and is it the same
# for both sexes, for young and old? Twelve groups by decade of age and by sex, the smallest with
# five patients: each has its own intercept and slope, drawn from a common distribution whose spread
# is learned.
#
# Some patients fare quite unlike their group. Student's t copes with them, and there are two ways
# to write it: as `StudentT`, or as a normal whose precision is a latent variable of each patient.
# The second has 441 local latents in the subsampled plate. The two are the same model, so the
# posteriors of everything else must agree.
#
# The groups are a plate as well, one that does not subsample. `LocScaleReparam` is Pyro's remedy
# for the funnel between coefficients and their spread. It works here as it does under NUTS.

# %%
source = measurements[:, :2] * patients.input_scale[:2] + patients.input_loc[:2]
decade = ((source[:, 0].round() - 20) / 10).floor().clamp(0, 5).long()
group = 2 * decade + (source[:, 1].round() == 2)
body_mass = measurements[:, 2]
DEGREES = 4.0


def hierarchical(
    body_mass: Tensor, group: Tensor, response: Tensor, batch_size: int, has_local_latents: bool
) -> None:
    """A robust regression with an intercept and a slope for each group."""
    mean = pyro.sample("mean", dist.Normal(body_mass.new_zeros(2), 1.0).to_event(1))
    spread = pyro.sample("spread", dist.Gamma(body_mass.new_full((2,), 2.0), 10.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("groups", 12):
        coefficients = pyro.sample("coefficients", dist.Normal(mean, spread).to_event(1))
    with pyro.plate("patients", len(response), subsample_size=batch_size) as index:
        own = coefficients[group[index]]
        location = own[:, 0] + own[:, 1] * body_mass[index]
        distribution: dist.TorchDistribution = dist.StudentT(DEGREES, location, scale)
        if has_local_latents:
            precision = pyro.sample("precision", dist.Gamma(DEGREES / 2, DEGREES / 2))
            distribution = dist.Normal(location, scale * precision.rsqrt())
        pyro.sample("response", distribution, obs=response[index])


model = poutine.reparam(hierarchical, config={"coefficients": LocScaleReparam(0.0)})
posteriors: dict[str, dict[str, Tensor]] = {}
worst = 0.0
for name, has_local_latents in (("StudentT", False), ("local latents", True)):
    mcmc = MCMC(
        SGHMC(model, step_size=0.006, friction=2.0, backend=BACKEND),
        num_samples=20 if page.smoke else 500,
        warmup_steps=100 if page.smoke else 5000,
        thinning=5 if page.smoke else 60,
        num_chains=8,
        seed=0,
        progress=False,
    )
    started = time.perf_counter()
    mcmc.run(body_mass, group, progression, 147, has_local_latents=has_local_latents)
    seconds = time.perf_counter() - started
    posteriors[name] = mcmc.get_samples()
    diagnostics = mcmc.diagnostics()
    sites = ("mean", "spread", "scale", "coefficients")
    r_hat = max(float(diagnostics[site]["r_hat"].max()) for site in sites)
    worst = max(worst, r_hat)
    temperature = float(mcmc.sample_statistics()["kinetic_temperature"].mean())
    assert mcmc.potential is not None
    num_latents = sum(math.prod(site.shape) for site in mcmc.potential.sites.values())
    print(
        f"{name}: {num_latents} latent numbers, {seconds:.0f} s, largest r_hat {r_hat:.3f}, "
        f"temperature {temperature:.3f}"
    )

# %% [markdown]
# The two posteriors, and how far their means are apart in posterior standard deviations:


# %%
def shared(samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """Draws of the numbers that both ways have, by name."""
    result = {"scale": samples["scale"]}
    for number, name in enumerate(("intercept", "slope")):
        result[f"mean {name}"] = samples["mean"][:, number]
        result[f"spread of {name}s"] = samples["spread"][:, number]
        for index in range(12):
            result[f"{name} of group {index}"] = samples["coefficients"][:, index, number]
    return result


marginal, local = shared(posteriors["StudentT"]), shared(posteriors["local latents"])
print(f"{'':20}{'StudentT':>16}{'local latents':>18}{'apart':>9}")
apart: dict[str, float] = {}
spread_ratio: dict[str, float] = {}
for name, draws in marginal.items():
    other = local[name]
    apart[name] = float((draws.mean() - other.mean()) / draws.std())
    spread_ratio[name] = float(other.std() / draws.std())
    if "group" not in name:
        print(
            f"{name:20}{draws.mean():8.3f}{draws.std():8.3f}{other.mean():10.3f}{other.std():8.3f}"
            f"{apart[name]:9.2f}"
        )
print(f"all {len(apart)} numbers: at most {max(map(abs, apart.values())):.2f} sd apart")

# %% [markdown]
# What does the hierarchy do? Here is least squares in each group alone, next to the posterior.
# Groups with few patients are drawn to the others: a slope fitted to five patients says little.

# %%
counts = torch.bincount(group, minlength=12)
alone = torch.stack(
    [
        torch.linalg.lstsq(
            torch.stack([torch.ones(int(counts[number])), body_mass[group == number]], -1),
            progression[group == number].unsqueeze(-1),
        ).solution[:, 0]
        for number in range(12)
    ]
)
coefficients = posteriors["StudentT"]["coefficients"]
rank = counts.argsort(descending=True)
columns = torch.arange(12)
decades = ("to 29", "30-39", "40-49", "50-59", "60-69", "70 on")
ticks = [f"{decades[i // 2]}\nsex {1 + i % 2}\nn = {int(counts[i])}" for i in rank.tolist()]
figure, panels = plt.subplots(2, 1, figsize=(9, 5.6), sharex=True, layout="constrained")
for number, (name, axes) in enumerate(zip(("intercept", "slope"), panels, strict=True)):
    draws = coefficients[:, rank, number]
    low, high = draws.quantile(0.05, 0), draws.quantile(0.95, 0)
    axes.vlines(columns, low, high, color=BLUE, linewidth=2)
    axes.plot(columns, draws.mean(0), "o", color=BLUE, label="posterior mean, 90% interval")
    axes.plot(columns, alone[rank, number], "x", color=RED, label="least squares in the group")
    common = float(posteriors["StudentT"]["mean"][:, number].mean())
    axes.axhline(common, color=INK, linewidth=0.8, linestyle="--", label="mean of the groups")
    axes.set_ylabel(name)
panels[0].legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3)
panels[1].set_xticks(columns, ticks, fontsize=8)
page.figure("groups", figure, despine=True)

# %% [markdown]
# Local latents work, but they are the hard way. A step moves the precision of every patient, while
# the data speak up for a third of them and three times as loudly, so the gradient of a local latent
# stays as noisy however many patients there are. Where a local latent can be integrated out, as
# here, do so.
#
# ## Pitfalls
#
# The posterior of a mean under unit variance has a closed form, so mistakes can be measured.
#
# **Scaling by hand.** The plate has scaled already. Scale again, and each patient counts $N/|B|$
# times; the posterior is too narrow by the square root of that.
#
# **Drawing the batch by hand.** With indices that the plate does not know of, the data would count
# $N/|B|$ times too little. Such a model is another function each time it runs, and is refused.
#
# **Sequential plates.** `for index in pyro.plate(...)` is a Python loop over the indices that came
# up; it cannot be given others. It is refused, with a hint.


# %%
def mean_model(response: Tensor, batch_size: int) -> None:
    """Right: the posterior precision of the mean is the number of patients."""
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("patients", len(response), subsample_size=batch_size) as index:
        pyro.sample("response", dist.Normal(mean, 1.0), obs=response[index])


def scaled_twice(response: Tensor, batch_size: int) -> None:
    """Wrong: the plate scales the likelihood, and so does the handler."""
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("patients", len(response), subsample_size=batch_size) as index:
        with poutine.scale(scale=len(response) / batch_size):
            pyro.sample("response", dist.Normal(mean, 1.0), obs=response[index])


def drawn_by_hand(response: Tensor, batch_size: int) -> None:
    """Wrong: the plate does not know that it sees a part."""
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    index = torch.randperm(len(response))[:batch_size]
    with pyro.plate("patients", batch_size):
        pyro.sample("response", dist.Normal(mean, 1.0), obs=response[index])


def sequential(response: Tensor, batch_size: int) -> None:
    """Not possible: a Python loop over the elements of a subsample."""
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    for index in pyro.plate("patients", len(response), subsample_size=batch_size):
        pyro.sample(f"response_{index}", dist.Normal(mean, 1.0), obs=response[int(index)])


def spread_of(
    model: Callable[..., None],
    response: Tensor,
    batch_size: int,
    step_size: float,
    thinning: int = 4,
) -> float:
    """Standard deviation of the draws of SGLD, as a multiple of the exact one."""
    mcmc = MCMC(
        SGLD(model, step_size=step_size),
        num_samples=10 if page.smoke else 150,
        warmup_steps=20 if page.smoke else 200,
        thinning=thinning,
        num_chains=32,
        seed=len(response),
        progress=False,
    )
    draws = mcmc.run(response, batch_size).get_samples()["mean"]
    return float(draws.std()) * math.sqrt(len(response) + 0.01)


found = {
    written.__name__: spread_of(written, progression, 147, 0.02 / num_patients, thinning=20)
    for written in (mean_model, scaled_twice)
}
print({name: round(ratio, 2) for name, ratio in found.items()}, "times the exact sd")
refused = []
for written in (drawn_by_hand, sequential):
    try:
        spread_of(written, progression, 147, 0.02 / num_patients)
    except ValueError as reason:
        refused.append(written.__name__)
        print(f"{written.__name__}: {reason}")

# %% [markdown]
# **A step size for another amount of data.** The gradient of the potential grows with the number of
# data and the posterior narrows, so a step size that suits 49 patients is nine times too large for
# 441. Here are batches of a third of the data, for three amounts of data and five step sizes. What
# matters is the step size times the number of data: on that axis the three fall on one curve. At a
# tenth or below, SGLD is right to a few percent; at two it diverges.
#
# The line is what independent minibatches would give, $\sqrt{(2 + 2 s N) / (2 - s N)}$. The chains
# come closer to the truth, since the noise of each shuffled epoch sums to zero.

# %%
relative = page.length((0.03, 0.1, 0.3, 0.6, 1.0), smoke=(0.1, 1.0))
inflation: dict[int, list[float]] = {}
for number in (49, 147, 441):
    part = progression[:number]
    part = (part - part.mean()) / part.std()
    inflation[number] = [
        spread_of(mean_model, part, number // 3, value / number, max(4, round(0.4 / value)))
        for value in relative
    ]
    print(number, "patients:", [round(value, 2) for value in inflation[number]])

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
for (number, ratios), color in zip(inflation.items(), (YELLOW, BLUE, RED), strict=True):
    label = f"{number} patients"
    left.plot([value / number for value in relative], ratios, "o-", color=color, label=label)
    right.plot(relative, ratios, "o", color=color)
line = torch.linspace(0.02, 1.1, 100)
right.plot(line, ((2 + 2 * line) / (2 - line)).sqrt(), color=INK, linewidth=1)
right.annotate("independent\nminibatches", (0.45, 1.4), color=INK, ha="right")
left.set(xscale="log", xlabel="step size", ylabel="sd of the draws / exact sd")
left.legend(frameon=False, loc="upper left")
right.set(xscale="log", xlabel="step size x number of patients")
for axes in (left, right):
    axes.axhline(1.0, color=INK, linewidth=0.8, linestyle="--")
page.figure("step-size", figure, despine=True)

# %% [markdown]
# What this page claims, checked:

# %%
assert refused == ["drawn_by_hand", "sequential"]
assert all(abs(value - exact) < 1e-2 for value in prior_differences), prior_differences
assert abs(sum(epoch) / len(epoch) - full) < 0.05, epoch
if not page.smoke:
    assert all(abs(score) < 4.0 for score in scores), scores
    assert worst < 1.06, worst
    assert all(abs(value) < 0.35 for value in apart.values()), apart
    assert all(0.75 < value < 1.33 for value in spread_ratio.values()), spread_ratio
    assert abs(found["mean_model"] - 1.0) < 0.08, found
    assert abs(found["scaled_twice"] - 3**-0.5) < 0.08, found
    assert all(abs(ratios[0] - 1.0) < 0.08 for ratios in inflation.values()), inflation
    assert all(1.1 < ratios[-1] < 2.3 for ratios in inflation.values()), inflation

# %% [markdown]
# ## To remember
#
# - Write `with pyro.plate(name, size, subsample_size=batch_size) as index:` and use `index` on
#   everything that belongs to the elements. Scale nothing.
# - `Potential(model, ...).full(z)` is the potential of all of the data, and `to_arviz` computes log
#   likelihoods over all of it, however small the minibatches were.
# - Integrate local latents out where you can.
# - A step size belongs to an amount of data: start at `0.1 / N` for SGLD.
