"""Heavy-tailed distributions of positive numbers, weights in blocks, and conjugate clusters."""

from pyro_ext.distributions.bfry import BFRY, RectifiedGamma, TiltedBFRY, TruncatedBFRY
from pyro_ext.distributions.block_dirichlet import BlockDirichlet
from pyro_ext.distributions.clusters import ClusterBlock, ConjugateCluster, PartitionedBlock
from pyro_ext.distributions.count_clusters import (
    BernoulliCluster,
    MultinomialCluster,
    PoissonCluster,
)
from pyro_ext.distributions.gaussian_clusters import (
    DiagonalGaussianCluster,
    GaussianCluster,
    KnownVarianceGaussianCluster,
)
from pyro_ext.distributions.generalized_bfry import BetaPrimeBFRY, GeneralizedBFRY, StableBetaBFRY
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
