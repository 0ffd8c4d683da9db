"""Posteriors on disk: runs write checkpoints, and reading one executes no code.

Drivers write checkpoints (``MCMC(..., checkpoint="folder")``). :class:`Checkpoint` opens one
without its model, and :func:`pyro_ext.diagnostics.to_arviz` accepts the folder itself.
"""

from pyro_ext.checkpoint.files import CheckpointError
from pyro_ext.checkpoint.reader import Checkpoint

__all__ = ["Checkpoint", "CheckpointError"]
