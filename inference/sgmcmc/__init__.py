"""Stochastic-gradient MCMC: samplers as pure functions, and the kernels around them."""

from pyro_ext.inference.sgmcmc.kernel import Chains, KernelOptions, SGMCMCKernel
from pyro_ext.inference.sgmcmc.kernels import PSGLD, SGHMC, SGLD, SGNHT
from pyro_ext.inference.sgmcmc.schedules import (
    ConstantSchedule,
    CyclicalSchedule,
    PolynomialSchedule,
    Schedule,
)

__all__ = [
    "Chains",
    "ConstantSchedule",
    "CyclicalSchedule",
    "KernelOptions",
    "PSGLD",
    "PolynomialSchedule",
    "SGHMC",
    "SGLD",
    "SGMCMCKernel",
    "SGNHT",
    "Schedule",
]
