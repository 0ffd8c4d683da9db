"""What drivers, conversion to ArviZ and checkpoints share of a posterior.

:mod:`~pyro_ext.posterior.draws` and :mod:`~pyro_ext.posterior.independent_draws` say what has
draws, :mod:`~pyro_ext.posterior.convergence` what they are worth,
:mod:`~pyro_ext.posterior.modes` where its mode is and how it is curved there,
:mod:`~pyro_ext.posterior.starts` where chains start, and :mod:`~pyro_ext.posterior.identity` which
run a checkpoint is of.
"""

from pyro_ext.posterior.convergence import effective_sample_size
from pyro_ext.posterior.draws import Context, Sampler
from pyro_ext.posterior.independent_draws import IndependentDraws
from pyro_ext.posterior.modes import Laplace, dispersed_starts, find_map, laplace_at

__all__ = [
    "Context",
    "IndependentDraws",
    "Laplace",
    "Sampler",
    "dispersed_starts",
    "effective_sample_size",
    "find_map",
    "laplace_at",
]
