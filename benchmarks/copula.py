"""Time to fit a copula density and to resample from it, beside the loops one would write in NumPy.

The peer works on vectors: over observations in the fit, and over the points of a grid in predictive
resampling, which it does draw by draw. In the fit it takes one permutation after the other, as the
recursion is written down, and another peer takes all of them at once. In resampling it is timed on
some of the draws, and its time is that of all: the work of a draw is the same for each. All compute
in float64. Ours ends in the same densities at the same points, or in the mean and three quantiles
of each population, which the peer takes from its grid. Times are CPU seconds of one thread, but
where a case says otherwise.
"""

import math
import os
from collections.abc import Callable, Iterator
from copy import copy

import numpy as np
import numpy.typing as npt
import torch
from _common import OURS, Case, Options, cpu_seconds, in_turn, main, wall_seconds
from scipy.optimize import minimize
from scipy.special import expit, ndtr, ndtri

from pyro_ext.inference.martingale.copula_density import CopulaDensity
from pyro_ext.random import chain_keys

SIZES = {"n": 500, "draws": 1000, "timed": 10, "horizon": 5000, "points": 200}
TINY = {"n": 30, "draws": 4, "timed": 2, "horizon": 50, "points": 20}
PROBABILITIES = (0.1, 0.5, 0.9)
PEER, BATCHED = "NumPy, by hand", "NumPy, permutations at once"

Floats = npt.NDArray[np.float64]


def cases(options: Options) -> Iterator[Case]:
    """The fit, and resampling by what is asked of it."""
    sizes = TINY if options.smoke else SIZES
    generator = np.random.default_rng(0)
    groups = generator.integers(2, size=sizes["n"])
    data = np.where(groups, 1.5, -1.5) + generator.normal(size=sizes["n"]) * np.where(
        groups, 0.5, 1
    )
    standard = (data - data.mean()) / data.std()
    law = CopulaDensity().fit(torch.from_numpy(data))
    grid = np.linspace(-3.5, 3.5, sizes["points"])
    peer_law = NumpyCopula(standard, 10)
    peer_law.fit(peer_law.predict)
    yield measure(
        f"copula density, fit to {sizes['n']}",
        {
            OURS: lambda: CopulaDensity().fit(torch.from_numpy(data)),
            PEER: lambda: peer_law.fit(peer_law.predict_in_turn),
            BATCHED: lambda: peer_law.fit(peer_law.predict),
        },
        {},
        options.rounds,
        {
            OURS: {"bandwidth": float(law._bandwidths[0])},
            PEER: {"bandwidth": peer_law.bandwidth},
        },
    )
    peer_law.bandwidth = float(law._bandwidths[0])
    cdf, density = peer_law.law(grid)
    share = sizes["draws"] / sizes["timed"]
    points = torch.from_numpy(grid * data.std() + data.mean())[:, None]

    def ours(wanted: str) -> list[torch.Tensor]:
        done = []
        for first in range(0, sizes["draws"], 200):
            keys = chain_keys(0, range(first, min(first + 200, sizes["draws"])))
            state = law.begin((torch.from_numpy(data),), keys)
            population = law.population(law.advance(state, sizes["horizon"]))
            if wanted == "densities":
                done.append(population.log_prob(points))
            else:
                done += [population.mean]
                done += [population.icdf(torch.tensor(value)) for value in PROBABILITIES]
        return done

    def peer(wanted: str) -> None:
        for draw in range(sizes["timed"]):
            final = resample(cdf, density, peer_law, sizes["horizon"], draw)
            if wanted != "densities":
                np.trapezoid(grid * final[1], grid)
                np.interp(PROBABILITIES, final[0], grid)

    size = f"copula, {sizes['draws']:,} draws of {sizes['horizon']:,} steps"
    for wanted, name in (
        ("summaries", "mean and 3 quantiles"),
        ("densities", f"densities at {sizes['points']} points"),
    ):
        sides: dict[str, Callable[[], object]] = {
            OURS: lambda wanted=wanted: ours(wanted),
            PEER: lambda wanted=wanted: peer(wanted),
        }
        yield measure(f"{size}, {name}", sides, {PEER: share}, options.rounds)
        if options.full:
            # The peer is measured on one thread, which is all that it uses.
            num_threads = os.cpu_count() or 1
            torch.set_num_threads(num_threads)
            words = f"{size}, {name}, seconds by the clock on {num_threads} threads"
            yield measure(words, sides, {PEER: share}, options.rounds, clock=wall_seconds)
            torch.set_num_threads(1)


def measure(
    name: str,
    sides: dict[str, Callable[[], object]],
    scales: dict[str, float],
    rounds: int,
    quality: dict[str, dict[str, float]] | None = None,
    clock: Callable[[Callable[[], object]], float] = cpu_seconds,
) -> Case:
    """Measure each side in turn, after a call that compiles."""
    timed = {
        side: lambda side=side, call=call: clock(call) * scales.get(side, 1.0)
        for side, call in sides.items()
    }
    first_call = {OURS: timed[OURS]()}
    return Case(name, in_turn(timed, rounds), first_call, quality or {})


class NumpyCopula:
    """The copula recursion in NumPy, over all observations at once."""

    def __init__(self, standard: Floats, num_permutations: int) -> None:
        generator = np.random.default_rng(1)
        self.data = np.stack([generator.permutation(standard) for _ in range(num_permutations)])
        self.bandwidth = 0.9

    def fit(self, predict: Callable[[float], tuple[float, Floats]]) -> "NumpyCopula":
        """Maximize the prequential likelihood, with numerical derivatives."""
        found = minimize(
            lambda logit: -predict(float(expit(logit[0])))[0],
            np.array([math.log(9.0)]),
            method="SLSQP",
            bounds=[(-12.0, 6.0)],
            options={"ftol": 1e-7},
        )
        self.bandwidth = float(expit(found.x[0]))
        return self

    def predict(self, bandwidth: float) -> tuple[float, Floats]:
        """Mean log density of observations given those before, and what the law keeps of them."""
        cdf, density = ndtr(self.data), np.exp(-0.5 * self.data**2) / math.sqrt(2 * math.pi)
        n = self.data.shape[1]
        scores, total = np.empty_like(self.data), 0.0
        for i in range(n):
            total += np.log(density[:, i]).mean()
            scores[:, i] = score(cdf[:, i])
            rest = slice(i + 1, n)
            cdf[:, rest], density[:, rest] = step(
                cdf[:, rest], density[:, rest], scores[:, i, None], rate(i + 1), bandwidth
            )
        return total / n, scores

    def predict_in_turn(self, bandwidth: float) -> tuple[float, Floats]:
        """The same as ``predict``, one permutation after the other."""
        parts = []
        for data in self.data:
            one = copy(self)
            one.data = data[None]
            parts.append(one.predict(bandwidth))
        values, scores = zip(*parts, strict=True)
        return sum(values) / len(values), np.concatenate(scores)

    def law(self, grid: Floats) -> tuple[Floats, Floats]:
        """Distribution function and density at points, mean over permutations."""
        scores = self.predict(self.bandwidth)[1]
        shape = (len(self.data), len(grid))
        cdf = np.broadcast_to(ndtr(grid), shape)
        density = np.broadcast_to(np.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi), shape)
        for i in range(scores.shape[1]):
            cdf, density = step(cdf, density, scores[:, i, None], rate(i + 1), self.bandwidth)
        return cdf.mean(0), density.mean(0)


def resample(
    cdf: Floats, density: Floats, law: NumpyCopula, horizon: int, seed: int
) -> tuple[Floats, Floats]:
    """One draw: add observations, one after the other, to a law at the points of a grid."""
    scores = score(np.random.default_rng(seed).random(horizon))
    n = law.data.shape[1]
    for i in range(horizon):
        cdf, density = step(cdf, density, scores[i], rate(n + i + 1), law.bandwidth)
    return cdf, density


def score(probability: Floats) -> Floats:
    """Normal scores of clipped probabilities."""
    value: Floats = ndtri(np.minimum(np.maximum(probability, 1e-6), 1 - 1e-6))
    return value


def rate(i: int) -> float:
    """Rate of the update by an observation."""
    return (2 - 1 / i) / (i + 1)


def step(
    cdf: Floats, density: Floats, seen: Floats, a: float, bandwidth: float
) -> tuple[Floats, Floats]:
    """Take in one observation."""
    spread = math.sqrt(1 - bandwidth**2)
    z = score(cdf)
    w = (z - bandwidth * seen) / spread
    copula = np.exp(0.5 * (z * z - w * w)) * (a / spread)
    return (1 - a) * cdf + a * ndtr(w), density * (1 - a + copula)


if __name__ == "__main__":
    main(cases, "s", rounds=3, packages=("numpy", "scipy", "numba"))
