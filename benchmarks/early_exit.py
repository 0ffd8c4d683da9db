"""Time and block calls of sampling runs with exits, beside the same transformer without.

Each run is one of a real ``DiTPipeline`` with guidance: that of the digits, whose blocks are so
small that Python takes much of the time, and one four times as wide. A quarter of the block calls
is left out, and the ratio is at most 4 / 3. Times are CPU seconds of one thread.
"""

from collections.abc import Iterator
from functools import partial

import torch
from _common import OURS, Case, Options, cpu_seconds, in_turn, main

from pyro_ext.models.diffusion import EarlyExit, ExitSchedule, digit_transformer_pipeline

NUM_STEPS, NUM_IMAGES, WIDER = 20, 16, 4
ALL = f"{OURS}, all blocks"


def cases(options: Options) -> Iterator[Case]:
    """Each width."""
    num_steps = 2 if options.smoke else NUM_STEPS
    for wider in (1,) if options.smoke else (1, WIDER):
        yield sampling(wider, num_steps, options.rounds)


def sampling(wider: int, num_steps: int, rounds: int) -> Case:
    """Runs of one pipeline, with exits and without."""
    pipeline = digit_transformer_pipeline(num_steps=0)
    network = pipeline.transformer
    num_heads = wider * network.config.num_attention_heads
    torch.manual_seed(0)
    config = {**network.config, "num_attention_heads": num_heads}
    network = type(network).from_config(config).eval()
    num_blocks = len(network.transformer_blocks)
    schedules = {
        OURS: ExitSchedule.linear(num_blocks, num_blocks // 2),
        ALL: ExitSchedule.uniform(num_blocks),
    }
    networks = {side: EarlyExit.wrap(network, schedule) for side, schedule in schedules.items()}

    def run(side: str) -> None:
        pipeline.transformer = networks[side]
        networks[side].early_exit.num_block_calls = 0
        labels = [image % 10 for image in range(NUM_IMAGES)]
        pipeline(labels, num_inference_steps=num_steps, output_type="pt")

    for side in networks:
        run(side)
    timings = in_turn({side: partial(cpu_seconds, partial(run, side)) for side in networks}, rounds)
    calls = {side: network.early_exit.num_block_calls for side, network in networks.items()}
    quality = {
        side: {"block calls": calls[side], "of all": calls[side] / calls[ALL]} for side in calls
    }
    width = num_heads * network.config.attention_head_dim
    return Case(f"early exits, width {width}, {num_blocks} blocks", timings, quality=quality)


if __name__ == "__main__":
    main(cases, "s", rounds=5, packages=("diffusers",))
