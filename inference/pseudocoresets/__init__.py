"""Bayesian pseudocoresets: guides whose parameters are a small synthetic data set."""

from pyro_ext.inference.pseudocoresets.auto_pseudocoreset import AutoPseudocoreset
from pyro_ext.inference.pseudocoresets.coreset_rows import CoresetModel
from pyro_ext.inference.pseudocoresets.divergences import (
    Divergence,
    ForwardKL,
    ReverseKL,
    Wasserstein,
    forward_kl_loss,
    reverse_kl_loss,
)
from pyro_ext.inference.pseudocoresets.evaluation import (
    CoresetScores,
    evaluate_coreset,
    evaluate_draws,
    predictive_probabilities,
    standard_deviation_ratios,
    standardized_mean_differences,
)
from pyro_ext.inference.pseudocoresets.experts import ExpertBuffer
from pyro_ext.inference.pseudocoresets.function_space import (
    FunctionMarginals,
    FunctionSpaceKL,
    FunctionSpaceSurrogate,
    ParameterDistributions,
    parameter_distributions,
)
from pyro_ext.inference.pseudocoresets.gaussians import Gaussian, gaussian_kl, gaussian_wasserstein
from pyro_ext.inference.pseudocoresets.model_functions import (
    ModelFunction,
    diagonal_marginal,
    full_marginal,
    linearized_marginal,
)
from pyro_ext.inference.pseudocoresets.posteriors import Coreset
from pyro_ext.inference.pseudocoresets.subsets import herding_subset, k_means_subset, random_subset
from pyro_ext.inference.pseudocoresets.surrogates import GaussianSurrogate, MCMCSurrogate, Surrogate
from pyro_ext.inference.pseudocoresets.trajectories import (
    TrajectorySnapshots,
    TrajectorySurrogate,
    descend,
)

__all__ = [
    "AutoPseudocoreset",
    "Coreset",
    "CoresetModel",
    "CoresetScores",
    "Divergence",
    "ExpertBuffer",
    "ForwardKL",
    "FunctionMarginals",
    "FunctionSpaceKL",
    "FunctionSpaceSurrogate",
    "Gaussian",
    "GaussianSurrogate",
    "MCMCSurrogate",
    "ModelFunction",
    "ParameterDistributions",
    "ReverseKL",
    "Surrogate",
    "TrajectorySnapshots",
    "TrajectorySurrogate",
    "Wasserstein",
    "descend",
    "diagonal_marginal",
    "evaluate_coreset",
    "evaluate_draws",
    "forward_kl_loss",
    "full_marginal",
    "gaussian_kl",
    "gaussian_wasserstein",
    "herding_subset",
    "k_means_subset",
    "linearized_marginal",
    "parameter_distributions",
    "predictive_probabilities",
    "random_subset",
    "reverse_kl_loss",
    "standard_deviation_ratios",
    "standardized_mean_differences",
]
