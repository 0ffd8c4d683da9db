"""Which stochastic-gradient sampler when: many modes, a network, and chains that do not move."""

# %% [markdown]
# # Choosing a sampler
#
# Four samplers, three schedules of the step size, and a temperature: this page shows what they are
# for. First a density with 25 modes, where the right answer is known, then a small Bayesian network
# on real data with all samplers side by side, then how to see that a chain does not move. It ends
# with a table to choose by. `python tutorials/choosing_a_sampler.py` runs it.

# %%
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from pyro_ext.datasets import load_breast_cancer
from pyro_ext.diagnostics import metrics
from pyro_ext.inference import (
    MCMC,
    PSGLD,
    SGHMC,
    SGLD,
    SGNHT,
    CyclicalSchedule,
    PolynomialSchedule,
    Schedule,
    SGMCMCKernel,
)
from pyro_ext.potential import Backend
from pyro_ext.reproduction import Page

page = Page("choosing-a-sampler")
BACKEND: Backend = "trace" if page.smoke else "compile"

# %% [markdown]
# ## Many modes
#
# Zhang et al. (2020) test samplers on a grid of 25 Gaussians, with normal noise of unit variance on
# the gradient. The model below is that. The noise is made as minibatches make it: a plate takes one
# of many random tilts of the density. Over all of them the tilts cancel.

# %%
CENTERS = 2.0 * torch.cartesian_prod(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0))
DEVIATION = 0.03**0.5


def grid(tilts: Tensor) -> None:
    """A mixture of 25 Gaussians, seen through a noisy gradient."""
    components = dist.Normal(CENTERS, DEVIATION).to_event(1)
    x = pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.ones(25)), components))
    with pyro.plate("tilts", len(tilts), subsample_size=1) as index:
        pyro.factor("tilt", (tilts[index] * x).sum(-1) / len(tilts))


# %% [markdown]
# The sampler is SGLD both times: a step down the gradient, and noise. What differs is the schedule
# of its step size.
#
# - A **decaying** step size is the classical choice. What it has not found early it hardly finds
#   later.
# - A **cyclical** one comes back to large steps again and again, which leave a mode, and to small
#   ones, which look at the next. The first 3% of each cycle explore: no noise, and no draws kept.
#
# Here the noise of the gradient is known, so `noise_estimate` takes it out of the injected noise.

# %%
NUM_STEPS = page.length(50_000, smoke=2_000)
schedules: dict[str, Schedule] = {
    "decaying": PolynomialSchedule(0.043, exponent=0.55, start=500),
    "cyclical": CyclicalSchedule(0.07, num_cycles=30, num_steps=NUM_STEPS, exploration=0.03),
}
generator = torch.Generator().manual_seed(0)
tilts = torch.randn(10_000, 2, generator=generator)
tilts = (tilts - tilts.mean(0)) / tilts.std(0)
start = {"x": 20.0 * torch.rand(3, 2, generator=generator) - 10.0}


def num_modes(samples: Tensor) -> int:
    """Modes with more than 0.2% of the samples within three standard deviations."""
    fraction = (torch.cdist(samples, CENTERS) < 3 * DEVIATION).double().mean(0)
    return int((fraction > 0.002).sum())


modes: dict[str, list[int]] = {}
figure, panels = plt.subplots(1, 2, figsize=(8, 4.5), sharey=True, layout="constrained")
for (name, schedule), axes in zip(schedules.items(), panels, strict=True):
    mcmc = MCMC(
        SGLD(grid, step_size=schedule, noise_estimate=1.0, backend=BACKEND),
        num_samples=NUM_STEPS // 10 - NUM_STEPS // 250,
        num_chains=3,
        thinning=10,
        initial_params=start,
        seed=0,
        progress=False,
    )
    chains = mcmc.run(tilts).get_samples(group_by_chain=True)["x"]
    modes[name] = [num_modes(chain) for chain in chains]
    print(f"{name} step size: the three chains find {modes[name]} of 25 modes")
    axes.scatter(*CENTERS.T, s=260, facecolors="none", edgecolors="0.8")
    axes.scatter(*chains[0].T, s=3, alpha=0.35)
    axes.set(title=f"SGLD, {name}: {modes[name][0]} of 25 modes", aspect="equal")
    axes.set(xlim=(-5.6, 5.6), ylim=(-5.6, 5.6))
page.figure("modes", figure)

# %% [markdown]
# The price: draws that are taken while the step size is large are too wide, and those between two
# modes are on their way. Where that matters, keep the later part of each cycle, with a larger
# `exploration`.
#
# ## A Bayesian network
#
# Breast masses again, malignant or benign, half of them to learn from and half to test. A network
# with ten hidden units and standard normal priors on its 321 weights.

# %%
masses = load_breast_cancer(test_fraction=0.5)
HIDDEN = 10


def logits(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Log odds of benign; the weights may have leading dimensions of chains and draws."""
    hidden = torch.tanh(inputs @ weights["inner"] + weights["inner_bias"].unsqueeze(-2))
    outer = (hidden @ weights["outer"].unsqueeze(-1)).squeeze(-1)
    return outer + weights["outer_bias"].unsqueeze(-1)


def network(inputs: Tensor, labels: Tensor) -> None:
    """A network with one hidden layer."""
    shapes = {"inner": (inputs.shape[1], HIDDEN), "inner_bias": (HIDDEN,), "outer": (HIDDEN,)}
    weights = {
        name: pyro.sample(name, dist.Normal(inputs.new_zeros(shape), 1.0).to_event(len(shape)))
        for name, shape in shapes.items()
    }
    weights["outer_bias"] = pyro.sample("outer_bias", dist.Normal(0.0, 1.0))
    with pyro.plate("masses", len(inputs), subsample_size=64) as index:
        outputs = logits(weights, inputs[index])
        pyro.sample("benign", dist.Bernoulli(logits=outputs), obs=labels[index])


# %% [markdown]
# The candidates, with the same number of steps each:
#
# - `SGLD`: $\theta \leftarrow \theta - s g + \sqrt{2 s T}\, \xi$ with the gradient $g$ of a
#   minibatch, step size $s$, temperature $T$ and standard normal $\xi$. The baseline.
# - `PSGLD`: the same, with a step size for each parameter that follows the size of its gradients.
# - `SGHMC`: has a momentum, so it goes on in a direction instead of wandering; friction damps it.
# - `SGNHT`: SGHMC with a thermostat, which turns the friction up when the noise of the minibatches
#   heats the momentum.
# - cyclical `SGLD` and `SGHMC`: half of each cycle explores, half samples.
# - temperature 0: no noise is injected. The chain ends at a mode, the maximum a posteriori.
# - `SGLD` with far too small a step size, to see what that looks like.

# %%
NUM_NETWORK_STEPS = page.length(4_000, smoke=400)
THINNING = 20


def cycles(step_size: float, num_cycles: int = 10, exploration: float = 0.5) -> CyclicalSchedule:
    """Cycles that fill the run."""
    return CyclicalSchedule(step_size, num_cycles, NUM_NETWORK_STEPS, exploration)


kernels: dict[str, SGMCMCKernel] = {
    "SGLD": SGLD(network, step_size=1e-3),
    "PSGLD": PSGLD(network, step_size=1e-5),
    "SGHMC": SGHMC(network, step_size=0.02, friction=10.0),
    "SGNHT": SGNHT(network, step_size=0.02, friction=10.0),
    "cyclical SGLD": SGLD(network, step_size=cycles(2e-3)),
    "cyclical SGHMC": SGHMC(network, step_size=cycles(0.04), friction=10.0),
    "mode (T = 0)": SGHMC(
        network, step_size=cycles(0.03, 1, 0.0), momentum_decay=0.1, temperature=0.0
    ),
    "SGLD, tiny steps": SGLD(network, step_size=1e-7),
}


def run(kernel: SGMCMCKernel) -> MCMC:
    """Run a sampler; warm-up is a fifth of the run, or four fifths of the way down to a mode."""
    warmup_steps = NUM_NETWORK_STEPS // 5 * (4 if kernel.temperature == 0.0 else 1)
    explores = isinstance(kernel.schedule, CyclicalSchedule) and kernel.schedule.exploration > 0
    mcmc = MCMC(
        kernel,
        num_samples=(NUM_NETWORK_STEPS - warmup_steps) // THINNING // (2 if explores else 1),
        warmup_steps=warmup_steps,
        thinning=THINNING,
        num_chains=4,
        seed=0,
        progress=False,
    )
    return mcmc.run(masses.train_inputs, masses.train_targets.float())


# %% [markdown]
# The weights of a network are not identified: swap two hidden units, and it is the same function.
# So whatever we ask of the chains, we ask of their predictions: the probability of the true class
# of each test mass, draw by draw.


# %%
def predict(mcmc: MCMC) -> Tensor:
    """Probabilities of both classes, `(num_chains, num_draws, n, 2)`."""
    weights = {
        name: draws.double() for name, draws in mcmc.get_samples(group_by_chain=True).items()
    }
    outputs = logits(weights, masses.test_inputs.double())
    return torch.stack([-outputs, outputs], -1).sigmoid()


def true_class(probabilities: Tensor) -> Tensor:
    """Probability of the true class, `(num_chains, num_draws, n)`."""
    return probabilities[..., torch.arange(len(masses.test_targets)), masses.test_targets]


def score(mcmc: MCMC, probabilities: Tensor) -> dict[str, float]:
    """What the average prediction is worth, and whether the chains can be believed."""
    quantity = true_class(probabilities)
    draws = mcmc.get_samples(group_by_chain=True)["inner"].flatten(2)
    move = (draws[:, 1:] - draws[:, :-1]).norm(dim=-1).mean() / draws.norm(dim=-1).mean()
    together = probabilities.flatten(0, 1)
    return {
        "NLL": metrics.nll(together, masses.test_targets),
        "accuracy": metrics.accuracy(together, masses.test_targets),
        "ECE": metrics.ece(together, masses.test_targets),
        "one draw": sum(metrics.nll(draw, masses.test_targets) for draw in together[::10])
        / len(together[::10]),
        "R-hat": float(split_gelman_rubin(quantity).nanquantile(0.95)),
        "ESS": float(effective_sample_size(quantity).nanmedian()),
        "move": float(move),
    }


results: dict[str, dict[str, float]] = {}
traces: dict[str, Tensor] = {}
losses: dict[str, Tensor] = {}  # of the average prediction, for each test mass
for name, kernel in kernels.items():
    mcmc = run(kernel)
    probabilities = predict(mcmc)
    traces[name] = -true_class(probabilities).log().mean(-1)
    losses[name] = -true_class(probabilities).mean((0, 1)).log()
    results[name] = score(mcmc, probabilities)

page.table(results, number_format=".4g")
gain = losses["mode (T = 0)"] - losses["SGHMC"]
error = float(gain.std()) / len(gain) ** 0.5
print(f"NLL of the mode less that of SGHMC: {gain.mean():.4f} +- {error:.4f}")

# %% [markdown]
# `NLL`, `accuracy` and `ECE` (calibration error) are those of the prediction averaged over all
# draws; `one draw` is the mean NLL of single draws. `R-hat` is its 95th percentile over the test
# masses, `ESS` the median of the effective number of draws. `move` is the distance between two kept
# draws, in units of their norm. What to read off:
#
# - The six samplers agree. They aim at the same posterior, so the choice among them is one of
#   effort: with a momentum the draws are worth more (`ESS`).
# - Averaging pays. A single draw predicts worse than the mode, the average of all at least as well.
# - The difference between mode and average is about its standard error, and those between the
#   samplers are smaller: so few test masses cannot rank them, and neither should you.
#
# ## Chains that do not move
#
# The last two rows are not posteriors. At temperature zero each chain sits at a mode; with tiny
# steps each is where it began. Both give hundreds of draws, which are copies of a few points, and a
# prediction, and by its NLL alone the mode would pass. It shows in `move`, far below that of the
# others; in `one draw`, no worse than all of them together; in `R-hat`, far above 1; and in the
# trace of any predictive quantity, a flat line for each chain. Take several chains. A single one
# that stands still looks perfectly converged.

# %%
shown = ("SGHMC", "mode (T = 0)", "SGLD, tiny steps")
figure, panels = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
for name, axes in zip(shown, panels, strict=True):
    for chain in traces[name]:
        axes.plot(chain, linewidth=0.9)
    axes.set(title=f"{name}\nR-hat {results[name]['R-hat']:.2f}", xlabel="draw")
panels[0].set_ylabel("test NLL of each draw")
page.figure("chains", figure, despine=True)

# %% [markdown]
# ## A table to choose by
#
# | you have | take |
# |---|---|
# | a smooth posterior with one mode, many data | `SGHMC`, friction x step size 0.05 to 0.3 |
# | parameters on very different scales | `PSGLD`, or rescale the model and take `SGHMC` |
# | small batches, gradient noise unknown and alike in all directions | `SGNHT` |
# | gradient noise you know | any with `noise_estimate` |
# | a network or other posterior with many modes | `SGHMC` with `CyclicalSchedule` |
# | patience, and a wish for draws that become exact | `SGLD` with `PolynomialSchedule` |
# | a point estimate to compare with | any with `temperature=0.0` |
# | few parameters and data that fit in one pass | `NUTS`, under the same driver |
#
# And with caution: `PSGLD` leaves out a term of its drift, so its draws are a little off even with
# tiny steps. The thermostat of `SGNHT` is a single number; where the noise is loud in some
# directions only, the quiet ones come out too cold. Step sizes scale with the amount of data $N$,
# since the potential does: begin with `0.1 / N` for `SGLD` and its square root for `SGHMC`, halve
# it, and see if the answer stays. No sampler here accepts or rejects, so nothing but such checks
# tells you that a step size was too large.
#
# What this page claims, checked:

# %%
if not page.smoke:
    assert min(modes["cyclical"]) >= 15 and max(modes["decaying"]) <= 5, modes
    samplers = list(results)[:6]
    mode, tiny = results["mode (T = 0)"], results["SGLD, tiny steps"]
    likelihoods = [results[name]["NLL"] for name in samplers]
    assert max(likelihoods) - min(likelihoods) < 0.02, likelihoods
    assert max(likelihoods) < mode["NLL"] + 0.005, (likelihoods, mode)
    for name in samplers:
        assert results[name]["NLL"] < results[name]["one draw"] - 0.005, name
        assert results[name]["R-hat"] < 1.4 and results[name]["move"] > 0.1, name
    assert mode["R-hat"] > 1.5 and tiny["R-hat"] > 1.5, (mode, tiny)
    assert mode["move"] < 0.05 and tiny["move"] < 0.05, (mode, tiny)
    assert results["SGHMC"]["ESS"] > results["SGLD"]["ESS"], results
