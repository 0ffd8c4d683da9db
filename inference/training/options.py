"""Options of the training loop, named the same wherever something is trained."""

from pathlib import Path
from typing import TypedDict


class TrainingOptions(TypedDict, total=False):
    """Options that are passed on to :meth:`Trainer.run <pyro_ext.inference.Trainer.run>`.

    :param checkpoint: a file in which the training is saved along the way and at the end. If it
        exists, training resumes from it; it must belong to the same training.
    :param int save_every: number of steps between saves.
    :param bool progress: whether to show a progress bar; by default true.
    """

    checkpoint: str | Path | None
    save_every: int
    progress: bool
