"""Options of the training loop, under one name for all that is trained by it."""

from pathlib import Path
from typing import TypedDict


class TrainingOptions(TypedDict, total=False):
    """Options of :meth:`Trainer.run <pyro_ext.inference.Trainer.run>` that trainings pass on.

    :param checkpoint: a file in which the training is saved along the way and at the end, and from
        which it goes on where the file exists; it has to be of the same training.
    :param int save_every: steps from one time that it is saved to the next.
    :param bool progress: whether to show a progress bar; by default there is one.
    """

    checkpoint: str | Path | None
    save_every: int
    progress: bool
