"""Training: one loop for any module, Pyro loss or function of tensors.

All that this package trains is trained by :class:`~pyro_ext.inference.Trainer`. It takes the steps,
with a schedule, clipping, an average of the weights, minibatches, a progress bar and a checkpoint
that goes on bit for bit.
"""

from pyro_ext.inference.training.batches import ShuffledBatches
from pyro_ext.inference.training.options import TrainingOptions
from pyro_ext.inference.training.outcome import TrainingDiverged, TrainingWarning
from pyro_ext.inference.training.trainer import Trainer

__all__ = ["ShuffledBatches", "Trainer", "TrainingDiverged", "TrainingOptions", "TrainingWarning"]
