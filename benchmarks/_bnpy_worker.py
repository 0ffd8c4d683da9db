"""Fits bnpy's mixture in an environment of its own: points come in as JSON, the fit goes out.

bnpy needs Python functions and names of NumPy that no longer exist; they are put back first.
"""

import contextlib
import inspect
import io
import json
import sys
import tempfile
import time
from collections import namedtuple

import numpy as np
import scipy.stats

_Arguments = namedtuple("_Arguments", "args varargs keywords defaults")


def _getargspec(function):
    found = inspect.getfullargspec(function)
    return _Arguments(found.args, found.varargs, found.varkw, found.defaults)


inspect.getargspec = _getargspec
for _kind in (float, int, bool, object):
    if _kind.__name__ not in vars(np):
        setattr(np, _kind.__name__, _kind)


def main():
    """Read a problem, fit it once unmeasured and once measured, and print what was found."""
    import bnpy

    problem = json.load(sys.stdin)
    points, size = np.array(problem["points"]), len(problem["points"][0])
    data = bnpy.data.XData(points)

    def fit(seed, most_laps):
        with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
            model, _ = bnpy.run(
                data,
                "DPMixtureModel",
                "Gauss",
                "memoVB",
                output_path=folder,
                nLap=most_laps,
                nTask=1,
                nBatch=1,
                K=10,
                gamma0=problem["mass"],
                nu=int(size + problem["dof_excess"]),
                kappa=problem["loc_precision"],
                sF=problem["scale"] / (problem["dof_excess"] - 1.0),
                ECovMat="eye",
                initname="randexamples",
                moves="birth,merge,delete,shuffle",
                printEvery=10**6,
                b_startLap=1,
                m_startLap=2,
                d_startLap=2,
                taskid=seed + 1,
            )
        return model

    fit(problem["seed"], 2)
    start = time.process_time()
    model = fit(problem["seed"], problem["laps"])
    seconds = time.process_time() - start
    sums = model.calc_local_params(data)["resp"].cumsum(1)
    levels = np.random.RandomState(problem["seed"]).random_sample(len(sums))[:, None]
    labels = (sums < levels * sums[:, -1:]).sum(1)
    result = {"seconds": seconds, "labels": labels.tolist(), "log_density": []}
    if problem["points_new"]:
        result["log_density"] = _log_density(model, np.array(problem["points_new"])).tolist()
    print(json.dumps(result))


def _log_density(model, points):
    """Log density of new points: Student-t laws of the clusters, by their weights."""
    weights, posterior = model.allocModel.get_active_comp_probs(), model.obsModel.Post
    size, parts = points.shape[1], []
    for k in range(model.obsModel.K):
        nu, kappa = float(posterior.nu[k]), float(posterior.kappa[k])
        degrees = nu - size + 1.0
        scale = np.asarray(posterior.B[k]) * (kappa + 1.0) / (kappa * degrees)
        law = scipy.stats.multivariate_t(np.asarray(posterior.m[k]), scale, df=degrees)
        parts.append(np.log(weights[k]) + law.logpdf(points).reshape(-1))
    return np.logaddexp.reduce(np.array(parts), 0)


if __name__ == "__main__":
    main()
