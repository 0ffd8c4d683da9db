"""What a mixture over random partitions is to kernels: its prior, and what its clusters give."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext.inference.partitions._closed_prior import Law, closed_prior
from pyro_ext.inference.partitions._hyperparameters import Hyperparameters
from pyro_ext.inference.partitions._slice_sampling import Floats, slice_sample, slice_sample_log
from pyro_ext.posterior.fixed_points import FixedPoint, Noise
from pyro_ext.random_measures import NormalizedRandomMeasure
from pyro_ext.random_measures.cluster_counts import ClusterSizes, cluster_sizes

__all__ = ["Floats", "Integers", "Law", "Mixture", "PriorSource", "move_sites", "or_nothing"]

PriorSource = Law | Callable[[], Law]

Integers = npt.NDArray[np.int64]

_OWN_NAMES = {"assignment", "u"}
_NUM_CLUSTERS = 3
_SIZES = ([1], [2], [1, 1], [5, 3, 2, 1], [20, 1])  # of clusters, of partitions at fixed points


class Mixture(ABC):
    """Prior over the partitions of some points, and clusters.

    A subclass says what the clusters are.

    :param prior: a normalized measure or a Pyro model that returns one.
    :param list cluster_names: names of the sites that belong to clusters.
    :param int num_points: number of points.
    :raises ValueError: where a site is of both, or has a name that a state uses itself.
    """

    def __init__(
        self, prior: Hyperparameters[Law], cluster_names: list[str], num_points: int
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

    def law(self, values: Mapping[str, Tensor]) -> tuple[Law, float]:
        """Law of the partition for hyperparameters, and the log density of those of the prior."""
        law, log_density = self.prior.at(values)
        if not isinstance(law, Law) or law.batch_shape:
            raise TypeError(
                "prior must be or return a normalized measure, a PitmanYor or a DirichletProcess "
                f"without batch shape, got {law!r:.80}"
            )
        return law, float(log_density)

    def has_tilt(self, values: Mapping[str, Tensor]) -> bool:
        """Whether there is an auxiliary variable, for hyperparameters."""
        if self._closed is not None:
            return self._closed.has_tilt
        return isinstance(self.law(values)[0], NormalizedRandomMeasure)

    def weights(self, values: Mapping[str, Tensor]) -> tuple[Floats, Floats]:
        """Log factors of a partition's probability by sizes of clusters, and by their number."""
        if self._closed is not None:
            return self._closed.weights(values, self.num_points)
        law, _ = self.law(values)
        by_size, by_number = law._product_form(self.num_points, values.get("u"))
        return by_size.numpy(), by_number.numpy()

    def log_prior(self, values: Mapping[str, Tensor], counts: ClusterSizes) -> float:
        """Log density of the sites of the prior, unconstrained, and of the partition."""
        if self._closed is not None:
            return or_nothing(self._closed.log_density(values, counts))
        law, log_sites = self.law(values)
        with torch.no_grad():
            if isinstance(law, NormalizedRandomMeasure):
                log_partition = float(law._log_joint(counts, values["u"].log()))
            else:
                log_partition = float(law.log_eppf(counts.values, counts.multiplicity))
        return or_nothing(log_sites + log_partition)

    def move_prior(
        self, state: Mapping[str, Tensor], counts: ClusterSizes, held: Collection[str]
    ) -> dict[str, Tensor]:
        """Move the auxiliary variable, then the sites of the prior but for those held."""
        if self._closed is not None:
            return self._closed.move(state, counts, held)
        moved = dict(state)
        law, _ = self.law(state)
        if isinstance(law, NormalizedRandomMeasure):

            def of_tilt(log_tilt: float) -> float:
                place = torch.tensor(log_tilt, dtype=torch.float64)
                return float(law._log_joint(counts, place))

            with torch.no_grad():
                moved["u"] = slice_sample_log(of_tilt, state["u"])
        return moved | move_sites(
            self.prior, held, moved, lambda values: self.log_prior(values, counts)
        )

    def at(self, noise: Noise) -> FixedPoint:
        """Log densities of a few partitions, at hyperparameters that do not depend on the prior."""
        labels = torch.arange(self.num_points) % _NUM_CLUSTERS
        state = {**self.prior.fixed(noise), **self.fixed_clusters(labels, noise)}
        state |= {"assignment": labels, "u": noise("u", ()).exp()}
        law, log_sites = self.law(state)
        log_partitions = [
            self.log_prior(state, cluster_sizes(torch.tensor(sizes))) - log_sites
            for sizes in _SIZES
        ]
        terms = {
            "sites of prior": torch.tensor(log_sites, dtype=torch.float64),
            "partition": torch.tensor(log_partitions, dtype=torch.float64),
            "clusters and data": torch.tensor(self.log_clusters(state), dtype=torch.float64),
        }
        if not isinstance(law, NormalizedRandomMeasure):
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
            place: Tensor, transform: Any = transform, start: Tensor = start, value: Tensor = value
        ) -> Tensor:
            return transform(place.view(start.shape)).to(value)  # type: ignore[no-any-return]

        def along(place: Tensor, name: str = name) -> float:
            try:
                return log_density({**state, **moved, name: constrained(place)})
            except ValueError:
                # A place that rounds to the border of the parameters has no density.
                return -math.inf

        moved[name] = constrained(slice_sample(along, start.double().flatten()))
    return moved


def or_nothing(log_density: float) -> float:
    """A log density, minus infinity where it is not a number."""
    return -math.inf if math.isnan(log_density) else log_density
