"""Valid calls of what systems of diffusion share, for :mod:`walk` to spoil."""

import torch

from pyro_ext.inference.diffusion import DiffusionSampler, SafeLatentGuidance
from pyro_ext.models.diffusion import digit_pipeline
from tests.bad_input.walk import Call, call, of


def shared() -> dict[str, Call]:
    pipeline = digit_pipeline(num_steps=0)
    unet, scheduler = pipeline.unet, pipeline.scheduler
    x, states = torch.randn(2, 1, 8, 8), torch.randn(1, 8, 32)
    settings = dict()
    sampler = DiffusionSampler(unet, scheduler, states, states[0], num_steps=1)
    return {
        "denoise": call(predict=lambda z, t: z, scheduler=scheduler, noise=x, stop=1),
        "noise_prediction_loss": call(
            predict=lambda z, t: z,
            scheduler=scheduler,
            x=x,
            timesteps=torch.tensor([3, 500]),
            noise=x,
            weights=torch.ones(2),
        ),
        "classifier_free_guidance": call(unconditional=x, conditional=x, scale=2.0),
        "SafeLatentGuidance": call(),
        "SafeLatentGuidance.__call__": of(
            SafeLatentGuidance(), unconditional=x, conditional=x, concept=x
        ),
        "guided_prediction": call(
            unet=unet,
            conditional=states,
            unconditional=states,
            guidance=SafeLatentGuidance(),
            concept=states,
        ),
        "encode_prompts": call(
            tokenizer=pipeline.tokenizer,
            text_encoder=pipeline.text_encoder,
            prompts=["six", "seven"],
        ),
        "DiffusionSampler": call(
            unet=unet,
            scheduler=scheduler,
            conditional=states,
            unconditional=states[0],
            decode=lambda z: z,
            event_shape=[1, 8, 8],
            **settings,
        ),
        "DiffusionSampler.from_pipeline": call(
            pipeline=pipeline, prompts=["six", "odd"], **settings
        ),
        "DiffusionSampler.sample": of(sampler, sample_shape=[2]),
    }


def digits() -> dict[str, Call]:
    return {
        "digit_pipeline": call(num_steps=0),
        "digit_images": call(),
        "digit_judge": call(),
    }


TABLES = {"pyro_ext.inference.diffusion": shared, "pyro_ext.models.diffusion (digits)": digits}
