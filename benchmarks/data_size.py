"""Time of a step as the data grows from a thousand rows to a million: it should not.

SGLD on a synthetic logistic regression with 30 features and minibatches of 32, compiled, one chain.
A round is one epoch or 8,192 steps, whichever is more, so that the shuffle of the data counts.
Quality is the ratio of the median to that of the fewest rows.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from _common import OURS, Case, Chains, Options, Timings, main, step_times
from _problems import BATCH_SIZE, OurChains, logistic_regression, synthetic_regression

from pyro_ext.inference import SGLD

NUM_FEATURES = 30
SIZES = (1_000, 10_000, 100_000, 1_000_000)
MIN_STEPS = 8192


def chains(num_rows: int) -> Chains:
    """One chain on so many rows."""
    params = {"weight": np.zeros((1, NUM_FEATURES), np.float32), "bias": np.zeros(1, np.float32)}
    kernel = SGLD(logistic_regression, step_size=0.1 / num_rows, backend="compile")
    return OurChains(kernel, synthetic_regression(num_rows, NUM_FEATURES), params)


def cases(options: Options) -> Iterator[Case]:
    """Each number of rows."""
    sizes = SIZES[:1] if options.smoke else SIZES
    least = 2 if options.smoke else MIN_STEPS
    timings, first_call = step_times(
        {f"{size}": partial(chains, size) for size in sizes},
        {f"{size}": least if options.smoke else max(least, size // BATCH_SIZE) for size in sizes},
        1,
        options,
    )
    first = timings.medians()[f"{sizes[0]}"]
    for size, median in timings.medians().items():
        quality = {OURS: {"of the time of the fewest": median / first}}
        rounds = Timings({OURS: timings.rounds[size]})
        yield Case(f"SGLD on {int(size):,} rows", rounds, {OURS: first_call[size]}, quality)


if __name__ == "__main__":
    main(cases, "us per step", rounds=5)
