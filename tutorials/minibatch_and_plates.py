"""Subsampled plates: unbiased potentials, nested plates, local latents, pitfalls."""

# %% [markdown]
# # Minibatches and plates
#
# In Pyro a model says itself which part of the data it looks at: a plate with a `subsample_size`.
# This page shows in numbers that minibatches leave the potential unbiased, that plates may be
# nested and hold latent variables, and how to go wrong.

# %%
import math
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

# %% [markdown]
# ## A plate that subsamples
#
# Ten measurements of 441 diabetes patients are to explain how far the disease had progressed a year
# later, by a linear regression. `Potential` is what every kernel of the library makes of a model:
# the negative log joint density as a function of unconstrained values. It knows which plates
# subsample, and each call takes a fresh minibatch.

# %%
patients = load_diabetes(num_train=441, num_test=1)
measurements, progression = patients.train_inputs, patients.train_targets
num_patients = len(progression)


def regression(inputs: Tensor, response: Tensor, batch_size: int) -> None:
    """Linear regression with normal priors."""
    weight = pyro.sample("weight", dist.Normal(inputs.new_zeros(10), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("patients", len(inputs), subsample_size=batch_size) as index:
        pyro.sample("response", dist.Normal(inputs[index] @ weight, scale), obs=response[index])


potential = Potential(regression, measurements, progression, batch_size=63)
position = potential.init(num_chains=1, seed=0)
print("two minibatches:", float(potential(position)), float(potential(position)))

# %% [markdown]
# ## Unbiased
#
# On a minibatch $B$ of the $N$ patients the potential is
#
# $$U_B(\theta) = -\log p(\theta) - \frac{N}{|B|} \sum_{i \in B} \log p(y_i \mid \theta) .$$
#
# The prior is never scaled. Every patient is as likely as any other to be in $B$, so the mean of
# $U_B$ over all minibatches is the potential of all of the data. Its standard deviation is known as
# well: with the standard deviation $S$ of the log likelihood over the patients it is
# $N S \sqrt{(1 - |B| / N) / |B|}$. Here are many random minibatches at one position. A z-score is
# the distance of their mean from the potential of all of the data, in standard errors.

# %%
NUM_BATCHES = page.length(4000, smoke=200)
full = float(potential.full(position))
log_likelihood = potential.log_likelihood(potential.constrain(position))["response"]
deviation = num_patients * float(log_likelihood.std())
repeated = {name: value.expand(NUM_BATCHES, *value.shape[1:]) for name, value in position.items()}
rows: dict[str, dict[str, float]] = {}
for size in (9, 21, 63, 147, 294):
    sized = Potential(regression, measurements, progression, batch_size=size)
    generator = torch.Generator().manual_seed(size)
    values = sized(repeated, generator=generator).double()
    mean, sd = float(values.mean()), float(values.std())
    rows[f"{size} patients"] = {
        "mean": mean,
        "z-score": (mean - full) / (sd / math.sqrt(NUM_BATCHES)),
        "sd": sd,
        "formula": deviation * math.sqrt((1 - size / num_patients) / size),
    }
page.table(rows, title=f"all of the data: {full:.2f}", number_format=".2f")
scores = [row["z-score"] for row in rows.values()]

# %% [markdown]
# The driver does not draw minibatches independently: once an epoch it shuffles the plate, for each
# chain anew, and cuts it into batches as a data loader does. Where the batch size divides the size
# of the plate, the mean over the batches is the potential of all of the data, exactly.

# %%
shuffled = torch.randperm(num_patients, generator=torch.Generator().manual_seed(0))
epoch = [float(potential(position, subsample={"patients": index})) for index in shuffled.split(63)]
print(f"mean of an epoch {sum(epoch) / len(epoch):.3f}, all of the data {full:.3f}")

# %% [markdown]
# ## Nested plates
#
# Plates multiply. Here is a table of patients and six blood serum measurements, of which the model
# sees 63 rows and 2 columns at a time: a cell of the table counts 441/63 x 6/2 = 21 times. The
# column means are *local* latent variables, one for each element of a subsampled plate. The
# potential keeps all six, and a step sees two of them, whose prior terms count 6/2 times.


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
position = nested.init(num_chains=1, seed=1)
repeated = {name: value.expand(NUM_BATCHES, *value.shape[1:]) for name, value in position.items()}
energies = nested(repeated, generator=torch.Generator().manual_seed(0)).double()
error = float(energies.std()) / math.sqrt(NUM_BATCHES)
scores.append((float(energies.mean()) - float(nested.full(position))) / error)
print(f"nested plates: z-score {scores[-1]:.2f}")

# %% [markdown]
# ## A hierarchical regression with local latents
#
# How much does the body mass index tell about the progression of the disease? Twelve groups by
# decade of age and by sex each have an intercept and a slope, from a common distribution whose
# spread is learned. `LocScaleReparam` is Pyro's remedy for the funnel between the two.
#
# Some patients fare quite unlike their group. Student's t copes with them, and there are two ways
# to write it: as `StudentT`, or as a normal whose precision is a latent variable of each patient.
# The second has 441 local latents in the subsampled plate. The two are the same model, so the
# posteriors of everything else must agree.

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
SITES, worst = ("mean", "spread", "scale", "coefficients"), 0.0
for name, has_local_latents in (("StudentT", False), ("local latents", True)):
    mcmc = MCMC(
        SGHMC(model, step_size=0.006, friction=2.0, backend=BACKEND),
        num_samples=page.length(500, smoke=20),
        warmup_steps=page.length(5000, smoke=100),
        thinning=page.length(60, smoke=5),
        num_chains=8,
        seed=0,
        progress=False,
    )
    mcmc.run(body_mass, group, progression, 147, has_local_latents=has_local_latents)
    posteriors[name], diagnostics = mcmc.get_samples(), mcmc.diagnostics()
    worst = max(worst, *(float(diagnostics[site]["r_hat"].max()) for site in SITES))
print(f"largest R-hat {worst:.3f}")

# The two posteriors, and how far their means and standard deviations differ.
agreement: dict[str, dict[str, float]] = {}
for site in SITES:
    one, other = (posterior[site] for posterior in posteriors.values())
    ratio = other.std(0) / one.std(0)
    agreement[site] = {
        "StudentT": float(one.mean()),
        "local latents": float(other.mean()),
        "apart": float(((one.mean(0) - other.mean(0)) / one.std(0)).abs().max()),
        "least ratio": float(ratio.min()),
        "largest ratio": float(ratio.max()),
    }
page.table(agreement)

# %% [markdown]
# Local latents work, but they are the hard way. A step moves the precision of every patient, while
# the data speak up for a third of them and three times as loudly, so the gradient of a local latent
# stays as noisy however many patients there are. Integrate local latents out where you can.
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


def spread_of(
    model: Callable[..., None], response: Tensor, batch_size: int, step_size: float, thinning: int
) -> float:
    """Standard deviation of the draws of SGLD, as a multiple of the exact one."""
    mcmc = MCMC(
        SGLD(model, step_size=step_size),
        num_samples=page.length(150, smoke=10),
        warmup_steps=page.length(200, smoke=20),
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
try:
    Potential(drawn_by_hand, progression, 147)
    refusal = ""
except ValueError as reason:
    refusal = str(reason)
print(refusal)

# %% [markdown]
# **A step size for another amount of data.** The gradient of the potential grows with the number of
# data and the posterior narrows, so a step size that suits 49 patients is nine times too large for
# 441. Here are batches of a third of the data, for three amounts of data and five step sizes. What
# matters is the step size times the number of data: on that axis the three fall on one curve. The
# line is what independent minibatches would give, $\sqrt{(2 + 2 s N) / (2 - s N)}$. The chains come
# closer to the truth, since the noise of each shuffled epoch sums to zero.

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

figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for number, ratios in inflation.items():
    axes.plot(relative, ratios, "o", label=f"{number} patients")
line = torch.linspace(0.02, 1.1, 100)
axes.plot(line, ((2 + 2 * line) / (2 - line)).sqrt(), label="independent minibatches")
axes.set(xscale="log", xlabel="step size x number of patients", ylabel="sd of the draws / exact sd")
axes.legend()
page.figure("step-size", figure, despine=True)

# %% [markdown]
# What this page claims, checked:

# %%
assert "drawn by hand" in refusal
assert abs(sum(epoch) / len(epoch) - full) < 0.05, epoch
if not page.smoke:
    assert all(abs(score) < 4.0 for score in scores), scores
    assert worst < 1.06, worst
    assert all(row["apart"] < 0.35 for row in agreement.values()), agreement
    ratios = [row[name] for row in agreement.values() for name in ("least ratio", "largest ratio")]
    assert all(0.75 < ratio < 1.33 for ratio in ratios), agreement
    assert abs(found["mean_model"] - 1.0) < 0.08, found
    assert abs(found["scaled_twice"] - 3**-0.5) < 0.08, found
    assert all(abs(ratios[0] - 1.0) < 0.08 for ratios in inflation.values()), inflation
    assert all(1.1 < ratios[-1] < 2.3 for ratios in inflation.values()), inflation

# %% [markdown]
# ## To remember
#
# - Write `with pyro.plate(name, size, subsample_size=batch_size) as index:` and use `index` on
#   everything that belongs to the elements. Scale nothing.
# - `to_arviz` computes log likelihoods over all of the data, however small the minibatches were.
# - A step size belongs to an amount of data: start at `0.1 / N` for SGLD.
