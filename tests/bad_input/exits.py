"""Valid calls of exits of diffusion models, for :mod:`walk` to spoil."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from pyro_ext.inference.training import ShuffledBatches
from pyro_ext.models.diffusion import AdaptiveScoreFineTuner, ExitSchedule
from tests.bad_input.walk import Call, call, of


class Network(nn.Module):
    """One that takes anything."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

    def forward(self, x, timestep):
        for block in self.blocks:
            x = block(x)
        return x


def exits() -> dict[str, Call]:
    DDIMScheduler = pytest.importorskip("diffusers").DDIMScheduler
    schedule = ExitSchedule([2, 1])
    given: dict[str, Any] = dict(
        module=Network(), schedule=schedule, blocks="blocks", timestep="timestep"
    )
    tuned: dict[str, Any] = dict(
        scheduler=DDIMScheduler(),
        weight_power=0.5,
        freeze=["0"],
        optimizer=partial(torch.optim.AdamW, lr=1e-5),
        ema_decay=0.9,
        seed=0,
    )
    tuner = AdaptiveScoreFineTuner(**given, **tuned)
    x = torch.randn(4, 3)
    return {
        "digit_transformer_pipeline": call(num_steps=0),
        "ExitSchedule": call(depths=[8, 6, 4], num_train_timesteps=1000.0),
        "ExitSchedule.linear": call(num_blocks=8, least=4),
        "ExitSchedule.uniform": call(depth=6),
        "ExitSchedule.__call__": of(schedule, timesteps=torch.tensor([0.0, 500.0])),
        "EarlyExit": call(**given),
        "EarlyExit.wrap": call(**given),
        "AdaptiveScoreFineTuner": call(**given, **tuned),
        "AdaptiveScoreFineTuner.step": of(tuner, x=x),
        "AdaptiveScoreFineTuner.loss": of(tuner, x=x),
        "AdaptiveScoreFineTuner.run": of(
            tuner, batches=ShuffledBatches(x, batch_size=2), num_steps=1, progress=False
        ),
    }


TABLES = {"pyro_ext.models.diffusion (exits)": exits}
