"""A mixture over random partitions whose clusters are conjugate, for compiled loops."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_ext._checks import as_tensor
from pyro_ext.distributions import ConjugateCluster
from pyro_ext.inference.partitions._hyperparameters import Hyperparameters
from pyro_ext.inference.partitions._mixture import (
    Floats,
    Integers,
    Law,
    Mixture,
    move_sites,
    or_nothing,
)
from pyro_ext.inference.partitions._recorded_hyperparameters import record
from pyro_ext.posterior.fixed_points import Noise

__all__ = [
    "ClusterSource",
    "Compiled",
    "ConjugateMixture",
    "Situation",
    "centered",
    "check_points",
]

ClusterSource = ConjugateCluster | Callable[[], ConjugateCluster]


class Compiled(NamedTuple):
    """What compiled loops take.

    :param int kind: of the clusters.
    :param parameters: of the clusters.
    :param table: parts of predictive densities by the number of points.
    :param points: relative to the center of the clusters. **Shape:** ``(n, d)``.
    """

    kind: int
    parameters: Floats
    table: Floats
    points: Floats


class Situation(NamedTuple):
    """What labels move in: all but the labels, held fixed.

    :param compiled: clusters and data.
    :param log_size: log factors of a partition's probability by sizes of clusters.
    :param log_number: likewise by their number.
    :param values: hyperparameters, and the auxiliary variable where there is one.
    """

    compiled: Compiled
    log_size: Floats
    log_number: Floats
    values: Mapping[str, Tensor]


class ConjugateMixture(Mixture):
    """Prior over partitions and conjugate clusters of some data.

    :param prior: a normalized measure or a Pyro model that returns one.
    :param cluster: a conjugate cluster or a Pyro model that returns one.
    :param Tensor points: the data. **Shape:** ``(n, d)``, or ``(n,)`` where ``d`` is one.
    :raises ValueError: where prior, cluster and data do not fit together.
    """

    def __init__(
        self,
        prior: Hyperparameters[Law],
        cluster: Hyperparameters[ConjugateCluster],
        points: Tensor,
    ) -> None:
        self.cluster = cluster
        self.points = check_points(points)
        super().__init__(prior, cluster.names, len(self.points))
        example, _ = cluster.at(cluster.draw())
        self._check_cluster(example)
        self._raw = self.points.detach().double().cpu().numpy()
        self._log_base = float(example.statistics(self.points.double())[..., 1].sum())
        self._fixed = None if cluster.names else self._compiled(example)
        self._kind = example._kind
        self._recorded = record(cluster, _vector)

    def draw_clusters(self, labels: Tensor) -> dict[str, Tensor]:
        """Hyperparameters of clusters from their prior."""
        return self.cluster.draw()

    def fixed_clusters(self, labels: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Hyperparameters of clusters that do not depend on their prior."""
        return self.cluster.fixed(noise)

    def log_clusters(self, state: Mapping[str, Tensor]) -> float:
        """Log density of the hyperparameters of clusters and of the data given the partition."""
        (_, parameters, _, points), log_sites = self.compiled(state)
        log_data = self._log_data(parameters, points, state["assignment"].numpy())
        return or_nothing(log_sites + log_data + self._log_base)

    def move_clusters(
        self, state: Mapping[str, Tensor], held: Collection[str]
    ) -> dict[str, Tensor]:
        """Move the hyperparameters of clusters."""
        if self._recorded is None:
            return move_sites(self.cluster, held, state, self.log_clusters)
        labels, size = state["assignment"].numpy(), self._raw.shape[1]

        def log_density(vector: Floats) -> float:
            center, parameters = vector[:size], vector[size:]
            return self._log_data(parameters, self._raw - center, labels)

        return self._recorded.move(state, held, log_density)

    def compiled(self, values: Mapping[str, Tensor]) -> tuple[Compiled, float]:
        """What loops need for hyperparameters, and the log density of those of the cluster."""
        if self._fixed is not None:
            return self._fixed, 0.0
        cluster, log_density = self.cluster.at(values)
        return self._compiled(cluster), float(log_density)

    def situation(self, values: Mapping[str, Tensor]) -> Situation:
        """What labels move in, for hyperparameters and an auxiliary variable."""
        compiled, _ = self.compiled(values)
        return Situation(compiled, *self.weights(values), values)

    def _log_data(self, parameters: Floats, points: Floats, labels: Integers) -> float:
        """Log density of centered points given the partition, but for terms of no parameter."""
        from pyro_ext.inference.partitions._cluster_loops import in_range
        from pyro_ext.inference.partitions._gibbs_loops import log_density_of_labels

        if not in_range(self._kind, parameters, points.shape[1]):
            return -math.inf
        return float(log_density_of_labels(self._kind, parameters, points, labels))

    def _compiled(self, cluster: ConjugateCluster) -> Compiled:
        from pyro_ext.inference.partitions import _cluster_loops

        kind, center, parameters = centered(cluster)
        table = _cluster_loops.constants(kind, parameters, len(center), self.num_points)
        return Compiled(kind, parameters, table, np.ascontiguousarray(self._raw - center))

    def _check_cluster(self, cluster: Any) -> None:
        if not isinstance(cluster, ConjugateCluster) or cluster.batch_shape:
            raise TypeError(
                "cluster must be or return a conjugate cluster without batch shape, got "
                f"{cluster!r:.80}"
            )
        size = self.points.shape[-1]
        if cluster.event_shape != (size,):
            raise ValueError(
                f"x has points of size {size}, but the cluster is one of points of size "
                f"{cluster.event_shape[0]}"
            )
        support: Any = cluster.support
        inside = support.check(self.points)
        if not bool(inside.all()):
            row = int((~inside).nonzero()[0])
            raise ValueError(
                f"x must be inside the support of {type(cluster).__name__}, got "
                f"{self.points[row].tolist()!s:.80} in row {row}"
            )


def centered(cluster: ConjugateCluster) -> tuple[int, Floats, Floats]:
    """Kind, prior mean, and parameters of a cluster relative to it, as compiled loops take them."""
    center, cluster = _around_origin(cluster)
    kind, parameters = cluster._compiled_parameters()
    return kind, center.detach().cpu().numpy(), parameters


def _vector(cluster: ConjugateCluster) -> Tensor:
    """Prior mean of a cluster, and its parameters relative to it."""
    center, cluster = _around_origin(cluster)
    return torch.cat([center, cluster._compiled_tensor()])


def _around_origin(cluster: ConjugateCluster) -> tuple[Tensor, ConjugateCluster]:
    """Prior mean of a cluster in float64, and the cluster relative to it."""
    values = {name: getattr(cluster, name) for name in cluster._event_dims}
    if "loc" not in values:
        center = next(iter(values.values())).new_zeros(cluster.event_shape, dtype=torch.float64)
        return center, cluster
    center = values["loc"].double()
    values["loc"] = torch.zeros_like(values["loc"])
    return center, type(cluster)(**values, validate_args=False)


def check_points(points: Any, name: str = "x") -> Tensor:
    """Data as a matrix of numbers.

    :raises ValueError: where there are no points, or they are not finite.
    """
    values = as_tensor(name, points, allow_empty=True)
    if values.dim() == 1:
        values = values[:, None]
    if values.dim() != 2 or not len(values):
        raise ValueError(
            f"{name} must have shape (n, d) with at least one row, got {tuple(values.shape)}"
        )
    values = values.to(torch.get_default_dtype()) if not values.is_floating_point() else values
    is_bad = ~values.isfinite().all(-1)
    if bool(is_bad.any()):
        row = int(is_bad.nonzero()[0])
        raise ValueError(f"{name} must be finite, got {values[row].tolist()!s:.80} in row {row}")
    return values
