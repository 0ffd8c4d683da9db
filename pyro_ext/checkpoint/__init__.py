"""Posteriors on disk: what a run writes as it goes, and what reads it, without executing anything.

Drivers write checkpoints (``MCMC(..., checkpoint="folder")``); :class:`Checkpoint` opens one
without its model, and :func:`pyro_ext.diagnostics.to_arviz` takes the folder itself.
"""

from pyro_ext.checkpoint.files import CheckpointError
from pyro_ext.checkpoint.reader import Checkpoint

__all__ = ["Checkpoint", "CheckpointError"]
