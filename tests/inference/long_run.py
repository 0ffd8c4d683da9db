"""A long run of compiled SGHMC with a checkpoint, whose memory must not grow with its draws.

``python long_run.py FOLDER NUM_DRAWS THINNING MINUTES`` makes draws of 16 chains, at most for so
many minutes, and prints one line of JSON: the largest resident memory of the first minute and of
the rest.
"""

import _thread
import json
import sys
import time
from threading import Event, Thread

import psutil
import pyro
import pyro.distributions as dist
import torch

from pyro_ext import datasets
from pyro_ext.inference import MCMC, SGHMC

NUM_CHAINS = 16
SECONDS_BETWEEN = 0.5


def model(x, y):
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(30), 1.0).to_event(1))
    with pyro.plate("patients", len(x), subsample_size=32) as batch:
        pyro.sample("y", dist.Bernoulli(logits=x[batch] @ weight), obs=y[batch])


def watch(sizes, ended, deadline):
    process = psutil.Process()
    while not ended.wait(SECONDS_BETWEEN):
        sizes.append((time.monotonic(), process.memory_info().rss / 2**20))
        if time.monotonic() > deadline:
            _thread.interrupt_main()
            return


def run(folder, num_draws, thinning, minutes):
    torch.set_num_threads(1)
    data = datasets.load_breast_cancer()
    kernel = SGHMC(model, step_size=0.02, friction=5.0, backend="compile")
    settings = {"num_chains": NUM_CHAINS, "thinning": thinning, "seed": 0, "progress": False}
    arguments = data.train_inputs, data.train_targets.float()
    # What compiles in a first call stays in memory, and is no part of the first minute.
    MCMC(kernel, num_samples=2, **settings).run(*arguments)
    sizes, ended, start = [], Event(), time.monotonic()
    watcher = Thread(target=watch, args=(sizes, ended, start + 60.0 * minutes), daemon=True)
    watcher.start()
    mcmc = MCMC(kernel, num_samples=num_draws // NUM_CHAINS, checkpoint=folder, **settings)
    mcmc.run(*arguments)
    ended.set()
    watcher.join()
    first = max(size for when, size in sizes if when - start < 60.0)
    rest = max((size for when, size in sizes if when - start >= 60.0), default=first)
    return {
        "seconds": round(time.monotonic() - start),
        "draws": mcmc.num_draws * NUM_CHAINS,
        "first_minute_mib": round(first, 1),
        "rest_mib": round(rest, 1),
        "ratio": round(rest / first, 4),
    }


if __name__ == "__main__":
    result = run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
    print(json.dumps(result))
