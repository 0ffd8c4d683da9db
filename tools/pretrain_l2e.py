"""Train the kinetics that ship with :class:`~pyro_ext.inference.L2E`.

``python -m tools.pretrain_l2e l2e.safetensors`` makes the file again, from its seed. The tasks are
classifiers of the 5,000 images of ``mnist_5k``, and of no other data set: of few or many of them,
of some of the digits or all, at coarse resolutions or in random projections, by networks of several
shapes under wide and narrow priors. Chains are short at first, and three times as long later.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from pyro_ext.datasets import load_mnist_5k
from pyro_ext.inference import L2E, MetaTrainer, Task
from pyro_ext.inference.sgmcmc import ResidualKinetics
from pyro_ext.models.ensembles.tasks import classification_task
from pyro_ext.nn import init_to_module

__all__ = ["kernel_of", "pretrain_l2e", "training_tasks"]

_HIDDEN_SIZES = (16,)
_NUM_HELD_OUT = 500
_NUM_SAMPLES = 5
_STAGES = ((8, 0.01), (24, 0.01), (24, 0.003))  # thinning and learning rate


def training_tasks(num_tasks: int = 48, seed: int = 0) -> list[Task]:
    """Tasks to train a sampler on, from ``mnist_5k`` alone.

    :param int num_tasks: number of tasks.
    :param int seed: a non-negative integer.
    """
    data = load_mnist_5k()
    images = torch.cat([data.train_inputs, data.test_inputs]).reshape(-1, 1, 28, 28)
    digits = torch.cat([data.train_targets, data.test_targets])
    resolutions = [avg_pool2d(images, size).flatten(1) for size in (4, 7)]
    rng = np.random.default_rng(seed)
    tasks = []
    for number in range(num_tasks):
        inputs = resolutions[rng.integers(len(resolutions))]
        if rng.random() < 1 / 3:
            directions = rng.normal(size=(inputs.shape[1], 13)).astype(np.float32)
            inputs = inputs @ torch.from_numpy(directions)
        classes = torch.from_numpy(rng.permutation(10)[: rng.choice([3, 5, 10, 10])])
        label = torch.full((10,), -1)
        label[classes] = torch.arange(len(classes))
        rows = torch.from_numpy(rng.permutation(np.flatnonzero(label[digits] >= 0)))
        num_training = min(int(rng.choice([100, 200, 400, 800, 1500])), len(rows) - _NUM_HELD_OUT)
        rows = rows[: num_training + _NUM_HELD_OUT]
        tasks.append(
            classification_task(
                inputs[rows],
                label[digits[rows]],
                num_training,
                hidden_features=[(8,), (16,), (8, 8), (32,)][rng.integers(4)],
                prior_scale=(None, None, 0.22, 0.5)[number % 4],
                name=f"mnist_5k {number}",
            )
        )
    return tasks


def kernel_of(model: Any, kinetics: nn.Module) -> L2E:
    """Make the kernel of a task, whose chains start as networks do."""
    module = model.network.module
    return L2E(model, kinetics=kinetics, init_strategy=init_to_module(module=module))


def pretrain_l2e(
    num_iterations: int = 300,
    *,
    num_tasks: int = 48,
    num_pairs: int = 6,
    seed: int = 0,
    report: Callable[[int, MetaTrainer], None] | None = None,
) -> ResidualKinetics:
    """Train kinetics in three stages.

    :param int num_iterations: iterations of each stage.
    :param int num_tasks: number of tasks.
    :param int num_pairs: pairs of chains in an iteration.
    :param int seed: of tasks and training.
    :param Callable report: called after each stage, with its number and the trainer.
    """
    kinetics = ResidualKinetics(_HIDDEN_SIZES, seed=seed)
    tasks = training_tasks(num_tasks, seed)
    for number, (thinning, learning_rate) in enumerate(_STAGES):
        trainer = MetaTrainer(
            kinetics,
            tasks,
            kernel_of,
            num_steps=2 * _NUM_SAMPLES * thinning,
            num_samples=_NUM_SAMPLES,
            thinning=thinning,
            num_pairs=num_pairs,
            learning_rate=learning_rate,
            seed=seed + number,
        )
        trainer.fit(num_iterations)
        if report is not None:
            report(number, trainer)
    return kinetics


def main() -> None:
    """Train and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # tensors this small gain nothing from threads

    def report(number: int, trainer: MetaTrainer) -> None:
        last = trainer.losses[-100:]
        print(f"stage {number}: mean loss of the last iterations {sum(last) / len(last):.4f}")

    kinetics = pretrain_l2e(options.iterations, seed=options.seed, report=report)
    kinetics.save(options.path, data="mnist_5k", iterations=options.iterations, seed=options.seed)


if __name__ == "__main__":
    main()
