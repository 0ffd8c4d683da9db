"""Parameter-expanded stochastic-gradient MCMC: the cyclical schedule that it builds on."""

# %% [markdown]
# # The cyclical schedule of parameter-expanded SGMCMC
#
# H. Kim, G. Nam, C. Yun, H. Yang, J. Lee (2025), Parameter expanded stochastic gradient Markov
# chain Monte Carlo, run all their samplers with a cyclical step size, after R. Zhang, C. Li,
# J. Zhang, C. Chen, A. G. Wilson (2020), Cyclical stochastic gradient MCMC for Bayesian deep
# learning. This page measures what such a schedule is worth: on a density with 25 modes, and in the
# predictions of a Bayesian network.
#
# `pyro-ext reproduce px-sgmcmc` runs the page, and so does `python tutorials/papers/px_sgmcmc.py`.
# Both print a table of claims and save it with the figures in `figures/px-sgmcmc`.

# %%
import os
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ext.datasets import load_digits
from pyro_ext.diagnostics import metrics
from pyro_ext.inference import MCMC, SGLD, CyclicalSchedule, PolynomialSchedule, Schedule
from pyro_ext.reproduction import Claim, Figure, Report, seeds
from pyro_ext.tutorials.demo import logits, model

STARTED = time.perf_counter()
SMOKE = "PYRO_EXT_SMOKE" in os.environ  # a short run that only shows that the page works
FOLDER = Path(os.environ.get("PYRO_EXT_FIGURES", "figures/px-sgmcmc"))
SEEDS = seeds()
torch.set_num_threads(1)  # tensors this small gain nothing from threads, and lose on busy machines
BLUE, RED = "#2a6f97", "#d1495b"
COLOURS = {"decaying": RED, "cyclical": BLUE}

claims: list[Claim] = []
figures: dict[str, Figure] = {}

# %% [markdown]
# ## 25 modes
#
# The modes sit on a grid, two apart, and each is a Gaussian with variance 0.03. The density is a
# product: both coordinates have the same law, a mixture of five Gaussians.
#
# The sampler gets to see a noisy gradient, with standard normal noise. It is made as minibatches
# make it: a plate takes one of many tilts of the density, which cancel over all of them. There is a
# tilt for each step, so no two steps see the same.

# %%
PLACES = 2.0 * torch.arange(-2.0, 3.0)
MODES = torch.cartesian_prod(PLACES, PLACES)
DEVIATION = 0.03**0.5


def grid(tilts: Tensor) -> None:
    """A grid of 25 Gaussians, seen through a noisy gradient."""
    line = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(len(PLACES))), dist.Normal(PLACES, DEVIATION)
    )
    x = pyro.sample("x", line.expand([2]).to_event(1))
    with pyro.plate("tilts", len(tilts), subsample_size=1) as index:
        pyro.factor("tilt", tilts[index] @ x / len(tilts))


# %% [markdown]
# Both chains are Langevin dynamics from the same start, with 50,000 steps and with the step sizes
# that the comparison was laid down with. One decays as theory has it for convergence, after 500
# steps at its largest. The other goes through 30 cycles, and the first 50 steps of each explore:
# they take no noise and leave no draws. Since the noise of the gradient is known here, both put in
# that much less.

# %%
NUM_STEPS = 900 if SMOKE else 50_000
NUM_CYCLES = 30
THINNING = 10
schedules: dict[str, Schedule] = {
    "decaying": PolynomialSchedule(0.043, exponent=0.55, start=500),
    "cyclical": CyclicalSchedule(
        0.07, NUM_CYCLES, NUM_STEPS, exploration=0.03 if SMOKE else 50 / 1667
    ),
}


def walk(schedule: Schedule, seed: int) -> tuple[Tensor, Tensor]:
    """Kept draws of one chain, `(num_draws, 2)`, and the share of the run each came at."""
    generator = torch.Generator().manual_seed(seed)
    tilts = torch.randn(NUM_STEPS, 2, generator=generator)
    start = {"x": 20.0 * torch.rand(1, 2, generator=generator) - 10.0}
    steps = torch.arange(THINNING, NUM_STEPS + 1, THINNING)
    kept = steps[torch.from_numpy(schedule.is_sampling(steps.numpy() - 1))]
    mcmc = MCMC(
        SGLD(grid, step_size=schedule, noise_estimate=1.0, backend="trace" if SMOKE else "compile"),
        num_samples=len(kept),
        thinning=THINNING,
        initial_params=start,
        seed=seed,
        progress=False,
    )
    return mcmc.run(tilts - tilts.mean(0)).get_samples()["x"], kept


# %% [markdown]
# A mode counts as found once more than 0.2% of all draws lie within three standard deviations of
# it, a twentieth of what it should get.


# %%
def at_modes(draws: Tensor) -> Tensor:
    """Which draws lie at which modes, `(num_draws, 25)`."""
    return torch.cdist(draws, MODES) < 3 * DEVIATION


def num_found(draws: Tensor) -> Tensor:
    """Number of modes found up to each draw, `(num_draws,)`."""
    return (at_modes(draws).cumsum(0) > 0.002 * len(draws)).sum(-1)


walks = {
    name: {seed: walk(schedule, seed) for seed in SEEDS} for name, schedule in schedules.items()
}
found = {
    name: {seed: int(num_found(draws)[-1]) for seed, (draws, _) in chains.items()}
    for name, chains in walks.items()
}
for name, chains in walks.items():
    shares = torch.stack([at_modes(draws).double().mean(0) for draws, _ in chains.values()])
    print(
        f"{name} step size: modes found {list(found[name].values())} of 25; the most visited mode "
        f"gets {shares.amax(-1).mean():.0%} of the draws, and 4% would be its due"
    )

# %% [markdown]
# Two claims, with the bounds that they were laid down with.

# %%
claims += [
    Claim(
        "With a cyclical step size one chain finds most of 25 modes.",
        values=found["cyclical"],
        comparison=">=",
        bound=15,
        source="Zhang et al. (2020), figure 2, here with one chain; bound laid down beforehand",
    ),
    Claim(
        "With a decaying step size one chain stays at a few of 25 modes.",
        values=found["decaying"],
        comparison="<=",
        bound=5,
        source="Zhang et al. (2020), figure 2, here with one chain; bound laid down beforehand",
    ),
]

# %% [markdown]
# The picture of the draws shows all seeds: grey rings are the modes.

# %%
figure, panels = plt.subplots(
    2, len(SEEDS), figsize=(2.9 * len(SEEDS), 6), sharex=True, sharey=True, squeeze=False
)
figure.set_layout_engine("constrained")
for row, (name, chains) in zip(panels, walks.items(), strict=True):
    for axes, (seed, (draws, _)) in zip(row, chains.items(), strict=True):
        axes.scatter(*MODES.T, s=150, facecolors="none", edgecolors="0.8")
        axes.scatter(*draws.T, s=2, alpha=0.3, color=COLOURS[name], linewidths=0)
        axes.set_title(f"{name}, seed {seed}: {found[name][seed]} of 25", fontsize=10)
        axes.set(xlim=(-5.6, 5.6), ylim=(-5.6, 5.6), xticks=[-4, 0, 4], yticks=[-4, 0, 4])
        axes.set_aspect("equal")
figures["draws"] = figure
plt.close(figure)

# %% [markdown]
# How they get there: a step size that decays has found what it will find by the time it begins to
# fall. A cyclical one goes on finding modes as long as it runs, at first about one in every cycle.

# %%
figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(7, 4.6), sharex=True, height_ratios=(1, 2), layout="constrained"
)
every_step = torch.arange(NUM_STEPS)
for name, schedule in schedules.items():
    top.plot(every_step, schedule.step_sizes(every_step.numpy()), color=COLOURS[name], lw=1)
    for number, (draws, steps) in enumerate(walks[name].values()):
        label = None if number else name
        bottom.plot(steps, num_found(draws), color=COLOURS[name], lw=1.4, label=label)
top.set_ylabel("step size")
bottom.set(xlabel="step", ylabel="modes found", ylim=(0, 25.5))
bottom.legend(frameon=False)
for axes in (top, bottom):
    axes.spines[["top", "right"]].set_visible(False)
figures["modes-over-steps"] = figure
plt.close(figure)

# %% [markdown]
# What the count hides: the modes found get very different shares of the draws, as printed above.
# Fifty thousand steps find the modes and do not weigh them.
#
# ## Handwritten digits
#
# Does it help a Bayesian network to predict? The network of `pyro-ext demo` has 64-32-32-10 units
# and normal priors; 600 images of digits are there to learn from, 1,197 to test. Again Langevin
# dynamics with a step size of either kind: 2,400 steps of 64 images, and nine draws, one every 200
# steps from step 800 on. With a cyclical step size that is one at the end of each cycle. Noise is
# put in at every step, as Kim et al. have it.
#
# Each kind gets the step size that suits it, the one whose averaged prediction is best on 120 of
# the training images after learning from the other 480. A step size that decays has two numbers to
# choose, how large it starts and how soon it falls, so it gets more candidates.

# %%
NUM_NETWORK_STEPS = 48 if SMOKE else 2_400
NUM_CHAINS = 2 if SMOKE else 12
NUM_VALIDATION_CHAINS = 2 if SMOKE else 4  # what its few images leave open, chains don't settle
NUM_VALIDATION = 120
digits = load_digits()
candidates: dict[str, list[tuple[str, Schedule]]] = {
    "decaying": [
        (
            f"starts at {size:g}, falls from step {offset}",
            PolynomialSchedule(size * offset**0.55, exponent=0.55, offset=float(offset)),
        )
        for size in (1e-4, 2e-4, 4e-4)
        for offset in (100, 300, 1000)
    ],
    "cyclical": [
        (f"starts at {size:g}", CyclicalSchedule(size, 12, NUM_NETWORK_STEPS))
        for size in (1e-4, 2e-4, 4e-4, 8e-4)
    ],
}


def predict(
    schedule: Schedule,
    inputs: Tensor,
    labels: Tensor,
    new_inputs: Tensor,
    num_chains: int,
    seed: int,
) -> Tensor:
    """Probabilities of the classes, `(num_chains, num_draws, n, 10)`."""
    mcmc = MCMC(
        SGLD(model, step_size=schedule),
        num_samples=9,
        warmup_steps=NUM_NETWORK_STEPS // 4,
        thinning=NUM_NETWORK_STEPS // 12,
        num_chains=num_chains,
        seed=seed,
        progress=False,
    )
    weights = mcmc.run(inputs, labels).get_samples(group_by_chain=True)
    return logits(weights, new_inputs).double().softmax(-1)


def losses(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Negative log likelihood of each chain's averaged prediction, or of each draw's own."""
    return torch.tensor([metrics.nll(one, labels) for one in probabilities])


# %%
inner, outer = digits.train_inputs[:-NUM_VALIDATION], digits.train_inputs[-NUM_VALIDATION:]
inner_labels, outer_labels = digits.train_targets.split([len(inner), len(outer)])
tuned: dict[str, Schedule] = {}
for name, tried in candidates.items():
    scores = []
    for words, schedule in tried[:1] if SMOKE else tried:
        predicted = predict(
            schedule, inner, inner_labels, outer, NUM_VALIDATION_CHAINS, seed=SEEDS[0]
        )
        scores.append(float(losses(predicted, outer_labels).mean()))
        print(f"{name:9} {words:38} validation NLL {scores[-1]:.4f}")
    best = scores.index(min(scores))
    tuned[name] = tried[best][1]
    print(f"{name:9} {tried[best][0]:38} is taken")

# %% [markdown]
# And now the test images, with several chains for each seed. `NLL` is the loss of the average of a
# chain's nine draws, `one draw` that of a single one; `ambiguity` tells how much the nine disagree.


# %%
def one_draw(probabilities: Tensor, labels: Tensor) -> float:
    """Mean negative log likelihood of single draws."""
    return float(losses(probabilities, labels).mean())


measures = {
    "NLL": metrics.nll,
    "one draw": one_draw,
    "accuracy": metrics.accuracy,
    "ambiguity": metrics.ambiguity,
}
rows: dict[str, dict[int, list[float]]] = {}
print(f"{'':9}{'seed':>6}" + "".join(f"{column:>11}" for column in measures))
for name, schedule in tuned.items():
    rows[name] = {}
    for seed in SEEDS:
        predicted = predict(
            schedule,
            digits.train_inputs,
            digits.train_targets,
            digits.test_inputs,
            NUM_CHAINS,
            seed,
        )
        by_chain = [
            [measure(chain, digits.test_targets) for chain in predicted]
            for measure in measures.values()
        ]
        rows[name][seed] = torch.tensor(by_chain).mean(-1).tolist()
        print(f"{name:9}{seed:6}" + "".join(f"{value:11.4f}" for value in rows[name][seed]))

# %%
claims.append(
    Claim(
        "On digits draws with a cyclical step size predict with a smaller loss than draws with a "
        "decaying one (difference of test NLL).",
        values={seed: rows["cyclical"][seed][0] - rows["decaying"][seed][0] for seed in SEEDS},
        comparison="<",
        bound=0,
        across="mean",
        source="Zhang et al. (2020), cyclical against decaying on images; of it only the sign",
    )
)

# %% [markdown]
# The gain is small, some three per cent of the loss: this posterior is easy to walk through, and
# the better ones of the decaying candidates come near, whichever of them the few validation images
# pick. Do not expect of a network what the 25 modes show.
#
# ## The claims

# %%
report = Report(
    "px-sgmcmc",
    claims=claims,
    paper="H. Kim, G. Nam, C. Yun, H. Yang, J. Lee (2025), Parameter expanded stochastic gradient "
    "Markov chain Monte Carlo",
    settings={
        "seeds": SEEDS,
        "grid steps": NUM_STEPS,
        "network steps": NUM_NETWORK_STEPS,
        "network chains": NUM_CHAINS,
        "network schedules": {name: repr(schedule) for name, schedule in tuned.items()},
    },
    figures=figures,
    seconds=time.perf_counter() - STARTED,
    smoke=SMOKE,
)
report.print()
report.save(FOLDER)
report.exit()
