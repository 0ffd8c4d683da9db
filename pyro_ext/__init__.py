"""An extension of Pyro: compiled potentials, stochastic-gradient MCMC, and diagnostics.

The parts are imported by name, for example ``from pyro_ext.inference import MCMC, SGLD``.
"""

from pyro_ext._version import __version__

__all__ = ["__version__"]
