"""Fine-tuning of a text-to-image model on images with captions."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.inference.diffusion import noise_prediction_loss
from pyro_ext.inference.diffusion.sampling import check_scheduler
from pyro_ext.inference.training import ShuffledBatches, Trainer
from pyro_ext.inference.training.trainer import Optimizer

_ADAMW = partial(torch.optim.AdamW, lr=1e-4)


def fine_tune(
    unet: nn.Module,
    scheduler: Any,
    encode: Callable[[Sequence[str]], Tensor],
    images: Tensor,
    captions: Sequence[str],
    num_steps: int = 1000,
    *,
    batch_size: int | None = None,
    optimizer: Optimizer = _ADAMW,
    caption_dropout: float = 0.1,
    seed: int | None = None,
    progress: bool = True,
) -> list[float]:
    """Train the parameters of a network that require a gradient to predict the noise in images.

    The network is changed in place. Without adapters, all of it may be trained; with
    :attr:`ModularLoRA.module <pyro_ext.models.diffusion.ModularLoRA>`, inside of ``only``, a single
    adapter is. Timesteps are uniform.

    :param torch.nn.Module unet: a network of diffusers that takes ``encoder_hidden_states``. Its
        mode (training or evaluation) is not changed.
    :param scheduler: a scheduler of diffusers, whose ``alphas_cumprod`` determine the noise in
        images; it is not changed.
    :param Callable encode: maps prompts to conditioning, for example
        ``partial(encode_prompts, pipe.tokenizer, pipe.text_encoder)``. Each distinct caption is
        encoded once.
    :param Tensor images: images or latents. **Shape:** ``(num_images, channels, height, width)``.
    :param Sequence captions: one string for each image.
    :param int num_steps: number of steps.
    :param int batch_size: number of images of a step, by default 32, or all if there are fewer.
    :param optimizer: makes an optimizer from a list of tensors.
    :param float caption_dropout: probability of leaving out a caption, so that guidance has an
        unconditional prediction.
    :param int seed: seed of minibatches, timesteps, noise and left-out captions.
    :param bool progress: whether to show a progress bar.
    :returns: the loss of each step.
    :raises TypeError: for arguments of a wrong type.
    :raises ValueError: for images and captions that do not fit, or if nothing can be trained.
    :raises TrainingDiverged: if a loss is not finite; parameters are left as they last were finite.

    Example::

        >>> from functools import partial
        >>> from pyro_ext.inference.diffusion import encode_prompts
        >>> from pyro_ext.models.diffusion import ModularLoRA, digit_images, digit_pipeline
        >>> pipe = digit_pipeline(num_steps=0)
        >>> images, _ = digit_images()
        >>> lora = ModularLoRA(pipe.unet)
        >>> lora.add("task", rank=2, targets=["attn2.to_k", "attn2.to_v"])
        >>> encode = partial(encode_prompts, pipe.tokenizer, pipe.text_encoder)
        >>> with lora.only("task"):
        ...     losses = fine_tune(
        ...         lora.module, pipe.scheduler, encode, images[:8], ["odd", "even"] * 4,
        ...         num_steps=2, batch_size=4, progress=False)
        >>> len(losses)
        2
    """
    checks.instance("unet", unet, nn.Module, "a network of diffusers")
    check_scheduler("scheduler", scheduler, "alphas_cumprod")
    checks.function("encode", encode, "a function of prompts")
    images = checks.as_tensor(
        "images", images, "(num_images, channels, height, width)", finite=True
    )
    images = images.to(next(unet.parameters()))
    captions = checks.sequence("captions", captions, "a list of strings", 1, str)
    if len(captions) != len(images):
        raise ValueError(
            f"captions must be one for each of {len(images)} images, got {len(captions)}"
        )
    checks.optional(checks.integer, "batch_size", batch_size, 1)
    checks.number("caption_dropout", caption_dropout, least=0.0, most=1.0)
    if not any(parameter.requires_grad for parameter in unet.parameters()):
        raise ValueError("unet must have parameters that require a gradient, got none")
    distinct = ["", *sorted({*captions} - {""})]
    with torch.no_grad():
        states = encode(distinct)
    index = torch.tensor([distinct.index(caption) for caption in captions], device=images.device)
    num_timesteps = scheduler.config.num_train_timesteps

    def loss(x: Tensor, caption: Tensor) -> Tensor:
        is_left_out = torch.rand(len(x), device=x.device) < caption_dropout
        condition = states[caption.masked_fill(is_left_out, 0)]
        timesteps = torch.randint(num_timesteps, (len(x),), device=x.device)
        return noise_prediction_loss(
            lambda z, t: unet(z, t, encoder_hidden_states=condition)[0],
            scheduler,
            x,
            timesteps,
            torch.randn_like(x),
        )

    return Trainer(unet, optimizer, seed=seed).run(
        loss,
        num_steps,
        ShuffledBatches(images, index, batch_size=batch_size or min(32, len(images))),
        progress=progress,
        description="Fine-tuning",
    )
