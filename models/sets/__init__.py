"""Bags with one label each [1], autoencoders of points [2], and networks of any sets [3, 4].

[1] S. Keum, S. Kim, S. Lee, J. Lee (2023), Slot-Mixup with subsampling: a simple regularization for
WSI classification.

[2] J. Kim, J. Yoo, J. Lee, S. Hong (2021), SetVAE: learning hierarchical composition for generative
modeling of set-structured data.

[3] J. Lee, Y. Lee, J. Kim, A. R. Kosiorek, S. Choi, Y. W. Teh (2019),
Set Transformer: a framework for attention-based permutation-invariant neural networks.

[4] M. Zaheer, S. Kottur, S. Ravanbakhsh, B. Poczos, R. Salakhutdinov, A. Smola (2017), Deep sets.
"""

from pyro_ext.models.sets.set_transformer import DeepSet, SetTransformer
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
    "DeepSet",
    "GatedABMIL",
    "GaussianMixtureSet",
    "GeneratedSets",
    "MixedSlots",
    "SetTransformer",
    "SetVAE",
    "SetVAETerms",
    "SlotMIL",
    "attention_concentration",
    "slot_mixup",
    "submix_loss",
    "subsample_bags",
]
