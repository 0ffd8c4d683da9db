"""Symmetries that are learned from data, and networks that hold as many as the data support."""

from pyro_ext.models.symmetry.soft_equivariance import EquivarianceTuner, SoftEMLP, SoftEMLPFit

__all__ = ["EquivarianceTuner", "SoftEMLP", "SoftEMLPFit"]
