"""Differential privacy: per-example gradients, clipping and noise, and the privacy they provide.

With :class:`PrivateLoss` and :class:`PoissonBatches`, :class:`~pyro_ext.inference.Trainer` takes
the steps of DP-SGD; :func:`pld_epsilon` computes their privacy loss.
"""

from pyro_ext.inference.privacy.accounting import noise_multiplier_for, pld_epsilon
from pyro_ext.inference.privacy.gradients import (
    PoissonBatches,
    PrivateLoss,
    clipped_sum,
    example_gradients,
    example_loss,
)

__all__ = [
    "PoissonBatches",
    "PrivateLoss",
    "clipped_sum",
    "example_gradients",
    "example_loss",
    "noise_multiplier_for",
    "pld_epsilon",
]
