"""Whatever turns a model and data into a posterior."""

if __name__ == "inference":
    raise ImportError(
        "'inference' is a folder of the checkout, not a package: import pyro_ext.inference instead"
    )

from pyro_ext.inference._running.dispatch import ExecutorError
from pyro_ext.inference.composite import (
    ConditionalUpdate,
    EnumeratedSites,
    Gibbs,
    LogJoint,
    PriorProposals,
)
from pyro_ext.inference.early_stopping import EarlyStopping
from pyro_ext.inference.evolution_strategies import antithetic_gradient
from pyro_ext.inference.laplace import (
    LaplacePosterior,
    laplace_posterior,
    nuts_posterior,
)
from pyro_ext.inference.laplace_hmc import LaplaceHMC
from pyro_ext.inference.martingale import (
    NPTL,
    CopulaClassifier,
    CopulaDensity,
    CopulaRegression,
    MartingalePosterior,
    PolyaUrn,
    PosteriorBootstrap,
    PosteriorPredictive,
)
from pyro_ext.inference.mcmc import MCMC
from pyro_ext.inference.meta_training import MetaTrainer
from pyro_ext.inference.optimization import BatchLBFGS, BatchOptimizer, Minimizer, Minimum
from pyro_ext.inference.partitions import (
    AuxiliaryGibbs,
    MarginalGibbs,
    SliceSampler,
    SplitMerge,
    TreeGuided,
    bhc,
    ibhc,
    rbhc,
)
from pyro_ext.inference.pseudocoresets import (
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
from pyro_ext.inference.random_walk import RandomWalk
from pyro_ext.inference.sgmcmc import (
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
from pyro_ext.inference.streaming import StreamingMCMC
from pyro_ext.inference.tasks import Task, ensemble_loss, single_draw_loss
from pyro_ext.inference.tuning import Trial, TuningResult, tune

__all__ = [
    "L2E",
    "MCMC",
    "NPTL",
    "AutoPseudocoreset",
    "BatchLBFGS",
    "BatchOptimizer",
    "CopulaClassifier",
    "CopulaDensity",
    "CopulaRegression",
    "MartingalePosterior",
    "MetaSGMCMC",
    "MetaTrainer",
    "Minimizer",
    "Minimum",
    "PSGLD",
    "PolyaUrn",
    "PosteriorBootstrap",
    "PosteriorPredictive",
    "SGHMC",
    "SGLD",
    "SGNHT",
    "ConditionalUpdate",
    "ConstantSchedule",
    "CyclicalSchedule",
    "EarlyStopping",
    "EnumeratedSites",
    "ExecutorError",
    "ExpertBuffer",
    "ForwardKL",
    "FunctionSpaceKL",
    "FunctionSpaceSurrogate",
    "GaussianSurrogate",
    "Gibbs",
    "MCMCSurrogate",
    "LaplaceHMC",
    "LaplacePosterior",
    "LogJoint",
    "AuxiliaryGibbs",
    "MarginalGibbs",
    "PolynomialSchedule",
    "PriorProposals",
    "RandomWalk",
    "ReverseKL",
    "SGMCMCKernel",
    "Schedule",
    "SliceSampler",
    "SplitMerge",
    "StreamingMCMC",
    "Task",
    "TrajectorySnapshots",
    "TrajectorySurrogate",
    "TreeGuided",
    "Trial",
    "TuningResult",
    "Wasserstein",
    "antithetic_gradient",
    "bhc",
    "ensemble_loss",
    "ibhc",
    "laplace_posterior",
    "nuts_posterior",
    "rbhc",
    "single_draw_loss",
    "tune",
]
