"""Posteriors without a prior: predictive resampling and nonparametric learning."""

from pyro_ext.inference.martingale._convergence import Drift
from pyro_ext.inference.martingale._density_drift import density_drift
from pyro_ext.inference.martingale.capabilities import KnowsLimit, NeedsPreparation
from pyro_ext.inference.martingale.copulas.conditional_copula import ConditionalCopula
from pyro_ext.inference.martingale.copulas.copula_classifier import CopulaClassifier
from pyro_ext.inference.martingale.copulas.copula_density import CopulaDensity
from pyro_ext.inference.martingale.copulas.copula_regression import CopulaRegression
from pyro_ext.inference.martingale.functionals import Expectation, Mean, Quantile, Variance
from pyro_ext.inference.martingale.gaussian import NormalPredictive, PlugInNormal
from pyro_ext.inference.martingale.m_estimators import BestFit, MEstimator, WeightedMLE
from pyro_ext.inference.martingale.martingale_posterior import MartingalePosterior
from pyro_ext.inference.martingale.nonparametric_learning.base_measures import EmpiricalBase
from pyro_ext.inference.martingale.nonparametric_learning.dirichlet_weights import DirichletWeights
from pyro_ext.inference.martingale.nonparametric_learning.nptl import (
    NPTL,
    FineTunedEnsemble,
    linear_probe,
)
from pyro_ext.inference.martingale.nonparametric_learning.posterior_bootstrap import (
    PosteriorBootstrap,
)
from pyro_ext.inference.martingale.nonparametric_learning.transfer import (
    Soup,
    TransferEnsemble,
    soft_cross_entropy,
)
from pyro_ext.inference.martingale.nonparametric_learning.transfer_priors import L2SP, SWAGPrior
from pyro_ext.inference.martingale.plots import plot_drift
from pyro_ext.inference.martingale.polya_urn import PolyaUrn
from pyro_ext.inference.martingale.posterior_predictive import PosteriorPredictive
from pyro_ext.inference.martingale.predictive_rule import PredictiveRule, Resampled
from pyro_ext.inference.martingale.student_t import StudentTPredictive
from pyro_ext.inference.martingale.weighted_sample import WeightedSample

__all__ = [
    "L2SP",
    "NPTL",
    "BestFit",
    "ConditionalCopula",
    "CopulaClassifier",
    "CopulaDensity",
    "CopulaRegression",
    "DirichletWeights",
    "Drift",
    "EmpiricalBase",
    "Expectation",
    "FineTunedEnsemble",
    "KnowsLimit",
    "MEstimator",
    "MartingalePosterior",
    "Mean",
    "NeedsPreparation",
    "NormalPredictive",
    "PlugInNormal",
    "PolyaUrn",
    "PosteriorBootstrap",
    "PosteriorPredictive",
    "PredictiveRule",
    "Quantile",
    "Resampled",
    "SWAGPrior",
    "Soup",
    "StudentTPredictive",
    "TransferEnsemble",
    "Variance",
    "WeightedMLE",
    "WeightedSample",
    "density_drift",
    "linear_probe",
    "plot_drift",
    "soft_cross_entropy",
]
