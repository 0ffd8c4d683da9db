"""Optimization by expected improvement, with a neural process as the surrogate."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from pyro.distributions import Normal
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.models.neural_processes.batch import check_inputs
from pyro_ext.models.neural_processes.process import NeuralProcess
from pyro_ext.random import fresh_seed


class Optimization(NamedTuple):
    """The course of several minimizations side by side.

    :param Tensor inputs: the evaluated inputs, in order. **Shape:** ``(num_tasks, n, x_dim)``.
    :param Tensor outputs: values of the functions there. **Shape:** ``(num_tasks, n)``.
    """

    inputs: Tensor
    outputs: Tensor

    @property
    def best(self) -> Tensor:
        """The smallest output so far. **Shape:** ``(num_tasks, n)``."""
        return self.outputs.cummin(-1).values


def expected_improvement(prediction: Normal, best: Tensor) -> Tensor:
    r"""Expected improvement on the smallest output so far, :math:`E \max(y^* - y, 0)` [1].

    For an equal mixture of normal distributions, it is the mean over the components.

    :param torch.distributions.Normal prediction: normal distributions, with a leading component
        dimension. **Shape:** ``(num_samples, *shape)``.
    :param Tensor best: :math:`y^*`, which broadcasts against ``shape``.
    :returns: **Shape:** ``shape``.

    [1] D. R. Jones, M. Schonlau, W. J. Welch (1998),
    Efficient global optimization of expensive black-box functions.

    Example::

        >>> expected_improvement(dist.Normal(torch.zeros(1, 1), 1.0), torch.zeros(1))
        tensor([0.3989])
    """
    checks.instance("prediction", prediction, Normal, "a torch.distributions.Normal")
    best = checks.as_tensor("best", best)
    scaled = ((best - prediction.mean) / prediction.stddev).double()
    # Far below zero the terms cancel: from -5 on nothing of them is left in single precision.
    density = torch.exp(-0.5 * scaled.square()) / math.sqrt(2.0 * math.pi)
    improvement = scaled * torch.special.ndtr(scaled) + density
    mean: Tensor = (prediction.stddev * improvement).mean(0).to(prediction.mean)
    return mean


@torch.no_grad()
def minimize(
    process: NeuralProcess,
    objective: Callable[[Tensor], Tensor],
    candidates: Tensor,
    *,
    num_initial: int = 3,
    num_steps: int = 20,
    num_samples: int = 50,
    seed: int | None = None,
) -> Optimization:
    """Minimize functions over a finite set of inputs, evaluating each at one more input per step.

    The first inputs are drawn at random, without replacement. Each further input has the largest
    expected improvement among those not evaluated yet, under the process's predictions given all
    evaluations so far.

    :param NeuralProcess process: a process with one output.
    :param Callable objective: maps indices of candidates ``(num_tasks,)`` to the functions' values
        there ``(num_tasks,)``.
    :param Tensor candidates: **Shape:** ``(num_tasks, num_candidates, x_dim)``.
    :param int num_initial: number of initial inputs.
    :param int num_steps: number of further inputs.
    :param int num_samples: number of functions drawn from the process at each step.
    :param int seed: seed of everything that is random; ``None`` takes one from PyTorch's generator.
    :returns: inputs and outputs in the order of evaluation.

    Example::

        >>> from pyro_ext.models.neural_processes import CNP
        >>> grid = torch.linspace(-2.0, 2.0, 50).expand(4, 50)[..., None]
        >>> values = (grid[..., 0] - torch.tensor([[-1.0], [0.0], [1.0], [2.0]])) ** 2
        >>> course = minimize(
        ...     CNP(width=16), lambda chosen: values[torch.arange(4), chosen], grid, num_steps=5)
        >>> course.best.shape
        torch.Size([4, 8])
    """
    checks.instance("process", process, NeuralProcess, "a NeuralProcess")
    checks.function("objective", objective)
    like = next(process.parameters(), None)
    candidates = checks.as_tensor("candidates", candidates, finite=True, like=like)
    check_inputs("candidates", candidates, process.x_dim)
    checks.integer("num_initial", num_initial, 1)
    checks.integer("num_steps", num_steps, 0)
    if process.y_dim != 1:
        raise ValueError(f"process must have one output, got y_dim={process.y_dim}")
    num_tasks, num_candidates = candidates.shape[:2]
    if num_initial + num_steps > num_candidates:
        raise ValueError(
            f"candidates must be at least the {num_initial + num_steps} that are to be evaluated, "
            f"got {num_candidates}"
        )
    generator = torch.Generator(candidates.device).manual_seed(fresh_seed(seed))
    shape = num_tasks, num_candidates
    order = torch.rand(shape, generator=generator, device=candidates.device).argsort(-1)
    chosen = order[:, :num_initial]
    outputs = torch.stack([objective(column) for column in chosen.unbind(-1)], -1)
    for _ in range(num_steps):
        prediction = process.predict(
            _rows(candidates, chosen),
            outputs[..., None].to(candidates),
            candidates,
            num_samples,
            generator=generator,
        )
        best = outputs.min(-1, keepdim=True).values.to(candidates)
        improvement = expected_improvement(prediction, best[..., None]).squeeze(-1)
        following = improvement.scatter(-1, chosen, -torch.inf).argmax(-1)
        chosen = torch.cat([chosen, following[:, None]], -1)
        outputs = torch.cat([outputs, objective(following)[:, None]], -1)
    return Optimization(_rows(candidates, chosen), outputs)


def _rows(candidates: Tensor, chosen: Tensor) -> Tensor:
    return candidates.gather(1, chosen[..., None].expand(-1, -1, candidates.shape[-1]))
