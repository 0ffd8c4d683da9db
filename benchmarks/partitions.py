"""Time to sample a random partition of a million, and to evaluate the probability of one.

Beside the Pitman-Yor urn is a Numba one that adds up the weights of all clusters for each sample.
The EPPF of a Pitman-Yor process is beside a loop over clusters in Python; those of normalized
measures are integrals. Times are CPU seconds of one thread.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from _common import OURS, Array, Case, Options, cpu_seconds, in_turn, main
from _stable_baselines import plain_urn

from pyro_ext.random_measures import (
    BetaPrimeProcess,
    GeneralizedBFRYProcess,
    GeneralizedGammaProcess,
    PitmanYor,
)

NUM_SAMPLES, NUM_COUNTED = 1_000_000, 100_000
DISCOUNT, CONCENTRATION = 0.5, 10.0


def laws() -> dict[str, object]:
    """Laws of partitions, all with the same index of small weights."""
    mass, discount = torch.tensor(10.0, dtype=torch.float64), DISCOUNT
    return {
        "Pitman-Yor": PitmanYor(discount, torch.tensor(CONCENTRATION, dtype=torch.float64)),
        "normalized generalized gamma": GeneralizedGammaProcess(mass, discount, 1.0).normalize(),
        "normalized generalized BFRY": GeneralizedBFRYProcess(mass, discount, 1.5).normalize(),
        "normalized beta prime": BetaPrimeProcess(mass, discount, 1.5).normalize(),
    }


def loop_over_clusters(counts: Array) -> float:
    """EPPF of the Pitman-Yor process, cluster by cluster."""
    value = math.lgamma(CONCENTRATION + 1.0) - math.lgamma(CONCENTRATION + counts.sum())
    for index, count in enumerate(counts):
        if index:
            value += math.log(CONCENTRATION + index * DISCOUNT)
        value += math.lgamma(count - DISCOUNT) - math.lgamma(1.0 - DISCOUNT)
    return value


def cases(options: Options) -> Iterator[Case]:
    """A partition and the density of one, of each law; the table has that with peers."""
    torch.manual_seed(0)
    number = 1_000 if options.smoke else NUM_SAMPLES
    counted = 500 if options.smoke else NUM_COUNTED
    labels = np.empty(number, np.int64)
    for name, law in laws().items():
        if not (isinstance(law, PitmanYor) or options.full or options.smoke):
            continue
        sample = law.partition(number)  # type: ignore[attr-defined]
        sides: dict[str, Callable[[], object]] = {OURS: sample.sample}
        if isinstance(law, PitmanYor):
            sides["Numba, urn by hand"] = lambda: plain_urn(DISCOUNT, CONCENTRATION, labels, 0)
        yield measure(f"{name}, partition of {number:,}", sides, options.rounds)
        counts = law.partition(counted).sample().bincount()  # type: ignore[attr-defined]
        sides = {OURS: lambda law=law, counts=counts: law.log_eppf(counts)}
        if isinstance(law, PitmanYor):
            values = counts.numpy()
            sides["Python, loop by hand"] = lambda values=values: loop_over_clusters(values)
        yield measure(f"{name}, EPPF of {counted:,}", sides, options.rounds)


def measure(name: str, sides: dict[str, Callable[[], object]], rounds: int) -> Case:
    """Measure each side in turn, after a call that compiles."""
    first_call = {side: cpu_seconds(call) for side, call in sides.items()}
    timed = {side: lambda call=call: cpu_seconds(call) for side, call in sides.items()}
    return Case(name, in_turn(timed, rounds), first_call)


if __name__ == "__main__":
    main(cases, "s", rounds=3, packages=("numpy", "numba"))
