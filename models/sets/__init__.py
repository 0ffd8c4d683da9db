"""Bags with one label [1], autoencoders of sets [2], set networks [3, 4], and clustering [5].

[1] S. Keum, S. Kim, S. Lee, J. Lee (2023), Slot-Mixup with subsampling: a simple regularization for
WSI classification.

[2] J. Kim, J. Yoo, J. Lee, S. Hong (2021), SetVAE: learning hierarchical composition for generative
modeling of set-structured data.

[3] J. Lee, Y. Lee, J. Kim, A. R. Kosiorek, S. Choi, Y. W. Teh (2019),
Set Transformer: a framework for attention-based permutation-invariant neural networks.

[4] M. Zaheer, S. Kottur, S. Ravanbakhsh, B. Poczos, R. Salakhutdinov, A. Smola (2017), Deep sets.

[5] J. Lee, Y. Lee, Y. W. Teh (2019), Deep amortized clustering.
"""

from pyro_ext.models.sets.amortized_clustering import AmortizedClusterer, Clustering
from pyro_ext.models.sets.filtering import (
    DiagonalNormal,
    FilteringNetwork,
    FilterOutput,
    RankOneNormal,
    anchored_filtering_loss,
    minimum_filtering_loss,
)
from pyro_ext.models.sets.partitioned_sets import (
    gaussian_mixtures,
    labeled_mixtures,
    random_partitions,
)
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
    "AmortizedClusterer",
    "Clustering",
    "DeepSet",
    "DiagonalNormal",
    "FilterOutput",
    "FilteringNetwork",
    "GatedABMIL",
    "GaussianMixtureSet",
    "GeneratedSets",
    "MixedSlots",
    "RankOneNormal",
    "SetTransformer",
    "SetVAE",
    "SetVAETerms",
    "SlotMIL",
    "anchored_filtering_loss",
    "attention_concentration",
    "gaussian_mixtures",
    "labeled_mixtures",
    "minimum_filtering_loss",
    "random_partitions",
    "slot_mixup",
    "submix_loss",
    "subsample_bags",
]
