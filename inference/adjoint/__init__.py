"""Adjoint samplers: controlled diffusions to a density, trained only on gradients of its energy.

:class:`~pyro_ext.inference.AdjointSampler` samples vectors,
:class:`~pyro_ext.inference.FunctionalAdjointSampler` whole paths between two ends, and
:class:`~pyro_ext.inference.AutoAdjointSampler` the latent sites of a Pyro model.
:class:`~pyro_ext.inference.PathPCN` is an exact kernel over paths to compare with.
"""

from pyro_ext.inference.adjoint.auto_adjoint_sampler import AutoAdjointSampler
from pyro_ext.inference.adjoint.control import ControlNetwork
from pyro_ext.inference.adjoint.matching import Evidence
from pyro_ext.inference.adjoint.noise import ConstantNoise, GeometricNoise, NoiseSchedule
from pyro_ext.inference.adjoint.path_energies import (
    DoubleWell1D,
    DoubleWell2D,
    MullerBrown,
    OnsagerMachlup,
    PathPotential,
)
from pyro_ext.inference.adjoint.path_pcn import PathModel, PathPCN
from pyro_ext.inference.adjoint.samplers import AdjointSampler, FunctionalAdjointSampler

__all__ = [
    "AdjointSampler",
    "AutoAdjointSampler",
    "ConstantNoise",
    "ControlNetwork",
    "DoubleWell1D",
    "DoubleWell2D",
    "Evidence",
    "FunctionalAdjointSampler",
    "GeometricNoise",
    "MullerBrown",
    "NoiseSchedule",
    "OnsagerMachlup",
    "PathModel",
    "PathPCN",
    "PathPotential",
]
