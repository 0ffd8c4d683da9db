"""Splits and merges of clusters that trees over their points guide.

[1] J. Lee, S. Choi (2015), Tree-guided MCMC inference for normalized random measure mixture models.
"""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_ext._checks import check_integer, check_number
from pyro_ext.inference.partitions._locality import neighbor_tree
from pyro_ext.inference.partitions.conjugate import ConjugateKernel, fresh_word, sweep
from pyro_ext.inference.partitions.mixtures import ClusterSource, Integers, PriorSource, Situation

__all__ = ["TreeGuided"]

_MODES, _LOCALS = ("exact", "paper"), ("uniform", "tree")
_PUBLISHED_SHARE = 0.1
_NODES_PER_POINT, _LEAST_NODES = 8, 1024
_LEAST_MOVES, _PUBLISHED_MOVES = 5, 20
# A proposal weighs the points of two of K clusters a few times, a sweep each point against all K:
# as measured, K**2 / 80 proposals take as long.
_BALANCE = 1 / 80


class TreeGuided(ConjugateKernel):
    r"""Tree-guided MCMC: trees of hierarchical clustering propose splits and merges [1].

    A step makes ``num_global_moves`` proposals, and then moves single points. Trees over the points
    of clusters, with the posterior of Bayesian hierarchical clustering, say which cluster falls
    apart and where, and which two belong together.

    ``mode="exact"``, the default, leaves the posterior invariant. All points have one tree, by
    Ward's method, and the tree of a cluster is that tree restricted to its points. A split takes
    two anchors on either side of a node where the tree falls apart, lays the other points beside
    them subtree by subtree, lets each go to its likelier side a few times, and draws them once; it
    is accepted with the probability of all of it and of its way back [2].

    ``mode="paper"`` is the kernel as it was published. It treats a proposal that depends on the
    trees as if the trees were irrelevant, and its stationary law is not the posterior but one with
    fewer and larger clusters: on four points with a posterior mean of 2.073 clusters it has 1.854,
    and a total variation of 0.143. It is there for comparison.

    [2] S. Jain, R. M. Neal (2004), A split-merge Markov chain Monte Carlo procedure for the
    Dirichlet process mixture model.

    :param prior: as of :class:`MarginalGibbs`.
    :param cluster: likewise.
    :param str mode: ``"exact"`` or ``"paper"``.
    :param str local: which points are moved singly: random ones, ``"uniform"``, or points that the
        trees pick, ``"tree"``, which only ``mode="paper"`` can do; the published kernel has them.
    :param int num_global_moves: proposals in a step. By default those that take as long as moving
        all points singly, by the number of clusters in the warm-up, but at least 5; and 20, as
        published, with ``mode="paper"``.
    :param float local_share: how many points are moved singly, as a share of all. By default all
        with ``mode="exact"``, and a tenth with ``mode="paper"``, as published.
    :param int depth: random descents in a tree by which it picks points.
    :param int num_scans: times that the points of a split may go to their likelier side before they
        are drawn, with ``mode="exact"``.
    :param str init: as of :class:`MarginalGibbs`.

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

    adapted = ("_adapts", "_num_moves")

    def __init__(
        self,
        prior: PriorSource,
        cluster: ClusterSource,
        *,
        mode: Literal["exact", "paper"] = "exact",
        local: Literal["uniform", "tree"] = "uniform",
        num_global_moves: int | None = None,
        local_share: float | None = None,
        depth: int = 2,
        num_scans: int = 3,
        init: str = "prior",
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {_MODES}, got {mode!r}")
        if local not in _LOCALS:
            raise ValueError(f"local must be one of {_LOCALS}, got {local!r}")
        self.mode, self.local = mode, local
        if num_global_moves is None and mode == "paper":
            num_global_moves = _PUBLISHED_MOVES
        if num_global_moves is not None:
            num_global_moves = check_integer("num_global_moves", num_global_moves, 0)
        self.num_global_moves = num_global_moves
        if mode == "exact" and local == "tree":
            raise ValueError('local must be "uniform" with mode="exact", got "tree"')
        if local_share is None:
            local_share = 1.0 if mode == "exact" else _PUBLISHED_SHARE
        self.local_share = check_number("local_share", local_share, above=0.0, most=1.0)
        self.depth = check_integer("depth", depth, 1)
        self.num_scans = check_integer("num_scans", num_scans, 0)
        # The published kernel has the trees in its state.
        self.keeps_no_state = mode == "exact"
        self._adapts, self._num_moves = False, 0
        self._capacity = 0
        self._order, self._heights = np.empty(0, np.int64), np.empty((0, 0))
        self._planted: tuple[Any, Integers, Integers] | None = None
        super().__init__(prior, cluster, init=init)

    def setup(self, warmup_steps: int, x: Tensor) -> None:
        """Take the data.

        :param int warmup_steps: steps in which the number of proposals is adapted.
        :param Tensor x: the data. **Shape:** ``(n, d)``, or ``(n,)`` where ``d`` is one.
        """
        super().setup(warmup_steps, x)
        self._adapts = self.num_global_moves is None and warmup_steps > 0
        self._num_moves = _LEAST_MOVES if self.num_global_moves is None else self.num_global_moves
        self._capacity = _NODES_PER_POINT * len(x) + _LEAST_NODES
        if self.mode == "exact":
            self._order, self._heights = neighbor_tree(self.mixture.points.double().cpu().numpy())
        self._planted = None

    def end_warmup(self) -> None:
        """Keep the number of proposals as it is."""
        self._adapts = False

    def settings(self) -> dict[str, Any]:
        """Arguments by name."""
        names = ("mode", "local", "num_global_moves", "local_share", "depth", "num_scans")
        return super().settings() | {name: getattr(self, name) for name in names}

    def _move(self, labels: Integers, situation: Situation) -> dict[str, float]:
        number = len(labels)
        some = torch.randperm(number)[: max(round(number * self.local_share), 1)].numpy()
        if self.mode == "paper":
            counts = self._paper_moves(situation, labels, some)
        else:
            counts = self._exact_moves(situation, labels)
            sweep(labels, some, situation)
            if self._adapts:
                balanced = round(_BALANCE * len(np.unique(labels)) ** 2)
                self._num_moves = max(balanced, _LEAST_MOVES)
        names = ("split", "merge", "point")[: len(counts) // 2]
        return {
            f"{name}_acceptance": float(accepted) / float(tried) if tried else float("nan")
            for name, (accepted, tried) in zip(names, counts.reshape(-1, 2), strict=True)
        }

    def _exact_moves(self, situation: Situation, labels: Integers) -> Integers:
        from pyro_ext.inference.partitions._exact_moves import exact_sweep

        compiled, log_size, log_number, *_ = situation
        ordered = labels[self._order]
        counts = exact_sweep(
            compiled.kind,
            compiled.parameters,
            compiled.table,
            compiled.points[self._order],
            ordered,
            self._heights,
            log_size,
            log_number,
            self._num_moves,
            self.num_scans,
            fresh_word(),
        )
        labels[self._order] = ordered
        return counts

    def _paper_moves(self, situation: Situation, labels: Integers, some: Integers) -> Integers:
        from pyro_ext.inference.partitions._paper_moves import (
            paper_sweep,
            replanted,
            trees_of_labels,
        )
        from pyro_ext.inference.partitions.trees import leaves_below, model_of, new_forest

        compiled, log_size, log_number, *_ = situation
        model = model_of(compiled.kind, compiled.parameters, compiled.points, log_size, log_number)
        if self._planted is None or not np.array_equal(self._planted[2], labels):
            start = new_forest(model, self._capacity)
            old, roots = start, trees_of_labels(model, start, labels)
        else:
            old, roots, _ = self._planted
        depth = self.depth if self.local == "tree" else 0
        seed = fresh_word()
        while True:
            forest, trees = replanted(model, old, roots, self._capacity)
            has_room, trees, counts = paper_sweep(
                model, forest, trees, self._num_moves, depth, some, seed
            )
            if has_room:
                break
            self._capacity *= 2
        trees = trees[np.argsort([leaves_below(forest, tree)[0] for tree in trees])]
        for label, tree in enumerate(trees):
            labels[leaves_below(forest, tree)] = label
        self._planted = forest, trees, labels.copy()
        return counts
