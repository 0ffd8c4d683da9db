"""Compiled draws from a Polya urn."""

import numpy as np
import numpy.typing as npt

from pyro_ext._lib.compiled import compiled


@compiled
def draw_labels(
    labels: npt.NDArray[np.int32],
    uniforms: npt.NDArray[np.float64],
    size: int,
    num_labels: npt.NDArray[np.int64],
    concentration: float,
) -> None:
    """Draw balls one after the other, and write down their labels.

    A ball is a copy of one that is in the urn already, each with weight one, or has a new label,
    with weight ``concentration``.

    Shapes: labels (num_draws, size + num_steps); uniforms (num_draws, num_steps); num_labels
    (num_draws,).
    """
    for draw in range(labels.shape[0]):
        for step in range(uniforms.shape[1]):
            here = size + step
            position = uniforms[draw, step] * (here + concentration)
            if position < here:
                labels[draw, here] = labels[draw, int(position)]
            else:
                labels[draw, here] = num_labels[draw]
                num_labels[draw] += 1
