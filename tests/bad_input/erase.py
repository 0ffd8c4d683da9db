"""Valid calls of what erases concepts, for :mod:`walk` to spoil."""

from functools import partial
from typing import Any

import torch
from torch.distributions import Beta

from pyro_ext.inference.diffusion import encode_prompts
from pyro_ext.models.diffusion import ConceptOrder, SafeSelfDistillation, digit_pipeline
from tests.bad_input.walk import Call, call, of


def erasure() -> dict[str, Call]:
    pipeline = digit_pipeline(num_steps=0)
    few: dict[str, Any] = dict(num_inference_steps=2, seed=0)
    distilled = SafeSelfDistillation.from_pipeline(pipeline, ["seven"], **few)
    required: dict[str, Any] = dict(
        unet=pipeline.unet,
        scheduler=pipeline.scheduler,
        encode=partial(encode_prompts, pipeline.tokenizer, pipeline.text_encoder),
        concepts=["seven", "four"],
    )
    return {
        "SafeSelfDistillation": call(
            **required,
            **few,
            params="full",
            guidance=3.0,
            ema=0.9,
            concept_order=ConceptOrder("random", "single"),
            timesteps=Beta(torch.tensor(3.0), torch.tensor(3.0)),
            batch_size=2,
            optimizer=partial(torch.optim.SGD, lr=0.1),
        ),
        "ConceptOrder": call(),
        "SafeSelfDistillation.from_pipeline": call(pipeline=pipeline, concepts=["seven"]),
        "SafeSelfDistillation.run": of(distilled, num_steps=1, save_every=1, progress=False),
        "SafeSelfDistillation.steps_before": of(distilled, timestep=3),
        "SafeSelfDistillation.erased_pipeline": of(distilled, pipeline=pipeline),
        "ESD": call(**required),
    }


TABLES = {"pyro_ext.models.diffusion (erasure)": erasure}
