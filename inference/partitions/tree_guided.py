"""Splits and merges of clusters, guided by trees over their points.

[1] J. Lee, S. Choi (2015), Tree-guided MCMC inference for normalized random measure mixture models.
"""

import numpy as np
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.partitions._locality import neighbor_tree
from pyro_ext.inference.partitions.conjugate import (
    ConjugateKernel,
    acceptance_rates,
    loop_seed,
    sweep,
)
from pyro_ext.inference.partitions.kernel import FirstPartition
from pyro_ext.inference.partitions.mixtures import ClusterSource, Integers, PriorSource, Situation

_LEAST_MOVES = 5
# A proposal weighs the points of two of K clusters a few times, a sweep each point against all K:
# as measured, K**2 / 80 proposals take as long.
_BALANCE = 1 / 80
# Moving one hyperparameter takes as long as a round of proposals and a sweep that weigh so many
# pairs of a point and a cluster.
_PAIRS = 5000
_MOST_ROUNDS = 20


class TreeGuided(ConjugateKernel):
    r"""Tree-guided MCMC: trees of hierarchical clustering propose splits and merges [1].

    A step makes ``num_global_moves`` proposals, and then moves single points. Trees over the points
    of clusters, with the posterior of Bayesian hierarchical clustering, suggest which cluster to
    split and where, and which two clusters to merge. By default, if there are few points, a step
    makes several such rounds, until they have taken about as long as moving the hyperparameters,
    because the number of clusters moves more slowly than these.

    The posterior is invariant. All points have one tree, built by Ward's method, and the tree of a
    cluster is that tree restricted to its points. A split takes two anchors on either side of a
    node where the tree falls apart, assigns the other points to them subtree by subtree, lets each
    point move to its likelier side a few times, and then draws all of them once. The acceptance
    probability accounts for all of this and for the reverse move [2]. The published kernel, which
    is biased, is ``PublishedTreeGuided`` in ``pyro_ext.tutorials.papers``.

    [2] S. Jain, R. M. Neal (2004), A split-merge Markov chain Monte Carlo procedure for the
    Dirichlet process mixture model.

    :param prior: as for :class:`MarginalGibbs`.
    :param cluster: as for :class:`MarginalGibbs`.
    :param int num_global_moves: number of proposals in a step, which then has a single round. By
        default, the warm-up chooses the number of proposals, at least 5, so that they take as long
        as moving all points singly, and the number of rounds. Both depend on the number of
        clusters.
    :param float local_fraction: number of points that are moved singly, as a fraction of all.
    :param int num_scans: number of times that the points of a split may move to their likelier side
        before they are drawn.
    :param init: as for :class:`MarginalGibbs`.

    Example::

        >>> from pyro_ext.distributions import GaussianCluster
        >>> from pyro_ext.inference import MCMC
        >>> from pyro_ext.random_measures import DirichletProcess
        >>> x = torch.cat([torch.randn(20, 2) - 4.0, torch.randn(20, 2) + 4.0])
        >>> kernel = TreeGuided(DirichletProcess(1.0), GaussianCluster.from_data(x), init="one")
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=10, progress=False).run(x)
        >>> int(mcmc.get_samples()["assignment"][-1].unique().numel()) > 1
        True
    """

    adapted = ("_adapts", "_num_moves", "_num_rounds")
    _setting_names = (
        *ConjugateKernel._setting_names,
        "num_global_moves",
        "local_fraction",
        "num_scans",
    )

    def __init__(
        self,
        prior: PriorSource,
        cluster: ClusterSource,
        *,
        num_global_moves: int | None = None,
        local_fraction: float = 1.0,
        num_scans: int = 3,
        init: FirstPartition = "prior",
    ) -> None:
        self.num_global_moves = checks.optional(
            checks.integer, "num_global_moves", num_global_moves, 0
        )
        self.local_fraction = checks.number("local_fraction", local_fraction, above=0.0, most=1.0)
        self.num_scans = checks.integer("num_scans", num_scans, 0)
        self._adapts, self._num_moves, self._num_rounds = False, 0, 1
        self._order, self._heights = np.empty(0, np.int64), np.empty((0, 0))
        super().__init__(prior, cluster, init=init)

    @property
    def adapts(self) -> bool:
        """Tell whether the kernel needs a warm-up."""
        return self.num_global_moves is None

    def setup(self, warmup_steps: int, x: Tensor) -> None:
        """Set the data.

        :param int warmup_steps: steps in which the numbers of proposals and rounds are adapted.
        :param Tensor x: the data. **Shape:** ``(n, d)``, or ``(n,)`` where ``d`` is one.
        """
        super().setup(warmup_steps, x)
        self._adapts = self.num_global_moves is None and warmup_steps > 0
        self._num_moves = _LEAST_MOVES if self.num_global_moves is None else self.num_global_moves
        self._num_rounds = 1
        self._order, self._heights = neighbor_tree(self.mixture.points.double().cpu().numpy())

    def end_warmup(self) -> None:
        """Keep the numbers of proposals and rounds as they are."""
        self._adapts = False

    def _move(self, labels: Integers, situation: Situation) -> dict[str, float]:
        rounds = [self._round(labels, situation) for _ in range(self._num_rounds)]
        if self._adapts:
            number = len(np.unique(labels))
            self._num_moves = max(round(_BALANCE * number**2), _LEAST_MOVES)
            start = self.initial_params
            num_sites = sum(start[name].numel() for name in self.mixture.names)
            balanced = _PAIRS * num_sites // (number * len(labels))
            self._num_rounds = min(max(balanced, 1), _MOST_ROUNDS)
        return acceptance_rates(("split", "merge"), np.sum(rounds, axis=0))

    def _round(self, labels: Integers, situation: Situation) -> Integers:
        """Propose splits and merges, and move single points; return counts of both proposals."""
        from pyro_ext.inference.partitions._exact_moves import exact_sweep

        number = len(labels)
        some = torch.randperm(number)[: max(round(number * self.local_fraction), 1)].numpy()
        compiled, log_size, log_number, *_ = situation
        ordered = labels[self._order]
        counts: Integers = exact_sweep(
            compiled._replace(points=compiled.points[self._order]),
            ordered,
            self._heights,
            log_size,
            log_number,
            self._num_moves,
            self.num_scans,
            loop_seed(),
        )
        labels[self._order] = ordered
        sweep(labels, some, situation)
        return counts
