r"""Completely random measures as values, and what is made of them.

Parameters have the conventions of the literature on normalized random measures: ``mass``
:math:`\eta` multiplies the Lévy density, with :math:`1 / \Gamma(1 - \sigma)` inside the density;
``discount`` is :math:`\sigma`, the index at zero; ``tail_index`` is :math:`\tau`, the index at
infinity; ``tilt`` is an exponential one.
"""

from pyro_ext.random_measures._measure import CompletelyRandomMeasure
from pyro_ext.random_measures.arrivals import (
    ArrivalFamily,
    DeterministicArrivals,
    ExponentialArrivals,
    GammaArrivals,
    InverseGammaArrivals,
    LomaxArrivals,
)
from pyro_ext.random_measures.beta_prime import BetaPrimeProcess
from pyro_ext.random_measures.generalized_bfry import GeneralizedBFRYProcess
from pyro_ext.random_measures.generalized_gamma import GeneralizedGammaProcess
from pyro_ext.random_measures.jump_law import JumpLaw
from pyro_ext.random_measures.levy_density import LevyDensityProcess
from pyro_ext.random_measures.normalized import NormalizedRandomMeasure
from pyro_ext.random_measures.pareto import ParetoMixtureProcess, ParetoProcess
from pyro_ext.random_measures.partition import RandomPartition
from pyro_ext.random_measures.pitman_yor import DirichletProcess, PitmanYor
from pyro_ext.random_measures.primitive import (
    DiscreteMeasure,
    FiniteApproximation,
    TruncatedSeries,
    random_measure,
)
from pyro_ext.random_measures.stable_beta import StableBetaProcess
from pyro_ext.random_measures.superposition import Superposition
from pyro_ext.random_measures.total_mass import ApproximateTotalMass, InvertedTotalMass, TotalMass

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
    "GammaArrivals",
    "GeneralizedBFRYProcess",
    "GeneralizedGammaProcess",
    "InverseGammaArrivals",
    "InvertedTotalMass",
    "JumpLaw",
    "LevyDensityProcess",
    "LomaxArrivals",
    "NormalizedRandomMeasure",
    "ParetoMixtureProcess",
    "ParetoProcess",
    "PitmanYor",
    "RandomPartition",
    "StableBetaProcess",
    "Superposition",
    "TotalMass",
    "TruncatedSeries",
    "random_measure",
]
