"""Valid calls of rewards, soft tokens and human feedback inversion, for :mod:`walk` to spoil."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_ext.models.diffusion import (
    HumanFeedbackInversion,
    RewardModel,
    RewardWeightedInversion,
    SoftToken,
    digit_pipeline,
)
from tests.bad_input.walk import Call, call, of

LABELS, RANKINGS = torch.arange(12) % 2, [[0, 2, 1], [5, 4], [3, 6]]


def features(images: Tensor) -> Tensor:
    return images.flatten(1)


def labels(images: Tensor) -> Tensor:
    return torch.arange(len(images)) % 2


def rewards() -> dict[str, Call]:
    images = torch.randn(12, 1, 2, 2)
    options: dict[str, Any] = dict(images=images, progress=False)
    reward, new = (RewardModel(features, [3], num_steps=2) for _ in range(2))
    reward.fit_binary(labels=LABELS, **options)
    return {
        "bradley_terry_loss": call(rewards=torch.randn(7), rankings=RANKINGS),
        "reward_weights": call(rewards=torch.randn(7), num_kept=3),
        "RewardModel": call(features=features, hidden=[3], optimizer=torch.optim.Adam),
        "RewardModel.__call__": of(reward, images=images),
        "RewardModel.fit_binary": of(new, labels=LABELS, **options),
        "RewardModel.fit_ranking": of(new, rankings=RANKINGS, **options),
        "RewardModel.last_layer": of(reward, images=images, feedback=LABELS),
        "RewardModel.predictive": of(reward, images=images),
    }


def inversion() -> dict[str, Call]:
    pipeline = digit_pipeline(num_steps=0)
    parts = dict(tokenizer=pipeline.tokenizer, text_encoder=pipeline.text_encoder)
    token = SoftToken(pipeline.tokenizer, pipeline.text_encoder, "odd")
    settings: dict[str, Any] = dict(unet=pipeline.unet, scheduler=pipeline.scheduler, token=token)
    settings["latents"] = torch.randn(3, 1, 8, 8)
    made = RewardWeightedInversion(**settings)
    timesteps, noise = torch.tensor([3, 500, 700]), torch.randn(3, 1, 8, 8)
    feedback: dict[str, Any] = dict(num_images=12, num_kept=3, num_inference_steps=1)
    feedback |= dict(pipeline=pipeline, concept="odd", feedback=labels, guidance_scale=3.0)
    reward = RewardModel(features, num_steps=2)
    whole = HumanFeedbackInversion(**feedback, reward=reward, erasure={"num_inference_steps": 1})
    return {
        "SoftToken": call(init="odd", token="<new>", **parts),
        "SoftToken.encode": of(token, prompts=["<hfi>", "odd <hfi>"]),
        "SoftToken.prompt": of(token, prompt="odd <hfi>"),
        "SoftToken.pipeline": of(token, pipeline=pipeline),
        "SoftToken.save": of(token, path=str(Path(tempfile.mkdtemp()) / "hfi.safetensors")),
        "RewardWeightedInversion": call(
            weights=torch.rand(3),
            prompt="odd <hfi>",
            batch_size=2,
            optimizer=torch.optim.Adam,
            **settings,
        ),
        "RewardWeightedInversion.loss": of(
            made, x=settings["latents"], timesteps=timesteps, noise=noise, weights=torch.ones(3)
        ),
        "RewardWeightedInversion.run": of(made, num_steps=1, save_every=1, progress=False),
        "HumanFeedbackInversion": call(
            reward=reward,
            token="<new>",
            inversion={"batch_size": 2},
            erasure={"batch_size": 2},
            **feedback,
        ),
        "HumanFeedbackInversion.run": of(whole, num_inversion_steps=1, num_erasing_steps=1),
    }


TABLES = {
    "pyro_ext.models.diffusion (rewards)": rewards,
    "pyro_ext.models.diffusion (feedback)": inversion,
}
