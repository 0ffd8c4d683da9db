"""Mixtures over random partitions, as kernels see them: the prior, and conjugate clusters."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.distributions import ConjugateCluster
from pyro_ext.inference.partitions._slice_sampling import Floats, slice_sample, slice_sample_log
from pyro_ext.inference.partitions.hyperparameters import (
    Hyperparameters,
    Process,
    closed_prior,
    record,
)
from pyro_ext.posterior.fixed_points import FixedPoint, Noise
from pyro_ext.random_measures import NormalizedRandomMeasure
from pyro_ext.random_measures.cluster_counts import ClusterSizes, cluster_sizes

PriorSource = Process | Callable[[], Process]
Integers = npt.NDArray[np.int64]
_OWN_NAMES = {"assignment", "u"}
_NUM_CLUSTERS = 3
_SIZES = ([1], [2], [1, 1], [5, 3, 2, 1], [20, 1])  # of clusters, of partitions at fixed points
ClusterSource = ConjugateCluster | Callable[[], ConjugateCluster]


class Mixture(ABC):
    """Prior over the partitions of some points, and clusters."""

    def __init__(
        self, prior: Hyperparameters[Process], cluster_names: list[str], num_points: int
    ) -> None:
        if clash := set(prior.names) & set(cluster_names):
            raise ValueError(f"prior and cluster both have the sites {sorted(clash)}")
        if taken := _OWN_NAMES & {*prior.names, *cluster_names}:
            raise ValueError(
                f"sites of prior and cluster must have other names than {sorted(taken)}"
            )
        self.prior = prior
        self._closed = closed_prior(prior)
        self.cluster_names = cluster_names
        self.num_points = num_points

    @abstractmethod
    def draw_clusters(self, labels: Tensor) -> dict[str, Tensor]:
        """Values of the sites of clusters from their prior, given the partition."""

    @abstractmethod
    def fixed_clusters(self, labels: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Values of the sites of clusters that do not depend on their prior."""

    @abstractmethod
    def log_clusters(self, state: Mapping[str, Tensor]) -> float:
        """Log density of the sites of clusters, unconstrained, and of the data."""

    @abstractmethod
    def move_clusters(
        self, state: Mapping[str, Tensor], held: Collection[str]
    ) -> dict[str, Tensor]:
        """Move the sites of clusters but for those held, given all else."""

    @property
    def names(self) -> list[str]:
        """Names of all sites but the partition and the auxiliary variable."""
        return [*self.prior.names, *self.cluster_names]

    def process(self, values: Mapping[str, Tensor]) -> tuple[Process, float]:
        """The process for hyperparameters, and the log density of those of the prior."""
        process, log_density = self.prior.at(values)
        return check_process(process), float(log_density)

    def has_auxiliary(self, values: Mapping[str, Tensor]) -> bool:
        """Tell whether there is an auxiliary variable at these hyperparameters."""
        if self._closed is not None:
            return self._closed.has_auxiliary
        return isinstance(self.process(values)[0], NormalizedRandomMeasure)

    def weights(self, values: Mapping[str, Tensor]) -> tuple[Floats, Floats]:
        """Log factors of a partition's probability by sizes of clusters, and by their number."""
        if self._closed is not None:
            return self._closed.weights(values, self.num_points)
        process, _ = self.process(values)
        by_size, by_number = process._product_form(self.num_points, values.get("u"))
        return by_size.numpy(), by_number.numpy()

    def log_prior(self, values: Mapping[str, Tensor], counts: ClusterSizes) -> float:
        """Log density of the sites of the prior, unconstrained, and of the partition."""
        if self._closed is not None:
            return or_nothing(self._closed.log_density(values, counts))
        process, log_sites = self.process(values)
        with torch.no_grad():
            if isinstance(process, NormalizedRandomMeasure):
                log_partition = float(process._log_joint(counts, values["u"].log()))
            else:
                log_partition = float(process.log_eppf(counts.values, counts.multiplicity))
        return or_nothing(log_sites + log_partition)

    def move_prior(
        self, state: Mapping[str, Tensor], counts: ClusterSizes, held: Collection[str]
    ) -> dict[str, Tensor]:
        """Move the auxiliary variable, then the sites of the prior but for those held."""
        if self._closed is not None:
            return self._closed.move(state, counts, held)
        moved = dict(state)
        process, _ = self.process(state)
        if isinstance(process, NormalizedRandomMeasure):

            def of_log_u(log_u: float) -> float:
                point = torch.tensor(log_u, dtype=torch.float64)
                return float(process._log_joint(counts, point))

            with torch.no_grad():
                moved["u"] = slice_sample_log(of_log_u, state["u"])
        return moved | move_sites(
            self.prior, held, moved, lambda values: self.log_prior(values, counts)
        )

    def at(self, noise: Noise) -> FixedPoint:
        """Log densities of a few partitions, at hyperparameters that do not depend on the prior."""
        labels = torch.arange(self.num_points) % _NUM_CLUSTERS
        state = {**self.prior.fixed(noise), **self.fixed_clusters(labels, noise)}
        state |= {"assignment": labels, "u": noise("u", ()).exp()}
        process, log_sites = self.process(state)
        log_partitions = [
            self.log_prior(state, cluster_sizes(torch.tensor(sizes))) - log_sites
            for sizes in _SIZES
        ]
        terms = {
            "sites of prior": torch.tensor(log_sites, dtype=torch.float64),
            "partition": torch.tensor(log_partitions, dtype=torch.float64),
            "clusters and data": torch.tensor(self.log_clusters(state), dtype=torch.float64),
        }
        if not isinstance(process, NormalizedRandomMeasure):
            del state["u"]
        return FixedPoint(terms, state)


def move_sites(
    part: Hyperparameters[Any],
    held: Collection[str],
    state: Mapping[str, Tensor],
    log_density: Callable[[Mapping[str, Tensor]], float],
) -> dict[str, Tensor]:
    """Move the sites of prior or cluster one by one, by slice sampling of unconstrained values."""
    moved: dict[str, Tensor] = {}
    for name, transform in part.transforms.items():
        if name in held:
            continue
        value = state[name]
        start = transform.inv(value)

        def constrained(
            point: Tensor, transform: Any = transform, start: Tensor = start, value: Tensor = value
        ) -> Tensor:
            return transform(point.view(start.shape)).to(value)  # type: ignore[no-any-return]

        def along(point: Tensor, name: str = name) -> float:
            try:
                return log_density({**state, **moved, name: constrained(point)})
            except ValueError:
                # A point that rounds to the border of the parameters has no density.
                return -math.inf

        moved[name] = constrained(slice_sample(along, start.double().flatten()))
    return moved


def or_nothing(log_density: float) -> float:
    """A log density, minus infinity where it is not a number."""
    return -math.inf if math.isnan(log_density) else log_density


class Compiled(NamedTuple):
    """Arguments of the compiled loops."""

    kind: int  # of the clusters
    parameters: Floats  # of the clusters
    table: Floats  # parts of predictive densities by the number of points
    points: Floats  # relative to the center of the clusters, (n, d)


class Situation(NamedTuple):
    """Everything but the labels, held fixed while these move."""

    compiled: Compiled  # clusters and data
    log_size: Floats  # log factors of a partition's probability by sizes of clusters
    log_number: Floats  # likewise by their number
    values: Mapping[str, Tensor]  # hyperparameters, and the auxiliary variable where there is one


class ConjugateMixture(Mixture):
    """Prior over partitions and conjugate clusters of some data."""

    def __init__(
        self,
        prior: Hyperparameters[Process],
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

    def compile(self) -> None:
        """Run models of hyperparameters as machine code, which pays in long runs."""
        for recorded in (self._recorded, self._closed):
            if recorded is not None:
                recorded.compile()

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
        """Return the loops' arguments and the log density of the cluster's hyperparameters."""
        if self._fixed is not None:
            return self._fixed, 0.0
        cluster, log_density = self.cluster.at(values)
        return self._compiled(cluster), float(log_density)

    def situation(self, values: Mapping[str, Tensor]) -> Situation:
        """Return what the moves of labels condition on: hyperparameters and auxiliary variable."""
        compiled, _ = self.compiled(values)
        return Situation(compiled, *self.weights(values), values)

    def _log_data(self, parameters: Floats, points: Floats, labels: Integers) -> float:
        """Log density of centered points given the partition, but for terms of no parameter."""
        from pyro_ext.inference.partitions._cluster_loops import in_range, log_density_of_labels

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


def check_process(value: object) -> Process:
    """A process without batch shape, as a prior is one or returns one."""
    if not isinstance(value, Process) or value.batch_shape:
        raise TypeError(
            "prior must be or return a normalized measure, a PitmanYor or a DirichletProcess "
            f"without batch shape, got {value!r:.80}"
        )
    return value


def check_points(points: Any) -> Tensor:
    """Data as a matrix of numbers."""
    values = checks.as_tensor("x", points, allow_empty=True)
    if values.dim() == 1:
        values = values[:, None]
    if values.dim() != 2 or not len(values):
        raise ValueError(
            f"x must have shape (n, d) with at least one row, got {tuple(values.shape)}"
        )
    checks.all_finite("x", values)
    return values if values.is_floating_point() else values.to(torch.get_default_dtype())
