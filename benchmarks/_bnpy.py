"""bnpy's variational mixture, which runs in an environment of its own, where there is one."""

import json
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _common import Array
from _mixture_peers import DOF_EXCESS, LOC_PRECISION, MASS, SCALE

__all__ = ["BnpyFit", "fit_bnpy"]

_PYTHON = Path(__file__).parent.parent / ".venv-bnpy" / "bin" / "python"
_WORKER = Path(__file__).parent / "_bnpy_worker.py"


class BnpyFit(NamedTuple):
    """A fit.

    :param float seconds: of CPU time, without imports and a first fit of two laps.
    :param Array labels: of each point, drawn by its responsibilities.
    :param Array log_density: of the new points.
    """

    seconds: float
    labels: Array
    log_density: Array


def fit_bnpy(points: Array, points_new: Array, seed: int, laps: int) -> BnpyFit:
    """Fit with births, merges and deletions of clusters, under our prior.

    :param Array points: the data.
    :param Array points_new: where the density is asked for, may be empty.
    :param int seed: of the start.
    :param int laps: most passes over the data.
    :raises ImportError: where ``make .venv-bnpy/.bench`` has not been run.
    """
    if not _PYTHON.exists():
        raise ImportError("bnpy has no environment; make .venv-bnpy/.bench", name="bnpy")
    problem = {
        "points": points.tolist(),
        "points_new": points_new.tolist(),
        "seed": seed,
        "laps": laps,
        "mass": MASS,
        "loc_precision": LOC_PRECISION,
        "dof_excess": DOF_EXCESS,
        "scale": SCALE,
    }
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(
        [str(_PYTHON), "-W", "ignore", str(_WORKER)],
        input=json.dumps(problem),
        capture_output=True,
        text=True,
        env=os.environ | threads,
    )
    if done.returncode:
        raise RuntimeError(f"bnpy failed:\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    return BnpyFit(result["seconds"], np.array(result["labels"]), np.array(result["log_density"]))
