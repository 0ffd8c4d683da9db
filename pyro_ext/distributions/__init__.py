"""Heavy-tailed laws of positive numbers, weights in blocks, and conjugate laws of clusters."""

from pyro_ext.distributions.beta_prime_bfry import BetaPrimeBFRY, StableBetaBFRY
from pyro_ext.distributions.bfry import BFRY, TiltedBFRY, TruncatedBFRY
from pyro_ext.distributions.block_dirichlet import BlockDirichlet
from pyro_ext.distributions.cluster_block import ClusterBlock
from pyro_ext.distributions.clusters import ConjugateCluster
from pyro_ext.distributions.count_clusters import (
    BernoulliCluster,
    MultinomialCluster,
    PoissonCluster,
)
from pyro_ext.distributions.diagonal_clusters import (
    DiagonalGaussianCluster,
    KnownVarianceGaussianCluster,
)
from pyro_ext.distributions.gaussian_cluster import GaussianCluster
from pyro_ext.distributions.generalized_bfry import GeneralizedBFRY
from pyro_ext.distributions.partitioned_block import PartitionedBlock
from pyro_ext.distributions.rectified_gamma import RectifiedGamma
from pyro_ext.distributions.stable import PositiveStable, TiltedStable

__all__ = [
    "BFRY",
    "BernoulliCluster",
    "BetaPrimeBFRY",
    "BlockDirichlet",
    "ClusterBlock",
    "ConjugateCluster",
    "DiagonalGaussianCluster",
    "GaussianCluster",
    "GeneralizedBFRY",
    "KnownVarianceGaussianCluster",
    "MultinomialCluster",
    "PartitionedBlock",
    "PoissonCluster",
    "PositiveStable",
    "RectifiedGamma",
    "StableBetaBFRY",
    "TiltedBFRY",
    "TiltedStable",
    "TruncatedBFRY",
]
