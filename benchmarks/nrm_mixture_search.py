"""Mixtures with any number of clusters: time until a partition is as good as a peer's.

Points in two dimensions around 50 centers, a Dirichlet process mixture of Gaussians. Variational
mixtures of scikit-learn (truncated at 100 components), bnpy and Pyro (likewise, the smallest case
only) run to their end. Our tree-guided kernel starts with the clusters of ``init="ibhc"`` and runs
for a number of CPU seconds. All are judged by one number: the log joint density of partition and
data under the same prior. A variational mixture draws the cluster of each point by its
responsibilities: the most likely ones would be the partition of an optimizer, which no sampler
should reach.

Each peer is beside the seconds after which ours had found a partition as good as that peer's last,
the search for the start included; quality is how far each ended below the best. With ``--full``
there are more points, and our other kernels beside the tree-guided one by the time until each is
within 10 nats of the best. One thread. bnpy runs where ``make .venv-bnpy/.bench`` was.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from _bnpy import fit_bnpy
from _common import OURS, Array, Case, Options, Timings, available, cpu_seconds, main
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
    """Trace of a search.

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


def search_cases(number: int, seconds: float, options: Options) -> Iterator[Case]:
    """Ours beside each peer on points of one size."""
    smoke = options.smoke
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

    kernels = {OURS: ours(TreeGuided, "ibhc")}
    if options.full:
        starts = ("ibhc", "one") if number == min(SECONDS) else ("ibhc",)
        for name, kernel in (("Gibbs", MarginalGibbs), ("split-merge", SplitMerge)):
            kernels |= {f"{OURS}, {name} from {init}": ours(kernel, init) for init in starts}
    peers = {"scikit-learn, variational": by_scikit_learn, "bnpy, variational": by_bnpy}
    if number <= MOST_FOR_PYRO:
        peers["Pyro, SVI"] = by_pyro

    found: dict[str, list[Trace]] = {side: [] for side in (*kernels, *peers)}
    missing: dict[str, str] = {}
    for seed in range(options.rounds):
        x = points_around_centers(number, seed)
        traces, reasons = available(
            {
                side: partial(find, x, seed)
                for side, find in (kernels | peers).items()
                if side not in missing
            }
        )
        missing |= reasons
        for side, trace in traces.items():
            found[side].append(trace)
    ends = {
        side: np.array([trace.log_joint.max() for trace in traces])
        for side, traces in found.items()
        if side not in missing
    }
    best = np.max([ends[side] for side in kernels], 0)
    quality = {
        side: {"nats below our best": float(np.median(best - end))} for side, end in ends.items()
    }

    def until(side: str, levels: Array) -> list[float]:
        pairs = zip(found[side], levels, strict=True)
        return [trace.until(float(level)) for trace, level in pairs]

    words = f"mixture of {number:,} points"
    for peer in peers:
        name = f"{words}, until as good as {peer.partition(',')[0]}"
        if peer in missing:
            yield Case(name, Timings({}, {peer: missing[peer]}))
            continue
        times = {OURS: until(OURS, ends[peer]), peer: [float(t.seconds[-1]) for t in found[peer]]}
        if np.isinf(times[OURS]).any():
            took = np.median(times[peer])
            why = f"took {took:.3g} s and ended better than ours in {seconds:g} s"
            yield Case(name, Timings({}, {peer: why}), quality=quality)
            continue
        yield Case(name, Timings(times), quality={side: quality[side] for side in times})
    if options.full:
        near = {side: np.minimum(until(side, best - CLOSE), seconds).tolist() for side in kernels}
        own = {side: quality[side] for side in kernels}
        yield Case(f"{words}, until near the best", Timings(near), quality=own)


def cases(options: Options) -> Iterator[Case]:
    """Each number of points."""
    for number, seconds in SECONDS.items():
        if options.full or number == min(SECONDS):
            yield from search_cases(number, 0.5 if options.smoke else seconds, options)


if __name__ == "__main__":
    main(cases, "s", rounds=3, packages=("scikit-learn", "numba", "numpy"))
