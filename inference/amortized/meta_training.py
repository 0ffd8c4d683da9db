r"""Training of samplers with learned dynamics, on models like those they will be used for.

S. Kim, S. Jung, S. Kim, J. Lee (2024), Learning to explore for stochastic gradient MCMC.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from pyro_ext._lib import checks
from pyro_ext.checkpoint.files import check_folder_of
from pyro_ext.inference.amortized.tasks import (
    Task,
    check_draws,
    ensemble_loss,
    held_out_log_likelihood,
    last_steps,
)
from pyro_ext.inference.evolution_strategies import antithetic_gradient
from pyro_ext.inference.sgmcmc import SGMCMCKernel
from pyro_ext.inference.training import Trainer
from pyro_ext.inference.training.checkpoints import seed_of

_MAX_NORM = 1.0  # of the estimated gradient
_WORST_LOSS = 20.0


class MetaTrainer:
    r"""Trains the networks inside a sampler by antithetic evolution strategies [1].

    An iteration draws a task, and pairs of parameters on opposite sides of the current ones. All of
    them run a short chain, side by side; both members of a pair have the same start, minibatches
    and noise. The loss of a chain is that of the average prediction of its last draws, on points
    that the chain has not seen. No gradient flows through the chains.

    Training continues where it stopped: after Ctrl-C, in another call, or from a checkpoint in
    another process. It then takes the same course as without the interruption.

    :param torch.nn.Module module: the networks, such as
        :class:`~pyro_ext.inference.sgmcmc.ResidualKinetics`; training changes them in place. They
        must work with parameters that have a leading chain dimension.
    :param Sequence tasks: tasks to train on, drawn uniformly.
    :param Callable kernel: makes a kernel from a model and the module, for instance
        ``lambda model, module: L2E(model, kinetics=module)``; the backend must not be
        ``"compile"``.
    :param int num_steps: number of steps of each chain.
    :param int num_samples: number of draws of each chain that predict together.
    :param int thinning: number of steps between these draws; the last one is at the end.
    :param int num_pairs: number of pairs in each iteration.
    :param float scale: standard deviation of the perturbations.
    :param float learning_rate: learning rate of Adam.
    :param Callable loss: maps log likelihoods ``(num_chains, num_draws, n)`` to the loss of each
        chain, for example :func:`ensemble_loss` or :func:`single_draw_loss`. The loss is capped at
        20; a chain that diverges gets this value, too.
    :param checkpoint: a file in which the training is saved after every iteration; if it exists,
        training resumes from it.
    :param int seed: seed of everything that is random; ``None`` takes the seed of the checkpoint if
        it exists, and otherwise one from PyTorch's generator.
    :raises CheckpointError: if the checkpoint belongs to another training, or is damaged.

    [1] S. Kim, S. Jung, S. Kim, J. Lee (2024),
    Learning to explore for stochastic gradient MCMC.

    Example::

        >>> from pyro_ext.inference import L2E
        >>> from pyro_ext.inference.sgmcmc import ResidualKinetics
        >>> x, new = torch.randn(40) + 1.0, torch.randn(20) + 1.0
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> def log_likelihood(samples):
        ...     return dist.Normal(samples["loc"][..., None], 1.0).log_prob(new)
        >>> trainer = MetaTrainer(
        ...     ResidualKinetics(hidden_sizes=(4,)), [Task(model, (x,), log_likelihood)],
        ...     lambda model, module: L2E(model, kinetics=module),
        ...     num_steps=10, num_samples=2, thinning=2, seed=0)
        >>> len(trainer.fit(3, progress=False).losses)
        3
    """

    def __init__(
        self,
        module: nn.Module,
        tasks: Sequence[Task],
        kernel: Callable[[Callable[..., Any], nn.Module], SGMCMCKernel],
        *,
        num_steps: int = 80,
        num_samples: int = 5,
        thinning: int = 8,
        num_pairs: int = 6,
        scale: float = 0.02,
        learning_rate: float = 0.02,
        loss: Callable[[Tensor], Tensor] = ensemble_loss,
        checkpoint: str | Path | None = None,
        seed: int | None = None,
    ) -> None:
        checks.instance("module", module, nn.Module, "a torch.nn.Module")
        for task in checks.sequence("tasks", tasks, "a list of tasks"):
            checks.instance("tasks", task, Task, "a list of tasks")
        checks.function("kernel", kernel, "a function that makes a kernel of a model and a module")
        checks.function("loss", loss)
        self.module = module
        self.tasks = list(tasks)
        check_draws(num_steps, num_samples, thinning)
        self.num_steps = num_steps
        self.num_samples = num_samples
        self.thinning = thinning
        self.num_pairs = checks.integer("num_pairs", num_pairs, 1)
        self.scale = checks.number("scale", scale, above=0)
        self.loss = loss
        self.seed = seed_of(seed, checkpoint)
        self._make_kernel = kernel
        self._kernels: dict[int, SGMCMCKernel] = {}
        self._shapes = [parameter.shape for parameter in module.parameters()]
        self._parameters = parameters_to_vector(module.parameters()).detach().clone()
        checks.number("learning_rate", learning_rate, above=0)
        names = ("num_steps", "num_samples", "thinning", "num_pairs", "scale")
        self._trainer = Trainer(
            {type(module).__name__: self._parameters},
            partial(torch.optim.Adam, lr=learning_rate),
            max_norm=_MAX_NORM,
            identity={
                "tasks": [task.name for task in self.tasks],
                **{name: getattr(self, name) for name in names},
                "worst_loss": _WORST_LOSS,
            },
            seed=self.seed,
        )
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        if self.checkpoint is not None:
            check_folder_of(self.checkpoint)
            if self.checkpoint.exists():
                self._trainer.load(self.checkpoint)
                self._assign(self._parameters)

    @property
    def losses(self) -> list[float]:
        """Mean loss of the chains in each iteration."""
        return self._trainer.losses

    def step(self) -> float:
        """Take one iteration.

        :returns: the mean loss of its chains, which is also the last of ``losses``.
        """
        try:
            loss = self._trainer.step(self._estimate)
        finally:
            self._assign(self._parameters)
        if self.checkpoint is not None:
            self._trainer.save(self.checkpoint)
        return loss

    def fit(self, num_iterations: int, progress: bool = True) -> Self:
        """Train up to a total number of iterations.

        Ctrl-C ends it and keeps the complete iterations.

        :param int num_iterations: total number of iterations, including those of earlier calls.
        :param bool progress: whether to show a progress bar.
        :returns: the trainer itself.
        """
        checks.integer("num_iterations", num_iterations, 0)
        try:
            self._trainer.run(
                self._estimate,
                num_iterations,
                checkpoint=self.checkpoint,
                save_every=1,
                progress=progress,
                description=type(self.module).__name__,
            )
        finally:
            self._assign(self._parameters)
        return self

    def evaluate(self, task: Task, num_chains: int = 3, seed: int = 0) -> Tensor:
        """Compute the loss of chains of the current sampler, on any task.

        :param Task task: the task.
        :param int num_chains: number of chains.
        :param int seed: seed of the chains.
        :returns: **Shape:** ``(num_chains,)``.
        """
        kernel = self._set_up(task)
        return _cut(self._run(kernel, task, range(num_chains), seed))

    # One set of chains ---------------------------------------------------------------------------

    def _estimate(self) -> tuple[Tensor, list[Tensor]]:
        """Mean loss of the chains of an iteration, and the estimate of its gradient."""
        sequence = np.random.SeedSequence(self.seed, spawn_key=(len(self.losses),))
        choice, seed, noise_seed = (int(bits) for bits in sequence.generate_state(3))
        number = choice % len(self.tasks)
        numbers = [*range(self.num_pairs)] * 2
        gradient, losses = antithetic_gradient(
            lambda points: self._losses(number, points, numbers, seed),
            self._parameters,
            scale=self.scale,
            num_pairs=self.num_pairs,
            generator=torch.Generator().manual_seed(noise_seed),
        )
        return _cut(losses).mean(), [gradient]

    def _losses(self, number: int, points: Tensor, numbers: Sequence[int], seed: int) -> Tensor:
        if number not in self._kernels:
            self._kernels[number] = self._set_up(self.tasks[number])
        self._assign(points)
        return self._run(self._kernels[number], self.tasks[number], numbers, seed)

    def _set_up(self, task: Task) -> SGMCMCKernel:
        kernel = self._make_kernel(task.model, self.module)
        if kernel.backend == "compile":
            raise ValueError(
                "kernel must make kernels with the backend 'trace' or 'eager', got 'compile': "
                "compiled steps keep the parameters that they were compiled with"
            )
        kernel.setup(0, *task.args, **task.kwargs)
        return kernel

    def _run(self, kernel: SGMCMCKernel, task: Task, numbers: Sequence[int], seed: int) -> Tensor:
        steps = last_steps(self.num_steps, self.num_samples, self.thinning)
        return self.loss(held_out_log_likelihood(task, kernel, numbers, seed, steps))

    def _assign(self, points: Tensor) -> None:
        """Give the module's parameters values, with the leading dimensions of the points."""
        pieces = points.split([math.prod(shape) for shape in self._shapes], -1)
        for parameter, shape, piece in zip(
            self.module.parameters(), self._shapes, pieces, strict=True
        ):
            parameter.data = piece.reshape(*points.shape[:-1], *shape)


def _cut(losses: Tensor) -> Tensor:
    return losses.nan_to_num(_WORST_LOSS, posinf=_WORST_LOSS).clamp(max=_WORST_LOSS)
