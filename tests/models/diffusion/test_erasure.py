"""Erasing concepts: what a step does exactly, what stays as it was, and what is refused."""

from functools import partial

import pytest
import torch
from torch import nn

from pyro_ext.models.diffusion import ESD, SafeSelfDistillation, digit_pipeline

diffusers = pytest.importorskip("diffusers")

SGD = partial(torch.optim.SGD, lr=0.1)
SCHEDULER = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
WIDTH, OUT = 3, 2


class Linear(nn.Module):
    """Predicts ``W c``, with one parameter that is not of the cross-attention."""

    def __init__(self, weight=None):
        super().__init__()
        self.attn2 = nn.Linear(WIDTH, OUT, bias=False)
        self.scale = nn.Parameter(torch.ones(OUT))
        if weight is not None:
            self.attn2.weight.data = weight.clone()

    def forward(self, sample, timestep, encoder_hidden_states):
        return (self.scale * self.attn2(encoder_hidden_states[:, 0]),)


class Blind(Linear):
    """Does not look at the condition."""

    def forward(self, sample, timestep, encoder_hidden_states):
        return (self.attn2.weight.sum() * sample,)


VECTORS = {
    "": [0.5, 0.0, 0.2],
    "a": [1.0, 0.3, 0.0],
    "b": [-0.4, 0.1, 0.0],
    "a, b": [0.2, 0.9, 0.1],
}


def encode(prompts):
    return torch.tensor([VECTORS[prompt] for prompt in prompts])[:, None]


def toy(kind=SafeSelfDistillation, unet=None, concepts=("a",), **options):
    torch.manual_seed(0)
    options = {"latent_shape": (OUT,), "num_inference_steps": 5, "seed": 0} | options
    options = {"optimizer": SGD, "max_norm": None} | options
    return kind(unet or Linear(), SCHEDULER, encode, concepts, **options)


@pytest.mark.parametrize("kind", [SafeSelfDistillation, ESD])
def test_pipeline_is_read_and_its_copy_is_erased_and_saved(kind, tmp_path):
    pipeline = digit_pipeline(num_steps=0)
    before = {name: p.clone() for name, p in pipeline.unet.state_dict().items()}
    erasure = kind.from_pipeline(pipeline, ["seven"], num_inference_steps=3, batch_size=2, seed=0)
    erasure.run(2, progress=False)
    erased = erasure.erased_pipeline(pipeline)
    for name, parameter in pipeline.unet.state_dict().items():
        assert torch.equal(parameter, before[name])
    for name, parameter in erased.unet.state_dict().items():
        assert torch.equal(parameter, before[name]) == ("attn2" not in name), name
    erased.save_pretrained(tmp_path)
    saved = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet")
    for name, parameter in saved.state_dict().items():
        assert torch.equal(parameter, erased.unet.state_dict()[name])


def test_nothing_to_forget_is_no_loss():
    erasure = toy(concepts=[""]).run(3, progress=False)
    assert erasure.losses == [0.0, 0.0, 0.0]
    blind = toy(unet=Blind()).run(3, progress=False)
    assert blind.losses == [0.0, 0.0, 0.0]
