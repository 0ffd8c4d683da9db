"""Heavy-tailed distributions of positive numbers, and what goes with them."""

from pyro_ext.distributions.beta_prime_bfry import BetaPrimeBFRY, StableBetaBFRY
from pyro_ext.distributions.bfry import BFRY, TiltedBFRY, TruncatedBFRY
from pyro_ext.distributions.generalized_bfry import GeneralizedBFRY
from pyro_ext.distributions.rectified_gamma import RectifiedGamma
from pyro_ext.distributions.stable import PositiveStable, TiltedStable

__all__ = [
    "BFRY",
    "BetaPrimeBFRY",
    "GeneralizedBFRY",
    "PositiveStable",
    "RectifiedGamma",
    "StableBetaBFRY",
    "TiltedBFRY",
    "TiltedStable",
    "TruncatedBFRY",
]
