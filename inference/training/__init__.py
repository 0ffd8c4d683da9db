"""Training: one loop for any module, Pyro loss or function of tensors.

All training in this package runs through :class:`~pyro_ext.inference.Trainer`. It provides the
optimizer steps, schedules, gradient clipping, weight averages, minibatches, a progress bar, and
checkpoints from which training resumes bit for bit.
"""

from pyro_ext.inference.training.batches import ShuffledBatches
from pyro_ext.inference.training.options import TrainingOptions
from pyro_ext.inference.training.outcome import TrainingDiverged, TrainingWarning
from pyro_ext.inference.training.trainer import Trainer

__all__ = ["ShuffledBatches", "Trainer", "TrainingDiverged", "TrainingOptions", "TrainingWarning"]
