"""Hamiltonian Monte Carlo: transitions of many chains, and kernels that take them."""

from pyro_ext.inference.hmc.laplace_hmc import LaplaceHMC

__all__ = ["LaplaceHMC"]
