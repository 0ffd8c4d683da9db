"""Data of the whole processes, which each side reads without the other's libraries."""

from typing import Any

import numpy as np

ORDER = 5
WIDTH = 13
LENGTHS = {"network": (40, 7)}
"""Draws, after as many steps of warm-up, and the largest depth of trees, where not 1,000 and 10."""


def arguments(name: str) -> tuple[np.ndarray[Any, Any], ...]:
    """Data of a posterior, simulated but for eight schools and the network."""
    random = np.random.default_rng(0)
    if name == "regression":
        school, iq = random.binomial(1, 0.8, 434), random.normal(100.0, 15.0, 434)
        scores = 26.0 + 6.0 * school + 0.55 * iq + random.normal(0.0, 18.0, 434)
        return tuple(each.astype(np.float32) for each in (scores, school, iq))
    if name == "autoregression":
        series = list(random.normal(size=ORDER))
        for _ in range(200 - ORDER):
            past = sum(w * series[-1 - k] for k, w in enumerate((0.5, -0.2, 0.1, 0.0, 0.1)))
            series.append(0.3 + past + 0.2 * random.normal())
        return (np.asarray(series, dtype=np.float32),)
    if name == "hierarchy":
        group, floor = random.integers(85, size=919), random.binomial(1, 0.17, 919)
        effects = random.normal(1.5, 0.35, 85)
        values = effects[group] - 0.7 * floor + random.normal(0.0, 0.75, 919)
        return values.astype(np.float32), group, floor.astype(np.float32)
    if name == "eight schools":
        effects, errors = (28, 8, -3, 7, -1, 1, 18, 12), (15, 10, 16, 11, 9, 11, 10, 18)
        return np.asarray(effects, dtype=np.float32), np.asarray(errors, dtype=np.float32)
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return (images[:1437] / 8.0 - 1.0).astype(np.float32), labels[:1437]
