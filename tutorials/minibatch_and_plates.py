"""What a subsampled plate means here: scales, nested plates, local latents, and common mistakes."""

# %% [markdown]
# # Minibatches and plates
#
# A plate with `subsample_size` is how a Pyro model says "look at a part of the data". `SVI` has
# always understood it, Pyro's HMC refuses it. Here it is what makes a gradient stochastic. This
# page shows what happens to such a plate, on 354 diabetes patients.
#
# `python tutorials/minibatch_and_plates.py` prints the numbers and saves the figures in
# `figures/minibatch_and_plates`.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ext.datasets import load_diabetes
from pyro_ext.inference import MCMC, SGHMC, SGLD
from pyro_ext.potential import Potential

SMOKE = "PYRO_EXT_SMOKE" in os.environ  # a short run that only shows that the page works
FIGURES = Path(os.environ.get("PYRO_EXT_FIGURES", "figures/minibatch_and_plates"))
FIGURES.mkdir(parents=True, exist_ok=True)

patients = load_diabetes()
inputs, progression = patients.train_inputs, patients.train_targets
NUM_PATIENTS = len(inputs)
print(patients)

# %% [markdown]
# ## The potential
#
# `Potential` turns a model and its data into the function that a sampler descends: the negative log
# joint density over unconstrained values. Nothing in the model is written for it.


# %%
def regression(inputs: Tensor, progression: Tensor, batch_size: int | None = None) -> None:
    """Linear regression of the progression of diabetes on ten measurements."""
    weight = pyro.sample("weight", dist.Normal(inputs.new_zeros(10), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("patients", len(inputs), subsample_size=batch_size) as batch:
        mean = inputs[batch] @ weight
        pyro.sample("progression", dist.Normal(mean, scale), obs=progression[batch])


potential = Potential(regression, inputs, progression, batch_size=32)
print({name: (tuple(site.shape), site.support) for name, site in potential.sites.items()})
print(potential.subsampled_plates)

# %% [markdown]
# A plain call takes a fresh minibatch, `full` all patients, block by block. The first is right on
# average: the plate multiplies the log likelihood of its 32 patients by 354/32, once, and leaves
# the prior as it is. The same point, many minibatches:

# %%
NUM_BATCHES = 200 if SMOKE else 4000
point = potential.init(num_chains=1, seed=0)
many = {name: value.expand(NUM_BATCHES, *value.shape[1:]) for name, value in point.items()}
generator = torch.Generator().manual_seed(0)
stochastic = potential(many, generator=generator)
exact = float(potential.full(point))
error = float(stochastic.std()) / NUM_BATCHES**0.5
z_score = (float(stochastic.mean()) - exact) / error
print(f"all patients {exact:.2f}; mean over minibatches {stochastic.mean():.2f} +- {error:.2f}")

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.hist(stochastic.numpy(), bins=40, color="#29719c")
axis.axvline(exact, color="#d1495b", label="all patients")
axis.set_xlabel("potential at one point, by minibatch")
axis.legend(frameon=False)
axis.spines[["top", "right"]].set_visible(False)
figure.savefig(FIGURES / "unbiased.png", dpi=110)
plt.close(figure)

# %% [markdown]
# The log prior is in there once, whatever the size of the batch. With the minibatch that is all of
# the data the two agree to rounding:

# %%
whole = Potential(regression, inputs, progression)
print(f"model with a full plate {float(whole(point)):.4f}, `full` {exact:.4f}")

# %% [markdown]
# ## Local latents and nested plates
#
# A latent site inside a subsampled plate belongs to one element of it. It has a value for every
# element of the plate; a step moves those in its minibatch, and the prior of a local latent is
# scaled as the likelihood is. Below each patient gets a weight that tells outliers apart, a
# Student-t likelihood written out. The second plate is nested: three readings of each patient.

# %%
readings = progression[:, None] + 0.3 * torch.randn(
    NUM_PATIENTS, 3, generator=torch.Generator().manual_seed(1)
)


def robust(inputs: Tensor, readings: Tensor, batch_size: int | None = None) -> None:
    """Regression with a precision for each patient, and several readings of each."""
    weight = pyro.sample("weight", dist.Normal(inputs.new_zeros(10), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    reading_scale = pyro.sample("reading_scale", dist.HalfNormal(1.0))
    with pyro.plate("patients", len(inputs), dim=-2, subsample_size=batch_size) as batch:
        precision = pyro.sample("precision", dist.Gamma(2.0, 2.0))
        mean = (inputs[batch] @ weight)[:, None]
        with pyro.plate("readings", 3, dim=-1):
            spread = (scale**2 / precision + reading_scale**2).sqrt()
            pyro.sample("reading", dist.Normal(mean, spread), obs=readings[batch])


nested = Potential(robust, inputs, readings, batch_size=64)
for name, site in nested.sites.items():
    print(f"{name:14} shape {tuple(site.shape)!s:10} plates {[p.name for p in site.plates]}")
start = nested.init(num_chains=1, seed=0)
full_plates = float(Potential(robust, inputs, readings)(start))
print(f"over all of the data: {float(nested.full(start)):.3f}, with full plates {full_plates:.3f}")

# %% [markdown]
# ## A step size that suits the data
#
# The potential is a sum over patients, so its curvature grows with their number, and a step size
# has to shrink. The noise of the minibatches matters as well: its variance goes with the square of
# the number of patients over that in the batch. Too large a step and the posterior comes out too
# wide, long before anything diverges. The exact answer here is that of a regression with known
# noise.

# %%
NOISE = 0.7
precision_matrix = inputs.T @ inputs / NOISE**2 + torch.eye(10)
exact_deviation = torch.linalg.inv(precision_matrix).diagonal().sqrt()


def known_noise(inputs: Tensor, progression: Tensor) -> None:
    """The regression with known noise: its posterior is normal."""
    weight = pyro.sample("weight", dist.Normal(inputs.new_zeros(10), 1.0).to_event(1))
    with pyro.plate("patients", len(inputs), subsample_size=32) as batch:
        mean = inputs[batch] @ weight
        pyro.sample("progression", dist.Normal(mean, NOISE), obs=progression[batch])


ratios = {}
for step_size in (3e-5, 1e-4, 5e-4):
    mcmc = MCMC(
        SGLD(known_noise, step_size=step_size),
        num_samples=40 if SMOKE else 200,
        warmup_steps=100 if SMOKE else 3000,
        thinning=5 if SMOKE else 20,
        num_chains=16,
        seed=0,
        progress=not SMOKE,
    )
    weight = mcmc.run(inputs, progression).get_samples()["weight"]
    ratios[step_size] = float((weight.std(0) / exact_deviation).mean())
    print(
        f"step size {step_size:.0e}: posterior deviation {ratios[step_size]:.2f} of the exact one"
    )

# %% [markdown]
# With `SGHMC` the same holds for the square of its step size over the friction.
#
# ## Common mistakes
#
# **Scaling by hand.** The plate already scales. A model that multiplies its log likelihood by
# `N / batch_size` as well samples from a posterior that is too narrow.
#
# **Drawing indices inside the model.** A model that draws its own minibatch is another function at
# every call. It is refused, with a message that says so:


# %%
def draws_its_own(inputs: Tensor, progression: Tensor) -> None:
    """A model that subsamples behind the sampler's back."""
    weight = pyro.sample("weight", dist.Normal(inputs.new_zeros(10), 1.0).to_event(1))
    batch = torch.randperm(len(inputs))[:32]
    with pyro.plate("patients", len(inputs), subsample=batch):
        pyro.sample("y", dist.Normal(inputs[batch] @ weight, 0.7), obs=progression[batch])


def sequential(progression: Tensor) -> None:
    """A plate in its sequential form."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    for i in pyro.plate("patients", len(progression), subsample_size=32):
        pyro.sample(f"y{i}", dist.Normal(loc, 0.7), obs=progression[int(i)])


messages = {}
for model, args in ((draws_its_own, (inputs, progression)), (sequential, (progression,))):
    try:
        refused = Potential(model, *args)
        refused(refused.init(num_chains=1, seed=0))
    except ValueError as error:
        messages[model.__name__] = str(error)
        print(f"{model.__name__}: {error}\n")

# %% [markdown]
# **A sequential plate that subsamples.** Its sites change their names from minibatch to minibatch.
# Write it in its vectorized form, `with pyro.plate(...) as batch:`.
#
# **A batch size that is nearly all.** An epoch is cut into whole batches and what is left is
# dropped; with 200 of 354 patients a step, 154 wait for the next shuffle. It is right, only
# wasteful.
#
# ## To the end

# %%
kernel = SGHMC(robust, step_size=0.02, friction={"precision": 5.0, "default": 10.0})
mcmc = MCMC(
    kernel,
    num_samples=20 if SMOKE else 200,
    warmup_steps=50 if SMOKE else 2000,
    thinning=2 if SMOKE else 20,
    num_chains=4,
    seed=0,
    progress=not SMOKE,
)
samples = mcmc.run(inputs, readings, batch_size=64).get_samples()
suspects = samples["precision"].mean(0).squeeze(-1).argsort()[:3].tolist()
print("patients with the lowest precision:", suspects)
r_hat = float(mcmc.diagnostics()["weight"]["r_hat"].max())
print(f"largest R-hat of the weights {r_hat:.3f}")

# %%
assert abs(float(whole(point)) - exact) < 1e-3 * abs(exact)
assert abs(full_plates - float(nested.full(start))) < 1e-3 * abs(full_plates)
assert set(messages) == {"draws_its_own", "sequential"}
if not SMOKE:
    assert abs(z_score) < 4
    assert ratios[3e-5] < ratios[1e-4] < ratios[5e-4]
    assert abs(ratios[3e-5] - 1) < 0.1 and ratios[5e-4] > 1.15
    assert r_hat < 1.1
