"""Kernels over partitions whose clusters are conjugate."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_ext._checks import shown
from pyro_ext.distributions import ConjugateCluster
from pyro_ext.inference.partitions._conjugate_mixture import (
    ClusterSource,
    ConjugateMixture,
    Situation,
)
from pyro_ext.inference.partitions._hyperparameters import Hyperparameters
from pyro_ext.inference.partitions._mixture import Integers, Law, PriorSource
from pyro_ext.inference.partitions.incremental_clustering import start_of_neighbors
from pyro_ext.inference.partitions.kernel import Moved, PartitionKernel

__all__ = ["ConjugateKernel"]


class ConjugateKernel(PartitionKernel[ConjugateMixture]):
    r"""Kernel over partitions that has the parameters of clusters integrated out.

    A subclass moves the labels. The data are ``x``, **Shape:** ``(n, d)``, or ``(n,)`` where ``d``
    is one.

    :param prior: as of :class:`PartitionKernel`.
    :param cluster: a conjugate cluster, or a Pyro model of no arguments that returns one; its
        sample sites are hyperparameters.
    :param str init: as of :class:`PartitionKernel`, or ``"ibhc"``, the clusters that
        :func:`~pyro_ext.inference.partitions.ibhc` finds where neighbors come one after the other,
        which is where a chain on many points should start.
    """

    starts = ("prior", "one", "each", "ibhc")

    def __init__(self, prior: PriorSource, cluster: ClusterSource, *, init: str = "prior") -> None:
        is_model = callable(cluster) and not isinstance(cluster, type | Distribution)
        if not isinstance(cluster, ConjugateCluster) and not is_model:
            raise TypeError(f"cluster must be or return a conjugate cluster, got {shown(cluster)}")
        self.cluster = cluster
        super().__init__(prior, init=init)

    @abstractmethod
    def _move(self, labels: Integers, situation: Situation) -> dict[str, float]:
        """Change labels in place, leaving their law given all else invariant.

        :returns: statistics of the step by name.
        """

    def _mixture_of(self, x: Tensor) -> ConjugateMixture:
        prior: Hyperparameters[Law] = Hyperparameters(self.prior, "prior")
        return ConjugateMixture(prior, Hyperparameters(self.cluster, "cluster"), x)

    def settings(self) -> dict[str, Any]:
        """Arguments by name, which a run that goes on from a checkpoint must share."""
        return super().settings() | {"cluster": self.cluster}

    def _draw_start(self, mixture: ConjugateMixture) -> dict[str, Tensor]:
        state = super()._draw_start(mixture)
        if self.init == "ibhc":
            state["assignment"] = start_of_neighbors(mixture, state)
        return state

    def _move_points(self, state: Mapping[str, Tensor]) -> Moved:
        labels = state["assignment"].clone().numpy()
        statistics = self._move(labels, self.mixture.situation(state))
        return {"assignment": torch.from_numpy(labels)}, statistics
