"""Kernels over partitions with conjugate clusters: Gibbs, split-merge and slice sampling.

[1] S. Favaro, Y. W. Teh (2013), MCMC for normalized random measure mixture models.
[2] S. Jain, R. M. Neal (2004), A split-merge Markov chain Monte Carlo procedure for the Dirichlet
process mixture model.
[3] J. E. Griffin, S. G. Walker (2011), Posterior simulation of normalized random measure mixtures.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_ext._lib import checks
from pyro_ext.distributions import ConjugateCluster
from pyro_ext.inference.partitions.clustering import start_of_neighbors
from pyro_ext.inference.partitions.hyperparameters import Hyperparameters, Process
from pyro_ext.inference.partitions.kernel import FirstPartition, Moved, PartitionKernel
from pyro_ext.inference.partitions.mixtures import (
    ClusterSource,
    ConjugateMixture,
    Integers,
    PriorSource,
    Situation,
)
from pyro_ext.random_measures import NormalizedRandomMeasure

_MOST_WEIGHTS = 10**6
_LONG_WARMUP = 50


class ConjugateKernel(PartitionKernel[ConjugateMixture]):
    r"""Base class of kernels over partitions that integrate out the parameters of clusters.

    A subclass moves the labels. The data are ``x``, **Shape:** ``(n, d)``, or ``(n,)`` if ``d``
    is one.

    :param prior: as for :class:`PartitionKernel`.
    :param cluster: a conjugate cluster, or a Pyro model without arguments that returns one; its
        sample sites are hyperparameters.
    :param init: as for :class:`PartitionKernel`, or ``"ibhc"``, the clusters that
        :func:`~pyro_ext.inference.partitions.ibhc` finds when neighbors arrive one after the other.
        Use this to start a chain on many points.
    """

    starts = ("prior", "one", "each", "ibhc")
    _setting_names: tuple[str, ...] = ("prior", "init", "cluster")

    def __init__(
        self, prior: PriorSource, cluster: ClusterSource, *, init: FirstPartition = "prior"
    ) -> None:
        is_model = callable(cluster) and not isinstance(cluster, type | Distribution)
        if not isinstance(cluster, ConjugateCluster) and not is_model:
            raise TypeError(
                f"cluster must be or return a conjugate cluster, got {checks.shown(cluster)}"
            )
        self.cluster = cluster
        super().__init__(prior, init=init)

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Take the data, and compile what a long run asks often."""
        super().setup(warmup_steps, *args, **kwargs)
        # By the warm-up alone, so that a run that was stopped goes on with the same numbers.
        if warmup_steps >= _LONG_WARMUP:
            self.mixture.compile()

    @abstractmethod
    def _move(self, labels: Integers, situation: Situation) -> dict[str, float]:
        """Change labels in place, leaving their distribution given all else invariant."""

    def _mixture_of(self, x: Tensor) -> ConjugateMixture:
        prior: Hyperparameters[Process] = Hyperparameters(self.prior, "prior")
        return ConjugateMixture(prior, Hyperparameters(self.cluster, "cluster"), x)

    def _draw_start(self, mixture: ConjugateMixture, init: str | Tensor) -> dict[str, Tensor]:
        state = super()._draw_start(mixture, init)
        if isinstance(init, str) and init == "ibhc":
            state["assignment"] = start_of_neighbors(mixture, state)
        return state

    def _move_points(self, state: Mapping[str, Tensor]) -> Moved:
        labels = state["assignment"].clone().numpy()
        statistics = self._move(labels, self.mixture.situation(state))
        return {"assignment": torch.from_numpy(labels)}, statistics


def loop_seed() -> int:
    """Seed of a compiled loop, from PyTorch's generator."""
    return int(torch.randint(2**31 - 1, ()))


def acceptance_rates(names: Sequence[str], counts: Integers) -> dict[str, float]:
    """Rates of acceptance by name, from numbers accepted and tried of each in turn."""
    return {
        f"{name}_acceptance": float(accepted) / float(tried) if tried else float("nan")
        for name, (accepted, tried) in zip(names, counts.reshape(-1, 2), strict=True)
    }


def sweep(labels: Integers, order: Integers, situation: Situation) -> None:
    """Draw the clusters of some points given all others, in an order."""
    from pyro_ext.inference.partitions._gibbs_loops import gibbs_sweep

    compiled, log_size, log_number, *_ = situation
    gibbs_sweep(compiled, labels, order, log_size, log_number, loop_seed())


class MarginalGibbs(ConjugateKernel):
    r"""Draws the cluster of each point given those of all others [1].

    A point joins a cluster :math:`c` of the others with probability proportional to
    :math:`p(x | X_c) \, \kappa(|c| + 1, u) / \kappa(|c|, u)`, and a new cluster with probability
    proportional to :math:`p(x) \, \kappa(1, u)`. A step visits all points in random order. This
    takes :math:`O(n K d^2)` operations for Gaussians with full covariance, whose Cholesky factors
    are updated.

    Further parameters as for :class:`ConjugateKernel`.

    Example::

        >>> from pyro_ext.distributions import GaussianCluster
        >>> from pyro_ext.inference import MCMC
        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> def prior():
        ...     mass = pyro.sample("mass", dist.Gamma(1.0, 1.0))
        ...     return GeneralizedGammaProcess(mass * 0.5, 0.5, 1.0).normalize()
        >>> x = torch.cat([torch.randn(20, 2) - 4.0, torch.randn(20, 2) + 4.0])
        >>> kernel = MarginalGibbs(prior, GaussianCluster.from_data(x))
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=10, progress=False).run(x)
        >>> mcmc.get_samples()["assignment"].shape
        torch.Size([20, 40])
    """

    def _move(self, labels: Integers, situation: Situation) -> dict[str, float]:
        sweep(labels, torch.randperm(len(labels)).numpy(), situation)
        return {}


class SplitMerge(ConjugateKernel):
    """Splits and merges clusters by restricted Gibbs sampling, and moves single points [2].

    A proposal takes two random points. If they share a cluster, it is split in two by restricted
    Gibbs scans from a random start; otherwise their clusters are merged. A step makes several
    proposals, followed by a sweep as in :class:`MarginalGibbs`.

    :param prior: as for :class:`MarginalGibbs`.
    :param cluster: as for :class:`MarginalGibbs`.
    :param int num_proposals: number of proposals in a step.
    :param int num_scans: number of restricted scans before the one that makes the proposal.
    :param init: as for :class:`MarginalGibbs`.
    """

    _setting_names = (*ConjugateKernel._setting_names, "num_proposals", "num_scans")

    def __init__(
        self,
        prior: PriorSource,
        cluster: ClusterSource,
        *,
        num_proposals: int = 1,
        num_scans: int = 10,
        init: FirstPartition = "prior",
    ) -> None:
        self.num_proposals = checks.integer("num_proposals", num_proposals, 1)
        self.num_scans = checks.integer("num_scans", num_scans, 0)
        super().__init__(prior, cluster, init=init)

    def _move(self, labels: Integers, situation: Situation) -> dict[str, float]:
        from pyro_ext.inference.partitions._gibbs_loops import split_or_merge

        compiled, log_size, log_number, *_ = situation
        counts = np.zeros((2, 2), np.int64)  # of splits and of merges: accepted, tried
        for _ in range(self.num_proposals if len(labels) > 1 else 0):
            is_split, is_accepted = split_or_merge(
                compiled, labels, log_size, log_number, self.num_scans, loop_seed()
            )
            counts[1 - is_split] += (is_accepted, 1)
        sweep(labels, torch.randperm(len(labels)).numpy(), situation)
        return acceptance_rates(("split", "merge"), counts)


class SliceSampler(ConjugateKernel):
    r"""Draws the cluster of each point given slices and weights of the random measure [3].

    Given the partition and :math:`u`, a step draws the weights of its clusters, a level
    :math:`v_i \sim U(0, w_{c_i})` for each point and, exactly, all other weights of the measure
    above the lowest level. Then the points move, in random order, among the clusters whose weight
    exceeds their level, with probabilities proportional to :math:`p(x | X_c)`, and the weights are
    discarded.

    The number of weights grows as the lowest level to the power of minus the discount. Discounts
    above about one half are therefore too large, and a step that would take more than a million
    weights fails. Points move less far than under :class:`MarginalGibbs`, whose clusters have no
    weights. The sampler requires a normalized measure. A Pitman-Yor or a Dirichlet process has no
    weights in this form, but the latter is
    ``GeneralizedGammaProcess(concentration, 0.0, 1.0).normalize()``.

    Parameters as for :class:`MarginalGibbs`.

    Example::

        >>> from pyro_ext.distributions import GaussianCluster
        >>> from pyro_ext.inference import MCMC
        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> x = torch.cat([torch.randn(20, 2) - 4.0, torch.randn(20, 2) + 4.0])
        >>> prior = GeneralizedGammaProcess(1.0, 0.0, 1.0).normalize()
        >>> kernel = SliceSampler(prior, GaussianCluster.from_data(x))
        >>> mcmc = MCMC(kernel, num_samples=20, progress=False).run(x)
        >>> mcmc.get_samples()["assignment"].shape
        torch.Size([20, 40])
    """

    def setup(self, warmup_steps: int, x: torch.Tensor) -> None:
        """Set the data.

        :param int warmup_steps: as for Pyro's kernels.
        :param Tensor x: the data. **Shape:** ``(n, d)``.
        :raises TypeError: for a prior without weights in this form.
        """
        super().setup(warmup_steps, x)
        process, _ = self.mixture.process(self.mixture.prior.draw())
        if not isinstance(process, NormalizedRandomMeasure):
            raise TypeError(
                f"prior must be a normalized measure for SliceSampler, got {process!r:.80}"
            )

    def _move(self, labels: Integers, situation: Situation) -> dict[str, float]:
        from pyro_ext.inference.partitions._gibbs_loops import slice_sweep

        process, _ = self.mixture.process(situation.values)
        u = situation.values.get("u")
        assert isinstance(process, NormalizedRandomMeasure) and u is not None  # by setup
        own = torch.from_numpy(labels)
        with torch.no_grad():
            occupied = process.posterior_jumps(own.bincount(), u).double()
            levels = occupied[own] * (1.0 - torch.rand(len(own), dtype=torch.float64))
            rest, level = process.posterior_measure(u), levels.min()
            number = float(rest.tail(level))
            if number > _MOST_WEIGHTS:
                raise RuntimeError(
                    f"{number:.3g} weights exceed the least level {float(level):.3g}, more than "
                    f"{_MOST_WEIGHTS}: the discount is too large for slices, use MarginalGibbs"
                )
            others, is_there = rest.jumps_above(level)
        weights = torch.cat([occupied, others[is_there].double()])
        order = weights.argsort(descending=True)
        labels[:] = order.argsort()[own].numpy()
        sequence = torch.randperm(len(labels)).numpy()
        ranked = weights[order].numpy()
        slice_sweep(situation.compiled, labels, sequence, ranked, levels.numpy(), loop_seed())
        return {"num_weights": float(len(weights))}
