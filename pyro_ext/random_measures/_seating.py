"""Compiled loops over the samples of a partition, apart since Numba is slow to import."""

import numpy as np
import numpy.typing as npt

from pyro_ext._lib.compiled import compiled

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@compiled
def seat_by_arrivals(
    labels: Integers, done: int, clock: float, times: Floats, ends: Floats, num_seen: int, seed: int
) -> tuple[int, float, int]:
    """Go on until all samples have labels, or all weights that are known have been seen."""
    np.random.seed(seed)
    offset = num_seen  # of the weights that are new, the first
    while done < labels.size and num_seen < ends.size:
        total = ends[num_seen - 1] if num_seen else 0.0
        step = np.random.exponential() / total if num_seen else np.inf
        if clock + step < times[num_seen - offset]:
            clock += step
            label = np.searchsorted(ends[:num_seen], np.random.random() * total, side="right")
            labels[done] = label if label < num_seen else num_seen - 1
        else:
            clock = times[num_seen - offset]
            labels[done] = num_seen
            num_seen += 1
        done += 1
    return done, clock, np.random.randint(2**31 - 1)


@compiled
def seat_by_counts(labels: Integers, discount: float, concentration: float, seed: int) -> None:
    """Go through the urn."""
    np.random.seed(seed)
    counts = np.zeros(labels.size, np.int64)
    number = 0
    for sample in range(labels.size):
        x = np.random.random() * (concentration + sample)
        if x < concentration + discount * number or sample == 0:
            label = number
            number += 1
        else:
            label = labels[np.random.randint(sample)]
            while np.random.random() * counts[label] < discount:
                label = labels[np.random.randint(sample)]
        counts[label] += 1
        labels[sample] = label
