"""Splitting and merging of clusters.

[1] S. Jain, R. M. Neal (2004), A split-merge Markov chain Monte Carlo procedure for the Dirichlet
process mixture model.
"""

from typing import Any

import torch

from pyro_ext._checks import check_integer
from pyro_ext.inference.partitions._conjugate_mixture import ClusterSource, Situation
from pyro_ext.inference.partitions._mixture import Integers, PriorSource
from pyro_ext.inference.partitions.conjugate_kernel import ConjugateKernel
from pyro_ext.inference.partitions.gibbs import fresh_word, sweep

__all__ = ["SplitMerge"]


class SplitMerge(ConjugateKernel):
    """Splits and merges clusters by restricted Gibbs sampling, and moves single points [1].

    A proposal takes two random points. If they share a cluster, it is split in two by restricted
    Gibbs scans from a random start; otherwise their clusters are merged. A step makes some
    proposals and then a sweep as of :class:`MarginalGibbs`.

    :param prior: as of :class:`MarginalGibbs`.
    :param cluster: likewise.
    :param int num_proposals: proposals in a step.
    :param int num_scans: restricted scans before that which makes the proposal.
    :param str init: as of :class:`MarginalGibbs`.
    """

    def __init__(
        self,
        prior: PriorSource,
        cluster: ClusterSource,
        *,
        num_proposals: int = 1,
        num_scans: int = 10,
        init: str = "prior",
    ) -> None:
        self.num_proposals = check_integer("num_proposals", num_proposals, 1)
        self.num_scans = check_integer("num_scans", num_scans, 0)
        super().__init__(prior, cluster, init=init)

    def _move(self, labels: Integers, situation: Situation) -> dict[str, float]:
        from pyro_ext.inference.partitions._gibbs_loops import split_or_merge

        compiled, log_size, log_number, *_ = situation
        accepted = {True: 0, False: 0}
        tried = {True: 0, False: 0}
        for _ in range(self.num_proposals if len(labels) > 1 else 0):
            is_split, is_accepted, _ = split_or_merge(
                *compiled, labels, log_size, log_number, self.num_scans, fresh_word()
            )
            accepted[is_split] += is_accepted
            tried[is_split] += 1
        sweep(labels, torch.randperm(len(labels)).numpy(), situation)
        return {
            name: accepted[is_split] / tried[is_split] if tried[is_split] else float("nan")
            for name, is_split in (("split_acceptance", True), ("merge_acceptance", False))
        }

    def settings(self) -> dict[str, Any]:
        """Arguments by name."""
        own = {"num_proposals": self.num_proposals, "num_scans": self.num_scans}
        return super().settings() | own
