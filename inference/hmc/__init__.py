"""Hamiltonian Monte Carlo: trajectories of many chains, and kernels that take them."""

from pyro_ext.inference.hmc.chees import ChEES
from pyro_ext.inference.hmc.kernels import HMC, MAMS, NUTS
from pyro_ext.inference.hmc.laplace_hmc import LaplaceHMC
from pyro_ext.inference.hmc.mclmc import MCLMC
from pyro_ext.inference.hmc.meads import MEADS

__all__ = ["HMC", "MAMS", "MCLMC", "MEADS", "NUTS", "ChEES", "LaplaceHMC"]
