"""What drivers, conversion to ArviZ and checkpoints share of a posterior.

``draws`` and ``independent_draws`` say what has
draws, ``convergence`` what they are worth,
``modes`` where its mode is and how it is curved there,
``starts`` where chains start, and ``identity`` which
run a checkpoint is of.
"""

from pyro_ext.posterior.convergence import ConvergenceWarning, effective_sample_size
from pyro_ext.posterior.draws import Context, Sampler
from pyro_ext.posterior.independent_draws import IndependentDraws
from pyro_ext.posterior.modes import Laplace, dispersed_starts, find_map, laplace_at

__all__ = [
    "Context",
    "ConvergenceWarning",
    "IndependentDraws",
    "Laplace",
    "Sampler",
    "dispersed_starts",
    "effective_sample_size",
    "find_map",
    "laplace_at",
]
