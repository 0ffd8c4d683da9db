"""Heavy-tailed distributions of positive numbers."""

from pyro_ext.distributions.bfry import BFRY, TiltedBFRY, TruncatedBFRY
from pyro_ext.distributions.generalized_bfry import GeneralizedBFRY
from pyro_ext.distributions.stable import PositiveStable, TiltedStable

__all__ = [
    "BFRY",
    "GeneralizedBFRY",
    "PositiveStable",
    "TiltedBFRY",
    "TiltedStable",
    "TruncatedBFRY",
]
