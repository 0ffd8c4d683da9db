"""Training of neural processes on new random tasks in every step, and their evaluation."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple, Unpack

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext._lib import checks
from pyro_ext.inference.training import Trainer, TrainingOptions
from pyro_ext.inference.training.checkpoints import seed_of
from pyro_ext.models.neural_processes.batch import Batch
from pyro_ext.models.neural_processes.process import (
    NeuralProcess,
    log_mean_exp,
    points_log_prob,
    task_means,
)
from pyro_ext.random import fresh_seed, spawn_seed


def fit(
    process: NeuralProcess,
    tasks: Callable[[int], Batch],
    num_steps: int,
    *,
    num_samples: int | None = None,
    learning_rate: float = 5e-4,
    seed: int | None = None,
    **training: Unpack[TrainingOptions],
) -> list[float]:
    """Train with Adam, with a learning rate that falls to zero along a cosine.

    Ctrl-C keeps whole steps.

    :param NeuralProcess process: the process, which is changed in place.
    :param Callable tasks: returns tasks for a seed, for example
        :class:`~pyro_ext.models.neural_processes.GPTasks`. They are moved to the device and the
        floating-point type of the process.
    :param int num_steps: number of steps, each on new tasks; with a checkpoint, the number with
        which training started.
    :param int num_samples: number of draws in the loss; by default that of the process's own
        :meth:`~NeuralProcess.loss`.
    :param float learning_rate: learning rate of the first step.
    :param int seed: seed of tasks and draws; ``None`` takes the seed of the checkpoint if it
        exists, and otherwise one from PyTorch's generator.
    :param training: options of :class:`~pyro_ext.inference.training.TrainingOptions`.
    :returns: the loss of every step.
    :raises TrainingDiverged: if loss or gradient are not finite.
    :raises CheckpointError: if the checkpoint is damaged or belongs to another training.

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
    checks.instance("process", process, NeuralProcess, "a NeuralProcess")
    checks.function("tasks", tasks, "a function of a seed that returns a Batch")
    checks.integer("num_steps", num_steps, 0)
    checks.number("learning_rate", learning_rate, above=0)
    checks.optional(checks.integer, "num_samples", num_samples, 1)
    options = {} if num_samples is None else {"num_samples": num_samples}
    seed = seed_of(seed, training.get("checkpoint"))
    example = next(process.parameters())
    generator = torch.Generator(example.device).manual_seed(spawn_seed(seed, 0))
    trainer = Trainer(
        process,
        partial(torch.optim.Adam, lr=learning_rate, fused=True),
        scheduler=partial(CosineAnnealingLR, T_max=max(num_steps, 1)),
        stateful=[generator],
        identity={"process": type(process).__name__, "num_steps": num_steps, **options},
        seed=seed,
    )

    def loss(batch: Batch) -> Tensor:
        batch = batch.to(example.device, example.dtype)
        process.note_range(batch)
        return process.loss(batch, generator=generator, **options)

    return trainer.run(loss, num_steps, tasks, description=type(process).__name__, **training)


class LogLikelihoods(NamedTuple):
    """Mean log likelihood of a point.

    :param float context: mean over given points.
    :param float target: mean over points to predict.
    """

    context: float
    target: float


@torch.no_grad()
def log_likelihoods(
    process: NeuralProcess, batches: Iterable[Batch], num_samples: int = 50, seed: int | None = 0
) -> LogLikelihoods:
    r"""Average :math:`\log \frac1K \sum_k \mathcal{N}(y; \mu_k, \sigma_k)` over tasks and points.

    The mean over draws is taken separately for each point, unlike in a training loss. Each task
    counts once, however many points it has; a task without points counts as zero.

    :param NeuralProcess process: the process.
    :param Iterable batches: tasks. They are moved to the device and the floating-point type of the
        process.
    :param int num_samples: :math:`K`, the number of functions drawn for each task.
    :param int seed: seed of the draws; ``None`` takes one from PyTorch's generator.
    :returns: means for points of the context and for targets.
    :raises ValueError: if there are no tasks.

    Example::

        >>> from pyro_ext.models.neural_processes import CNP, Batch
        >>> x, y = torch.randn(4, 10, 1), torch.randn(4, 10, 1)
        >>> batch = Batch(x[:, :3], y[:, :3], x[:, 3:], y[:, 3:])
        >>> log_likelihoods(CNP(width=16), [batch]).target < 0
        True
    """
    checks.instance("process", process, NeuralProcess, "a NeuralProcess")
    every = checks.sequence("batches", batches, "a list of batches", kind=Batch)
    checks.integer("num_samples", num_samples, 1)
    example = next(process.parameters(), every[0].context_inputs)
    generator = torch.Generator(example.device).manual_seed(fresh_seed(seed))
    given_sum, asked_sum, number = 0.0, 0.0, 0
    for batch in every:
        batch = batch.to(example.device, example.dtype)
        context, points = batch.context, batch.points
        prediction = process.predict(
            context.inputs,
            context.outputs,
            points.inputs,
            num_samples,
            context_mask=context.mask,
            generator=generator,
        )
        values = log_mean_exp(points_log_prob(prediction, points))
        sizes = [part.shape[1] for part in (batch.context_inputs, batch.target_inputs)]
        given, asked = values.split(sizes, 1)
        given_sum += float(task_means(given, batch.context_mask).double().sum())
        asked_sum += float(task_means(asked, batch.target_mask).double().sum())
        number += batch.num_tasks
    if not number:
        raise ValueError("batches must hold at least one task, got none")
    return LogLikelihoods(given_sum / number, asked_sum / number)
