"""Inference over partitions: kernels, and hierarchical clustering."""

from pyro_ext.inference.partitions.auxiliary_gibbs import AuxiliaryGibbs
from pyro_ext.inference.partitions.bayesian_clustering import bhc
from pyro_ext.inference.partitions.bregman import (
    BregmanGenerator,
    GaussianCovarianceGenerator,
    GaussianGenerator,
    ItakuraSaitoGenerator,
    MultinomialGenerator,
    PoissonGenerator,
)
from pyro_ext.inference.partitions.cluster_forest import ClusterForest
from pyro_ext.inference.partitions.conjugate_kernel import ConjugateKernel
from pyro_ext.inference.partitions.dendrogram import Dendrogram
from pyro_ext.inference.partitions.gibbs import MarginalGibbs
from pyro_ext.inference.partitions.incremental_clustering import ibhc
from pyro_ext.inference.partitions.kernel import PartitionKernel
from pyro_ext.inference.partitions.relaxed_clustering import rbhc
from pyro_ext.inference.partitions.slice_sampler import SliceSampler
from pyro_ext.inference.partitions.split_merge import SplitMerge
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
