"""A small diffusion transformer of handwritten digits, in a real pipeline, trained in minutes."""

from functools import partial
from inspect import getsource
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from pyro_ext._lib import checks
from pyro_ext._lib.optional import optional_module
from pyro_ext.checkpoint.cached import cached_tensors
from pyro_ext.inference.diffusion import noise_prediction_loss
from pyro_ext.inference.training import ShuffledBatches, Trainer
from pyro_ext.models.diffusion.digits import digit_images
from pyro_ext.random import spawn_seed

_NULL_CLASS = 1000  # of DiTPipeline
_NULL_RATE = 0.1  # of images whose class is left out
_BATCH_SIZE = 96
_LEARNING_RATE = 2e-3


def digit_transformer_pipeline(
    num_steps: int = 1250, *, seed: int = 0, progress: bool = True
) -> Any:
    """Make a ``DiTPipeline`` of diffusers that draws digits of 8 x 8 pixels from their classes.

    The transformer has eight blocks of width 64 and patches of 2 x 2 pixels; the scheduler is DDIM
    with linear betas, and the autoencoder is the identity. The transformer is trained on the images
    of :func:`digit_images`, 10% of them without a class. This takes some minutes, once on each
    machine. Afterwards it is read from ``pyro_ext/`` under ``XDG_CACHE_HOME`` (``~/.cache`` if that
    is not set), from a file named by a digest of data, settings, versions and code.

    :param int num_steps: number of training steps; with zero, the network stays random.
    :param int seed: seed of initial weights, minibatches, classes that are left out, and noise.
    :param bool progress: whether to show the progress of the training.
    :returns: a new pipeline, in evaluation mode. Its classes are 0 to 9, and 1000 for none.
    :raises ImportError: if diffusers is not installed; the message names the extra to install.

    Example::

        >>> pipeline = digit_transformer_pipeline(num_steps=0)
        >>> pipeline([3, 7], num_inference_steps=2, output_type="pt").images.shape
        torch.Size([2, 1, 8, 8])
    """
    num_steps = checks.integer("num_steps", num_steps, 0)
    seed = checks.integer("seed", seed, 0)
    checks.boolean("progress", progress)
    diffusers = optional_module("diffusers", "digit_transformer_pipeline", "diffusers", "diffusion")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = _build(diffusers)
    transformer = pipeline.transformer
    if num_steps:
        images, digits = digit_images()
        settings = (_NULL_CLASS, _NULL_RATE, _BATCH_SIZE, _LEARNING_RATE, num_steps, seed)
        key = (
            getsource(_build),
            getsource(_train),
            images.numpy().tobytes(),
            torch.__version__,
            diffusers.__version__,
            repr(settings),
        )
        make = partial(_train, pipeline, images, digits, num_steps, seed, progress)
        transformer.load_state_dict(cached_tensors("digit_transformer", key, make))
    transformer.requires_grad_(False)
    return pipeline


def _build(diffusers: Any) -> Any:
    """The pipeline, with a network at random."""
    from pyro_ext.models.diffusion._identity_autoencoder import IdentityAutoencoder

    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=1,
        out_channels=1,
        num_layers=8,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=_NULL_CLASS,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    pipeline = diffusers.DiTPipeline(
        transformer=transformer.eval(),  # in training mode each block leaves out classes by itself
        vae=IdentityAutoencoder(),
        scheduler=diffusers.DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear"),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _train(
    pipeline: Any,
    images: Tensor,
    digits: Tensor,
    num_steps: int,
    seed: int,
    progress: bool,
) -> dict[str, Tensor]:
    """The state of the transformer after training."""
    transformer: nn.Module = pipeline.transformer
    trainer = Trainer(
        transformer,
        partial(torch.optim.AdamW, lr=_LEARNING_RATE),
        scheduler=partial(
            OneCycleLR,
            max_lr=_LEARNING_RATE,
            total_steps=num_steps + 1,
            pct_start=0.1,
            anneal_strategy="linear",
        ),
        seed=spawn_seed(seed, 1),
    )

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        is_left_out = torch.rand(len(x)) < _NULL_RATE
        labels = labels.masked_fill(is_left_out, _NULL_CLASS)
        timesteps = torch.randint(1000, (len(x),))
        return noise_prediction_loss(
            lambda z, t: transformer(z, t, labels)[0],
            pipeline.scheduler,
            x,
            timesteps,
            torch.randn(x.shape),
        )

    trainer.run(
        loss,
        num_steps,
        ShuffledBatches(images, digits, batch_size=_BATCH_SIZE),
        progress=progress,
        description="Transformer of digits",
    )
    return transformer.state_dict()
