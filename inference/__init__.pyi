"""Inference algorithms."""

from .active_learning import bald, best_by_turns, farthest_points, mixture_moments
from .adjoint import AdjointSampler, AutoAdjointSampler, FunctionalAdjointSampler, PathPCN
from .amortized.meta_training import MetaTrainer
from .amortized.mixture import AmortizedMixtureGuide
from .amortized.prior_fitted import PriorDataFittedNetwork
from .amortized.prior_fitted_transformer import PriorFittedTransformer
from .amortized.tasks import Task, ensemble_loss, single_draw_loss
from .attacks import bpda_eot, joint_score_attack, pgd
from .averaging import AutoSWAG
from .driver.dispatch import ExecutorError
from .driver.early_stopping import EarlyStopping
from .driver.streaming import StreamingMCMC
from .driver.tuning import Trial, TuningResult, tune
from .evolution_strategies import antithetic_gradient
from .gibbs.conditional_updates import (
    ConditionalUpdate,
    EllipticalSlice,
    EnumeratedSites,
    LogJoint,
    PriorProposals,
    RandomWalk,
)
from .gibbs.kernel import Gibbs
from .hmc import HMC, MAMS, MCLMC, MEADS, NUTS, ChEES, LaplaceHMC
from .independence_metropolis import IndependenceMetropolis
from .ivon import IVON
from .laplace import AutoLaplaceGGN, LaplacePosterior, laplace_posterior
from .martingale import (
    NPTL,
    CopulaClassifier,
    CopulaDensity,
    CopulaRegression,
    MartingalePosterior,
    PolyaUrn,
    PosteriorBootstrap,
    PosteriorPredictive,
)
from .mcmc import MCMC
from .optimization import BatchLBFGS, BatchOptimizer, Minimizer, Minimum
from .partitions import (
    AuxiliaryGibbs,
    MarginalGibbs,
    SliceSampler,
    SplitMerge,
    TreeGuided,
    bhc,
    ibhc,
    rbhc,
)
from .pseudocoresets import (
    AutoPseudocoreset,
    ExpertBuffer,
    ForwardKL,
    FunctionSpaceKL,
    FunctionSpaceSurrogate,
    GaussianSurrogate,
    MCMCSurrogate,
    ReverseKL,
    TrajectorySnapshots,
    TrajectorySurrogate,
    Wasserstein,
)
from .sgmcmc import (
    L2E,
    PSGLD,
    SGHMC,
    SGLD,
    SGNHT,
    ConstantSchedule,
    CyclicalSchedule,
    MetaSGMCMC,
    PolynomialSchedule,
    Schedule,
    SGMCMCKernel,
)
from .smc import MarkovSMC, SelfDistilledTwistedSMC, TemperedSMC, TwistedSMC, TwistedSMCFilter
from .training import Trainer
from .vectorized import VectorizedKernel

__all__ = [
    "HMC",
    "IVON",
    "L2E",
    "MAMS",
    "MCMC",
    "MCLMC",
    "MEADS",
    "NPTL",
    "NUTS",
    "PSGLD",
    "SGHMC",
    "SGLD",
    "SGNHT",
    "AdjointSampler",
    "AmortizedMixtureGuide",
    "AutoAdjointSampler",
    "AutoLaplaceGGN",
    "AutoPseudocoreset",
    "AutoSWAG",
    "AuxiliaryGibbs",
    "BatchLBFGS",
    "BatchOptimizer",
    "ChEES",
    "ConditionalUpdate",
    "ConstantSchedule",
    "CopulaClassifier",
    "CopulaDensity",
    "CopulaRegression",
    "CyclicalSchedule",
    "EarlyStopping",
    "EllipticalSlice",
    "EnumeratedSites",
    "ExecutorError",
    "ExpertBuffer",
    "ForwardKL",
    "FunctionSpaceKL",
    "FunctionSpaceSurrogate",
    "FunctionalAdjointSampler",
    "GaussianSurrogate",
    "Gibbs",
    "IndependenceMetropolis",
    "LaplaceHMC",
    "LaplacePosterior",
    "LogJoint",
    "MCMCSurrogate",
    "MarginalGibbs",
    "MarkovSMC",
    "MartingalePosterior",
    "MetaSGMCMC",
    "MetaTrainer",
    "Minimizer",
    "Minimum",
    "PathPCN",
    "PolyaUrn",
    "PolynomialSchedule",
    "PosteriorBootstrap",
    "PosteriorPredictive",
    "PriorDataFittedNetwork",
    "PriorFittedTransformer",
    "PriorProposals",
    "RandomWalk",
    "ReverseKL",
    "SGMCMCKernel",
    "Schedule",
    "SelfDistilledTwistedSMC",
    "SliceSampler",
    "SplitMerge",
    "StreamingMCMC",
    "Task",
    "TemperedSMC",
    "Trainer",
    "TrajectorySnapshots",
    "TrajectorySurrogate",
    "TreeGuided",
    "Trial",
    "TuningResult",
    "TwistedSMC",
    "TwistedSMCFilter",
    "VectorizedKernel",
    "Wasserstein",
    "antithetic_gradient",
    "bald",
    "best_by_turns",
    "bhc",
    "bpda_eot",
    "ensemble_loss",
    "farthest_points",
    "ibhc",
    "joint_score_attack",
    "laplace_posterior",
    "mixture_moments",
    "pgd",
    "rbhc",
    "single_draw_loss",
    "tune",
]
