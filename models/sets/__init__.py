"""Models of sets: bags of instances with one label each.

[1] S. Keum, S. Kim, S. Lee, J. Lee (2023), Slot-Mixup with subsampling: a simple regularization for
WSI classification.
"""

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
    "MixedSlots",
    "SlotMIL",
    "attention_concentration",
    "slot_mixup",
    "submix_loss",
    "subsample_bags",
]
