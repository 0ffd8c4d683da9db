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
from pyro_ext.inference.mcmc import MCMC
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
from pyro_ext.inference.sgmcmc import (
    PSGLD,
    SGHMC,
    SGLD,
    SGNHT,
    ConstantSchedule,
    CyclicalSchedule,
    PolynomialSchedule,
    Schedule,
    SGMCMCKernel,
)
from pyro_ext.inference.streaming import StreamingMCMC
from pyro_ext.inference.tuning import Trial, TuningResult, tune

__all__ = [
    "MCMC",
    "PSGLD",
    "SGHMC",
    "SGLD",
    "SGNHT",
    "ConditionalUpdate",
    "ConstantSchedule",
    "CyclicalSchedule",
    "EarlyStopping",
    "EnumeratedSites",
    "ExecutorError",
    "Gibbs",
    "LogJoint",
    "AuxiliaryGibbs",
    "MarginalGibbs",
    "PolynomialSchedule",
    "PriorProposals",
    "SGMCMCKernel",
    "Schedule",
    "SliceSampler",
    "SplitMerge",
    "StreamingMCMC",
    "TreeGuided",
    "Trial",
    "TuningResult",
    "bhc",
    "ibhc",
    "rbhc",
    "tune",
]
