"""Training of classifiers of series: minibatches, and early stopping by held-out labels."""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext._lib import checks
from pyro_ext.inference.training import ShuffledBatches, Trainer, TrainingOptions
from pyro_ext.inference.training.outcome import warn_of_validation
from pyro_ext.models.time_series.series import Series
from pyro_ext.random import fresh_seed, seeded, spawn_seed


@dataclass
class _Best:
    """Weights of the epoch that predicts best, and how they did; a checkpoint holds it, too."""

    value: float | None = None
    epoch: int = 0
    start: float | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Its fields."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over its fields."""
        vars(self).update(state)


class SeriesTraining(TrainingOptions, total=False):
    """Options of training on labeled series, by Adam with a cosine schedule.

    They include those of :class:`~pyro_ext.inference.training.TrainingOptions`.

    :param int num_epochs: largest number of passes through the series; 60 by default.
    :param int batch_size: number of series of a step; 32 by default.
    :param float learning_rate: learning rate of the first step; 2e-3 by default. It falls to zero.
    :param float max_norm: norm to which the gradient is clipped; 5 by default.
    :param float validation_fraction: fraction of the series to hold out; 0.1 by default. The final
        weights are those of the epoch that predicts their labels best; without held-out series,
        those of the last epoch.
    :param int patience: number of epochs without improvement after which training stops; 20 by
        default.
    :param int seed: seed of minibatches, held-out series and draws.
    """

    num_epochs: int
    batch_size: int
    learning_rate: float
    max_norm: float | None
    validation_fraction: float
    patience: int
    seed: int | None


def train(
    module: nn.Module,
    loss: Callable[[Series, Tensor], Tensor],
    validate: Callable[[Series, Tensor], Tensor],
    series: Series,
    y: Tensor,
    *,
    num_epochs: int = 60,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    max_norm: float | None = 5.0,
    validation_fraction: float = 0.1,
    patience: int = 20,
    seed: int | None = None,
    **training: Unpack[TrainingOptions],
) -> list[float]:
    """Train by Adam; where series are held out, the weights are those that are best on them.

    ``loss`` is a scalar; ``validate`` a negative log likelihood of labels, summed, which decides
    where to stop.
    """
    checks.integer("num_epochs", num_epochs, 0)
    checks.integer("batch_size", batch_size, 1)
    checks.number("learning_rate", learning_rate, above=0)
    checks.optional(checks.number, "max_norm", max_norm, above=0)
    checks.number("validation_fraction", validation_fraction, least=0, below=1)
    checks.integer("patience", patience, 1)
    seed = fresh_seed(seed)
    num_series = len(y)
    order = torch.randperm(num_series, generator=torch.Generator().manual_seed(seed), device="cpu")
    num_held_out = math.ceil(validation_fraction * num_series - 1e-9)  # 0.1 * 30 is over 3
    held_out, kept = order[:num_held_out], order[num_held_out:]
    if not len(kept):
        raise ValueError(
            "validation_fraction must leave a series to train on, got "
            f"{validation_fraction} of {num_series}"
        )
    batches = ShuffledBatches(*series.rows(kept), y[kept], batch_size=min(batch_size, len(kept)))
    num_steps = num_epochs * len(batches)
    best = _Best()
    trainer = Trainer(
        module,
        partial(torch.optim.Adam, lr=learning_rate, fused=True),
        scheduler=partial(CosineAnnealingLR, T_max=max(num_steps, 1)),
        max_norm=max_norm,
        stateful=[best],
        identity={"validation_fraction": validation_fraction},
        seed=seed,
    )

    def of_batch(*rows: Tensor) -> Tensor:
        batch = Series(*rows[:-1]).trimmed()
        labels = rows[-1]
        return loss(batch, labels if labels.dim() == 1 else labels[:, : batch.x.shape[1]])

    run = partial(
        trainer.run,
        of_batch,
        batches=batches,
        description=type(module).__name__,
        **training,
    )
    checkpoint = training.get("checkpoint")
    if not num_held_out or not num_steps:
        return run(num_steps)

    def validation_loss() -> float:
        with torch.no_grad(), seeded(spawn_seed(seed, 3)):  # the same draws in every epoch
            parts = held_out.split(batch_size)
            return sum(float(validate(series.rows(part), y[part])) for part in parts)

    if checkpoint is not None and Path(checkpoint).exists():
        run(0)  # takes it up; it was saved before the validation of its epoch
    try:
        if not trainer.num_steps:
            best.start = validation_loss()
        for epoch in range(max(trainer.num_steps - 1, 0) // len(batches), num_epochs):
            run((epoch + 1) * len(batches))
            value = validation_loss()
            if value < (math.inf if best.value is None else best.value):
                weights = copy.deepcopy(dict(module.state_dict()))
                best.value, best.epoch, best.weights = value, epoch, weights
            if trainer.interrupted or epoch - best.epoch >= patience:
                break
    except KeyboardInterrupt:
        warnings.warn(
            f"stopped in the validation after {trainer.num_steps} of {num_steps} steps, of which "
            "the best weights are kept",
            stacklevel=3,
        )
    else:
        if best.start is not None and not trainer.interrupted:
            value = math.nan if best.value is None else best.value
            what = "the least loss of series that were held out"
            warn_of_validation(what, value, best.start, stacklevel=3)
    if best.weights:
        module.load_state_dict(best.weights)
    return trainer.losses
