r"""Completely random measures as values, with their series, approximations and partitions.

Parameters follow the conventions of the literature on normalized random measures: ``mass``
:math:`\eta` multiplies the Lévy density, which contains the factor :math:`1 / \Gamma(1 - \sigma)`;
``discount`` is :math:`\sigma`, the index at zero; ``tail_index`` is :math:`\tau`, the index at
infinity; ``tilt`` is the rate of an exponential tilt.
"""

from pyro_ext.random_measures.arrivals import (
    DeterministicArrivals,
    ExponentialArrivals,
    GammaArrivals,
    InverseGammaArrivals,
    LomaxArrivals,
)
from pyro_ext.random_measures.cluster_counts import (
    frequency_table,
    log_num_partitions,
    split_frequencies,
)
from pyro_ext.random_measures.finite import JumpDistribution
from pyro_ext.random_measures.frequencies import (
    FrequencyCounts,
    RankSizeBand,
    kolmogorov_smirnov,
    rank_size_band,
    rank_sizes,
    reweighted_kolmogorov_smirnov,
)
from pyro_ext.random_measures.generalized_gamma import GeneralizedGammaProcess
from pyro_ext.random_measures.levy_density import LevyDensityProcess
from pyro_ext.random_measures.levy_measure import ArrivalFamily
from pyro_ext.random_measures.measure import CompletelyRandomMeasure, Superposition
from pyro_ext.random_measures.mixed_tilts import BetaPrimeProcess, GeneralizedBFRYProcess
from pyro_ext.random_measures.pareto import ParetoMixtureProcess, ParetoProcess
from pyro_ext.random_measures.partition import RandomPartition
from pyro_ext.random_measures.primitive import (
    DiscreteMeasure,
    FiniteApproximation,
    TruncatedSeries,
    random_measure,
)
from pyro_ext.random_measures.probability_measures import (
    DirichletProcess,
    NormalizedRandomMeasure,
    PitmanYor,
)
from pyro_ext.random_measures.stable_beta import StableBetaProcess
from pyro_ext.random_measures.total_mass import ApproximateTotalMass, TotalMass

__all__ = [
    "ApproximateTotalMass",
    "ArrivalFamily",
    "BetaPrimeProcess",
    "CompletelyRandomMeasure",
    "DeterministicArrivals",
    "DirichletProcess",
    "DiscreteMeasure",
    "ExponentialArrivals",
    "FiniteApproximation",
    "FrequencyCounts",
    "GammaArrivals",
    "GeneralizedBFRYProcess",
    "GeneralizedGammaProcess",
    "InverseGammaArrivals",
    "JumpDistribution",
    "LevyDensityProcess",
    "LomaxArrivals",
    "NormalizedRandomMeasure",
    "ParetoMixtureProcess",
    "ParetoProcess",
    "PitmanYor",
    "RandomPartition",
    "RankSizeBand",
    "StableBetaProcess",
    "Superposition",
    "TotalMass",
    "TruncatedSeries",
    "frequency_table",
    "kolmogorov_smirnov",
    "log_num_partitions",
    "random_measure",
    "rank_size_band",
    "rank_sizes",
    "reweighted_kolmogorov_smirnov",
    "split_frequencies",
]
