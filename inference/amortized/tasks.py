"""Models with held-out data, on which samplers are trained and compared."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.sgmcmc import SGMCMCKernel
from pyro_ext.potential import Potential


@dataclass(frozen=True)
class Task:
    """A model with data, and a score for predictions of held-out data by its posterior draws.

    :param Callable model: a Pyro model.
    :param tuple args: arguments of the model.
    :param Callable log_likelihood: maps draws, including deterministic sites,
        ``{site: (num_chains, num_draws, *event)}`` to the log likelihood of held-out points,
        ``(num_chains, num_draws, n)``.
    :param Mapping kwargs: keyword arguments of the model.
    :param str name: name of the task in messages.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...]
    log_likelihood: Callable[[dict[str, Tensor]], Tensor]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    name: str = "task"

    def __post_init__(self) -> None:
        """Check the arguments."""
        checks.function("model", self.model, "a Pyro model")
        checks.function("log_likelihood", self.log_likelihood, "a function of draws")
        checks.sequence("args", self.args, "the arguments of the model", 0)
        checks.mapping("kwargs", self.kwargs, "a dict of arguments of the model")
        checks.instance("name", self.name, str, "a string")

    def evaluate(
        self,
        kernel: SGMCMCKernel,
        *,
        num_steps: int = 80,
        num_samples: int = 5,
        thinning: int = 8,
        num_chains: int = 3,
        seed: int = 0,
    ) -> Tensor:
        """Run short chains, and score how well their last draws predict the held-out points.

        :param SGMCMCKernel kernel: a kernel of the task's model.
        :param int num_steps: number of steps of each chain.
        :param int num_samples: number of draws of each chain; the last one is at the end.
        :param int thinning: number of steps between draws.
        :param int num_chains: number of chains.
        :param int seed: a non-negative integer.
        :returns: log likelihoods, for :func:`ensemble_loss` and :func:`single_draw_loss`.
            **Shape:** ``(num_chains, num_samples, n)``.
        :raises ValueError: for numbers out of range.
        """
        check_draws(num_steps, num_samples, thinning)
        checks.integer("num_chains", num_chains, 1)
        kernel.setup(0, *self.args, **self.kwargs)
        steps = last_steps(num_steps, num_samples, thinning)
        return held_out_log_likelihood(self, kernel, range(num_chains), seed, steps)


def ensemble_loss(log_likelihood: Tensor) -> Tensor:
    """Negative log likelihood of the average prediction of each chain's draws.

    :param Tensor log_likelihood: **Shape:** ``(num_chains, num_draws, n)``.
    :returns: the loss, averaged over points. **Shape:** ``(num_chains,)``.

    Example::

        >>> ensemble_loss(torch.tensor([[[0.5], [0.25]]]).log())
        tensor([0.9808])
    """
    log_likelihood = checks.as_tensor(
        "log_likelihood", log_likelihood, "(num_chains, num_draws, n)"
    )
    num_draws = log_likelihood.shape[1]
    return math.log(num_draws) - log_likelihood.logsumexp(1).mean(-1)


def single_draw_loss(log_likelihood: Tensor) -> Tensor:
    """Negative log likelihood of single draws, which does not encourage them to differ.

    :param Tensor log_likelihood: **Shape:** ``(num_chains, num_draws, n)``.
    :returns: the loss, averaged over draws and points. **Shape:** ``(num_chains,)``.

    Example::

        >>> single_draw_loss(torch.tensor([[[0.5], [0.25]]]).log())
        tensor([1.0397])
    """
    log_likelihood = checks.as_tensor(
        "log_likelihood", log_likelihood, "(num_chains, num_draws, n)"
    )
    return -log_likelihood.mean((1, 2))


def check_draws(num_steps: int, num_samples: int, thinning: int) -> None:
    """Check that the number of draws fits into the number of steps."""
    checks.integer("num_steps", num_steps, 1)
    checks.integer("num_samples", num_samples, 1)
    checks.integer("thinning", thinning, 1)
    if (num_samples - 1) * thinning >= num_steps:
        raise ValueError(
            f"num_steps must exceed the {(num_samples - 1) * thinning} steps between the first and "
            f"the last of {num_samples} draws, got {num_steps}"
        )


def last_steps(num_steps: int, num_samples: int, thinning: int) -> list[int]:
    """Steps after which the draws are made, the last one at the end."""
    steps: list[int] = (num_steps - thinning * np.arange(num_samples)[::-1]).tolist()
    return steps


def held_out_log_likelihood(
    task: Task, kernel: SGMCMCKernel, numbers: Sequence[int], seed: int, steps: Sequence[int]
) -> Tensor:
    """Log likelihoods of what is held out, under draws of chains.

    Shapes: returns (num_chains, num_draws, n).
    """
    _, draws = kernel.record(kernel.begin(numbers, seed), steps)
    potential = kernel.potential
    samples = potential.layout.unflatten(draws.position.transpose(0, 1))
    with torch.no_grad():
        if isinstance(potential, Potential):
            samples = potential.constrain(samples)
            samples |= potential.deterministic(samples)
        result = task.log_likelihood(samples)
    if result.dim() != 3 or result.shape[:2] != (len(numbers), len(steps)):
        raise ValueError(
            f"log_likelihood of {task.name!r} must return the shape ({len(numbers)}, {len(steps)}, "
            f"n); got {tuple(result.shape)}"
        )
    return result
