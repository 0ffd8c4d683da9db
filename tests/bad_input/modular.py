"""Valid calls of named adapters and of fine-tuning with captions, for :mod:`walk` to spoil."""

import tempfile
from functools import partial

import torch
from torch import Tensor, nn

from pyro_ext.models.diffusion import ModularLoRA
from tests.bad_input.walk import Call, call, of


class Scale(nn.Module):
    """The least that can be fine-tuned."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        return (self.scale * z,)


def modular() -> dict[str, Call]:
    from diffusers import DDIMScheduler

    lora, folder = ModularLoRA(nn.Sequential(nn.Linear(3, 2))), tempfile.mkdtemp()
    lora.add("safety")
    lora.add("task")
    lora.save("task", folder)
    return {
        "ModularLoRA": call(module=nn.Sequential(nn.Linear(3, 2))),
        "ModularLoRA.copy_from": of(lora, name="task", module=lora.module),
        "ModularLoRA.merge": of(lora, weights={"task": 0.5}),
        "ModularLoRA.deltas": of(lora, name="task"),
        "ModularLoRA.norm": of(lora, name="task"),
        "ModularLoRA.cosine": of(lora, first="task", second="safety"),
        "ModularLoRA.save": of(lora, name="task", folder=folder),
        "fine_tune": call(
            unet=Scale(),
            scheduler=DDIMScheduler(),
            encode=lambda prompts: torch.ones(len(prompts), 1, 1),
            images=torch.ones(2, 1, 1, 1),
            captions=["odd", "even"],
            num_steps=1,
            batch_size=2,
            optimizer=partial(torch.optim.AdamW, lr=0.0001),
        ),
    }


TABLES = {"pyro_ext.models.diffusion (modular)": modular}
