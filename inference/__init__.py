"""Whatever turns a model and data into a posterior."""

if __name__ == "inference":
    raise ImportError(
        "'inference' is a folder of the checkout, not a package: import pyro_ext.inference instead"
    )

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

__all__ = [
    "MCMC",
    "PSGLD",
    "SGHMC",
    "SGLD",
    "SGNHT",
    "ConstantSchedule",
    "CyclicalSchedule",
    "PolynomialSchedule",
    "SGMCMCKernel",
    "Schedule",
]
