"""How well a neural process predicts: log likelihoods of points, apart for contexts and targets."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from pyro_ext._checks import check_instance, check_integer, check_sequence
from pyro_ext.models.neural_processes.batch import Batch
from pyro_ext.models.neural_processes.process import (
    NeuralProcess,
    log_mean_exp,
    points_log_prob,
    task_means,
)
from pyro_ext.random import fresh_seed

__all__ = ["LogLikelihoods", "log_likelihoods"]


class LogLikelihoods(NamedTuple):
    """Mean log likelihood of a point.

    :param float context: over points that were given.
    :param float target: over points that were not.
    """

    context: float
    target: float


@torch.no_grad()
def log_likelihoods(
    process: NeuralProcess,
    batches: Iterable[Batch],
    num_samples: int = 50,
    seed: int | None = 0,
) -> LogLikelihoods:
    r"""Mean over tasks and points of :math:`\log \frac1K \sum_k \mathcal{N}(y; \mu_k, \sigma_k)`.

    The mean over draws is taken for each point on its own, other than in a training loss. A task
    counts once, however many points it has; one without points counts as zero.

    :param NeuralProcess process: the process.
    :param Iterable batches: tasks. They are moved to the device and the floating type of the
        process.
    :param int num_samples: :math:`K`, the number of functions drawn for each task.
    :param int seed: of the draws; ``None`` takes one from PyTorch's generator.
    :returns: means for points of the context and for targets.
    :raises ValueError: where there are no tasks.

    Example::

        >>> from pyro_ext.models.neural_processes import CNP, Batch
        >>> x, y = torch.randn(4, 10, 1), torch.randn(4, 10, 1)
        >>> batch = Batch(x[:, :3], y[:, :3], x[:, 3:], y[:, 3:])
        >>> log_likelihoods(CNP(width=16), [batch]).target < 0
        True
    """
    check_instance("process", process, NeuralProcess, "a NeuralProcess")
    every: list[Batch] = check_sequence("batches", batches, "a list of batches")
    for batch in every:
        check_instance("batches", batch, Batch, "a list of batches")
    check_integer("num_samples", num_samples, 1)
    seed = fresh_seed(seed)
    generator: torch.Generator | None = None
    sums, number = [0.0, 0.0], 0
    parameter = next(process.parameters(), None)
    for batch in every:
        if parameter is not None:
            batch = batch.to(parameter.device, parameter.dtype)
        points = batch.points
        if generator is None:
            generator = torch.Generator(points.inputs.device).manual_seed(seed)
        prediction = process.predict(
            *batch.context[:2],
            points.inputs,
            num_samples,
            context_mask=batch.context_mask,
            generator=generator,
        )
        values = log_mean_exp(points_log_prob(prediction, points))
        num_context = batch.context_inputs.shape[1]
        for i, (part, mask) in enumerate(
            [
                (values[:, :num_context], batch.context_mask),
                (values[:, num_context:], batch.target_mask),
            ]
        ):
            sums[i] += float(task_means(part, mask).double().sum())
        number += batch.num_tasks
    if not number:
        raise ValueError("batches must hold at least one task, got none")
    return LogLikelihoods(*(value / number for value in sums))
