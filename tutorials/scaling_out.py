"""A long run: killed and resumed, on processes and a cluster, watched, continued, and not kept."""

# %% [markdown]
# # Scaling out
#
# A run that takes days will be interrupted: by a machine that reboots, a queue that takes its node
# back, or you, who want to know how it is doing. This page runs one, small enough to take seconds,
# and does all of that to it. It runs in a pool of processes, is looked at as it goes, is killed,
# and goes on somewhere else; it runs on a cluster that loses a worker; another run starts where it
# ended. The draws are the same, bit for bit.
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
from pathlib import Path
from threading import Thread

import arviz as az
import matplotlib.pyplot as plt
import torch
from dask.distributed import Client
from torch import Tensor

from pyro_ext.checkpoint import Checkpoint, CheckpointError
from pyro_ext.diagnostics import metrics, to_arviz
from pyro_ext.inference import MCMC, SGHMC, StreamingMCMC
from pyro_ext.reproduction import Page

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
# ## A cluster that loses a worker
#
# On a cluster a scheduler and workers run already, started by whoever runs the cluster. Here we
# start them ourselves, as commands, and connect. The executor of the client is all that the driver
# needs. Model and data travel to each worker once; the state of a group of chains goes back and
# forth as plain data, and the driver writes the checkpoint, so there is no common disk.
#
# Once the first draws are there, one of the two workers is killed.


# %%
def launch(command: str, *options: str) -> subprocess.Popen[bytes]:
    """Start a part of the cluster."""
    module = f"distributed.cli.dask_{command}"
    arguments = ["--scheduler-file", str(folder / "scheduler.json"), "--no-dashboard", *options]
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stderr=subprocess.DEVNULL, cwd=folder
    )


def kill_when_begun(worker: subprocess.Popen[bytes], checkpoint: Path) -> None:
    """Kill a worker as soon as draws have come back."""
    while not num_draws(checkpoint):
        time.sleep(0.1)
    worker.kill()


on_cluster = folder / "on_cluster"
scheduler = launch("scheduler", "--port", "0")
workers = [launch("worker", "--nthreads", "1", "--no-nanny") for _ in range(2)]
try:
    with Client(scheduler_file=str(folder / "scheduler.json"), timeout=60) as client:
        client.wait_for_workers(2, timeout=120)
        killer = Thread(target=kill_when_begun, args=(workers[0], on_cluster), daemon=True)
        killer.start()
        mcmc = long_run["sample"](NUM_SAMPLES, on_cluster, client.get_executor())
        killer.join()
        workers[0].wait()
        survivors = len(client.scheduler_info()["workers"])
finally:
    for process in (*workers, scheduler):
        process.kill()
        process.wait()
from_cluster = mcmc.get_samples(group_by_chain=True)
print(f"workers left: {survivors} of 2")
print("the draws are those of the whole run:", are_equal(from_cluster, whole))

# %% [markdown]
# A worker that dies costs the seconds since its chains last reported: the driver still has their
# state from then, and another worker takes it. A pool of processes of the standard library is less
# forgiving: when one of its processes is killed, the whole pool is broken and the run ends with an
# error. With a checkpoint that is no loss either, as seen above.
#
# ## Starting where another run ended
#
# The folder is worth something to other runs as well: `initial_params` takes it. Here a run with
# half the step size starts from the last draws of the one above, without any warm-up, next to one
# that starts from the prior.

# %%
inputs, labels = long_run["inputs"], long_run["labels"]
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
assert are_equal(from_cluster, whole)
assert survivors == 1, survivors
assert "thinning" in refusal, refusal
assert max(errors) < 1e-4, errors
assert warm[:10].mean() < 0.5 * cold[:10].mean(), (cold, warm)
if not page.smoke:
    assert 0 < draws_at_kill < 4 * NUM_SAMPLES, draws_at_kill
    assert moments < kept / 100, (moments, kept)
scratch.cleanup()

# %% [markdown]
# ## To remember
#
# - Name a `checkpoint`, always. To resume, start the same program again.
# - `chain_method` takes any executor of `concurrent.futures`; `group_size` says how many chains
#   travel together. Neither changes a draw.
# - `to_arviz(folder)` shows a run that is still going on.
# - `initial_params=folder` starts another run where one ended; `num_samples` larger than before
#   makes the same one longer.
