"""Ensembles of networks, reference posteriors of small Bayesian ones, and tasks for samplers."""

from pyro_ext.models.ensembles.bridge_networks import BridgeEnsemble, BridgeNetwork
from pyro_ext.models.ensembles.bridge_schedule import BridgeSchedule
from pyro_ext.models.ensembles.bridge_sources import BridgeSource
from pyro_ext.models.ensembles.diffusion_bridges import (
    DiffusionBridgeNetwork,
    average_bridges,
    ensemble_logits,
)
from pyro_ext.models.ensembles.latent_batch_ensembles import BatchEnsembleDistiller
from pyro_ext.models.ensembles.long_tails import (
    BalancedBatches,
    LearnableScales,
    accuracy_by_count,
    exponential_profile,
    logit_adjusted,
    tau_normalized,
)
from pyro_ext.models.ensembles.mnist_networks import BaseNetworks, base_networks
from pyro_ext.models.ensembles.perturbations import diversify
from pyro_ext.models.ensembles.prior_augmented_data import (
    PriorAugmentedELBO,
    PseudoInputGenerator,
    prior_weight,
)
from pyro_ext.models.ensembles.reference_posterior import (
    ReferencePosterior,
    load_reference_posterior,
)
from pyro_ext.models.ensembles.score_networks import ScoreConvNet, ScoreMLP
from pyro_ext.models.ensembles.stochastic_representations import (
    StochasticRepresentations,
    dirichlet_distillation,
    distillation,
    weighted_distillation,
)
from pyro_ext.models.ensembles.tasks import classification_task

__all__ = [
    "BalancedBatches",
    "BaseNetworks",
    "BatchEnsembleDistiller",
    "BridgeEnsemble",
    "BridgeNetwork",
    "BridgeSchedule",
    "BridgeSource",
    "DiffusionBridgeNetwork",
    "LearnableScales",
    "PriorAugmentedELBO",
    "PseudoInputGenerator",
    "ReferencePosterior",
    "ScoreConvNet",
    "ScoreMLP",
    "StochasticRepresentations",
    "accuracy_by_count",
    "average_bridges",
    "base_networks",
    "classification_task",
    "dirichlet_distillation",
    "distillation",
    "diversify",
    "ensemble_logits",
    "exponential_profile",
    "load_reference_posterior",
    "logit_adjusted",
    "prior_weight",
    "tau_normalized",
    "weighted_distillation",
]
