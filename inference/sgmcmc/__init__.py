"""Stochastic-gradient MCMC: samplers as pure functions, and the kernels around them."""

from pyro_ext.inference.sgmcmc.chains import Chains, Draws
from pyro_ext.inference.sgmcmc.control_variates import Anchor
from pyro_ext.inference.sgmcmc.kernel import KernelOptions, SGMCMCKernel
from pyro_ext.inference.sgmcmc.kernels import PSGLD, SGHMC, SGLD, SGNHT
from pyro_ext.inference.sgmcmc.learned_diffusion import LearnedDiffusion
from pyro_ext.inference.sgmcmc.learned_kernels import L2E, MetaSGMCMC
from pyro_ext.inference.sgmcmc.learned_kinetics import LearnedKinetics, ResidualKinetics
from pyro_ext.inference.sgmcmc.minibatches import IndependentMinibatches, Minibatches
from pyro_ext.inference.sgmcmc.modes import find_map
from pyro_ext.inference.sgmcmc.schedules import (
    ConstantSchedule,
    CyclicalSchedule,
    PolynomialSchedule,
    Schedule,
)

__all__ = [
    "Anchor",
    "Chains",
    "ConstantSchedule",
    "CyclicalSchedule",
    "Draws",
    "IndependentMinibatches",
    "KernelOptions",
    "L2E",
    "LearnedDiffusion",
    "LearnedKinetics",
    "MetaSGMCMC",
    "Minibatches",
    "PSGLD",
    "PolynomialSchedule",
    "ResidualKinetics",
    "SGHMC",
    "SGLD",
    "SGMCMCKernel",
    "SGNHT",
    "Schedule",
    "find_map",
]
