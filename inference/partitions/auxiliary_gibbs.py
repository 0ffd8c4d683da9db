"""Gibbs sampling of partitions whose clusters are a Pyro model, with auxiliary clusters.

[1] R. M. Neal (2000), Markov chain sampling methods for Dirichlet process mixture models.
[2] S. Favaro, Y. W. Teh (2013), MCMC for normalized random measure mixture models.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_ext._checks import check_integer, check_sequence, shown
from pyro_ext.inference.partitions._hyperparameters import Hyperparameters
from pyro_ext.inference.partitions._mixture import Law, PriorSource
from pyro_ext.inference.partitions._model_mixture import ModelMixture
from pyro_ext.inference.partitions.gibbs import fresh_word
from pyro_ext.inference.partitions.kernel import Moved, PartitionKernel
from pyro_ext.potential import Backend, PointPotential, check_backend

__all__ = ["AuxiliaryGibbs"]

_DRAWS_AT_ONCE = 4


class AuxiliaryGibbs(PartitionKernel[ModelMixture]):
    r"""Draws the cluster of each point where a cluster is any Pyro model [1, algorithm 8].

    ``cluster`` is a model of the points of one cluster: continuous latent sites outside a plate,
    observed ones in the plate of the points. Points join a cluster with parameters
    :math:`\theta_c` with probability proportional to
    :math:`p(x | \theta_c) \, \kappa(|c| + 1, u) / \kappa(|c|, u)`, and each of ``num_auxiliary``
    empty clusters, whose parameters are draws from the prior, to
    :math:`p(x | \theta) \, \kappa(1, u) / \text{num_auxiliary}`. Empty clusters are kept from one
    point to the next and replaced where a point takes one or leaves one empty [2]. Then the
    parameters of all clusters move side by side, by slice sampling of their unconstrained
    coordinates, which needs no tuning; it takes some ten evaluations of all points for each
    coordinate, and mixes slowly where many coordinates depend on each other.

    A draw has the value of each latent site for each point, that of the point's cluster,
    ``(n, *event)``, which does not depend on how clusters are numbered; sites named in ``shared``
    have one value. Where clusters are conjugate, :class:`MarginalGibbs` and
    :class:`TreeGuided` mix faster.

    :param prior: as of :class:`PartitionKernel`.
    :param cluster: a Pyro model of the points of one cluster.
    :param shared: names of latent sites of ``cluster`` whose values all clusters share.
    :param int num_auxiliary: number of empty clusters that a point may take.
    :param int num_updates: how often a step moves each parameter.
    :param str backend: of the potential of ``cluster``, see
        :class:`~pyro_ext.potential.PointPotential`.
    :param str init: as of :class:`PartitionKernel`.

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

    def __init__(
        self,
        prior: PriorSource,
        cluster: Callable[..., Any],
        *,
        shared: Collection[str] = (),
        num_auxiliary: int = 3,
        num_updates: int = 1,
        backend: Backend = "trace",
        init: str = "prior",
    ) -> None:
        shared = check_sequence("shared", shared, "a list of names of sites", 0, str)
        if not callable(cluster) or isinstance(cluster, type | Distribution):
            raise TypeError(
                f"cluster must be a Pyro model of the points of a cluster, got {shown(cluster)}; "
                "for conjugate clusters there is MarginalGibbs"
            )
        check_backend(backend)
        self.cluster, self.shared = cluster, tuple(shared)
        self.num_auxiliary = check_integer("num_auxiliary", num_auxiliary, 1)
        self.num_updates = check_integer("num_updates", num_updates, 1)
        self.backend = backend
        super().__init__(prior, init=init)

    def _mixture_of(self, *args: Any, **kwargs: Any) -> ModelMixture:
        prior: Hyperparameters[Law] = Hyperparameters(self.prior, "prior")
        points = PointPotential(
            self.cluster, *args, shared=self.shared, backend=self.backend, **kwargs
        )
        return ModelMixture(prior, points, self.num_updates)

    def _check_start(
        self, mixture: ModelMixture, params: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        mixture.check(params)
        return super()._check_start(mixture, params)

    def settings(self) -> dict[str, Any]:
        """Arguments by name, which a run that goes on from a checkpoint must share."""
        names = ("cluster", "shared", "num_auxiliary", "num_updates")
        return super().settings() | {name: getattr(self, name) for name in names}

    def _move_points(self, state: Mapping[str, Tensor]) -> Moved:
        from pyro_ext.inference.partitions._auxiliary_loops import auxiliary_sweep

        mixture = self.mixture
        log_size, log_number = mixture.weights(state)
        shared = {name: state[name] for name in mixture.shared_names}
        clusters = _Clusters(mixture, mixture.places(state), shared)
        labels = state["assignment"].clone().numpy()
        number = clusters.ready
        clusters.sizes[:number] = np.bincount(labels)
        order = torch.randperm(len(labels)).numpy()
        place = 0
        while place < len(order):
            clusters.refill(number + self.num_auxiliary)
            place, number, clusters.ready = auxiliary_sweep(
                labels,
                order,
                place,
                clusters.log_likelihood,
                clusters.sizes,
                clusters.active,
                number,
                clusters.ready,
                self.num_auxiliary,
                log_size,
                log_number,
                fresh_word(),
            )
        occupied, numbers = np.unique(labels, return_inverse=True)
        assignment = torch.from_numpy(numbers)
        values = mixture.own_values(clusters.places[occupied], assignment)
        return values | {"assignment": assignment}, {}


class _Clusters:
    """Clusters by slot, with room for more: parameters, and log likelihoods of all points."""

    def __init__(self, mixture: ModelMixture, places: Any, shared: Mapping[str, Tensor]) -> None:
        self._mixture, self._shared = mixture, shared
        self.ready = 0
        self.places = np.empty((0, places.shape[1]))
        self.log_likelihood = np.empty((mixture.num_points, 0))
        self.sizes = np.zeros(0, np.int64)
        self.active = np.empty(0, np.int64)
        self._add(places)

    def refill(self, wanted: int) -> None:
        """Have parameters from the prior for some more slots than there must be."""
        if self.ready < wanted:
            number = wanted - self.ready + _DRAWS_AT_ONCE
            self._add(self._mixture.fresh(number, self._shared))

    def _add(self, places: Any) -> None:
        if (lacking := self.ready + len(places) - len(self.active)) > 0:
            self._grow(max(lacking, len(self.active)))
        for place in places:
            slot = self.active[self.ready]
            self.places[slot] = place
            self.log_likelihood[:, slot] = self._mixture.log_likelihood(place)
            self.ready += 1

    def _grow(self, number: int) -> None:
        before = len(self.active)
        self.places = np.concatenate([self.places, np.empty((number, self.places.shape[1]))])
        more = np.empty((len(self.log_likelihood), number))
        self.log_likelihood = np.concatenate([self.log_likelihood, more], 1)
        self.sizes = np.concatenate([self.sizes, np.zeros(number, np.int64)])
        self.active = np.concatenate([self.active, np.arange(before, before + number)])
