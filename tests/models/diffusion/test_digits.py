"""The pipeline of digits: its parts, and what it draws once it is trained."""

import pytest
import torch

from pyro_ext.inference.diffusion import DiffusionSampler
from pyro_ext.models.diffusion import WORDS, digit_images, digit_judge, digit_pipeline


def test_parts_of_the_pipeline():
    pipeline = digit_pipeline(num_steps=0)
    assert pipeline.vae_scale_factor == 1
    assert [len(pipeline.tokenizer.tokenize(word)) for word in (*WORDS, "odd", "even")] == [1] * 12
    parameters = [*pipeline.unet.parameters(), *pipeline.text_encoder.parameters()]
    assert not any(parameter.requires_grad for parameter in parameters)
    again = digit_pipeline(num_steps=0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(pipeline.unet.parameters(), again.unet.parameters(), strict=True)
    )


def test_a_saved_pipeline_is_read(tmp_path):
    """With the autoencoder given, since it is none of diffusers."""
    from diffusers import StableDiffusionPipeline

    pipeline = digit_pipeline(num_steps=0)
    pipeline.save_pretrained(tmp_path)
    read = StableDiffusionPipeline.from_pretrained(
        tmp_path, vae=pipeline.vae, safety_checker=None, requires_safety_checker=False
    )
    read.set_progress_bar_config(disable=True)
    images = [
        one(
            "nine",
            num_inference_steps=2,
            output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).images
        for one in (pipeline, read)
    ]
    assert (images[0] == images[1]).all()


@pytest.mark.slow
def test_the_pipeline_draws_what_it_is_asked_for():
    torch.manual_seed(0)
    digits = DiffusionSampler.from_pipeline(
        digit_pipeline(), [*WORDS, "odd", "even"], guidance_scale=3.0, num_steps=20
    )
    found = digit_judge()(digits.sample((24,)).flatten(0, 1)).reshape(24, 12)
    hits = (found[:, :10] == torch.arange(10)).double().mean(0)
    assert float(hits.mean()) >= 0.98 and float(hits.min()) >= 0.9
    assert float((found[:, 10] % 2 == 1).double().mean()) >= 0.9
    assert float((found[:, 11] % 2 == 0).double().mean()) >= 0.9
    assert len(found[:, 10].unique()) >= 4 and len(found[:, 11].unique()) >= 4


def test_the_judge_reads_images_that_it_has_not_seen():
    from sklearn.svm import SVC

    images, digits = digit_images()
    assert len(images) == 1797 and torch.bincount(digits).min() > 170
    pixels = ((images + 1) / 2).flatten(1).numpy()
    held_out = SVC(gamma=0.064, C=10.0).fit(pixels[:900], digits[:900])
    assert (held_out.predict(pixels[900:]) == digits[900:].numpy()).mean() > 0.97
    assert float((digit_judge()(images) == digits).double().mean()) > 0.99
