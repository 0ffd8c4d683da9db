"""A long run killed and resumed; a thousand chains on a cluster that loses a worker; the costs."""

# %% [markdown]
# # Scaling out
#
# A run that takes days will be interrupted: by a machine that reboots, a queue that takes its node
# back, or you, who want to know how it is doing. This page runs one, small enough to take seconds,
# and does all of that to it. It runs in a pool of processes, is looked at as it goes, is killed,
# and goes on somewhere else. Then a thousand chains, a thousand simulations and a thousand draws of
# the posterior bootstrap run on a cluster that loses a worker and gets another one, with what that
# costs, and what a thousand machines would need. The draws are the same, bit for bit.
#
# `python tutorials/scaling_out.py` prints the numbers and saves the figures in
# `figures/scaling-out`.

# %%
import math
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ext.checkpoint import Checkpoint, CheckpointError
from pyro_ext.datasets import load_diabetes
from pyro_ext.diagnostics import SBCResult, metrics, sbc, to_arviz
from pyro_ext.inference import MCMC, SGHMC, PosteriorBootstrap, StreamingMCMC
from pyro_ext.inference.mcmc import ChainMethod
from pyro_ext.reproduction import Page
from pyro_ext.tutorials._processes import Cluster, Usage, plot_memory, plot_tasks

page = Page("scaling-out")
BLUE, RED, YELLOW, INK = "#2a6f97", "#d1495b", "#e09f3e", "#444444"
NUM_SAMPLES = page.length(1500, smoke=200)
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
started = time.monotonic()

# %% [markdown]
# ## The run
#
# A long run is a script, and this is the one of this page: a Bayesian network for breast masses,
# four chains in groups of two. Nothing in it is about being interrupted but `checkpoint`, the
# folder where it keeps what it has. What starts processes stands under
# `if __name__ == "__main__":`, because each process of the pool reads the script again.

# %%
SCRIPT = '''
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pyro
import pyro.distributions as dist
import torch

from pyro_ext.datasets import load_breast_cancer
from pyro_ext.inference import MCMC, SGHMC
from pyro_ext.reproduction import Page

HIDDEN = 8
masses = load_breast_cancer(test_fraction=0.4)
inputs, labels = masses.train_inputs, masses.train_targets.float()


def logits(weights, inputs):
    hidden = torch.tanh(inputs @ weights["inner"] + weights["bias"])
    return hidden @ weights["outer"]


def network(inputs, labels):
    shapes = {"inner": (30, HIDDEN), "bias": (HIDDEN,), "outer": (HIDDEN,)}
    weights = {
        name: pyro.sample(name, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))
        for name, shape in shapes.items()
    }
    with pyro.plate("masses", len(inputs), subsample_size=64) as batch:
        outputs = logits(weights, inputs[batch])
        pyro.sample("benign", dist.Bernoulli(logits=outputs), obs=labels[batch])


def prediction(weights):
    """Probability of benign for the masses of the test set, recorded with each draw."""
    return torch.sigmoid(logits(weights, masses.test_inputs))


def settings(num_samples):
    return dict(
        kernel=SGHMC(network, step_size=0.02, friction=10.0),
        num_samples=num_samples,
        warmup_steps=200,
        thinning=5,
        num_chains=4,
        group_size=2,
        quantities={"prediction": prediction},
        seed=0,
        progress=False,
    )


def sample(num_samples, checkpoint, chain_method="vectorized"):
    mcmc = MCMC(**settings(num_samples), checkpoint=checkpoint, chain_method=chain_method)
    return mcmc.run(inputs, labels)


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, num_samples, checkpoint = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if where == "processes":
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            sample(num_samples, checkpoint, pool)
    else:
        sample(num_samples, checkpoint)
'''
script = folder / "long_run.py"
script.write_text(SCRIPT)
long_run = runpy.run_path(str(script))

# %% [markdown]
# First without a break, in this process. These are the draws to compare with.

# %%
whole = long_run["sample"](NUM_SAMPLES, folder / "whole").get_samples(group_by_chain=True)
print({name: tuple(draws.shape) for name, draws in whole.items()})

# %% [markdown]
# ## Looking at a run as it goes
#
# Now the same script as a process of its own, with a pool of two. Its folder can be opened at any
# time, from anywhere, without the model: `Checkpoint` reads the draws, and `to_arviz` makes of them
# what ArviZ summarizes. The states of the chains come back from the pool every few seconds, so that
# is how old the news is.

# %%
timeline: list[tuple[float, int, str]] = []  # seconds, draws on disk, and who has made them


def num_draws(checkpoint: Path) -> int:
    """Draws in the folder of a run, all chains together."""
    try:
        return sum(chain.num_draws for chain in Checkpoint(checkpoint).chains())
    except CheckpointError:  # it has not begun
        return 0


def start(where: str, checkpoint: Path) -> subprocess.Popen[bytes]:
    """Start the script in a session of its own, so that it dies with all of its processes."""
    command = [sys.executable, str(script), where, str(NUM_SAMPLES), str(checkpoint)]
    return subprocess.Popen(command, start_new_session=True)


def watch(
    process: subprocess.Popen[bytes], checkpoint: Path, label: str, enough: float = math.inf
) -> None:
    """Wait until a run has that many draws, or has ended, and note its progress."""
    while process.poll() is None and num_draws(checkpoint) < enough:
        timeline.append((time.monotonic() - started, num_draws(checkpoint), label))
        time.sleep(0.1)
    timeline.append((time.monotonic() - started, num_draws(checkpoint), label))


killed = folder / "killed"
process = start("processes", killed)
watch(process, killed, "processes", enough=1)
os.killpg(process.pid, signal.SIGSTOP)  # or so small a run would end while we look at it
running = to_arviz(killed)
print(f"{num_draws(killed)} draws so far, {dict(running['posterior'].sizes)}")
print(az.summary(running, var_names=["prediction"], kind="diagnostics").head(3).to_string())

# %% [markdown]
# R-hat and effective sample sizes are those of predictions, which the run records as a quantity.
# The weights of a network are not identified, and R-hat of one says nothing.
#
# ## Killing it
#
# `SIGKILL` cannot be caught: the process has no chance to save anything. It takes the pool along.

# %%
os.killpg(process.pid, signal.SIGKILL)
process.wait()
draws_at_kill = num_draws(killed)
print(f"killed with {draws_at_kill} of {4 * NUM_SAMPLES} draws on disk")

# %% [markdown]
# To resume, start the same script again. It need not run in the same way or on the same machine:
# the folder knows what a chain is, and not where it was. Here the pool is gone and one process does
# the rest.

# %%
process = start("here", killed)
watch(process, killed, "resumed")
assert process.returncode == 0
resumed = Checkpoint(killed).get_samples(group_by_chain=True)


def are_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether draws agree in every bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


print("killed and resumed, the draws are those of the whole run:", are_equal(resumed, whole))

# %%
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
begin = timeline[0][0]
for label, color in (("processes", BLUE), ("resumed", YELLOW)):
    points = [(seconds - begin, draws) for seconds, draws, who in timeline if who == label]
    axes.step(*zip(*points, strict=True), where="post", color=color, label=label)
axes.axvline(points[0][0], color=RED, linewidth=1, linestyle="--", label="killed")
axes.set(xlabel="seconds", ylabel="draws on disk", ylim=(0, 4.2 * NUM_SAMPLES))
axes.legend(frameon=False, loc="upper left")
page.figure("killed", figure, despine=True)

# %% [markdown]
# A flat stretch at the start of a process is Python importing PyTorch; the steps are the moments
# when a group of chains reports.
#
# What if the script had changed in between? Then the folder is not continued, and the error says
# what is different.

# %%
try:
    changed = long_run["settings"](NUM_SAMPLES) | {"thinning": 10}
    MCMC(**changed, checkpoint=killed).run(long_run["inputs"], long_run["labels"])
    refusal = ""
except CheckpointError as error:
    refusal = str(error)
print(refusal)

# %% [markdown]
# ## A thousand chains on a cluster that loses a worker
#
# On a cluster a scheduler and workers run already, started by whoever runs the cluster, and
# `Client("tcp://scheduler:8786")` is all that one needs. The cluster here is one of processes of
# this machine, which the page starts, kills and measures (`tutorials/_processes.py`): what it says
# of many machines are numbers of one.
#
# The driver takes the executor of the client. Short chains, many of them, want to travel in groups:
# 25 chains take each step together in one worker, and forty such groups are the tasks. First all of
# them in this process, for the draws to compare with.

# %%
NUM_CHAINS, GROUP_SIZE = page.length((1000, 25), smoke=(48, 4))


def sample_many(chain_method: ChainMethod = "vectorized", checkpoint: Path | None = None) -> MCMC:
    """A thousand short chains in groups, with four draws each."""
    short = {"warmup_steps": page.length(100, smoke=10), "thinning": 10}
    short |= {"num_chains": NUM_CHAINS, "group_size": GROUP_SIZE}
    own = long_run["settings"](4) | short
    return MCMC(**own, chain_method=chain_method, checkpoint=checkpoint).run(inputs, labels)


inputs, labels = long_run["inputs"], long_run["labels"]
cpu_start = time.process_time()
many = sample_many().get_samples(group_by_chain=True)
cpu_here = time.process_time() - cpu_start
print(f"{NUM_CHAINS} chains in this process: {cpu_here:.1f} CPU seconds")

# %% [markdown]
# Now on two workers. As soon as the first groups are back, one worker is killed and another one
# started. The scheduler gives the task that went down with it to another worker; what groups had
# sent before is safe with the driver. The same is done to two other computations of a thousand
# parts each, `sbc` and `PosteriorBootstrap`, which take `executor=` where chains have
# `chain_method=`.


# %%
def logistic(x: Tensor) -> None:
    """Three measurements and whether a mass is benign, for calibration."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("masses", len(x)):
        pyro.sample("benign", dist.Bernoulli(logits=x @ slope), obs=torch.zeros(len(x)))


def laplace(model: Callable[..., Any], x: Tensor) -> dict[str, Tensor]:
    """Draws from the Laplace approximation, at a mode found by Newton's method."""
    y = torch.as_tensor(pyro.poutine.trace(model).get_trace(x).nodes["benign"]["value"])
    slope = torch.zeros(3)
    for _ in range(15):
        probability = torch.sigmoid(x @ slope)
        precision = x.mT @ ((probability * (1 - probability))[:, None] * x) + torch.eye(3)
        slope = slope - torch.linalg.solve(precision, x.mT @ (probability - y) + slope)
    return {"slope": dist.MultivariateNormal(slope, precision_matrix=precision).sample((99,))}


def line(x: Tensor, y: Tensor) -> None:
    """Ten measurements and the progression of diabetes, for the bootstrap."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(10), 10.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("patients", len(x)):
        pyro.sample("y", dist.Normal(x @ slope, scale), obs=y)


def calibrate(executor: Executor | None = None) -> SBCResult:
    """Ranks in a thousand simulated data sets."""
    number, few = page.length(1000, smoke=20), inputs[:40, :3]
    return sbc(
        logistic, laplace, number, few, num_draws=99, executor=executor, seed=0, progress=False
    )


def bootstrap(executor: Executor | None = None) -> PosteriorBootstrap:
    """A thousand draws, each a fit to weighted data, in batches of 25."""
    patients, number = load_diabetes(), page.length(1000, smoke=40)
    posterior = PosteriorBootstrap(
        line, number, batch_size=GROUP_SIZE, executor=executor, seed=0, progress=False
    )
    return posterior.run(patients.train_inputs, patients.train_targets)


on_cluster = folder / "on_cluster"
with Cluster(folder) as cluster:
    cluster.add(2)
    chains, simulations, fits = (
        cluster.disturbed(run, num_returned=page.length(20, smoke=10))
        for run in (partial(sample_many, checkpoint=on_cluster), calibrate, bootstrap)
    )

calibration = calibrate()
same = {
    "chains": are_equal(chains.result.get_samples(group_by_chain=True), many),
    "simulations": all(
        (ranks == calibration.ranks[name]).all() for name, ranks in simulations.result.ranks.items()
    ),
    "bootstrap": are_equal(fits.result.get_samples(), bootstrap().get_samples()),
}
rows = {
    name: {
        "tasks": found.executor.num_sent,
        "workers seen": len({task.worker for task in found.tasks}),
        "lost": found.num_lost,
        "kB out": found.executor.bytes_sent / 1e3,
        "kB back": found.executor.bytes_returned / 1e3,
        "equal": same[name],
    }
    for name, found in (("chains", chains), ("simulations", simulations), ("bootstrap", fits))
}
page.table(rows, number_format=".0f")
calibration.summary()

# %% [markdown]
# "Lost" are tasks that the scheduler had given to the worker when it died, one that it computed and
# those that waited there. They were run again, from where their chains had last reported; here a
# group of chains is done in one go, so that is from the start. "Equal" says that every draw and
# rank is, in every bit, what it is without a cluster. More tasks are sent than there are groups: a
# worker that has not got the model yet sends its first task back, and model and data follow.

# %%
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
plot_tasks(axes, chains)
page.figure("tasks", figure, despine=True)

# %% [markdown]
# Each bar is a group of chains. A process pool of the standard library is less forgiving: when one
# of its processes is killed, the whole pool is broken and the run ends with an error. With a
# checkpoint that is no loss either, as seen above; `sbc` and `PosteriorBootstrap` take one as well.
#
# ## What it costs
#
# The same thousand chains on one, two and four fresh workers. Efficiency is the time in this
# process, divided by the time on the workers and by their number. Two cores cannot give four
# workers more than half of it, and other programs on the machine take their part, so the CPU
# seconds are the better guide: those that the chains took in this process, divided by all that this
# process, the scheduler and the workers took together.

# %%
NUM_WORKERS = page.length((1, 2, 4), smoke=(1,))
num_cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
usages: dict[int, Usage] = {}
with Cluster(folder) as cluster:
    with cluster.measured() as found:
        again = sample_many().get_samples(group_by_chain=True)
    alone = found[0]
    for number in NUM_WORKERS:
        start_cost = cluster.renew(number)
        with cluster.measured() as found:
            sample_many(cluster.executor())
        usages[number] = found[0]
    num_empty = page.length(400, smoke=40)
    with cluster.measured() as found:
        assert sum(cluster.client.get_executor().map(abs, range(num_empty))) > 0
    empty = found[0]
rows = {
    f"{number} workers": {
        "seconds": usage.seconds,
        "efficiency": alone.seconds / usage.seconds / number,
        "CPU efficiency": alone.cpu_seconds["this process"] / usage.cpu,
        "cores used": usage.cpu / usage.seconds,
    }
    | {f"MB {part}": round(value) for part, value in usage.megabytes.items()}
    for number, usage in usages.items()
}
print(f"{num_cores} cores, load {load:.1f} before; in this process {alone.seconds:.1f} s")
page.table(rows, number_format=".2f")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
plot_memory(left, usages)
bounds = [min(1.0, num_cores / number) for number in NUM_WORKERS]
right.plot(bounds, color=INK, linestyle="--", label="what the cores allow")
for column, color in (("efficiency", RED), ("CPU efficiency", BLUE)):
    right.plot([row[column] for row in rows.values()], "o-", color=color, label=column)
right.set(xlabel="workers", ylim=(0.0, 1.1))
right.set_xticks(range(len(NUM_WORKERS)), [str(number) for number in NUM_WORKERS])
right.legend(frameon=False)
page.figure("workers", figure, despine=True)

# %% [markdown]
# Memory is what processes have to themselves, and their part of what they share; most of it is
# Python and PyTorch. What an empty task, a worker's start and a chain take, in CPU time and bytes:

# %%
per_task = {part: seconds / num_empty for part, seconds in empty.cpu_seconds.items()}
payload = chains.executor.largest
sent_per_chain = sum(size for size in chains.executor.sizes if size < payload) / NUM_CHAINS
back_per_chain = chains.executor.bytes_returned / NUM_CHAINS
draw_bytes = sum(value.nbytes for value in many.values()) / NUM_CHAINS
files = [path for path in on_cluster.rglob("*") if path.is_file()]
cpu_alone = alone.cpu_seconds["this process"]
costs = {
    "ms of the scheduler, a task": 1e3 * per_task["scheduler"],
    "ms of the client, a task": 1e3 * per_task["this process"],
    "ms of a worker, a task": 1e3 * per_task["workers"],
    "s to start a worker": start_cost,
    "s to make it ready for the model": usages[1].cpu_seconds["workers"] - cpu_alone,
    "kB of model and data, a worker": payload / 1e3,
    "kB to a worker, a chain": sent_per_chain / 1e3,
    "kB back, a chain": back_per_chain / 1e3,
    "kB of draws, a chain": draw_bytes / 1e3,
    "files, a group of chains": len(files) / (NUM_CHAINS / GROUP_SIZE),
    "s of a chain": cpu_alone / NUM_CHAINS,
}
page.table({name: {"": value} for name, value in costs.items()}, number_format=".3g")

# %% [markdown]
# ## A thousand machines, on paper
#
# What would a thousand machines need? Nobody has run it here; this is arithmetic with the numbers
# above, which are those of one machine whose processes talk through its memory. Say each machine
# has 16 cores, a worker on each, which runs a group of 25 chains of this size for days, and each
# machine fails once in a thousand hours.
#
# The driver lets a segment of a group's run last two seconds at first and half a minute after an
# hour, and at least a hundredth of a second for each group there is. So however many workers there
# are, at most a hundred tasks come back in a second. What is lost with a machine is, on average,
# half a segment of each of its workers.

# %%
MACHINE = {"cores": 16, "hours between failures": 1000.0, "draws": 1000}


def needs(machines: int, segment: float) -> dict[str, float]:
    """What so many machines need, for segments of so many seconds."""
    workers = MACHINE["cores"] * machines
    segment = max(segment, 0.01 * workers)
    rate = workers / segment
    state = back_per_chain - draw_bytes  # it travels both ways
    per_draw = draw_bytes / 4
    failures = machines / MACHINE["hours between failures"]
    return {
        "workers": workers,
        "segment, s": segment,
        "tasks, 1/s": rate,
        "scheduler, cores": rate * per_task["scheduler"],
        "client, cores": rate * per_task["this process"],
        "through both, MB/s": rate * GROUP_SIZE * (2 * state + draw_bytes) / 1e6,
        "model and data at the start, GB": workers * payload / 1e9,
        "all draws, GB": workers * GROUP_SIZE * MACHINE["draws"] * per_draw / 1e9,
        "new files, 1/h": 3600 * rate,
        "failures, 1/h": failures,
        "lost work, %": 100 * failures * MACHINE["cores"] * segment / 2 / (3600 * workers),
    }


on_paper = {number: needs(number, 30.0) for number in (1, 10, 100, 1000)}
columns = {
    name: {f"{number}": need[name] for number, need in on_paper.items()} for name in on_paper[1]
}
page.table(columns, title="machines", number_format=".3g")
most_tasks = 1 / max(per_task["scheduler"], per_task["this process"])
print(f"scheduler and client, whichever is slower, take {most_tasks:.0f} tasks in a second")

# %% [markdown]
# Failures are the least of it: only what is under way is lost. What breaks first is the middle, the
# one process that gathers and the one that schedules.
#
# - **Time of client and scheduler.** Both spend milliseconds on a task, so about a hundred tasks in
#   a second fill them. Segments that grow with the number of groups keep below that; simulations of
#   a second would not, with a few hundred workers. *What to do:* longer tasks, by more chains in a
#   group (`group_size`) and more draws in a batch (`batch_size`).
# - **The start.** Model and data go from the client to every worker, through the scheduler: nothing
#   here, and too much for a gigabyte. *What to do:* let the model read from a disk that all share.
# - **Memory of the client, and files.** Without a checkpoint all draws end there; with it a segment
#   with draws leaves a file, which in days makes millions. *What to do:* fewer draws of each chain
#   (`thinning`, `save_params`), or `StreamingMCMC`, below, whose moments do not grow with the run.
# - **One client.** When it dies the run stops, and goes on from its checkpoint. *What to do:* ten
#   drivers with a hundred machines, a folder and a seed each, whose draws are put together at the
#   end. Workers that wrote their draws themselves would spare the client too, and need a disk that
#   they share; the driver does not do that.

# %% [markdown]
# ## Starting where another run ended
#
# The folder is worth something to other runs as well: `initial_params` takes it. Here a run with
# half the step size starts from the last draws of the one above, without any warm-up, next to one
# that starts from the prior.

# %%
labels_held_out = long_run["masses"].test_targets


def follow_up(start: Path | None) -> Tensor:
    """Mean loss on the test set of each draw, without warm-up. **Shape:** `(num_draws,)`."""
    other = long_run["settings"](100) | {
        "kernel": SGHMC(long_run["network"], step_size=0.01, friction=10.0),
        "warmup_steps": 0,
        "thinning": 2,
        "initial_params": start,
    }
    draws = MCMC(**other).run(inputs, labels).get_samples(group_by_chain=True)["prediction"]
    both = torch.stack([1 - draws, draws], -1)
    loss = [metrics.nll(both[:, number], labels_held_out) for number in range(both.shape[1])]
    return torch.tensor(loss)


cold, warm = follow_up(None), follow_up(killed)
print(f"loss of the first ten draws: {cold[:10].mean():.3f} cold, {warm[:10].mean():.3f} warm")
print(f"loss of the last ten:        {cold[-10:].mean():.3f} cold, {warm[-10:].mean():.3f} warm")

# %%
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
axes.plot(cold, color=INK, label="from the prior")
axes.plot(warm, color=BLUE, label="from the earlier run")
axes.set(xlabel="draw", ylabel="test loss of the mean of four chains", yscale="log")
axes.legend(frameon=False)
page.figure("warm-start", figure, despine=True)

# %% [markdown]
# ## Keeping moments only
#
# With a checkpoint draws go to disk as they come, and memory holds few of them. Where mean and
# variance will do, they need not be kept at all: `StreamingMCMC` runs the same chains and updates
# moments. Its memory does not grow with the run.

# %%
streaming = StreamingMCMC(**long_run["settings"](NUM_SAMPLES)).run(inputs, labels)
statistics = streaming.get_statistics()
kept = sum(draws.nbytes for draws in whole.values())
moments = sum(
    value.nbytes for entry in streaming.get_statistics(True).values() for value in entry.values()
)
print(f"draws {kept / 1e6:.1f} MB, moments {moments / 1e6:.3f} MB")
errors = []
for name, draws in whole.items():
    together = draws.flatten(0, 1).double()
    for moment, exact in (("mean", together.mean(0)), ("variance", together.var(0))):
        errors.append(float((statistics[name][moment] - exact).abs().max()))
print(f"largest difference between streamed moments and those of the draws: {max(errors):.1e}")

# %% [markdown]
# What this page claims, checked:

# %%
assert are_equal(resumed, whole)
assert all(same.values()), same
assert are_equal(again, many)
assert "thinning" in refusal, refusal
assert max(errors) < 1e-4, errors
assert warm[:10].mean() < 0.5 * cold[:10].mean(), (cold, warm)
if not page.smoke:
    assert 0 < draws_at_kill < 4 * NUM_SAMPLES, draws_at_kill
    assert moments < kept / 100, (moments, kept)
    assert len({task.worker for task in chains.tasks}) == 3 and chains.num_lost, chains.num_lost
scratch.cleanup()

# %% [markdown]
# ## To remember
#
# - Name a `checkpoint`, always. To resume, start the same program again.
# - `chain_method` of `MCMC`, and `executor` of `sbc` and `PosteriorBootstrap`, take any executor of
#   `concurrent.futures`, which changes no draw; `group_size` chains travel together.
# - A worker that dies costs what it had under way. A thousand machines want long tasks.
# - `to_arviz(folder)` shows a run that is still going on.
# - `initial_params=folder` starts another run where one ended; a larger `num_samples` goes on.
