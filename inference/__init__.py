"""Whatever turns a model and data into a posterior."""

if __name__ == "inference":
    raise ImportError(
        "'inference' is a folder of the checkout, not a package: import pyro_ext.inference instead"
    )

from pyro_ext.inference._running.dispatch import ExecutorError
from pyro_ext.inference.early_stopping import EarlyStopping
from pyro_ext.inference.mcmc import MCMC
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
    "ConstantSchedule",
    "CyclicalSchedule",
    "EarlyStopping",
    "ExecutorError",
    "PolynomialSchedule",
    "SGMCMCKernel",
    "Schedule",
    "StreamingMCMC",
    "Trial",
    "TuningResult",
    "tune",
]
