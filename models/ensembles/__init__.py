"""Ensembles of networks, reference posteriors of small Bayesian ones, and tasks for samplers."""

from pyro_ext.models.ensembles.mnist_networks import BaseNetworks, base_networks
from pyro_ext.models.ensembles.reference_posterior import (
    ReferencePosterior,
    load_reference_posterior,
)
from pyro_ext.models.ensembles.tasks import classification_task

__all__ = [
    "BaseNetworks",
    "ReferencePosterior",
    "base_networks",
    "classification_task",
    "load_reference_posterior",
]
