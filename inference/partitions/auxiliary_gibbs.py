"""Gibbs sampling of partitions with any Pyro model for clusters, by auxiliary clusters.

[1] R. M. Neal (2000), Markov chain sampling methods for Dirichlet process mixture models.
[2] S. Favaro, Y. W. Teh (2013), MCMC for normalized random measure mixture models.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_ext._lib import checks
from pyro_ext.inference.partitions._slice_sampling import Floats, slice_sample, slice_sample_rows
from pyro_ext.inference.partitions.conjugate import loop_seed
from pyro_ext.inference.partitions.hyperparameters import Hyperparameters, Process
from pyro_ext.inference.partitions.kernel import FirstPartition, Moved, PartitionKernel
from pyro_ext.inference.partitions.mixtures import Integers, Mixture, PriorSource, or_nothing
from pyro_ext.posterior.fixed_points import Noise
from pyro_ext.potential import Backend, PointPotential, check_backend

_DRAWS_AT_ONCE = 4
_NUM_WIDTH_DRAWS = 200
_QUARTILES_OF_NORMAL = 1.349  # their distance


class ModelMixture(Mixture):
    """Prior over partitions, and clusters with the latent sites of a Pyro model."""

    def __init__(self, prior: Hyperparameters[Process], points: PointPotential) -> None:
        super().__init__(prior, list(points.sites), points.num_points)
        self.points = points
        self.shared_names = [name for name in points.sites if name in points.shared]
        self.own_names = [name for name in points.sites if name not in points.shared]
        self._own_columns = [
            column for name in self.own_names for column in points.layout.columns(name)
        ]
        # From a fixed seed: every chain, and one that goes on elsewhere, takes the same.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            drawn = _as_floats(points.draw(_NUM_WIDTH_DRAWS))
        low, high = np.nanquantile(drawn, [0.25, 0.75], axis=0)
        spread = (high - low) / _QUARTILES_OF_NORMAL
        self._widths = np.where(np.isfinite(spread) & (spread > 0.0), spread, 1.0)

    def draw_clusters(self, labels: Tensor) -> dict[str, Tensor]:
        """Values of the sites of the model from their prior, one for each cluster."""
        drawn = self.points.constrain(self.points.draw(1))
        shared = {name: drawn[name][0] for name in self.shared_names}
        return self.own_values(self.fresh(int(labels.max()) + 1, shared), labels) | shared

    def fixed_clusters(self, labels: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Values of the sites of the model that do not depend on their prior."""
        coordinates = noise("clusters", (int(labels.max()) + 1, self.points.layout.size)).numpy()
        values = self.points.constrain(self._flat(coordinates[:1]))
        shared = {name: values[name][0] for name in self.shared_names}
        return self.own_values(coordinates, labels) | shared

    def log_clusters(self, state: Mapping[str, Tensor]) -> float:
        """Log density of the sites of the model, and of the data given them."""
        labels = state["assignment"].numpy()
        prior, shared, likelihood = self.densities(self.coordinates(state), labels)
        return or_nothing(float(prior.sum() + shared + likelihood.sum()))

    def move_clusters(
        self, state: Mapping[str, Tensor], held: Collection[str]
    ) -> dict[str, Tensor]:
        """Move the sites of clusters side by side, then those that they share."""
        labels = state["assignment"].numpy()
        coordinates, counts = self.coordinates(state), np.bincount(labels)
        widths = self._widths / np.sqrt(1.0 + counts[:, None])

        def of_clusters(coordinates: Floats) -> Floats:
            prior, _, likelihood = self.densities(coordinates, labels)
            total = prior + np.bincount(labels, likelihood, len(coordinates))
            return np.where(np.isnan(total), -np.inf, total)

        def of_shared(columns: list[int], values: Tensor) -> float:
            moved = coordinates.copy()
            moved[:, columns] = values.numpy()
            prior, shared, likelihood = self.densities(moved, labels)
            return or_nothing(float(prior.sum() + shared + likelihood.sum()))

        coordinates = slice_sample_rows(of_clusters, coordinates, widths, self._own_columns)
        for name in self.shared_names:
            if name not in held:
                columns = list(self.points.layout.columns(name))
                start = torch.from_numpy(coordinates[0, columns])
                moved = slice_sample(partial(of_shared, columns), start)
                coordinates[:, columns] = moved.numpy()
        values = self.points.constrain(self._flat(coordinates[:1]))
        moved_shared = {name: values[name][0] for name in self.shared_names if name not in held}
        return self.own_values(coordinates, state["assignment"]) | moved_shared

    # Coordinates: unconstrained values of all sites for each cluster, shared ones repeated.

    def coordinates(self, state: Mapping[str, Tensor]) -> Floats:
        """Unconstrained values for each cluster. **Shape:** ``(num_clusters, size)``."""
        labels = state["assignment"].numpy()
        _, first = np.unique(labels, return_index=True)
        values = {name: state[name][first] for name in self.own_names}
        for name in self.shared_names:
            values[name] = state[name].expand(len(first), *state[name].shape)
        return _as_floats(self.points.unconstrain(values))

    def own_values(self, coordinates: Floats, labels: Tensor) -> dict[str, Tensor]:
        """Values of the sites of clusters for each point."""
        values = self.points.constrain(self._flat(coordinates))
        return {name: values[name][labels] for name in self.own_names}

    def densities(self, coordinates: Floats, labels: Integers) -> tuple[Floats, float, Floats]:
        """Log density of each cluster's own sites, of the shared ones, and of each point."""
        _, first = np.unique(labels, return_index=True)
        prior, shared, likelihood = self.points(self._flat(coordinates[labels]))
        return _as_floats(prior[first]), float(shared[0]), _as_floats(likelihood)

    def log_likelihood(self, row: Floats) -> Floats:
        """Log density of each point in one cluster, minus infinity where it is NaN."""
        flat = self._flat(row).expand(self.num_points, -1)
        values = _as_floats(self.points(flat).likelihood)
        if np.isposinf(values).any():
            point = int(np.isposinf(values).argmax())
            raise ValueError(f"the density of point {point} in a cluster is infinite")
        return np.where(np.isnan(values), -np.inf, values)

    def fresh(self, number: int, shared: Mapping[str, Tensor]) -> Floats:
        """Coordinates of new clusters, from the prior given the shared sites."""
        return _as_floats(self.points.draw(number, shared))

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Check the values of the sites of clusters that a user gives."""
        labels = torch.as_tensor(state["assignment"]).long()
        _, numbers = labels.unique(return_inverse=True)
        for name, site in self.points.sites.items():
            if name not in state:
                continue
            value = torch.as_tensor(state[name])
            is_own = name in self.own_names
            wanted = (self.num_points, *site.shape) if is_own else tuple(site.shape)
            if value.shape != wanted:
                raise ValueError(
                    f"initial_params[{name!r}] must have shape {wanted}, got {tuple(value.shape)}"
                )
            if not is_own:
                continue
            first = torch.zeros(int(numbers.max()) + 1, dtype=torch.long)
            first[numbers] = torch.arange(len(numbers))
            if not torch.equal(value[first[numbers]], value):
                raise ValueError(
                    f"initial_params[{name!r}] must be the same for all points of a cluster"
                )

    def _flat(self, coordinates: Floats) -> Tensor:
        layout: Any = self.points.layout
        return torch.from_numpy(coordinates).to(dtype=layout.dtype, device=layout.device)


def _as_floats(tensor: Tensor) -> Floats:
    values: Floats = tensor.double().cpu().numpy()
    return values


class AuxiliaryGibbs(PartitionKernel[ModelMixture]):
    r"""Draws the cluster of each point if clusters are any Pyro model [1, algorithm 8].

    ``cluster`` is a model of the points of one cluster: it has continuous latent sites outside a
    plate, and observed sites in the plate of the points. A point joins a cluster with parameters
    :math:`\theta_c` with probability proportional to
    :math:`p(x | \theta_c) \, \kappa(|c| + 1, u) / \kappa(|c|, u)`. It joins each of
    ``num_auxiliary`` empty clusters, whose parameters are drawn from the prior, with probability
    proportional to :math:`p(x | \theta) \, \kappa(1, u) / \text{num_auxiliary}` [2]. Then the
    parameters of all clusters move side by side, by slice sampling of their unconstrained
    coordinates. This needs no tuning, but takes about ten evaluations of all points for each
    coordinate, and mixes slowly if many coordinates depend on each other.

    A draw holds the value of each latent site for each point, which is that of the point's cluster,
    ``(n, *event)``; it does not depend on how clusters are numbered. Sites named in ``shared`` have
    a single value. If clusters are conjugate, :class:`MarginalGibbs` and :class:`TreeGuided` mix
    faster.

    :param prior: as for :class:`PartitionKernel`.
    :param cluster: a Pyro model of the points of one cluster.
    :param shared: names of latent sites of ``cluster`` whose values all clusters share.
    :param int num_auxiliary: number of empty clusters that a point may join.
    :param str backend: backend of the potential of ``cluster``, see
        :class:`~pyro_ext.potential.PointPotential`.
    :param init: as for :class:`PartitionKernel`.

    Example::

        >>> from pyro_ext.inference import MCMC
        >>> from pyro_ext.random_measures import DirichletProcess
        >>> def cluster(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        ...     with pyro.plate("points", len(x)):
        ...         pyro.sample("x", dist.StudentT(5.0, loc, scale), obs=x)
        >>> x = torch.cat([torch.randn(20) - 4.0, torch.randn(20) + 4.0])
        >>> kernel = AuxiliaryGibbs(DirichletProcess(1.0), cluster)
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=10, progress=False).run(x)
        >>> {name: tuple(draws.shape) for name, draws in mcmc.get_samples().items()}
        {'assignment': (20, 40), 'loc': (20, 40), 'scale': (20, 40)}
    """

    _setting_names = ("prior", "init", "cluster", "shared", "num_auxiliary")

    def __init__(
        self,
        prior: PriorSource,
        cluster: Callable[..., Any],
        *,
        shared: Collection[str] = (),
        num_auxiliary: int = 3,
        backend: Backend = "trace",
        init: FirstPartition = "prior",
    ) -> None:
        shared = checks.sequence("shared", shared, "a list of names of sites", 0, str)
        if not callable(cluster) or isinstance(cluster, type | Distribution):
            raise TypeError(
                f"cluster must be a Pyro model of the points of a cluster, "
                f"got {checks.shown(cluster)}; "
                "for conjugate clusters, use MarginalGibbs"
            )
        check_backend(backend)
        self.cluster, self.shared = cluster, tuple(shared)
        self.num_auxiliary = checks.integer("num_auxiliary", num_auxiliary, 1)
        self.backend = backend
        super().__init__(prior, init=init)

    def _mixture_of(self, *args: Any, **kwargs: Any) -> ModelMixture:
        prior: Hyperparameters[Process] = Hyperparameters(self.prior, "prior")
        points = PointPotential(
            self.cluster, *args, shared=self.shared, backend=self.backend, **kwargs
        )
        return ModelMixture(prior, points)

    def _check_start(
        self, mixture: ModelMixture, params: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        mixture.check(params)
        return super()._check_start(mixture, params)

    def _move_points(self, state: Mapping[str, Tensor]) -> Moved:
        from pyro_ext.inference.partitions._gibbs_loops import auxiliary_sweep

        mixture = self.mixture
        log_size, log_number = mixture.weights(state)
        shared = {name: state[name] for name in mixture.shared_names}
        clusters = _Clusters(mixture, mixture.coordinates(state), shared)
        labels = state["assignment"].clone().numpy()
        number = clusters.ready
        clusters.sizes[:number] = np.bincount(labels)
        order = torch.randperm(len(labels)).numpy()
        done = 0
        while done < len(order):
            clusters.refill(number + self.num_auxiliary)
            done, number, clusters.ready = auxiliary_sweep(
                labels,
                order,
                done,
                clusters.log_likelihood,
                clusters.sizes,
                clusters.active,
                number,
                clusters.ready,
                self.num_auxiliary,
                log_size,
                log_number,
                loop_seed(),
            )
        occupied, numbers = np.unique(labels, return_inverse=True)
        assignment = torch.from_numpy(numbers)
        values = mixture.own_values(clusters.coordinates[occupied], assignment)
        return values | {"assignment": assignment}, {}


class _Clusters:
    """Clusters by slot, with room for more: parameters, and log likelihoods of all points."""

    def __init__(
        self, mixture: ModelMixture, coordinates: Any, shared: Mapping[str, Tensor]
    ) -> None:
        self._mixture, self._shared = mixture, shared
        self.ready = 0
        self.coordinates = np.empty((0, coordinates.shape[1]))
        self.log_likelihood = np.empty((mixture.num_points, 0))
        self.sizes = np.zeros(0, np.int64)
        self.active = np.empty(0, np.int64)
        self._add(coordinates)

    def refill(self, wanted: int) -> None:
        """Have parameters from the prior for some more slots than there must be."""
        if self.ready < wanted:
            number = wanted - self.ready + _DRAWS_AT_ONCE
            self._add(self._mixture.fresh(number, self._shared))

    def _add(self, coordinates: Any) -> None:
        if (lacking := self.ready + len(coordinates) - len(self.active)) > 0:
            self._grow(max(lacking, len(self.active)))
        for row in coordinates:
            slot = self.active[self.ready]
            self.coordinates[slot] = row
            self.log_likelihood[:, slot] = self._mixture.log_likelihood(row)
            self.ready += 1

    def _grow(self, number: int) -> None:
        before = len(self.active)
        self.coordinates = np.concatenate(
            [self.coordinates, np.empty((number, self.coordinates.shape[1]))]
        )
        more = np.empty((len(self.log_likelihood), number))
        self.log_likelihood = np.concatenate([self.log_likelihood, more], 1)
        self.sizes = np.concatenate([self.sizes, np.zeros(number, np.int64)])
        self.active = np.concatenate([self.active, np.arange(before, before + number)])
