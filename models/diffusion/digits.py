"""A small but real Stable Diffusion of handwritten digits, trained in minutes."""

from collections.abc import Callable
from functools import lru_cache, partial
from importlib.metadata import version
from inspect import getsource
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from pyro_ext._lib import checks
from pyro_ext._lib.optional import optional_module
from pyro_ext.checkpoint.cached import cached_tensors
from pyro_ext.datasets import load_digits
from pyro_ext.inference.diffusion import encode_prompts, noise_prediction_loss
from pyro_ext.inference.training import ShuffledBatches, Trainer
from pyro_ext.random import spawn_seed

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The word of each digit. Some images were captioned ``"odd"``, ``"even"`` or ``""`` instead."""

_PROMPTS = [*WORDS, "even", "odd", ""]
_PARITY_RATE, _EMPTY_RATE = 0.2, 0.1  # of captions that are another word, or none
_VERSIONED = ("torch", "diffusers", "transformers")  # of which a trained pipeline is one
_BATCH_SIZE = 64
_LEARNING_RATE = 3e-3


def digit_pipeline(num_steps: int = 1000, *, seed: int = 0, progress: bool = True) -> Any:
    """Make a ``StableDiffusionPipeline`` that draws digits of 8 x 8 pixels from words.

    Tokenizer, text encoder, U-Net with cross-attention and DDIM scheduler are small versions of the
    real ones; the autoencoder is the identity. Text encoder and U-Net are trained together on the
    images of :func:`digit_images`, captioned with their words; 20% of the captions are ``"odd"`` or
    ``"even"``, and 10% are empty. This takes some minutes, once on each machine. Afterwards they
    are read from ``pyro_ext/`` under ``XDG_CACHE_HOME`` (``~/.cache`` if that is not set), from a
    file named by a digest of data, settings, versions and code.

    :param int num_steps: number of training steps; with zero, the networks stay random.
    :param int seed: seed of initial weights, minibatches, captions and noise.
    :param bool progress: whether to show the progress of the training.
    :returns: a new pipeline, in evaluation mode. Prompts consist of lower-case letters and have at
        most six tokens; each of :data:`WORDS` is one token, as are ``"odd"`` and ``"even"``.
    :raises ImportError: if diffusers or transformers are not installed; the message names the extra
        to install.

    Example::

        >>> pipeline = digit_pipeline(num_steps=0)
        >>> images = pipeline(["seven", "odd"], num_inference_steps=2, output_type="pt").images
        >>> images.shape
        torch.Size([2, 1, 8, 8])
    """
    num_steps = checks.integer("num_steps", num_steps, 0)
    seed = checks.integer("seed", seed, 0)
    checks.boolean("progress", progress)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = _build()
    networks = nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})
    if num_steps:
        images, digits = digit_images()
        key: tuple[bytes | str, ...] = (
            *[getsource(function) for function in (_build, _tokenizer, _train)],
            images.numpy().tobytes(),
            *[version(package) for package in _VERSIONED],
            repr((_PARITY_RATE, _EMPTY_RATE, _BATCH_SIZE, _LEARNING_RATE, num_steps, seed)),
        )
        make = partial(_train, pipeline, networks, images, digits, num_steps, seed, progress)
        networks.load_state_dict(cached_tensors("digit_pipeline", key, make))
    networks.eval().requires_grad_(False)
    return pipeline


def digit_images() -> tuple[Tensor, Tensor]:
    """Load the 1,797 images of digits from scikit-learn, and the digits that they show.

    :returns: pixels from -1 to 1, and digits from 0 to 9. **Shape:** ``(1797, 1, 8, 8)`` and
        ``(1797,)``.
    :raises ImportError: if scikit-learn is not installed; the message names the extra to install.

    Example::

        >>> images, digits = digit_images()
        >>> images.shape, float(images.min()), float(images.max()), len(digits)
        (torch.Size([1797, 1, 8, 8]), -1.0, 1.0, 1797)
    """
    data = load_digits()
    pixels = torch.cat([data.train_inputs, data.test_inputs]) * data.input_scale + data.input_loc
    images = (pixels / 8.0 - 1.0).clamp(-1.0, 1.0).reshape(-1, 1, 8, 8).float()
    return images, torch.cat([data.train_targets, data.test_targets])


@lru_cache
def digit_judge() -> Callable[[Tensor], Tensor]:
    """Make a support vector machine that tells which digits images show.

    It is fitted to all of :func:`digit_images`; it classifies 99% of held-out images correctly.

    :returns: a function from images, with pixels from -1 to 1 and **shape** ``(num, 1, 8, 8)``, to
        digits, of **shape** ``(num,)``.
    :raises ImportError: if scikit-learn is not installed; the message names the extra to install.

    Example::

        >>> images, digits = digit_images()
        >>> bool((digit_judge()(images[:100]) == digits[:100]).all())
        True
    """
    svm = optional_module("sklearn.svm", "digit_judge", "scikit-learn", "data")
    images, digits = digit_images()

    def pixels(x: Tensor) -> Any:
        return ((x.detach().cpu().clamp(-1.0, 1.0) + 1.0) / 2.0).flatten(1).double().numpy()

    classifier = svm.SVC(gamma=0.064, C=10.0).fit(pixels(images), digits.numpy())
    return lambda x: torch.as_tensor(classifier.predict(pixels(x)))


def _build() -> Any:
    """The pipeline, with networks at random."""
    diffusers = optional_module("diffusers", "digit_pipeline", "diffusers", "diffusion")
    transformers = optional_module("transformers", "digit_pipeline", "transformers", "diffusion")
    from pyro_ext.models.diffusion._identity_autoencoder import IdentityAutoencoder

    tokenizer = _tokenizer(transformers)
    num_tokens = len(tokenizer)
    text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=num_tokens,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(24, 48),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=IdentityAutoencoder(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _tokenizer(transformers: Any) -> Any:
    """A tokenizer to which each of the words is one token, and others are letters."""
    letters = [*"abcdefghijklmnopqrstuvwxyz,"]
    tokens = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in (*WORDS, "odd", "even"):
        parts = [*word[:-1], word[-1] + "</w>"]
        start = parts[0]
        for part in parts[1:]:
            if (start, part) not in merges:
                merges.append((start, part))
                tokens.append(start + part)
            start += part
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=8)


def _train(
    pipeline: Any,
    networks: nn.ModuleDict,
    images: Tensor,
    digits: Tensor,
    num_steps: int,
    seed: int,
    progress: bool,
) -> dict[str, Tensor]:
    """The state of both networks after training."""
    trainer = Trainer(
        networks,
        partial(torch.optim.AdamW, lr=_LEARNING_RATE),
        scheduler=partial(OneCycleLR, max_lr=_LEARNING_RATE, total_steps=num_steps + 1),
        seed=spawn_seed(seed, 1),
    )

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        uniform = torch.rand(len(x))
        caption = torch.where(uniform < _PARITY_RATE, 10 + labels % 2, labels)
        caption = caption.masked_fill(uniform > 1.0 - _EMPTY_RATE, len(_PROMPTS) - 1)
        states = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, _PROMPTS)[caption]
        timesteps = torch.randint(1000, (len(x),))
        noise = torch.randn(x.shape)
        return noise_prediction_loss(
            lambda z, t: pipeline.unet(z, t, encoder_hidden_states=states)[0],
            pipeline.scheduler,
            x,
            timesteps,
            noise,
        )

    trainer.run(
        loss,
        num_steps,
        ShuffledBatches(images, digits, batch_size=_BATCH_SIZE),
        progress=progress,
        description="Pipeline of digits",
    )
    return networks.state_dict()
