"""Valid calls of scores, purification and attacks, for :mod:`walk` to spoil."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from pyro_ext.inference.diffusion import DiffusersScore, NoiseConditionalScore
from pyro_ext.models.diffusion import AdaptiveScorePurifier
from tests.bad_input.walk import Call, call, of

SCHEDULER = SimpleNamespace(
    alphas_cumprod=torch.linspace(0.99, 0.1, 10), config={"prediction_type": "epsilon"}
)


def downhill(x):
    return 0.5 - x


def unet(x, timestep, shift):
    return SimpleNamespace(sample=x - shift)


def logits(x):
    return x[:, :3]


def scores() -> dict[str, Call]:
    model = NoiseConditionalScore(nn.Linear(3, 3), num_levels=3)
    shift = {"shift": torch.zeros(1, 1, 1, 1)}
    diffusion: dict[str, Any] = dict(unet=unet, scheduler=SCHEDULER, timestep=3, conditioning=shift)
    return {
        "NoiseConditionalScore": call(network=nn.Linear(3, 3)),
        "NoiseConditionalScore.loss": of(model, x=torch.rand(4, 3)),
        "NoiseConditionalScore.score": of(model, x=torch.rand(4, 3)),
        "DiffusersScore": call(**diffusion),
        "DiffusersScore.__call__": of(DiffusersScore(**diffusion), x=torch.rand(2, 1, 4, 4)),
    }


def purification() -> dict[str, Call]:
    x = torch.rand(4, 3)
    options: dict[str, Any] = dict(
        noise=0.1, step=0.1, delta=1e-3, max_iter=2, tau=1e-3, clamp=(1e-5, 0.1), num_runs=2
    )
    model = AdaptiveScorePurifier(downhill, **options)
    return {
        "AdaptiveScorePurifier": call(score=downhill, bounds=(0.0, 1.0), **options),
        "AdaptiveScorePurifier.__call__": of(model, x=x),
        "AdaptiveScorePurifier.trajectory": of(model, x=x),
        "AdaptiveScorePurifier.predict": of(model, classifier=logits, x=x),
        "AdaptiveScorePurifier.detect": of(model, x=x, threshold=1.0),
    }


def attacks() -> dict[str, Call]:
    attack: dict[str, Any] = dict(
        classifier=logits,
        x=torch.rand(4, 3),
        labels=torch.tensor([0, 2, 1, 0]),
        eps=0.1,
        step=0.02,
        num_steps=2,
        norm="linf",
        seed=0,
    )
    through = attack | {"purifier": torch.square, "num_draws": 2}
    return {
        "pgd": call(**attack),
        "bpda_eot": call(**through),
        "joint_score_attack": call(**through),
    }


def handlers() -> dict[str, Call]:
    return {"purify": call(purifier=torch.square, sites=["x"], event_dim=1)}


TABLES = {
    "pyro_ext.inference.diffusion (scores)": scores,
    "pyro_ext.models.diffusion (purification)": purification,
    "pyro_ext.inference (attacks)": attacks,
    "pyro_ext.handlers (purify)": handlers,
}
