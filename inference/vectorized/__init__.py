"""Kernels that run many chains side by side: their contract, their chains and the loop of steps."""

from pyro_ext.inference.vectorized.chains import Chains, Draws, Info, ValueAndGradient
from pyro_ext.inference.vectorized.kernel import VectorizedKernel, VectorizedOptions

__all__ = ["Chains", "Draws", "Info", "ValueAndGradient", "VectorizedKernel", "VectorizedOptions"]
