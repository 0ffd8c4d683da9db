"""Distributions of heavy-tailed variables, block weights, clusters, paths, sequences and graphs.

[1] J. Bertoin, T. Fujita, B. Roynette, M. Yor (2006),
On a particular class of self-decomposable random variables: the durations of Bessel excursions
straddling independent exponential times.

[2] J. Lee, X. Miscouridou, F. Caron (2019), A unified construction for series representations and
finite approximations of completely random measures.

[3] J. Lee, C. Heaukulani, Z. Ghahramani, L. F. James, S. Choi (2017),
Bayesian inference on random simple graphs with power law degree distributions.

[4] F. Ayed, J. Lee, F. Caron (2019), Beyond the Chinese restaurant and Pitman-Yor processes:
statistical models with double power-law behavior.

[5] M. Kanter (1975), Stable densities under change of scale and total variation inequalities.

[6] L. Devroye (2009), Random variate generation for exponentially and polynomially tilted stable
distributions.

[7] K. P. Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution.
"""

from pyro_ext.distributions.bars import BarDistribution, bar_borders
from pyro_ext.distributions.bfry import BFRY, RectifiedGamma, TiltedBFRY, TruncatedBFRY
from pyro_ext.distributions.block_dirichlet import BlockDirichlet
from pyro_ext.distributions.clusters import ClusterBlock, ConjugateCluster, PartitionedBlock
from pyro_ext.distributions.count_clusters import (
    BernoulliCluster,
    MultinomialCluster,
    PoissonCluster,
)
from pyro_ext.distributions.dirichlet_ou import DirichletOU
from pyro_ext.distributions.force_normal import ForceNormal
from pyro_ext.distributions.gaussian_clusters import (
    GaussianCluster,
    KnownVarianceGaussianCluster,
)
from pyro_ext.distributions.generalized_bfry import BetaPrimeBFRY, GeneralizedBFRY, StableBetaBFRY
from pyro_ext.distributions.graphs import BernoulliExponentialGraph, LogitGraph
from pyro_ext.distributions.normal_vectors import GaussianRandomWalk, ZeroSumNormal
from pyro_ext.distributions.sequence_gp import CauchyGP, PaddedMultivariateNormal
from pyro_ext.distributions.soft_equivariant import SoftEquivariantNormal
from pyro_ext.distributions.stable import PositiveStable, TiltedStable
from pyro_ext.distributions.truncated import TruncatedDistribution, TruncatedNormal

__all__ = [
    "BFRY",
    "BarDistribution",
    "BernoulliCluster",
    "BernoulliExponentialGraph",
    "BetaPrimeBFRY",
    "BlockDirichlet",
    "CauchyGP",
    "ClusterBlock",
    "ConjugateCluster",
    "DirichletOU",
    "ForceNormal",
    "GaussianCluster",
    "GaussianRandomWalk",
    "GeneralizedBFRY",
    "KnownVarianceGaussianCluster",
    "LogitGraph",
    "MultinomialCluster",
    "PaddedMultivariateNormal",
    "PartitionedBlock",
    "PoissonCluster",
    "PositiveStable",
    "RectifiedGamma",
    "SoftEquivariantNormal",
    "StableBetaBFRY",
    "TiltedBFRY",
    "TiltedStable",
    "TruncatedBFRY",
    "TruncatedDistribution",
    "TruncatedNormal",
    "ZeroSumNormal",
    "bar_borders",
]
