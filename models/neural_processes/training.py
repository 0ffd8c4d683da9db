"""Training of neural processes on tasks that are drawn anew at every step."""

from collections.abc import Callable

import numpy as np
import torch

from pyro_ext._checks import check_callable, check_instance, check_integer, check_number
from pyro_ext._progress import progress_bar
from pyro_ext.models.neural_processes.batch import Batch
from pyro_ext.models.neural_processes.process import NeuralProcess
from pyro_ext.random import fresh_seed

__all__ = ["fit"]


def fit(
    process: NeuralProcess,
    tasks: Callable[[int], Batch],
    num_steps: int,
    *,
    num_samples: int | None = None,
    learning_rate: float = 5e-4,
    seed: int | None = None,
    progress: bool = True,
) -> list[float]:
    """Train by Adam, with a learning rate that falls to zero along a cosine.

    On Ctrl-C it ends after the last complete step, and returns the losses up to it. A loss or
    gradient that is no finite number ends the training with an error, before it reaches the
    parameters: they are left as the step before made them.

    :param NeuralProcess process: changed in place.
    :param Callable tasks: tasks for a seed, such as
        :class:`~pyro_ext.models.neural_processes.GPTasks`. They are moved to the device and the
        floating type of the process.
    :param int num_steps: number of steps, each on new tasks.
    :param int num_samples: draws in the loss; by default that of the process's own
        :meth:`~NeuralProcess.loss`.
    :param float learning_rate: of the first step.
    :param int seed: of tasks and draws; ``None`` takes one from PyTorch's generator.
    :param bool progress: whether to show a progress bar.
    :returns: the loss of every step.
    :raises ValueError: for arguments out of range.
    :raises ArithmeticError: for a loss or a gradient that is no finite number; names the step.

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
    parameters = list(process.parameters())
    device, dtype = parameters[0].device, parameters[0].dtype
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(num_steps, 1))
    generator = torch.Generator(device).manual_seed(_word(seed, 0))
    losses: list[float] = []
    with progress_bar(
        total=num_steps, desc=type(process).__name__, unit="step", disable=not progress
    ) as bar:
        try:
            while len(losses) < num_steps:
                batch = tasks(_word(seed, 1, len(losses))).to(device, dtype)
                optimizer.zero_grad()
                loss = process.loss(batch, generator=generator, **options)
                value = loss.item()
                _check_finite("loss", value, len(losses), num_steps)
                loss.backward()
                norm = torch.nn.utils.get_total_norm(
                    [one.grad for one in parameters if one.grad is not None]
                )
                _check_finite("norm of the gradient", norm.item(), len(losses), num_steps)
                optimizer.step()
                schedule.step()
                losses.append(value)
                bar.update()
                if len(losses) % 20 == 0:
                    bar.set_postfix(loss=f"{value:.4f}", refresh=False)
        except KeyboardInterrupt:
            pass
    return losses


def _check_finite(what: str, value: float, step: int, num_steps: int) -> None:
    if not np.isfinite(value):
        raise ArithmeticError(
            f"the {what} is {value} at step {step + 1} of {num_steps}: the parameters are left as "
            "they were before it; look for numbers in the tasks that are not finite or huge, or "
            "take a smaller learning_rate"
        )


def _word(seed: int, *key: int) -> int:
    """A number of its own for each key."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0])
