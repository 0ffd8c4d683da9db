"""Inference over partitions: MCMC kernels, and hierarchical clustering."""

from pyro_ext.inference.partitions.auxiliary_gibbs import AuxiliaryGibbs
from pyro_ext.inference.partitions.bregman import (
    BregmanGenerator,
    GaussianCovarianceGenerator,
    GaussianGenerator,
    ItakuraSaitoGenerator,
    MultinomialGenerator,
    PoissonGenerator,
)
from pyro_ext.inference.partitions.clustering import bhc, ibhc, rbhc
from pyro_ext.inference.partitions.conjugate import (
    ConjugateKernel,
    MarginalGibbs,
    SliceSampler,
    SplitMerge,
)
from pyro_ext.inference.partitions.dendrogram import ClusterForest, Dendrogram
from pyro_ext.inference.partitions.kernel import PartitionKernel
from pyro_ext.inference.partitions.tree_guided import TreeGuided

__all__ = [
    "AuxiliaryGibbs",
    "BregmanGenerator",
    "ClusterForest",
    "ConjugateKernel",
    "Dendrogram",
    "GaussianCovarianceGenerator",
    "GaussianGenerator",
    "ItakuraSaitoGenerator",
    "MarginalGibbs",
    "MultinomialGenerator",
    "PartitionKernel",
    "PoissonGenerator",
    "SliceSampler",
    "SplitMerge",
    "TreeGuided",
    "bhc",
    "ibhc",
    "rbhc",
]
