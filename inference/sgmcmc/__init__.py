"""Stochastic-gradient MCMC: samplers as pure functions, and the kernels that wrap them."""

from pyro_ext.inference.sgmcmc.kernel import KernelOptions, SGMCMCKernel
from pyro_ext.inference.sgmcmc.l2e import L2E, LearnedKinetics, ResidualKinetics
from pyro_ext.inference.sgmcmc.meta_sgmcmc import LearnedDiffusion, MetaSGMCMC
from pyro_ext.inference.sgmcmc.minibatches import IndependentMinibatches, Minibatches
from pyro_ext.inference.sgmcmc.psgld import PSGLD
from pyro_ext.inference.sgmcmc.schedules import (
    ConstantSchedule,
    CyclicalSchedule,
    PolynomialSchedule,
    Schedule,
)
from pyro_ext.inference.sgmcmc.sghmc import SGHMC
from pyro_ext.inference.sgmcmc.sgld import SGLD
from pyro_ext.inference.sgmcmc.sgnht import SGNHT
from pyro_ext.inference.vectorized import Chains, Draws
from pyro_ext.posterior.modes import find_map
from pyro_ext.potential.control_variates import Anchor

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
