"""New tokens: what changes and what does not, exact weights, files, refusals."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.models.diffusion import (
    RewardWeightedInversion,
    SoftToken,
    digit_images,
    digit_pipeline,
    reward_weights,
)

diffusers = pytest.importorskip("diffusers")
ADAMW = partial(torch.optim.AdamW, lr=0.02)


def new_token(pipeline, init="odd", **options):
    return SoftToken(pipeline.tokenizer, pipeline.text_encoder, init, **options)


def draw(pipeline, prompt):
    generator = torch.Generator().manual_seed(0)
    found = pipeline(prompt, num_inference_steps=2, generator=generator, output_type="pt")
    return found.images


def test_weights():
    index, weight = reward_weights(torch.tensor([0.1, 0.5, -0.3, 0.5, 0.2]).double(), 3)
    assert index.tolist() == [1, 3, 4]
    torch.testing.assert_close(weight, torch.tensor([0.8, 0.8, 0.5]).double() / 0.7)
    index, weight = reward_weights(torch.full((4,), -2.0), 2)
    assert index.tolist() == [0, 1] and weight.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="num_kept must be at most the 4 images, got 5"):
        reward_weights(torch.zeros(4), 5)


def test_token_starts_as_its_word_and_only_its_row_is_trained(pipeline):
    encoder, unet = (
        copy.deepcopy(part.state_dict()) for part in (pipeline.text_encoder, pipeline.unet)
    )
    token = new_token(pipeline)
    extended = token.pipeline(pipeline)
    assert torch.equal(draw(extended, "<hfi>"), draw(pipeline, "odd"))
    assert torch.equal(draw(extended, "seven"), draw(pipeline, "seven"))
    torch.testing.assert_close(token.encode(["<hfi> one"]), token.encode(["odd one"]))

    inversion = RewardWeightedInversion(
        pipeline.unet, pipeline.scheduler, token, digit_images()[0][:8], optimizer=ADAMW, seed=0
    )
    inversion.run(3, progress=False)
    assert inversion.step() == inversion.run(4, progress=False)[-1]
    trained = token.text_encoder.state_dict()
    name = "embeddings.token_embedding.weight"
    assert all(torch.equal(trained[key], value) for key, value in encoder.items() if key != name)
    assert torch.equal(trained[name][:-1], encoder[name]) and token.row == len(encoder[name])
    assert torch.equal(trained[name][-1], token.vector.detach())
    assert (token.vector != encoder[name][token.tokenizer("odd").input_ids[1]]).all()

    for part, before in ((pipeline.text_encoder, encoder), (pipeline.unet, unet)):
        assert all(torch.equal(value, before[key]) for key, value in part.state_dict().items())
        assert not any(p.requires_grad for p in part.parameters())
    assert "<hfi>" not in pipeline.tokenizer.get_vocab()
    # A copy of the pipeline stays as it was made.
    assert torch.equal(draw(extended, "<hfi>"), draw(pipeline, "odd"))
    assert not torch.equal(draw(token.pipeline(pipeline), "<hfi>"), draw(pipeline, "odd"))


def test_names_leave_other_words_and_generators_as_they_are(pipeline):
    for name in ("dd", "<hfi", "v>"):
        with pytest.raises(ValueError, match="token must be no part of other words"):
            new_token(pipeline, token=name)
    before = torch.get_rng_state()
    new_token(pipeline)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_prompt_or_network_goes_on_from_no_file(pipeline, tmp_path):
    def inversion(unet=pipeline.unet, prompt=None):
        images = digit_images()[0][:4]
        token = new_token(pipeline)
        return RewardWeightedInversion(
            unet, pipeline.scheduler, token, images, prompt=prompt, seed=0
        )

    path = tmp_path / "token.ckpt"
    inversion().run(1, checkpoint=path, progress=False)
    other = copy.deepcopy(pipeline.unet)
    other.conv_in.weight.data.mul_(1.01)
    for wrong, what in (({"prompt": "odd <hfi>"}, "prompt"), ({"unet": other}, "unet")):
        with pytest.raises(CheckpointError, match=what):
            inversion(**wrong).run(2, checkpoint=path, progress=False)


def test_token_of_several_words_starts_at_their_mean(pipeline):
    token = new_token(pipeline, "one two")
    rows = pipeline.text_encoder.get_input_embeddings().weight[
        pipeline.tokenizer("one two").input_ids
    ]
    torch.testing.assert_close(token.vector.detach(), rows[1:3].mean(0))


def test_constant_weights_are_textual_inversion_and_zero_weights_nothing(pipeline):
    images = digit_images()[0][:12]

    def vector(images, weights=None):
        token = new_token(pipeline)
        options = dict(batch_size=4, optimizer=ADAMW, seed=0)
        made = RewardWeightedInversion(
            pipeline.unet, pipeline.scheduler, token, images, weights, **options
        )
        return made.run(4, progress=False), token.vector.detach()

    plain, constant = vector(images), vector(images, torch.full((12,), 0.7))
    assert plain[0] == constant[0] and torch.equal(plain[1], constant[1])
    weights = torch.tensor([1.0, 0.0, 2.0] * 4)
    weighted, without = vector(images, weights), vector(images[weights > 0], weights[weights > 0])
    assert weighted[0] == without[0] and torch.equal(weighted[1], without[1])
    unequal = vector(images, torch.tensor([1.0, 2.0] * 6))
    assert not torch.equal(unequal[1], plain[1])


def test_file_is_read_by_diffusers(pipeline, tmp_path):
    token = new_token(pipeline, token="<liked>")
    nn.init.normal_(token.vector)
    token.save(tmp_path / "liked.safetensors")
    other = digit_pipeline(num_steps=0)
    other.load_textual_inversion(str(tmp_path / "liked.safetensors"))
    assert torch.equal(draw(other, "<liked>"), draw(token.pipeline(pipeline), "<liked>"))
    assert torch.equal(other.text_encoder.get_input_embeddings().weight[-1], token.vector)


class Embedding(nn.Module):
    """A text encoder that does nothing but look up."""

    def __init__(self, num_tokens):
        super().__init__()
        self.table = nn.Embedding(num_tokens, 2)

    def get_input_embeddings(self):
        return self.table

    def resize_token_embeddings(self, num_tokens, mean_resizing):
        old, self.table = self.table, nn.Embedding(num_tokens, 2)
        self.table.weight.data[: len(old.weight)] = old.weight.data

    def forward(self, ids):
        return (self.table(ids),)


class Gaussian(nn.Module):
    """The exact network for data from ``Normal(v, 1)`` whose noise is guessed for the mean."""

    def forward(self, sample, timestep, encoder_hidden_states):
        a = SCHEDULER.alphas_cumprod[timestep][:, None]
        return ((sample - a.sqrt() * encoder_hidden_states[:, 1]) / (1 - a).sqrt(),)


SCHEDULER = diffusers.DDIMScheduler(clip_sample=False)


def test_best_token_of_gaussians_is_the_mean_weighted_by_rewards(pipeline):
    encoder = Embedding(len(pipeline.tokenizer))
    token = SoftToken(pipeline.tokenizer, encoder, "odd")
    x, rewards = torch.randn(6, 2), torch.tensor([3.0, 0.0, 1.0, 2.0, 0.5, 0.1])
    inversion = RewardWeightedInversion(Gaussian(), SCHEDULER, token, x, rewards)
    mean = (rewards[:, None] * x).sum(0) / rewards.sum()
    token.vector.data = mean
    latents, weights = inversion.latents, inversion.weights
    assert len(latents) == 5 and float(weights.mean()) == pytest.approx(1.0)
    arguments = latents, torch.full((5,), 500), torch.randn(5, 2), weights
    value = inversion.loss(*arguments)
    (gradient,) = torch.autograd.grad(value, token.vector)
    torch.testing.assert_close(gradient, torch.zeros(2), atol=1e-6, rtol=0)
    token.vector.data = mean + 0.1
    assert inversion.loss(*arguments) > value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": "seven</w>"}, "token must be one that the tokenizer does not have"),
        ({"token": "seven"}, "token must be one that the tokenizer does not have"),
        ({"init": ""}, "init must be a prompt that the tokenizer knows, got ''"),
        ({"init": "Ω7"}, "init must be a prompt that the tokenizer knows, got 'Ω7'"),
    ],
)
def test_words_that_will_not_do_are_refused(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        new_token(pipeline, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0, -0.1, 1.0, 0.0]}, "weights must be >= 0 and not all zero"),
        ({"prompt": "seven"}, "prompt must have the token '<hfi>' in it, got 'seven'"),
        ({"prompt": "one two three four five six <hfi>"}, "prompts must have at most 6 tokens"),
    ],
)
def test_wrong_arguments_are_refused_before_training(pipeline, options, message):
    token, images = new_token(pipeline), digit_images()[0][:4]
    with pytest.raises(ValueError, match=message):
        RewardWeightedInversion(pipeline.unet, pipeline.scheduler, token, images, **options)
    with pytest.raises(TypeError, match="pipeline must have a tokenizer and a text_encoder"):
        token.pipeline(pipeline.unet)
