"""A training with everything that has a state: run as a script, it is there to be killed."""

import sys
from functools import partial

import torch
from torch import nn
from torch.nn.functional import dropout, mse_loss
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext.inference.training import ShuffledBatches, Trainer

_generator = torch.Generator().manual_seed(0)
X = torch.randn(30, 4, generator=_generator)
Y = X.sum(-1, keepdim=True).sin()


def network(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 1))


def make(seed, *, learning_rate=0.05, horizon=23, ema_decay=0.9, width=8, identity=None):
    """A trainer, and the module as an attribute."""
    module = network(width)
    trainer = Trainer(
        module,
        partial(torch.optim.AdamW, lr=learning_rate),
        scheduler=partial(CosineAnnealingLR, T_max=horizon),
        max_norm=0.5,
        ema_decay=ema_decay,
        identity=identity,
        seed=seed,
    )
    trainer.module = module
    return trainer


def run(
    num_steps,
    *,
    seed=None,
    trainer=None,
    checkpoint=None,
    hook=lambda: None,
    y=Y,
    start=7,
    save_every=3,
    **options,
):
    """Train for so many steps in all, with noise from the global generator."""
    if trainer is None:
        trainer = make(seed, **options)
        torch.manual_seed(start)

    def loss(x, y):
        return mse_loss(trainer.module(dropout(x, 0.2)), y) + (hook() or 0.0)

    batches = ShuffledBatches(X, y, batch_size=8)
    trainer.run(
        loss, num_steps, batches, checkpoint=checkpoint, save_every=save_every, progress=False
    )
    return trainer


def state(trainer):
    """All tensors that a training leaves behind."""
    averages = [] if trainer.average is None else [*trainer.average.state_dict().values()]
    moments = [
        value
        for one in trainer.optimizer.state_dict().get("state", {}).values()
        for value in one.values()
    ]
    return [*trainer._named.values(), *trainer._buffers(), *averages, *moments]


def assert_same(one, other):
    assert one.losses == other.losses
    for a, b in zip(state(one), state(other), strict=True):
        assert torch.equal(a, b)


if __name__ == "__main__":
    print("begun", flush=True)
    run(150, seed=4, checkpoint=sys.argv[1], save_every=1)
