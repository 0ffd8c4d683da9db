"""Time of a draw of a tilted stable law, the total mass of a generalized gamma process.

Beside it are a NumPy sampler by fast rejection, whose cost grows with the tilt, and a Numba one by
double rejection, draw by draw. The law is E exp(-tX) = exp(-[(t + tilt)^s - tilt^s]). Quality is
the error of mean and Laplace transform of a million draws of each side, in standard errors. One
thread.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from _common import OURS, Array, Case, Options, cpu_seconds, in_turn, main
from _stable_baselines import double_rejection, fast_rejection

from pyro_ext.random_measures import GeneralizedGammaProcess

IN_TABLE = ((0.2, 0.1), (0.5, 1.0), (0.8, 100.0))
PAIRS = (
    *IN_TABLE,
    (0.2, 10.0),
    (0.5, 0.1),
    (0.5, 10.0),
    (0.5, 100.0),
    (0.8, 1.0),
    (0.8, 10.0),
    (0.5, 1e-3),
    (0.5, 1e4),
    (0.5, 1e6),
    (0.8, 1e6),
)
NUM_DRAWS = 100_000
MOST_PIECES = 200


def errors(draws: Array, stability: float, tilt: float) -> dict[str, float]:
    """Mean and Laplace transform at one over the mean, in standard errors."""
    mean = stability * tilt ** (stability - 1.0)
    place = 1.0 / mean
    exponent = (place + tilt) ** stability - tilt**stability
    transform = np.exp(-place * draws)
    root = math.sqrt(draws.size)
    return {
        "mean z": float((draws.mean() - mean) / draws.std() * root),
        "transform z": float((transform.mean() - math.exp(-exponent)) / transform.std() * root),
    }


def samplers(stability: float, tilt: float) -> dict[str, Callable[[int], Array]]:
    """Each side as a function of the number of draws."""
    torch.manual_seed(0)
    mass = torch.tensor(stability, dtype=torch.float64)
    law = GeneralizedGammaProcess(mass, stability, tilt).total_mass()
    random = np.random.default_rng(0)
    sides: dict[str, Callable[[int], Array]] = {
        OURS: lambda number: law.sample((number,)).numpy(),
        "Numba, double rejection": lambda number: double_rejection(stability, tilt, number, random),
    }
    if tilt**stability <= MOST_PIECES:
        sides["NumPy, fast rejection"] = lambda number: fast_rejection(
            stability, tilt, number, random
        )
    return sides


def cases(options: Options) -> Iterator[Case]:
    """Each pair of parameters."""
    number = 1_000 if options.smoke else NUM_DRAWS
    for stability, tilt in PAIRS if options.full else IN_TABLE[: 1 if options.smoke else None]:
        sides = samplers(stability, tilt)
        quality = {
            side: errors(np.concatenate([draw(number) for _ in range(10)]), stability, tilt)
            for side, draw in sides.items()
        }
        timings = in_turn(
            {
                side: lambda draw=draw: cpu_seconds(lambda: draw(number)) / number * 1e6
                for side, draw in sides.items()
            },
            options.rounds,
        )
        name = f"tilted stable draw, stability {stability:g}, tilt {tilt:g}"
        yield Case(name, timings, quality=quality)


if __name__ == "__main__":
    main(cases, "us per draw", rounds=3, packages=("numpy", "numba"))
