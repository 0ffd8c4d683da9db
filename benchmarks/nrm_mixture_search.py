"""Mixtures with any number of clusters: time until a good partition is found.

Points in two dimensions around 50 centers, a Dirichlet process mixture of Gaussians. Our kernels
start with the clusters of ``init="ibhc"``, and in the smallest case once more out of one cluster,
and run for a number of CPU seconds; the variational mixtures of scikit-learn (truncated at 100
components), bnpy and Pyro (likewise, the smallest case only) run to their end. All are judged by
one number: the log joint density of partition and data under the same prior. A variational mixture
draws the cluster of each point by its responsibilities: the most likely ones would be the partition
of an optimizer, which no sampler should reach.

The median is the CPU seconds until one of ours is within 10 nats of the best log joint that ours
found, or the seconds that it ran where it never is, and of a peer the seconds that it took. Quality
is how far below that best the best of its own was; and the seconds in which our tree-guided kernel
had found something as good.
One thread. bnpy runs where ``make .venv-bnpy/.bench`` was. Prints one line of JSON.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from _bnpy import fit_bnpy, has_bnpy
from _common import OURS, Array, Case, Timings, arguments, cpu_seconds, report, single_thread
from _mixture_peers import (
    DOF_EXCESS,
    LOC_PRECISION,
    MASS,
    SCALE,
    StickBreaking,
    variational_mixture,
)
from torch import Tensor

from pyro_ext.distributions import GaussianCluster
from pyro_ext.inference.partitions import ConjugateKernel, MarginalGibbs, SplitMerge, TreeGuided
from pyro_ext.models.nonparametric import NRMMixture
from pyro_ext.random_measures import DirichletProcess

NUM_CENTERS, NUM_COMPONENTS = 50, 100
SECONDS = {1_000: 20.0, 10_000: 40.0, 100_000: 90.0}  # of each of our kernels
CLOSE = 10.0  # nats
MOST_FOR_PYRO = 1_000
LAW = DirichletProcess(torch.tensor(MASS, dtype=torch.float64))


class Trace(NamedTuple):
    """What a side went through.

    :param Array seconds: CPU time after each of its steps; one where only the end is known.
    :param Array log_joint: log joint density after each.
    """

    seconds: Array
    log_joint: Array

    def until(self, level: float) -> float:
        """Seconds until a log joint density was reached, infinity where it never was."""
        reached = np.flatnonzero(self.log_joint >= level)
        return float(self.seconds[reached[0]]) if reached.size else np.inf


def points_around_centers(number: int, seed: int) -> Tensor:
    """Points whose clusters have about the size that the prior expects."""
    generator = torch.Generator().manual_seed(seed)
    centers = 10.0 * torch.randn(NUM_CENTERS, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(NUM_CENTERS, (number,), generator=generator)
    noise = torch.randn(number, 2, generator=generator, dtype=torch.float64)
    return centers[labels] + 0.5 * noise


def drawn_labels(responsibilities: Array, seed: int) -> Array:
    """A cluster for each point, drawn by its responsibilities."""
    levels = np.random.default_rng(seed).random(len(responsibilities))[:, None]
    sums = responsibilities.cumsum(1)
    labels: Array = (sums < levels * sums[:, -1:]).sum(1)
    return labels


def walk(kernel: ConjugateKernel, x: Tensor, seconds: float, seed: int) -> Trace:
    """A chain until its time is up, the search for its start included."""
    torch.manual_seed(seed)
    kernel.setup(0, x[:200])
    kernel.sample(kernel.initial_params)  # compiles
    kernel.initial_params = None
    started = time.process_time()
    kernel.setup(0, x)
    state, rows = kernel.initial_params, []
    while not rows or rows[-1][0] < seconds:
        state = kernel.sample(state)
        rows.append((time.process_time() - started, kernel.statistics()["lp"]))
    return Trace(*np.array(rows).T)


def search_case(number: int, rounds: int, seconds: float, *, smoke: bool) -> Case:
    """All sides on points of one size."""
    size = 2
    eye = torch.eye(size, dtype=torch.float64)
    cluster = GaussianCluster(
        torch.zeros(size).double(), LOC_PRECISION, size + DOF_EXCESS, SCALE * eye
    )
    mixture = NRMMixture(LAW, cluster)

    def once(seconds: float, labels: Array, x: Tensor) -> Trace:
        log_joint = mixture.log_joint(x, torch.from_numpy(labels).long())
        return Trace(np.array([seconds]), np.array([float(log_joint)]))

    def by_scikit_learn(x: Tensor, seed: int) -> Trace:
        fits = []
        spent = cpu_seconds(
            lambda: fits.append(
                variational_mixture(x.numpy(), seed, 20 if smoke else 500, NUM_COMPONENTS)
            )
        )
        return once(spent, drawn_labels(fits[0].predict_proba(x.numpy()), seed), x)

    def by_pyro(x: Tensor, seed: int) -> Trace:
        fits: list[StickBreaking] = []
        steps = 5 if smoke else 1_500
        spent = cpu_seconds(
            lambda: fits.append(StickBreaking(x.float(), seed, steps, NUM_COMPONENTS))
        )
        return once(spent, drawn_labels(fits[0].responsibilities(x.float()).numpy(), seed), x)

    def by_bnpy(x: Tensor, seed: int) -> Trace:
        # The largest case takes bnpy about as long for each lap as ours have for all.
        laps = 5 if smoke else 300 if number < max(SECONDS) else 30
        fit = fit_bnpy(x.numpy(), np.empty((0, size)), seed, laps)
        return once(fit.seconds, fit.labels, x)

    def ours(make: Callable[..., ConjugateKernel], init: str) -> Callable[[Tensor, int], Trace]:
        return lambda x, seed: walk(make(LAW, cluster, init=init), x, seconds, seed)

    sides = {
        OURS: ours(TreeGuided, "ibhc"),
        "our Gibbs": ours(MarginalGibbs, "ibhc"),
        "our split-merge": ours(SplitMerge, "ibhc"),
    }
    if number == min(SECONDS):
        sides |= {
            "our tree-guided out of one": ours(TreeGuided, "one"),
            "our Gibbs out of one": ours(MarginalGibbs, "one"),
            "our split-merge out of one": ours(SplitMerge, "one"),
        }
    kernels = set(sides)
    sides["scikit-learn"] = by_scikit_learn
    if number <= MOST_FOR_PYRO:
        sides["pyro SVI"] = by_pyro
    if has_bnpy():
        sides["bnpy"] = by_bnpy

    times: dict[str, list[float]] = {side: [] for side in sides}
    below: dict[str, list[float]] = {side: [] for side in sides}
    as_good: dict[str, list[float]] = {side: [] for side in sides}
    for seed in range(rounds):
        x = points_around_centers(number, seed)
        traces = {side: find(x, seed) for side, find in sides.items()}
        best = max(float(traces[side].log_joint.max()) for side in kernels)
        for side, trace in traces.items():
            reached = trace.until(best - CLOSE) if side in kernels else np.inf
            times[side].append(reached if np.isfinite(reached) else float(trace.seconds[-1]))
            below[side].append(best - float(trace.log_joint.max()))
            as_good[side].append(traces[OURS].until(float(trace.log_joint.max())))
    quality = {}
    for side in sides:
        quality[side] = {
            "nats below the best": float(np.median(below[side])),
        }
        if side in kernels:
            quality[side]["rounds that come close"] = float(np.sum(np.array(below[side]) <= CLOSE))
        if side != OURS and np.isfinite(seconds_of_ours := float(np.median(as_good[side]))):
            quality[side]["tree-guided as good after s"] = seconds_of_ours
    return Case(f"{number:,} points around {NUM_CENTERS} centers", Timings(times), quality=quality)


def main() -> None:
    """Search in turn and print."""
    options = arguments(__doc__, rounds=3)
    single_thread()
    cases = [
        search_case(number, options.rounds, 0.5 if options.smoke else seconds, smoke=options.smoke)
        for number, seconds in SECONDS.items()
        if not options.smoke or number == min(SECONDS)
    ]
    report("nrm_mixture_search", "CPU s", cases, ("scikit-learn", "numba", "numpy"))


if __name__ == "__main__":
    main()
