"""Shared parts of the drivers, the conversion to ArviZ and the checkpoints.

``draws`` and ``independent_draws`` give access to draws, ``convergence`` diagnoses them, ``modes``
finds the posterior's mode and its curvature there, ``starts`` chooses where chains start, and
``identity`` identifies the run of a checkpoint.
"""

from pyro_ext.posterior.convergence import ConvergenceWarning, effective_sample_size
from pyro_ext.posterior.draws import Context, Sampler
from pyro_ext.posterior.importance import SmoothedWeights, smoothed_weights
from pyro_ext.posterior.independent_draws import IndependentDraws
from pyro_ext.posterior.modes import Laplace, dispersed_starts, find_map, laplace_at
from pyro_ext.posterior.paths import PathfinderPosterior, pathfinder

__all__ = [
    "Context",
    "ConvergenceWarning",
    "IndependentDraws",
    "Laplace",
    "PathfinderPosterior",
    "Sampler",
    "SmoothedWeights",
    "dispersed_starts",
    "effective_sample_size",
    "find_map",
    "laplace_at",
    "pathfinder",
    "smoothed_weights",
]
