"""Steps of safe self-distillation against the loop of the official code, written on diffusers.

The pipeline of digits with its networks at random, the concept "seven" and all of its
cross-attention, ten steps of DDIM. Both sides start at the same weights and seed, so that losses
agree: quality says by how much they differ. Times are CPU milliseconds a step, on one thread, and
ours should take at most 1.1 times as long.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from _common import OURS, Case, Options, cpu_seconds, in_turn, main
from torch.nn.functional import mse_loss

from pyro_ext.inference.diffusion import encode_prompts
from pyro_ext.models.diffusion import SafeSelfDistillation, digit_pipeline

GUIDANCE, EMA, NUM_DDIM_STEPS, SEED = 3.0, 0.99, 10, 0
BATCHES = (1, 12)
NUM_STEPS = 20
LOOP = "diffusers, loop by hand"

Steps = Callable[[int], list[float]]
adamw = partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-4)


def cases(options: Options) -> Iterator[Case]:
    """Each size of a batch."""
    num_steps = 2 if options.smoke else NUM_STEPS
    for batch_size in BATCHES if options.full else BATCHES[:1]:
        yield measure(batch_size, num_steps, options.rounds)


def measure(batch_size: int, num_steps: int, rounds: int) -> Case:
    """Time a step of both sides, after as many that are not measured."""
    pipeline = digit_pipeline(num_steps=0)
    sides = {OURS: ours(pipeline, batch_size), LOOP: by_hand(pipeline, batch_size)}
    losses = [torch.tensor(take(num_steps)) for take in sides.values()]
    difference = float((losses[1] / losses[0] - 1.0).abs().max())

    def milliseconds(take: Steps) -> float:
        return cpu_seconds(lambda: take(num_steps)) * 1000 / num_steps

    timings = in_turn({name: partial(milliseconds, side) for name, side in sides.items()}, rounds)
    quality = {LOOP: {"relative difference of losses": difference}}
    return Case(f"safe self-distillation step, batch {batch_size}", timings, quality=quality)


def ours(pipeline: Any, batch_size: int) -> Steps:
    """Further steps of our loop."""
    erasure = SafeSelfDistillation.from_pipeline(
        pipeline,
        ["seven"],
        guidance=GUIDANCE,
        ema=EMA,
        num_inference_steps=NUM_DDIM_STEPS,
        batch_size=batch_size,
        optimizer=adamw,
        seed=SEED,
    )

    def take(num_steps: int) -> list[float]:
        erasure.run(len(erasure.losses) + num_steps, progress=False)
        return erasure.losses[-num_steps:]

    return take


def by_hand(pipeline: Any, batch_size: int) -> Steps:
    """Further steps of a loop with nothing but what it needs."""
    student = copy.deepcopy(pipeline.unet)
    student.requires_grad_(False)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_("attn2" in name)
    teacher = copy.deepcopy(student).requires_grad_(False)
    trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    pairs = [(teacher.get_parameter(name), student.get_parameter(name)) for name in trained]
    optimizer = adamw([parameter for _, parameter in pairs])
    scheduler = copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(NUM_DDIM_STEPS)
    with torch.no_grad():
        states = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, ["", "seven"])
    empty, concept = (state.expand(batch_size, -1, -1) for state in states)
    both = torch.cat([empty, concept])
    generator = torch.Generator().manual_seed(SEED)

    @torch.no_grad()
    def latents(num_ddim_steps: int) -> torch.Tensor:
        z = torch.randn(batch_size, 1, 8, 8, generator=generator) * scheduler.init_noise_sigma
        for t in scheduler.timesteps[:num_ddim_steps]:
            unguided, prompted = teacher(torch.cat([z, z]), t, both).sample.chunk(2)
            z = scheduler.step(unguided + GUIDANCE * (prompted - unguided), t, z).prev_sample
        return z

    def step() -> float:
        t = int(1000 * torch.rand((), generator=generator))
        z = latents(NUM_DDIM_STEPS - 1 - t * NUM_DDIM_STEPS // 1000)
        with torch.no_grad():
            target = student(z, t, empty).sample
        loss = mse_loss(student(z, t, concept).sample, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([parameter for _, parameter in pairs], 1.0)
        optimizer.step()
        with torch.no_grad():
            for average, parameter in pairs:
                average.mul_(EMA).add_(parameter, alpha=1.0 - EMA)
        return float(loss.detach())

    return lambda num_steps: [step() for _ in range(num_steps)]


if __name__ == "__main__":
    main(cases, "ms per step", rounds=5, packages=("diffusers", "transformers"))
