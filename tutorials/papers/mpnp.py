"""Martingale posterior neural processes: uncertain functions without a latent variable."""

# %% [markdown]
# # Martingale posterior neural processes
#
# H. Lee, E. Yun, G. Nam, E. Fong, J. Lee (2023), Martingale posterior neural processes, ask what a
# neural process is uncertain about. Their answer is: about the points that it has not seen. A
# network that attends to the context turns noise into features of *pseudo points*; context and
# pseudo points together are encoded to one function, and other noise gives another function. There
# is neither a prior nor a latent variable with a law that somebody chose.
#
# This page trains such processes on functions of Gaussian processes and on images of digits, and
# compares them with a conditional neural process, which knows no uncertainty of functions, and with
# one that has a normal latent variable.
#
# `pyro-ext reproduce mpnp` runs the page, and so does `python tutorials/papers/mpnp.py`. Both print
# a table of claims and save it with the figures in `figures/mpnp`.

# %%
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from pyro_ext.datasets import load_digits, load_hare_lynx
from pyro_ext.models.neural_processes import (
    ANP,
    BANP,
    BNP,
    CANP,
    CNP,
    MPANP,
    MPNP,
    NP,
    Batch,
    GPTasks,
    ImageTasks,
    NeuralProcess,
    PredatorPreyTasks,
    fit,
    log_likelihoods,
    minimize,
)
from pyro_ext.reproduction import Claim, Figure, Report, seeds

STARTED = time.perf_counter()
SMOKE = "PYRO_EXT_SMOKE" in os.environ  # a short run that only shows that the page works
FOLDER = Path(os.environ.get("PYRO_EXT_FIGURES", "figures/mpnp"))
SEEDS = seeds()
FIRST = SEEDS[0]
torch.set_num_threads(1)  # of each operation; two trainings run side by side

WIDTH = 16 if SMOKE else 64
NUM_TASKS = 2 if SMOKE else 24
NUM_STEPS = 4 if SMOKE else 2000
NUM_IMAGE_STEPS = 4 if SMOKE else 700
NUM_SHORT_STEPS = 2 if SMOKE else 150
NUM_BATCHES = 2 if SMOKE else 60
NUM_PSEUDO = 5
WEIGHTS = (1.0, 0.1, 0.1)
LEARNING_RATE = 1e-3
EVALUATION_SEED = 1_000_000  # tasks of training have other seeds

Tasks = Callable[[int], Batch]
Maker = Callable[[], NeuralProcess]

claims: list[Claim] = []
figures: dict[str, Figure] = {}

# %% [markdown]
# ## Functions of Gaussian processes
#
# Each task is a function from a Gaussian process with a squared exponential kernel, whose length
# scale and amplitude are its own, seen at 3 to 46 noisy points. Training takes 2,000 steps of 24
# tasks, where the paper has 100,000 of 100. Of the three losses, those of the context alone and of
# the pseudo points alone have the weight 0.1, since at this length equal weights leave the main one
# behind; there are 5 pseudo points, and 5 draws of noise in a loss.
#
# What counts is the log likelihood of a target, with 50 functions for each task, on 960 tasks of
# the same kind and of others that training has not seen: Matern and periodic kernels, and heavy
# tails in the noise. All processes of a seed are trained on the same tasks.


# %%
class Job(NamedTuple):
    """A process and what to train it on."""

    name: str
    seed: int
    process: NeuralProcess
    tasks: Tasks
    num_steps: int


def prepared(
    makers: Mapping[str, Maker], tasks: Mapping[int, Tasks], num_steps: int
) -> Iterable[Job]:
    """Processes of all seeds, the last of the makers first, which takes the longest."""
    for name, make in reversed(list(makers.items())):
        for seed in tasks:
            torch.manual_seed(seed)
            yield Job(name, seed, make(), tasks[seed], num_steps)


def trained(job: Job) -> Job:
    """Train the process of a job."""
    fit(
        job.process,
        job.tasks,
        job.num_steps,
        learning_rate=LEARNING_RATE,
        seed=job.seed,
        progress=False,
    )
    return job


def train(
    makers: Mapping[str, Maker], tasks: Mapping[int, Tasks], num_steps: int
) -> dict[str, dict[int, NeuralProcess]]:
    """Train processes by name and seed, two at a time."""
    processes: dict[str, dict[int, NeuralProcess]] = {name: {} for name in makers}
    with ThreadPoolExecutor(2) as pool:
        for job in pool.map(trained, list(prepared(makers, tasks, num_steps))):
            processes[job.name][job.seed] = job.process
    return processes


Score = dict[str, dict[int, float]]  # by process and seed


def scores(processes: Mapping[str, Mapping[int, NeuralProcess]], batches: list[Batch]) -> Score:
    """Log likelihoods of targets."""
    keys = [(name, seed) for name, by_seed in processes.items() for seed in by_seed]

    def score(key: tuple[str, int]) -> float:
        return log_likelihoods(processes[key[0]][key[1]], batches).target

    with ThreadPoolExecutor(2) as pool:
        values = dict(zip(keys, pool.map(score, keys), strict=True))
    return {name: {seed: values[name, seed] for seed in by} for name, by in processes.items()}


def for_seeds(make: Callable[[int], Tasks]) -> dict[int, Tasks]:
    """Tasks of every seed; a short run has those of the first only."""
    return {seed: make(seed) for seed in (SEEDS[:1] if SMOKE else SEEDS)}


def difference(score: Score, name: str, other: str) -> dict[int, float]:
    """By how much a process is better, for every seed."""
    values = {seed: value - score[other][seed] for seed, value in score[name].items()}
    return {seed: values[seed if seed in values else FIRST] for seed in SEEDS}


def mean(values: Mapping[int, float]) -> float:
    """Mean over the seeds."""
    return sum(values.values()) / len(values)


def table(columns: Mapping[str, Score]) -> None:
    """Print means over the seeds."""
    print(f"\n{'':8}" + "".join(f"{column:>14}" for column in columns))
    for name in next(iter(columns.values())):
        cells = (f"{mean(score[name]):14.3f}" for score in columns.values())
        print(f"{name:8}" + "".join(cells))


MAKERS: dict[str, Maker] = {
    "CNP": partial(CNP, width=WIDTH),
    "NP": partial(NP, width=WIDTH),
    "MPNP": lambda: MPNP(width=WIDTH, num_pseudo=NUM_PSEUDO, weights=WEIGHTS),
}
KINDS = {
    "RBF": GPTasks("rbf"),
    "Matern": GPTasks("matern"),
    "periodic": GPTasks("periodic"),
    "t noise": GPTasks("rbf", student_noise=0.15),
}
EVALUATION = {
    kind: [tasks(EVALUATION_SEED + number) for number in range(NUM_BATCHES)]
    for kind, tasks in KINDS.items()
}
gp_tasks = for_seeds(lambda seed: cache(GPTasks("rbf", num_tasks=NUM_TASKS)))
processes = train(MAKERS, gp_tasks, NUM_STEPS)
gp_scores = {kind: scores(processes, batches) for kind, batches in EVALUATION.items()}
table(gp_scores)

# %%
claims += [
    Claim(
        "RBF functions: log likelihood of a target, MPNP less CNP.",
        values=difference(gp_scores["RBF"], "MPNP", "CNP"),
        comparison=">=",
        bound=0.02,
        across="mean",
        source="Lee et al. (2023), 1-D regression; bound laid down beforehand",
    ),
    Claim(
        "Matern functions, after training on RBF ones: the same difference.",
        values=difference(gp_scores["Matern"], "MPNP", "CNP"),
        comparison=">=",
        bound=0.02,
        across="mean",
        source="Lee et al. (2023), 1-D regression; bound laid down beforehand",
    ),
    Claim(
        "Periodic functions, after training on RBF ones: the same difference.",
        values=difference(gp_scores["periodic"], "MPNP", "CNP"),
        comparison=">=",
        bound=0.0,
        across="mean",
        source="Lee et al. (2023), 1-D regression; bound laid down beforehand",
    ),
    Claim(
        "Periodic functions, after training on RBF ones: MPNP less NP.",
        values=difference(gp_scores["periodic"], "MPNP", "NP"),
        comparison=">=",
        bound=0.03,
        across="mean",
        source="Lee et al. (2023), 1-D regression; bound laid down beforehand",
        reason="the sign is as claimed, but the difference is 0.02 to 0.03 in runs that differ by "
        "the rounding of a loss alone, so that training of this length does not decide it",
    ),
]

# %% [markdown]
# MPNP is ahead of CNP everywhere. The process with a latent variable is better where the noise has
# heavy tails, as its functions differ more from each other, and no better than CNP on periodic
# functions, which are unlike those that it was trained on. Which of the two is ahead on
# RBF functions depends on the training: in one of 4,000 steps with 32 tasks, of another program, we
# have seen NP at -0.39 and MPNP at -0.46.
#
# Here are functions that each process takes to be possible after ten points of one function.


# %%
@torch.no_grad()
def drawn(process: NeuralProcess, batch: Batch, grid: Tensor, num_samples: int) -> Tensor:
    """Means of functions for the first task. **Shape:** ``(num_samples, len(grid), y_dim)``."""
    inputs, outputs = batch.context_inputs[:1], batch.context_outputs[:1]
    means: Tensor = process.predict(inputs, outputs, grid[None], num_samples, seed=0).mean
    return means[:, 0]


GRID = torch.linspace(-2, 2, 50 if SMOKE else 200)[:, None]
few = GPTasks("rbf", num_tasks=1, num_context=10, num_target=40)(EVALUATION_SEED + 3)
figure, panels = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
for axes, (name, by_seed) in zip(panels, processes.items(), strict=True):
    prediction = by_seed[FIRST].posterior_predictive(*few.context[:2], GRID[None], seed=0)
    middle = prediction.mean[0, :, 0].detach()
    spread = 2 * prediction.variance[0, :, 0].detach().sqrt()
    axes.fill_between(GRID[:, 0], middle - spread, middle + spread, color="0.9")
    functions = drawn(by_seed[FIRST], few, GRID, 20)[..., 0]
    axes.plot(GRID[:, 0], functions.T, color="tab:blue", lw=0.7, alpha=0.5)
    axes.plot(few.target_inputs[0], few.target_outputs[0], ".", color="0.5", ms=3)
    axes.plot(few.context_inputs[0], few.context_outputs[0], "ko", ms=5)
    axes.set(title=name, xlabel="x")
    axes.spines[["top", "right"]].set_visible(False)
figures["functions"] = figure
plt.close(figure)


def spread_of_means(process: NeuralProcess) -> float:
    """Standard deviation of the mean at a target over functions, on RBF tasks."""
    deviations = []
    for batch in EVALUATION["RBF"][:10]:
        with torch.no_grad():
            prediction = process.predict(*batch.context[:2], batch.target_inputs, 50, seed=0)
        deviations.append(float(prediction.mean.std(0).mean()))
    return sum(deviations) / len(deviations)


for name, by_seed in processes.items():
    values = {seed: spread_of_means(process) for seed, process in by_seed.items()}
    print(f"{name:8} spread of means over functions {mean(values):.4f}")

# %% [markdown]
# Functions of MPNP differ less than those of NP, but they do, and this is what makes its
# likelihoods differ from those of CNP: the likelihood of *all* points of a task, of which the loss
# takes the mean over draws, rewards functions that are right as a whole.
#
# It does not come by itself. With layer norms in the generator, `RepresentationGenerator(encoder,
# layer_norm=True)`, features of pseudo points begin much larger than those of the context, the
# decoder learns to ignore them, and MPNP ends behind CNP.
#
# ## Digits
#
# Handwritten digits of 8 x 8 pixels are functions of two inputs. Of each, 3 to 30 pixels are given
# and the others asked for; 1,200 images are there to learn from and the other 597 to compare on.

# %%
digits = load_digits(num_train=1200)


def pictures(inputs: Tensor) -> Tensor:
    """Images with grey levels from -0.5 to 0.5."""
    return ((inputs * digits.input_scale + digits.input_loc) / 16 - 0.5).reshape(-1, 8, 8)


IMAGE_MAKERS: dict[str, Maker] = {
    "CNP": lambda: CNP(2, 1, WIDTH),
    "MPNP": lambda: MPNP(2, 1, WIDTH, num_pseudo=NUM_PSEUDO, weights=WEIGHTS),
}
image_tasks = for_seeds(lambda seed: ImageTasks(pictures(digits.train_inputs), num_tasks=NUM_TASKS))
test_images = ImageTasks(pictures(digits.test_inputs))
image_batches = [test_images(EVALUATION_SEED + number) for number in range(NUM_BATCHES)]
image_processes = train(IMAGE_MAKERS, image_tasks, NUM_IMAGE_STEPS)
image_scores = scores(image_processes, image_batches)
table({"digits": image_scores})

claims.append(
    Claim(
        "Digits with 3 to 30 pixels given: log likelihood of a pixel, MPNP less CNP.",
        values=difference(image_scores, "MPNP", "CNP"),
        comparison=">=",
        bound=0.0,
        across="mean",
        source="Lee et al. (2023), image completion; bound laid down beforehand",
    )
)

NUM_GIVEN = 15
chosen = torch.arange(4)
order = torch.rand(4, 64, generator=torch.Generator().manual_seed(1)).argsort(-1)
given = test_images.batch(chosen, order, NUM_GIVEN)
places = test_images.places.expand(4, 64, 2)
figure, panels = plt.subplots(4, 6, figsize=(7.5, 5), layout="constrained")
with torch.no_grad():
    completed = image_processes["MPNP"][FIRST].predict(*given.context[:2], places, 50, seed=0)
for row, picture, pixels in zip(range(4), test_images.images, order, strict=False):
    seen = torch.full((64,), torch.nan)
    seen[pixels[:NUM_GIVEN]] = picture.flatten()[pixels[:NUM_GIVEN]]
    means = completed.mean[:, row, :, 0]
    shown = [picture.flatten(), seen, means.mean(0), *means[:2], means.std(0)]
    titles = ["image", "given", "mean", "a function", "another", "spread"]
    for axes, values, title in zip(panels[row], shown, titles, strict=True):
        limits = (0.0, 0.1) if title == "spread" else (-0.5, 0.5)
        axes.imshow(values.reshape(8, 8).numpy(), cmap="gray", vmin=limits[0], vmax=limits[1])
        axes.set_axis_off()
        if row == 0:
            axes.set_title(title, fontsize=9)
figures["digits"] = figure
plt.close(figure)

# %% [markdown]
# ## All eight processes
#
# A few steps of each, for the first seed only, which is no comparison of what they can do: those
# with attention learn much faster at first and take longer for a step.

# %%
EIGHT: dict[str, Maker] = {
    **MAKERS,
    "BNP": partial(BNP, width=WIDTH),
    "CANP": partial(CANP, width=WIDTH),
    "ANP": partial(ANP, width=WIDTH),
    "BANP": partial(BANP, width=WIDTH),
    "MPANP": lambda: MPANP(width=WIDTH, num_pseudo=NUM_PSEUDO, weights=WEIGHTS),
}
short = train(EIGHT, {FIRST: gp_tasks[FIRST]}, NUM_SHORT_STEPS)
table({kind: scores(short, batches[:10]) for kind, batches in EVALUATION.items()})

# %% [markdown]
# ## Optimization
#
# The trained processes as surrogates: functions of the Gaussian process are minimized over 100
# inputs, from three at random, by expected improvement. Shown is the regret, the best value so far
# less the minimum, as a share of the function's range, for 40 functions and every seed; and that of
# inputs at random.

# %%
NUM_FUNCTIONS, NUM_CANDIDATES, NUM_EVALUATIONS = (3, 12, 3) if SMOKE else (40, 100, 15)
candidates = torch.linspace(-2, 2, NUM_CANDIDATES).expand(NUM_FUNCTIONS, -1)[..., None]
landscapes = GPTasks("rbf").functions(candidates, EVALUATION_SEED)[..., 0]
rows = torch.arange(NUM_FUNCTIONS)


def regret(outputs: Tensor) -> Tensor:
    """Mean over functions, by number of evaluations."""
    low, high = landscapes.amin(-1, keepdim=True), landscapes.amax(-1, keepdim=True)
    shares: Tensor = (outputs.cummin(-1).values - low) / (high - low)
    return shares.mean(0)


def course(process: NeuralProcess, seed: int) -> Tensor:
    """Regret of a process as the surrogate."""
    found = minimize(
        process,
        lambda chosen: landscapes[rows, chosen],
        candidates,
        num_steps=NUM_EVALUATIONS,
        seed=seed,
    )
    return regret(found.outputs)


regrets = {
    name: torch.stack([course(process, seed) for seed, process in by_seed.items()]).mean(0)
    for name, by_seed in {**processes, "CANP": short["CANP"]}.items()
}
orders = torch.rand(
    100, NUM_FUNCTIONS, NUM_CANDIDATES, generator=torch.Generator().manual_seed(0)
).argsort(-1)
at_random = [regret(landscapes.gather(-1, order)) for order in orders]
regrets["random"] = torch.stack(at_random).mean(0)[: NUM_EVALUATIONS + 3]
figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
for name, line in regrets.items():
    axes.plot(range(1, len(line) + 1), line, label=name, color="0.6" if name == "random" else None)
    print(f"{name:8} regret after {len(line)} evaluations {float(line[-1]):.4f}")
axes.set(xlabel="evaluations", ylabel="regret", yscale="log")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
figures["optimization"] = figure
plt.close(figure)

# %% [markdown]
# After 18 evaluations inputs at random have found better values than any surrogate. The paper has
# it otherwise, after trainings fifty times as long. These processes are not yet certain even next
# to a point that they have seen, and their scale is 0.1 at least, so that expected improvement
# stays near the best value so far.
#
# ## Hares and lynxes
#
# Processes with attention are trained on simulated courses of the Lotka-Volterra process, predators
# and prey, for 250 steps and the first seed. Then they predict the pelts of lynxes and hares that
# the Hudson's Bay Company counted from 1900 to 1920. Both are scaled to have the mean of the
# simulated ones; every other year is given.

# %%
NUM_COURSES, NUM_COURSE_STEPS = (2, 2) if SMOKE else (60, 250)
simulated = PredatorPreyTasks(
    num_tasks=NUM_TASKS, num_events=6000, duration=20.0, num_context=15, num_target=35
)
pool_of_courses = [simulated(seed) for seed in range(NUM_COURSES)]
COURSE_MAKERS: dict[str, Maker] = {
    "CANP": lambda: CANP(1, 2, WIDTH),
    "MPANP": lambda: MPANP(1, 2, WIDTH, num_pseudo=NUM_PSEUDO, weights=WEIGHTS),
}
on_courses = train(
    COURSE_MAKERS,
    {FIRST: lambda seed: pool_of_courses[seed % NUM_COURSES]},
    NUM_COURSE_STEPS,
)
pelts = load_hare_lynx()
years = torch.cat([pelts.train_inputs, pelts.test_inputs])
counts = torch.cat([pelts.train_targets, pelts.test_targets]).flip(-1)  # lynxes first
in_order = years[:, 0].argsort()
years, counts = years[in_order], counts[in_order]
unit = torch.cat([batch.points.outputs.mean((0, 1))[None] for batch in pool_of_courses]).mean(0)
scaled = counts / counts.mean(0) * unit
times = years * simulated.time_scale
observed = Batch(times[None, ::2], scaled[None, ::2], times[None, 1::2], scaled[None, 1::2])
unseen_courses = [simulated(EVALUATION_SEED + number) for number in range(2 if SMOKE else 10)]
for name, by_seed in on_courses.items():
    on_simulated = log_likelihoods(by_seed[FIRST], unseen_courses).target
    on_pelts = log_likelihoods(by_seed[FIRST], [observed]).target
    print(f"{name:8} log likelihood: simulated {on_simulated:.3f}, hares and lynxes {on_pelts:.3f}")

grid = torch.linspace(0, 2, 50 if SMOKE else 150)[:, None]
functions = drawn(on_courses["MPANP"][FIRST], observed, grid, 20)
figure, panels = plt.subplots(2, 1, figsize=(7, 4.2), sharex=True, layout="constrained")
for column, (axes, name) in enumerate(zip(panels, ("lynxes", "hares"), strict=True)):
    unscale = float(counts[:, column].mean() / unit[column])
    axes.plot(
        1900 + 10 * grid[:, 0],
        unscale * functions[..., column].T,
        color="tab:blue",
        lw=0.7,
        alpha=0.5,
    )
    axes.plot(1900 + years[1::2, 0], counts[1::2, column], "o", mfc="white", color="0.4")
    axes.plot(1900 + years[::2, 0], counts[::2, column], "ko")
    axes.set(ylabel=f"{name}, thousands")
    axes.spines[["top", "right"]].set_visible(False)
figures["hares-and-lynxes"] = figure
plt.close(figure)

# %% [markdown]
# After so few steps neither follows the swings: they know the mean and the spread of both
# populations, and little of when each is high. The picture shows what the data ask for, not what
# these processes can do.
#
# ## The claims

# %%
report = Report(
    "mpnp",
    claims=claims,
    paper="H. Lee, E. Yun, G. Nam, E. Fong, J. Lee (2023), Martingale posterior neural processes",
    settings={
        "seeds": SEEDS,
        "steps": NUM_STEPS,
        "image steps": NUM_IMAGE_STEPS,
        "width": WIDTH,
        "tasks": NUM_TASKS,
        "pseudo points": NUM_PSEUDO,
        "weights": WEIGHTS,
        "log likelihoods": {
            kind: {name: mean(by_seed) for name, by_seed in score.items()}
            for kind, score in {**gp_scores, "digits": image_scores}.items()
        },
    },
    figures=figures,
    seconds=time.perf_counter() - STARTED,
    smoke=SMOKE,
)
report.print()
report.save(FOLDER)
report.exit()
