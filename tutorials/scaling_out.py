"""A long run killed and resumed; a thousand chains on a cluster that loses a worker; the costs."""

# %% [markdown]
# # Scaling out
#
# A run that takes days will be interrupted: by a machine that reboots, by a queue that takes its
# node back, or by you, who want to know how it is doing. This page does all of that to a run of
# seconds: it is looked at as it goes, killed, and continued somewhere else. Then a thousand chains
# and a thousand draws of the posterior bootstrap run on a cluster that loses a worker and gets
# another one. The draws are the same, bit for bit.
#
# `python tutorials/scaling_out.py` prints the numbers and saves the figures in
# `figures/scaling-out`.

# %%
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Executor
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
from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MCMC, PosteriorBootstrap
from pyro_ext.inference.mcmc import ChainMethod
from pyro_ext.reproduction import Page
from pyro_ext.tutorials._processes import Cluster, plot_tasks

page = Page("scaling-out")
NUM_SAMPLES = page.length(1500, smoke=200)
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)

# %% [markdown]
# ## The run
#
# A long run is a script, and this is the one of this page: a logistic regression for breast masses,
# four chains in groups of two. Nothing in it is about being interrupted but `checkpoint`, the
# folder where it keeps what it has. Processes are started under `if __name__ == "__main__":`,
# because each process of the pool reads the script again.

# %%
SCRIPT = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pyro
import pyro.distributions as dist
import torch

from pyro_ext.datasets import load_breast_cancer
from pyro_ext.inference import MCMC, SGHMC

masses = load_breast_cancer(test_fraction=0.4)
inputs, labels = masses.train_inputs, masses.train_targets.float()


def regression(inputs, labels):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(30), 1.0).to_event(1))
    with pyro.plate("masses", len(inputs), subsample_size=64) as batch:
        logits = inputs[batch] @ slope
        pyro.sample("benign", dist.Bernoulli(logits=logits), obs=labels[batch])


def settings(num_samples):
    return dict(
        kernel=SGHMC(regression, step_size=0.02, friction=10.0),
        num_samples=num_samples,
        warmup_steps=200,
        thinning=5,
        num_chains=4,
        group_size=2,
        seed=0,
        progress=False,
    )


def sample(num_samples, checkpoint, chain_method="vectorized"):
    mcmc = MCMC(**settings(num_samples), checkpoint=checkpoint, chain_method=chain_method)
    return mcmc.run(inputs, labels)


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, num_samples, checkpoint = sys.argv[1:]
    if where == "processes":
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            sample(int(num_samples), checkpoint, pool)
    else:
        sample(int(num_samples), checkpoint)
"""
script = folder / "long_run.py"
script.write_text(SCRIPT)
long_run = runpy.run_path(str(script))

# First without a break, in this process: these are the draws to compare with.
whole = long_run["sample"](NUM_SAMPLES, folder / "whole").get_samples(group_by_chain=True)

# %% [markdown]
# ## Looking at a run as it goes
#
# Now the same script as a process of its own, with a pool of two. Its folder can be opened at any
# time, from anywhere, without the model: `Checkpoint` reads the draws, and `to_arviz` hands them to
# ArviZ. Chains report every few seconds, so the news is that old.


# %%
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


killed = folder / "killed"
process = start("processes", killed)
while process.poll() is None and num_draws(killed) == 0:
    time.sleep(0.1)
os.killpg(process.pid, signal.SIGSTOP)  # or so small a run would end while we look at it
running = to_arviz(killed)
print(f"{num_draws(killed)} draws so far, {dict(running['posterior'].sizes)}")
print(az.summary(running, kind="diagnostics").head(3).to_string())

# %% [markdown]
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
assert start("here", killed).wait() == 0
resumed = Checkpoint(killed).get_samples(group_by_chain=True)


def are_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Tell whether draws agree in every bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


print("killed and resumed, the draws are those of the whole run:", are_equal(resumed, whole))

# %% [markdown]
# ## A thousand chains on a cluster that loses a worker
#
# On a real cluster, scheduler and workers run already, and `Client("tcp://scheduler:8786")` is all
# that one needs. Here they are processes of this machine, which the page starts and kills by
# `tutorials/_processes.py`.
#
# The driver takes the executor of the client. Many short chains should travel in groups: 25 chains
# take each step together in one worker, and forty such groups are the tasks. First all of them in
# this process, for the draws to compare with.

# %%
NUM_CHAINS, GROUP_SIZE = page.length((1000, 25), smoke=(48, 4))


def sample_many(chain_method: ChainMethod = "vectorized") -> MCMC:
    """A thousand short chains in groups, with four draws each."""
    short = {"warmup_steps": page.length(100, smoke=10), "thinning": 10}
    short |= {"num_chains": NUM_CHAINS, "group_size": GROUP_SIZE}
    own = long_run["settings"](4) | short
    return MCMC(**own, chain_method=chain_method).run(inputs, labels)


inputs, labels = long_run["inputs"], long_run["labels"]
wall_start, cpu_start = time.monotonic(), time.process_time()
many = sample_many().get_samples(group_by_chain=True)
wall_here, cpu_here = time.monotonic() - wall_start, time.process_time() - cpu_start
print(f"{NUM_CHAINS} chains in this process: {wall_here:.1f} s, {cpu_here:.1f} CPU seconds")

# %% [markdown]
# Now on two workers. As soon as the first groups are back, one worker is killed and another one
# started. The scheduler gives the task that went down with it to another worker. The same is done
# to a thousand draws by `PosteriorBootstrap`, each of which fits a model to weighted data. It takes
# `executor=` where chains have `chain_method=`, and so does `sbc`.


# %%
def line(x: Tensor, y: Tensor) -> None:
    """Ten measurements and the progression of diabetes, for the bootstrap."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(10), 10.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("patients", len(x)):
        pyro.sample("y", dist.Normal(x @ slope, scale), obs=y)


def bootstrap(executor: Executor | None = None) -> PosteriorBootstrap:
    """A thousand draws, each a fit to weighted data, in batches of 25."""
    patients, number = load_diabetes(), page.length(1000, smoke=40)
    options: dict[str, Any] = {"batch_size": GROUP_SIZE, "seed": 0, "progress": False}
    posterior = PosteriorBootstrap(line, number, executor=executor, **options)
    return posterior.run(patients.train_inputs, patients.train_targets)


with Cluster(folder) as cluster:
    cluster.add(2)
    chains, fits = (
        cluster.disturbed(run, num_returned=page.length(20, smoke=10))
        for run in (sample_many, bootstrap)
    )
same = {
    "chains": are_equal(chains.result.get_samples(group_by_chain=True), many),
    "bootstrap": are_equal(fits.result.get_samples(), bootstrap().get_samples()),
}
rows = {
    name: {
        "tasks": found.executor.num_sent,
        "workers seen": len({task.worker for task in found.tasks}),
        "lost": found.num_lost,
        "equal": same[name],
    }
    for name, found in (("chains", chains), ("bootstrap", fits))
}
page.table(rows, number_format=".0f")

# %% [markdown]
# "Lost" are tasks that the scheduler had given to the worker when it died; they were run again.
# "Equal" says that every draw is, in every bit, what it is without a cluster. More tasks are sent
# than there are groups: a worker that has not got the model yet sends its first task back, and
# model and data follow.

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
# process, divided by the time on the workers and by their number. Workers beyond the number of
# cores cannot help, and other programs on the machine take their part, so CPU seconds are the
# better guide: those of the chains in this process, divided by all that this process, the scheduler
# and the workers took together.

# %%
usages = {}
with Cluster(folder) as cluster:
    for number in page.length((1, 2, 4), smoke=(1,)):
        cluster.renew(number)
        with cluster.measured() as usage:
            again = sample_many(cluster.executor()).get_samples(group_by_chain=True)
        usages[f"{number} workers"] = {
            "seconds": usage.seconds,
            "efficiency": wall_here / usage.seconds / number,
            "CPU efficiency": cpu_here / sum(usage.cpu_seconds.values()),
        }
print(f"{os.cpu_count()} cores")
page.table(usages, number_format=".2f")

# %% [markdown]
# A new worker first imports PyTorch and makes the model ready, which so short a run does not earn
# back. In a long run that happens once. With very many machines, those that fail are the least of
# it, since only what is under way is lost. What breaks first is the middle: the client, which
# gathers, and the scheduler.
#
# - Both spend time on each task. A long run of chains reports less often the more groups there are,
#   which keeps below their rate; otherwise make tasks longer, by `group_size` and `batch_size`.
# - Model and data go from the client to every worker. Let the model read large data from a disk
#   that all share.
# - Draws end with the client, and each report is a file of the checkpoint. Keep fewer draws of each
#   chain (`thinning`, `save_params`), or moments only, by `StreamingMCMC`.
# - When the client dies the run stops, and goes on from its checkpoint.
#
# What this page claims, checked:

# %%
assert are_equal(resumed, whole)
assert all(same.values()), same
assert are_equal(again, many)
if not page.smoke:
    assert 0 < draws_at_kill < 4 * NUM_SAMPLES, draws_at_kill
    assert len({task.worker for task in chains.tasks}) == 3 and chains.num_lost, chains.num_lost
scratch.cleanup()

# %% [markdown]
# ## To remember
#
# - Name a `checkpoint`, always. To resume, start the same program again; a changed one is refused.
# - `chain_method` of `MCMC`, and `executor` of `sbc` and `PosteriorBootstrap`, take any executor of
#   `concurrent.futures`, which changes no draw.
# - A worker that dies costs what it had under way. A thousand machines want long tasks.
# - `to_arviz(folder)` shows a run that is still going on.
# - `initial_params=folder` starts another run where one ended; a larger `num_samples` goes on.
