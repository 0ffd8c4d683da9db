"""Reference posteriors of small Bayesian networks, and tasks, for measuring samplers."""

from pyro_ext.models.ensembles.reference_posterior import (
    ReferencePosterior,
    load_reference_posterior,
)
from pyro_ext.models.ensembles.tasks import classification_task

__all__ = ["ReferencePosterior", "classification_task", "load_reference_posterior"]
