"""Training of neural processes on tasks that are drawn anew at every step."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext._checks import check_callable, check_instance, check_integer, check_number
from pyro_ext.inference.training import Trainer
from pyro_ext.models.neural_processes.batch import Batch
from pyro_ext.models.neural_processes.process import NeuralProcess
from pyro_ext.random import fresh_seed, spawn_seed

__all__ = ["fit"]


def fit(
    process: NeuralProcess,
    tasks: Callable[[int], Batch],
    num_steps: int,
    *,
    num_samples: int | None = None,
    learning_rate: float = 5e-4,
    seed: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> list[float]:
    """Train by Adam, with a learning rate that falls to zero along a cosine.

    The loop is that of :class:`~pyro_ext.inference.training.Trainer`: Ctrl-C keeps whole steps, and
    what is not finite ends the training with an error that says where.

    :param NeuralProcess process: changed in place.
    :param Callable tasks: tasks for a seed, such as
        :class:`~pyro_ext.models.neural_processes.GPTasks`. They are moved to the device and the
        floating type of the process.
    :param int num_steps: number of steps, each on new tasks.
    :param int num_samples: draws in the loss; by default that of the process's own
        :meth:`~NeuralProcess.loss`.
    :param float learning_rate: of the first step.
    :param int seed: of tasks and draws; ``None`` takes one from PyTorch's generator.
    :param checkpoint: a file from which the training goes on where it exists, and in which it is
        saved every hundred steps and at the end.
    :param bool progress: whether to show a progress bar.
    :returns: the loss of every step.
    :raises ValueError: for arguments out of range.
    :raises TrainingDiverged: where loss or gradient are not finite.
    :raises CheckpointError: where the checkpoint is damaged or of another training.

    Example::

        >>> from pyro_ext.models.neural_processes import CNP, Batch, fit
        >>> def tasks(seed):
        ...     x = torch.linspace(-2.0, 2.0, 20).expand(8, 20)[..., None]
        ...     shift = torch.randn(8, 1, 1, generator=torch.Generator().manual_seed(seed))
        ...     y = torch.sin(x + shift)
        ...     return Batch(x[:, ::4], y[:, ::4], x, y)
        >>> losses = fit(CNP(width=16), tasks, num_steps=5, seed=0, progress=False)
        >>> len(losses)
        5
    """
    check_instance("process", process, NeuralProcess, "a NeuralProcess")
    check_callable("tasks", tasks, "a function of a seed that returns a Batch")
    check_integer("num_steps", num_steps, 0)
    check_number("learning_rate", learning_rate, above=0)
    options = {}
    if num_samples is not None:
        options["num_samples"] = check_integer("num_samples", num_samples, 1)
    seed = fresh_seed(seed)
    example = next(process.parameters())
    generator = torch.Generator(example.device).manual_seed(spawn_seed(seed, 0))
    trainer = Trainer(
        process,
        partial(torch.optim.Adam, lr=learning_rate, fused=True),
        scheduler=partial(CosineAnnealingLR, T_max=max(num_steps, 1)),
        stateful=[generator],
        identity={"process": type(process).__name__, **options},
        seed=seed,
    )

    def loss(batch: Batch) -> Tensor:
        batch = batch.to(example.device, example.dtype)
        return process.loss(batch, generator=generator, **options)

    name = type(process).__name__
    return trainer.run(
        loss, num_steps, tasks, checkpoint=checkpoint, progress=progress, description=name
    )
