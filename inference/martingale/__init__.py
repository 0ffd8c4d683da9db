"""Posteriors without a prior: predictive resampling and nonparametric learning."""

from pyro_ext.inference.martingale.convergence import Drift, density_drift
from pyro_ext.inference.martingale.copula_density import CopulaDensity
from pyro_ext.inference.martingale.copula_regression import (
    ConditionalCopula,
    CopulaClassifier,
    CopulaRegression,
)
from pyro_ext.inference.martingale.functionals import (
    BestFit,
    Expectation,
    Mean,
    MEstimator,
    Quantile,
    Variance,
    WeightedMLE,
)
from pyro_ext.inference.martingale.gaussian import (
    NormalPredictive,
    PlugInNormal,
    StudentTPredictive,
)
from pyro_ext.inference.martingale.martingale_posterior import MartingalePosterior, plot_drift
from pyro_ext.inference.martingale.nonparametric_learning.dirichlet_weights import (
    BootstrapWeights,
    DirichletWeights,
    EmpiricalBase,
)
from pyro_ext.inference.martingale.nonparametric_learning.nptl import NPTL, linear_probe
from pyro_ext.inference.martingale.nonparametric_learning.posterior_bootstrap import (
    LossOptions,
    PosteriorBootstrap,
)
from pyro_ext.inference.martingale.polya_urn import PolyaUrn
from pyro_ext.inference.martingale.posterior_predictive import PosteriorPredictive
from pyro_ext.inference.martingale.predictive_rule import (
    KnowsLimit,
    NeedsPreparation,
    PredictiveRule,
    Resampled,
)
from pyro_ext.inference.martingale.weighted_sample import WeightedSample

__all__ = [
    "NPTL",
    "BestFit",
    "BootstrapWeights",
    "ConditionalCopula",
    "CopulaClassifier",
    "CopulaDensity",
    "CopulaRegression",
    "DirichletWeights",
    "Drift",
    "EmpiricalBase",
    "Expectation",
    "KnowsLimit",
    "LossOptions",
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
    "StudentTPredictive",
    "Variance",
    "WeightedMLE",
    "WeightedSample",
    "density_drift",
    "linear_probe",
    "plot_drift",
]
