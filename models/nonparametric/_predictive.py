"""What predictive densities of mixtures over partitions share."""

import torch
from torch import Tensor

from pyro_ext.random_measures import NormalizedRandomMeasure, PitmanYor

__all__ = ["Law", "check_law", "log_predictive_weights"]

Law = NormalizedRandomMeasure | PitmanYor

# The quadrature of so many draws at a time stays within some ten megabytes.
_DRAWS_AT_ONCE = 50


def check_law(value: object) -> Law:
    """Law of a partition that a prior is or returned.

    :raises TypeError: where it is none.
    """
    if not isinstance(value, Law) or value.batch_shape:
        raise TypeError(
            "prior must be or return a normalized measure, a PitmanYor or a DirichletProcess "
            f"without batch shape, got {value!r:.80}"
        )
    return value


def log_predictive_weights(laws: list[Law], labels: Tensor) -> Tensor:
    """Log probabilities that a further point joins each cluster, the last that of a new one.

    :param list laws: of each draw.
    :param Tensor labels: canonical. **Shape:** ``(num_draws, n)``.
    :returns: **Shape:** ``(num_draws, most + 1)``, ``most`` the largest number of clusters.
    """
    most = int(labels.max()) + 1
    counts = torch.stack([row.bincount(minlength=most) for row in labels])
    if all(law is laws[0] for law in laws):
        parts = [laws[0].predictive(rows) for rows in counts.split(_DRAWS_AT_ONCE)]
        return torch.cat(parts).log()
    rows = [law.predictive(row) for law, row in zip(laws, counts, strict=True)]
    return torch.stack(rows).log()
