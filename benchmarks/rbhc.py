"""Time of relaxed Bayesian hierarchical clustering of Gaussians, beside Ward linkage in SciPy.

Both make the same tree. SciPy's holds all distances in memory, ours computes them as it needs them;
so the largest case is ours alone. Times are CPU seconds of one thread.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from _common import OURS, Case, Options, cpu_seconds, in_turn, main
from scipy.cluster.hierarchy import linkage

from pyro_ext.inference.partitions import rbhc

SIZES = {"both": (5_000, (2, 10)), "ours": (20_000, (2,))}
TINY = {"both": (200, (2, 10)), "ours": (300, (2,))}


def cases(options: Options) -> Iterator[Case]:
    """Each number of points in each dimension."""
    generator = np.random.default_rng(0)
    for which, (number, dimensions) in (TINY if options.smoke else SIZES).items():
        if which == "ours" and not (options.full or options.smoke):
            continue
        for dimension in dimensions:
            points = torch.from_numpy(generator.normal(size=(number, dimension)))
            sides: dict[str, Callable[[], object]] = {OURS: lambda x=points: rbhc(x)}
            if which == "both":
                sides["SciPy, Ward linkage"] = lambda x=points: linkage(x.numpy(), "ward")
            name = f"RBHC tree of {number:,} points in {dimension}-D"
            yield measure(name, sides, options.rounds)


def measure(name: str, sides: dict[str, Callable[[], object]], rounds: int) -> Case:
    """Measure each side in turn, after a call that compiles."""
    first_call = {side: cpu_seconds(call) for side, call in sides.items()}
    timed = {side: lambda call=call: cpu_seconds(call) for side, call in sides.items()}
    return Case(name, in_turn(timed, rounds), first_call)


if __name__ == "__main__":
    main(cases, "s", rounds=3, packages=("scipy", "numba"))
