"""CPU seconds to the same error: MAMS, MCLMC, ChEES, Pathfinder and tempering beside BlackJAX's.

Each sampler draws from the same density in double precision, by defaults of its library. Time times
the squared error hardly depends on how long a run is: it is given as CPU seconds to an error of a
hundredth, where errors are root mean squares over all means and mean squares of parameters, in
their standard deviations, and of tempering the error of the log evidence. Errors of Pathfinder and
MCLMC have a part that longer runs do not take away. Warm-up counts, compilation is in the first
call. Effective draws are the least over parameters, of ranks as ArviZ counts them.

The densities are a normal one with scales from 0.1 to 10 in 100 dimensions, a logistic regression
(breast cancer, 31 parameters) with a long run of NUTS as its reference, and for tempering one of
two modes whose evidence and shares are known. Each call of ours traces the model again, which takes
as long in short runs as in long ones; later calls of a peer are compiled code alone.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import _blackjax_samplers as peers
import arviz
import numpy as np
import torch
from _blackjax_samplers import Drawn
from _common import (
    OURS,
    Case,
    Options,
    available,
    cpu_seconds,
    first_call_seconds,
    in_turn,
    main,
)
from _sampler_densities import (
    Density,
    jax_tempered,
    logistic,
    normal,
    positions_of,
    tempering_errors,
    two_modes,
)

from pyro_ext.inference import MAMS, MCLMC, MCMC, ChEES
from pyro_ext.inference.smc import TemperedSMC
from pyro_ext.posterior import pathfinder

UNIT = 0.01
"""Error at which seconds are compared."""
NUM_CHAINS, MANY_CHAINS = 4, 32
NUM_RUNS = 5
"""Of tempering at once, by our default; the peer takes as many particles in one run."""


@dataclass(frozen=True)
class Sizes:
    """Lengths of the runs, the peers' such that both sides take about as many gradients.

    :param int samples: draws a chain of MAMS.
    :param int steps: of MCLMC; the peer's take two gradients each, and are half as many.
    :param int chees: draws a chain of ChEES.
    :param int runs: of tempering in a round.
    :param int particles: of a run of tempering.
    :param int reference: draws of a chain of the reference.
    """

    samples: int = 4000
    steps: int = 20_000
    chees: int = 500
    runs: int = 6
    particles: int = 1000
    reference: int = 10_000


SMOKE = Sizes(samples=20, steps=100, chees=10, runs=1, particles=100, reference=50)


class Runs:
    """Runs of a sampler and their errors.

    :param Callable run: takes a seed.
    :param Callable squared_errors: of what it gives, by name; the first is what counts.
    """

    def __init__(
        self, run: Callable[[int], Any], squared_errors: Callable[[Any], dict[str, float]]
    ) -> None:
        self._run, self._squared_errors = run, squared_errors
        self._errors: list[dict[str, float]] = []
        self._seconds: list[float] = []
        self.last: Any = None
        self.first_call = first_call_seconds(lambda: run(0))

    def __call__(self) -> float:
        """CPU seconds to an error of a hundredth, in one more run."""

        def run() -> None:
            self.last = self._run(1 + len(self._seconds))

        self._seconds.append(cpu_seconds(run))
        self._errors.append(self._squared_errors(self.last))
        return self._seconds[-1] * next(iter(self._errors[-1].values())) / UNIT**2

    def quality(self) -> dict[str, float]:
        """Root mean square errors over all rounds, and CPU seconds of a run."""
        names = self._errors[-1]
        errors = {name: math.sqrt(np.mean([each[name] for each in self._errors])) for name in names}
        return {**errors, "cpu_s": float(np.median(self._seconds))}


def moment_errors(density: Density, drawn: Drawn) -> dict[str, float]:
    """Mean squares of errors of means and of mean squares, in standard deviations."""
    flat = drawn[0].reshape(-1, density.size)
    errors = (np.stack([flat.mean(0), (flat**2).mean(0)]) - density.expected) / density.spread
    squares = errors**2
    means, mean_squares = squares.mean(-1)
    return {"error": squares.mean(), "error_of_means": means, "error_of_squares": mean_squares}


def worth(drawn: Drawn, seconds: float) -> dict[str, float]:
    """Effective draws of the worst coordinate, and what they cost."""
    positions, gradients = drawn
    columns = [np.ascontiguousarray(column) for column in np.moveaxis(positions, -1, 0)]
    effective = min(float(arviz.ess(column)) for column in columns)
    found = {"effective_draws": effective, "effective_draws_per_s": effective / seconds}
    return found | ({"gradients": float(gradients)} if gradients else {})


# Ours ---------------------------------------------------------------------------------------------


def chains(
    density: Density, kind: type[Any], num_samples: int, num_chains: int, thinning: int
) -> Callable[[int], Drawn]:
    """Chains of one of our kernels, by its defaults."""
    leapfrogs = 0

    class Counted(kind):
        """The kernel, which says how many gradients its trajectories took."""

        def _record(self, chains: Any, targets: Any) -> Any:
            nonlocal leapfrogs
            after, draws = super()._record(chains, targets)
            state = getattr(after.state, "chains", after.state)
            counts = getattr(state, "num_leapfrogs", None)
            leapfrogs = after.step * num_chains if counts is None else int(counts.sum())
            return after, draws

    def run(seed: int) -> Drawn:
        mcmc = MCMC(
            Counted(density.model),
            num_samples,
            num_chains=num_chains,
            thinning=thinning,
            seed=seed,
            progress=False,
        )
        mcmc.run(*density.arguments)
        return positions_of(mcmc.get_samples(group_by_chain=True)), leapfrogs

    return run


def paths(density: Density, seed: int) -> Drawn:
    """Draws of our Pathfinder."""
    posterior = pathfinder(density.model, *density.arguments, seed=seed)
    return positions_of({k: v[None] for k, v in posterior.get_samples().items()}), 0


def tempered(num_particles: int, seed: int) -> tuple[float, float]:
    """Log evidence and share of the mode whose coordinates are positive."""
    smc = TemperedSMC(two_modes, num_particles, seed=seed, progress=False).run()
    is_first = smc.get_samples()["x"].sum(-1) > 0
    return smc.log_evidence, float(is_first.double().mean())


# The comparison -----------------------------------------------------------------------------------


def samplers(density: Density, sizes: Sizes) -> dict[str, dict[str, Callable[[], Any]]]:
    """By sampler and side, functions that make one that takes a seed."""
    mine, log_density, size = partial(chains, density), density.log_density, density.size
    four, many = NUM_CHAINS, MANY_CHAINS
    thinning = max(1, sizes.steps // 2000)
    return {
        "MAMS": {
            OURS: lambda: mine(MAMS, sizes.samples, four, 1),
            "BlackJAX": lambda: peers.adjusted(log_density, size, four, sizes.samples),
        },
        "MCLMC": {
            OURS: lambda: mine(MCLMC, sizes.steps // thinning, four, thinning),
            "BlackJAX": lambda: peers.unadjusted(log_density, size, four, sizes.steps // 2),
        },
        "ChEES": {
            OURS: lambda: mine(ChEES, sizes.chees, many, 1),
            "BlackJAX": lambda: peers.chees(log_density, size, many, sizes.chees, None),
            "BlackJAX, diagonal": lambda: peers.chees(
                log_density, size, many, sizes.chees, "diagonal"
            ),
        },
        "Pathfinder": {
            OURS: lambda: partial(paths, density),
            "BlackJAX": lambda: peers.pathfinder(log_density, size, 1000),
        },
    }


def compared(
    name: str,
    makers: Mapping[str, Callable[[], Callable[[int], Any]]],
    squared_errors: Callable[[Any], dict[str, float]],
    rounds: int,
) -> tuple[Case, dict[str, Runs]]:
    """Measure all sides in turn."""
    runs, missing = available(
        {side: lambda make=make: Runs(make(), squared_errors) for side, make in makers.items()}
    )
    timings = in_turn(runs, rounds, missing)
    first_call = {side: each.first_call for side, each in runs.items()}
    quality = {side: runs[side].quality() for side in timings.rounds}
    return Case(name, timings, first_call, quality), runs


def cases(options: Options) -> Iterator[Case]:
    """Each sampler on each density."""
    os.environ["JAX_ENABLE_X64"] = "1"
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore")  # that draws are biased, or Pathfinder's are for starts alone
    sizes = SMOKE if options.smoke else Sizes()
    for density in (normal(), logistic(sizes.reference)):
        if find_spec("jax"):
            density.check()
        for name, makers in samplers(density, sizes).items():
            title = f"{name}, {density.name}"
            case, runs = compared(title, makers, partial(moment_errors, density), options.rounds)
            quality = {
                side: {**found, **worth(runs[side].last, found["cpu_s"])}
                for side, found in case.quality.items()
            }
            yield replace(case, quality=quality)

    def repeated(run: Callable[[int], Any], seed: int) -> list[Any]:
        return [run(seed * sizes.runs + number) for number in range(sizes.runs)]

    makers = {
        OURS: lambda: partial(repeated, partial(tempered, sizes.particles)),
        "BlackJAX": lambda: partial(repeated, jax_tempered(NUM_RUNS * sizes.particles)),
    }
    yield compared("TemperedSMC, two modes", makers, tempering_errors, options.rounds)[0]


if __name__ == "__main__":
    packages = ("jax", "blackjax", "arviz")
    main(cases, f"s to an error of {UNIT}", rounds=4, packages=packages)
