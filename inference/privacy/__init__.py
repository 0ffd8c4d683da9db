"""Differential privacy: gradients of single examples, clipped and with noise, and what they leak.

:class:`PrivateLoss` and :class:`PoissonBatches` make :class:`~pyro_ext.inference.Trainer` take the
steps of DP-SGD; :func:`pld_epsilon` says what they have cost.
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
