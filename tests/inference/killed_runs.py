"""Kills runs at random moments and starts them again, until one comes to its end.

Run as a script: it imports everything once and forks a process for each run, so that a run can be
killed in its first tenth of a second. Prints how often a run was killed, and how many draws it had.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from pyro.infer import NUTS

from pyro_ext.checkpoint import Checkpoint, CheckpointError
from pyro_ext.inference import MCMC, PSGLD, SGHMC, SGLD, SGNHT
from pyro_ext.inference.driver.dispatch import Pace

sys.path.insert(0, str(Path(__file__).parents[2]))  # when run as a script
from tests.inference.models import data, normal, subsampled_normal  # noqa: E402

NUM_CHAINS = 4
END = os.WEXITED | os.WNOHANG | os.WNOWAIT


KERNELS = {
    "SGLD": (lambda: SGLD(subsampled_normal, step_size=1e-3), 500, 3),
    "SGLD_with_control_variate": (
        lambda: SGLD(subsampled_normal, step_size=1e-3, control_variate="map"),
        500,
        3,
    ),
    "PSGLD": (lambda: PSGLD(subsampled_normal, step_size=1e-3), 500, 3),
    "SGHMC": (lambda: SGHMC(subsampled_normal, step_size=0.02, friction=5.0), 500, 3),
    "SGNHT": (lambda: SGNHT(subsampled_normal, step_size=0.01), 500, 3),
    "NUTS": (lambda: NUTS(normal), 25, 1),
}


def sample(name, checkpoint, executor=None):
    """The run; it is the same program each time."""
    make, num_samples, thinning = KERNELS[name]
    return MCMC(
        make(),
        num_samples,
        warmup_steps=20,
        num_chains=NUM_CHAINS if name != "NUTS" else 2,
        thinning=thinning,
        group_size=2 if executor and name != "NUTS" else None,
        chain_method=executor or "vectorized",
        checkpoint=checkpoint,
        seed=5,
        progress=False,
    ).run(data())


def child(name, checkpoint, method):
    os.setsid()
    torch.set_num_threads(1)
    Pace.shortest = 0.02
    if method == "vectorized":
        sample(name, checkpoint)
    else:
        with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as executor:
            sample(name, checkpoint, executor)


def num_draws(checkpoint):
    try:
        return sum(chain.num_draws for chain in Checkpoint(checkpoint).chains())
    except CheckpointError:
        return 0


def wait_for_work(checkpoint, process):
    """Wait until a run that has begun has written something new, and there are draws.

    On a busy machine the first draws come late, and kills before them would test little.
    """
    before = newest(checkpoint)
    for _ in range(6000):
        has_work = newest(checkpoint) > before and num_draws(checkpoint)
        if has_work or os.waitid(os.P_PID, process, END) is not None:
            return
        time.sleep(0.01)


def newest(checkpoint):
    return max((path.stat().st_mtime_ns for path in checkpoint.glob("*/*.safetensors")), default=0)


def main(name, checkpoint, method, num_kills, longest):
    """Fork, kill, and start again."""
    torch.set_num_threads(1)
    moments = random.Random(0)
    draws = []
    while True:
        process = os.fork()
        if process == 0:
            child(name, checkpoint, method)
            os._exit(0)
        if len(draws) < num_kills:
            # A quarter of the kills falls into the start, where little has been written.
            if len(draws) % 4:
                wait_for_work(checkpoint, process)
            time.sleep(moments.uniform(0.05, longest))
        else:
            os.waitpid(process, 0)
            break
        if os.waitid(os.P_PID, process, END) is not None:
            break
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        draws.append(num_draws(checkpoint))
    print(json.dumps({"draws_at_kills": draws}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
