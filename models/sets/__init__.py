"""Models of sets: bags of instances with one label each [1], and autoencoders of points [2].

[1] S. Keum, S. Kim, S. Lee, J. Lee (2023), Slot-Mixup with subsampling: a simple regularization for
WSI classification.

[2] J. Kim, J. Yoo, J. Lee, S. Hong (2021), SetVAE: learning hierarchical composition for generative
modeling of set-structured data.
"""

from pyro_ext.models.sets.set_vae import GaussianMixtureSet, GeneratedSets, SetVAE, SetVAETerms
from pyro_ext.models.sets.slot_mil import (
    ABMIL,
    GatedABMIL,
    MixedSlots,
    SlotMIL,
    attention_concentration,
    slot_mixup,
    submix_loss,
    subsample_bags,
)

__all__ = [
    "ABMIL",
    "GatedABMIL",
    "GaussianMixtureSet",
    "GeneratedSets",
    "MixedSlots",
    "SetVAE",
    "SetVAETerms",
    "SlotMIL",
    "attention_concentration",
    "slot_mixup",
    "submix_loss",
    "subsample_bags",
]
