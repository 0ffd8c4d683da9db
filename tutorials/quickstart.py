"""From a Pyro model to draws of its posterior, ArviZ and predictions, with a check by NUTS."""

# %% [markdown]
# # Quickstart
#
# You have a Pyro model. This page draws from its posterior with minibatches, several chains at
# once, looks at the draws with ArviZ, predicts, and compares all of it with NUTS.
#
# The page is a script of percent cells. Read it, open it in Jupyter, or run it:
# `python tutorials/quickstart.py` prints the numbers and saves the figures in `figures/quickstart`.

# %%
import time

import arviz as az
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ext.datasets import load_breast_cancer
from pyro_ext.diagnostics import metrics, to_arviz
from pyro_ext.inference import MCMC, NUTS, SGHMC
from pyro_ext.reproduction import Page

page = Page("quickstart")
torch.set_default_dtype(torch.float64)  # LOO needs log likelihoods that do not round to zero

# %% [markdown]
# ## The data
#
# 569 breast masses, each with 30 measurements of its cell nuclei. Is a mass malignant (0) or benign
# (1)? The measurements come standardized, and two fifths of the masses are kept aside as a test.

# %%
masses = load_breast_cancer(test_fraction=0.4, dtype=torch.float64)
inputs, labels = masses.train_inputs, masses.train_targets.double()
features = list(masses.feature_names or ())
print(masses)

# %% [markdown]
# ## The model
#
# Logistic regression, written as for `SVI`. The plate knows how many masses there are and how many
# of them to look at; `index` says which. With `batch_size=None` it looks at all of them. Nothing is
# scaled by hand: the plate multiplies the log likelihood of 64 masses by 341/64 and leaves the
# prior alone.


# %%
def model(inputs: Tensor, labels: Tensor, batch_size: int | None = None) -> None:
    """Logistic regression with standard normal priors."""
    weight = pyro.sample("weight", dist.Normal(inputs.new_zeros(inputs.shape[1]), 1.0).to_event(1))
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    with pyro.plate("masses", len(inputs), subsample_size=batch_size) as index:
        logits = inputs[index] @ weight + bias
        pyro.sample("benign", dist.Bernoulli(logits=logits), obs=labels[index])


# %% [markdown]
# ## Sampling
#
# `SGHMC` is a ball that rolls over the posterior with friction, and a minibatch is all it sees of
# the data in a step. What there is to choose:
#
# - `step_size` and `friction`. A smaller step size is more exact and slower. Less friction travels
#   faster and lets more of the minibatches' noise through.
# - `thinning`, the steps between two draws that are kept. Steps are cheap and neighbors alike, so
#   take many and keep few.
# - `num_chains`. All chains move in one step, which costs less than one each.
# - `backend="compile"`, which makes machine code of the whole loop over steps. That takes some
#   seconds once. Leave it out, and sampling starts sooner and each step takes longer.

# %%
kernel = SGHMC(model, step_size=0.02, friction=3.0, backend="trace" if page.smoke else "compile")
mcmc = MCMC(
    kernel,
    num_samples=20 if page.smoke else 500,
    warmup_steps=100 if page.smoke else 4000,
    thinning=5 if page.smoke else 80,
    num_chains=4,
    seed=0,
)
started = time.perf_counter()
mcmc.run(inputs, labels, batch_size=64)
sghmc_seconds = time.perf_counter() - started

# %% [markdown]
# Draws come back as in Pyro: a tensor for each site, with the chains one after the other or apart.

# %%
samples = mcmc.get_samples()
print({name: tuple(draws.shape) for name, draws in samples.items()})
by_chain = mcmc.get_samples(group_by_chain=True)
print({name: tuple(draws.shape) for name, draws in by_chain.items()})
mcmc.summary()

# %% [markdown]
# Two things to look at before anything else:
#
# - `r_hat` compares the chains with each other. Near 1 they tell the same story; above 1.05 take
#   more steps.
# - `kinetic_temperature` is the mean square of the momentum, 1 for a perfect sampler. The noise of
#   the minibatches and the finite steps heat the chains. A few percent are harmless. At 1.3 the
#   posterior comes out too wide: take a smaller step size, a larger batch or more friction.


# %%
def worst_diagnostics(mcmc: MCMC) -> tuple[float, float]:
    """Largest R-hat and smallest effective sample size over all parameters."""
    sites = [mcmc.diagnostics()[site] for site in ("weight", "bias")]
    r_hat = max(float(site["r_hat"].max()) for site in sites)
    return r_hat, min(float(site["n_eff"].min()) for site in sites)


r_hat, n_eff = worst_diagnostics(mcmc)
temperature = float(mcmc.sample_statistics()["kinetic_temperature"].mean())
print(f"largest r_hat {r_hat:.3f}, smallest n_eff {n_eff:.0f}, temperature {temperature:.3f}")

# %% [markdown]
# ## ArviZ
#
# `to_arviz` makes the object that ArviZ summarizes, plots, compares and saves. The plate of the
# model becomes a dimension; other dimensions get the names you give. Here are the weights that are
# furthest from zero, measured in posterior standard deviations.

# %%
data = to_arviz(mcmc, coords={"feature": features}, dims={"weight": ["feature"]})
mean, deviation = samples["weight"].mean(0), samples["weight"].std(0)
order = (mean / deviation).abs().argsort(descending=True).tolist()
strongest = [features[position] for position in order[:4]]
print(data["log_likelihood"]["benign"].dims)
print(az.summary(data, var_names=["weight", "bias"], coords={"feature": strongest}).to_string())

# %% [markdown]
# In a trace plot the chains should look like the same noise four times, and in a rank plot the bars
# of every chain should be about level. `to_arviz` takes any dict of draws too.

# %%
three = to_arviz(
    {feature: by_chain["weight"][..., features.index(feature)] for feature in strongest[:3]},
    group_by_chain=True,
)
for name, plot, height in (("trace", az.plot_trace, 5.4), ("rank", az.plot_rank, 2.8)):
    plot(three)
    plt.gcf().set_size_inches(9, height)
    plt.gcf().set_layout_engine("tight")
    page.figure(name, plt.gcf())

# %% [markdown]
# `az.loo` estimates from the training data alone how well the model predicts masses it has not
# seen. It takes the log likelihood of each mass at each draw. Though the chains saw 64 masses at a
# time, `to_arviz` has computed it for all 341.

# %%
loo = az.loo(data, pointwise=True)
print(loo)

# %% [markdown]
# The warning is about masses for which the estimate is shaky, with a Pareto k above 0.7. Which are
# they? Mostly easy ones: nearly every draw gives them a likelihood of one to many digits, and some
# draws a little less, which is a heavy tail of next to nothing. Their fraction of the summed loss
# tells whether to worry. Where it is large, believe held-out data, which we have.

# %%
likelihood = torch.tensor(data["log_likelihood"]["benign"].values).exp().mean((0, 1))
is_shaky = torch.tensor(loo.pareto_k.values) > 0.7
fraction = float(likelihood[is_shaky].log().sum() / likelihood.log().sum())
print(f"{int(is_shaky.sum())} masses of {len(is_shaky)}, {fraction:.0%} of the loss")

# %% [markdown]
# ## Predicting
#
# The probability that a mass of the test set is benign, for each draw; its average over the draws
# is the prediction, and their spread tells how sure the model is of it.


# %%
def predict(samples: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Probabilities of both classes, `(num_draws, n, 2)`."""
    logits = samples["weight"] @ inputs.T + samples["bias"].unsqueeze(-1)
    return torch.stack([-logits, logits], -1).sigmoid()


probabilities = predict(samples, masses.test_inputs)
accuracy = metrics.accuracy(probabilities, masses.test_targets)
sghmc_nll = metrics.nll(probabilities, masses.test_targets)
print(f"test accuracy {accuracy:.3f}, negative log likelihood {sghmc_nll:.4f} per mass")

# %%
benign = probabilities[..., 1]
by_mean = benign.mean(0).argsort()
low, high = (benign.quantile(level, 0)[by_mean] for level in (0.05, 0.95))
position = torch.arange(len(by_mean))
figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
axes.vlines(position, low, high, color="#b8c4cc", linewidth=3, label="90% interval")
for number, (name, color) in enumerate((("malignant", "#d1495b"), ("benign", "#2a6f97"))):
    chosen = masses.test_targets[by_mean] == number
    axes.plot(position[chosen], benign.mean(0)[by_mean][chosen], "o", color=color, ms=4, label=name)
axes.axhline(0.5, color="#444444", linewidth=0.8, linestyle="--")
axes.set(
    xlabel="mass of the test set, sorted", ylabel="probability of benign", xlim=(-1, len(position))
)
axes.legend(frameon=False, loc="upper left")
page.figure("predictions", figure, despine=True)

# %% [markdown]
# ## Is it right?
#
# NUTS looks at all of the data in each of its steps and has no error from minibatches or step size,
# so its draws are a reference. It runs under the same driver and on the same model, now with the
# whole plate, and needs no step size: the warm-up finds one, and a scale for each parameter. Its
# chains run side by side too.

# %%
nuts = MCMC(
    NUTS(model, backend=kernel.backend, max_tree_depth=3 if page.smoke else 10),
    num_samples=10 if page.smoke else 500,
    warmup_steps=10 if page.smoke else 500,
    num_chains=4,
    seed=1,
    progress=False,
)
started = time.perf_counter()
nuts.run(inputs, labels)
nuts_seconds = time.perf_counter() - started
nuts_nll = metrics.nll(predict(nuts.get_samples(), masses.test_inputs), masses.test_targets)


# %%
def moments(mcmc: MCMC) -> tuple[Tensor, Tensor]:
    """Posterior means and standard deviations, weights first."""
    draws = mcmc.get_samples()
    flat = torch.cat([draws["weight"], draws["bias"].unsqueeze(-1)], -1)
    return flat.mean(0), flat.std(0)


(sghmc_mean, sghmc_sd), (nuts_mean, nuts_sd) = moments(mcmc), moments(nuts)
difference = (sghmc_mean - nuts_mean) / nuts_sd
ratio = sghmc_sd / nuts_sd
names = [*features, "bias"]

print(f"{'':24}{'SGHMC':>8}{'':8}{'NUTS':>8}")
print(f"{'':24}{'mean':>8}{'sd':>8}{'mean':>8}{'sd':>8}")
for position in [*order[:6], 30]:
    columns = (sghmc_mean, sghmc_sd, nuts_mean, nuts_sd)
    print(f"{names[position]:24}" + "".join(f"{column[position]:8.2f}" for column in columns))
print(
    f"all 31 parameters: means differ by at most {difference.abs().max():.2f} sd, "
    f"sd ratio {ratio.min():.2f} to {ratio.max():.2f}, {ratio.log().mean().exp():.3f} on average"
)
print(f"{'':24}{'SGHMC':>8}{'NUTS':>8}")
for quantity, ours, theirs in (
    ("test NLL", sghmc_nll, nuts_nll),
    ("smallest n_eff", n_eff, worst_diagnostics(nuts)[1]),
    ("seconds", sghmc_seconds, nuts_seconds),
):
    print(f"{quantity:24}{ours:8.4g}{theirs:8.4g}")

# %%
figure, axes = plt.subplots(figsize=(8, 5.2), layout="constrained")
row = torch.arange(31.0)
for shift, (mean, sd), color, label in (
    (0.15, (sghmc_mean, sghmc_sd), "#2a6f97", "SGHMC, batches of 64"),
    (-0.15, (nuts_mean, nuts_sd), "#e09f3e", "NUTS, all of the data"),
):
    axes.errorbar(mean, row + shift, xerr=sd, fmt="o", ms=3.5, color=color, label=label)
axes.axvline(0.0, color="#444444", linewidth=0.8, linestyle="--")
axes.set_yticks(row, names, fontsize=7)
axes.set(xlabel="weight: posterior mean and standard deviation", ylim=(30.7, -0.7))
axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2)
page.figure("comparison", figure, despine=True)

# %% [markdown]
# The two agree within the error of their few hundred effective draws each.
#
# This is a small problem, where NUTS is a fine choice. Minibatches pay off where one pass over the
# data is expensive: the cost of a step of SGHMC depends on the batch and not on the data.
#
# What this page claims, checked:

# %%
if not page.smoke:
    assert r_hat < 1.05, r_hat
    assert difference.abs().max() < 0.35, difference
    assert 0.75 < ratio.min() and ratio.max() < 1.33, ratio
    assert 0.9 < ratio.log().mean().exp() < 1.1, ratio
    assert abs(sghmc_nll - nuts_nll) < 0.01, (sghmc_nll, nuts_nll)
    assert accuracy > 0.93, accuracy
    assert fraction < 0.25, fraction

# %% [markdown]
# ## Where to go from here
#
# - `minibatch_and_plates.py`: what a subsampled plate means, nested plates, latent variables inside
#   them, and how to go wrong.
# - `choosing_a_sampler.py`: the other samplers, several modes, and chains that do not move.
