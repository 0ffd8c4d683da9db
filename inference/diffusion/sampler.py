"""A distribution over the samples of a diffusion model."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._lib import checks
from pyro_ext.distributions.bases import expanded
from pyro_ext.inference.diffusion.guidance import guided_prediction
from pyro_ext.inference.diffusion.sampling import check_scheduler, denoise
from pyro_ext.inference.diffusion.text import encode_prompts


class DiffusionSampler(TorchDistribution):
    """Distribution over images of a text-to-image diffusion model, without a density.

    Use it in :func:`pyro.sample` where a model is only run forward: in
    :class:`~pyro.infer.Predictive`, in simulations, or in likelihood-free inference. Anything that
    needs :meth:`log_prob` raises an error. Draws have no gradient.

    :param unet: a network of diffusers that takes ``encoder_hidden_states``. Its mode (training or
        evaluation) is not changed.
    :param scheduler: a scheduler of diffusers; it is copied at each draw.
    :param Tensor conditional: conditioning of a prompt, as from
        :func:`~pyro_ext.inference.diffusion.encode_prompts`.
        **Shape:** ``(*batch, length, width)``.
    :param Tensor unconditional: conditioning of the empty prompt or of a negative one.
        **Shape:** ``(length, width)``.
    :param float guidance_scale: scale of classifier-free guidance. It also applies below one, where
        pipelines switch guidance off.
    :param int num_steps: number of steps of the scheduler.
    :param Callable decode: maps latents ``(num, *latent_shape)`` to images; by default latents are
        returned.
    :param Sequence event_shape: shape of what ``decode`` returns.
    :raises TypeError: for arguments of a wrong type.
    :raises ValueError: for numbers out of range, or shapes that do not fit.

    Example::

        >>> from pyro_ext.models.diffusion import digit_pipeline
        >>> pipeline = digit_pipeline(num_steps=0)
        >>> digits = DiffusionSampler.from_pipeline(pipeline, ["six", "seven"], num_steps=2)
        >>> def model():
        ...     with pyro.plate("prompts", 2):
        ...         return pyro.sample("image", digits)
        >>> pyro.infer.Predictive(model, num_samples=3)()["image"].shape
        torch.Size([3, 2, 1, 8, 8])
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = False

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        conditional: Tensor,
        unconditional: Tensor,
        *,
        guidance_scale: float = 7.5,
        num_steps: int = 50,
        decode: Callable[[Tensor], Tensor] | None = None,
        event_shape: Sequence[int] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        checks.function("unet", unet, "a network of diffusers", or_class=False)
        config = getattr(unet, "config", {})
        if config.get("cross_attention_dim") is None or config.get("sample_size") is None:
            raise TypeError(
                "unet must be a network of diffusers with cross-attention and a sample_size, got "
                f"{type(unet).__name__}"
            )
        check_scheduler("scheduler", scheduler, "set_timesteps", "step", "init_noise_sigma")
        conditional = checks.as_tensor("conditional", conditional, finite=True)
        unconditional = checks.as_tensor("unconditional", unconditional, finite=True)
        if unconditional.dim() != 2 or conditional.shape[-2:] != unconditional.shape:
            raise ValueError(
                "unconditional must have shape (length, width), and conditional end with it, got "
                f"{(*unconditional.shape,)} and {(*conditional.shape,)}"
            )
        self.guidance_scale = checks.number("guidance_scale", guidance_scale)
        self.num_steps = checks.integer("num_steps", num_steps, 1)
        checks.optional(checks.function, "decode", decode, "a function of latents")
        if (decode is None) != (event_shape is None):
            raise ValueError("decode and event_shape must come together, got one without the other")
        size = config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        self.latent_shape = torch.Size([config["in_channels"], height, width])
        self.unet, self.scheduler, self.decode = unet, scheduler, decode
        self.conditional, self.unconditional = conditional.detach(), unconditional.detach()
        event = (
            self.latent_shape if event_shape is None else checks.as_size("event_shape", event_shape)
        )
        super().__init__(conditional.shape[:-2], event, validate_args=validate_args)

    @classmethod
    def from_pipeline(
        cls,
        pipeline: Any,
        prompts: str | Sequence[str],
        *,
        negative_prompt: str = "",
        guidance_scale: float = 7.5,
        num_steps: int = 50,
    ) -> Self:
        """Build a sampler from a Stable Diffusion pipeline: its U-Net and its autoencoder.

        :param pipeline: a ``StableDiffusionPipeline`` of Diffusers; its safety checker is not
            used.
        :param prompts: a prompt, or a list of prompts, which is the batch.
        :param str negative_prompt: what guidance leads away from.
        :param float guidance_scale: scale of classifier-free guidance.
        :param int num_steps: number of steps of the scheduler.
        :returns: the distribution of images, with pixels from -1 to 1 unless the network
            overshoots.
        :raises TypeError: if ``pipeline`` is not such a pipeline.
        :raises ValueError: for prompts with words that the tokenizer does not know.
        """
        parts = ("unet", "scheduler", "tokenizer", "text_encoder", "vae", "vae_scale_factor")
        if missing := [part for part in parts if not hasattr(pipeline, part)]:
            raise TypeError(
                "pipeline must be a StableDiffusionPipeline of diffusers, got "
                f"{type(pipeline).__name__} without {', '.join(missing)}"
            )
        checks.instance("negative_prompt", negative_prompt, str, "a string")
        is_one = isinstance(prompts, str)
        words = [prompts] if is_one else checks.sequence("prompts", prompts, "strings", kind=str)
        with torch.no_grad():
            states = encode_prompts(
                pipeline.tokenizer, pipeline.text_encoder, [negative_prompt, *words]
            )
        vae, factor = pipeline.vae, pipeline.vae_scale_factor

        def decode(latents: Tensor) -> Tensor:
            images: Tensor = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
            return images

        size = pipeline.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return cls(
            pipeline.unet,
            pipeline.scheduler,
            states[1] if is_one else states[1:],
            states[0],
            guidance_scale=guidance_scale,
            num_steps=num_steps,
            decode=decode,
            event_shape=(vae.config.out_channels, factor * height, factor * width),
        )

    @constraints.dependent_property(is_discrete=False, event_dim=3)
    def support(self) -> Any:
        """All tensors of the shape of an event."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """Return the same sampler for a larger batch.

        :param batch_shape: the new batch shape, to which that of the prompts is expanded.
        """
        shape = checks.as_size("batch_shape", batch_shape)
        states = self.conditional.expand(shape + self.unconditional.shape)
        new: Self = expanded(self, _instance, shape, conditional=states)
        return new

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({type(self.unet).__name__}, {type(self.scheduler).__name__}, "
            f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)})"
        )

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw images, all of them as one batch.

        :param sample_shape: shape of independent draws.
        :returns: **Shape:** ``(*sample_shape, *batch_shape, *event_shape)``.
        """
        shape = checks.as_size("sample_shape", sample_shape) + self.batch_shape
        states = self.conditional.expand(shape + self.unconditional.shape)
        states = states.reshape(-1, *self.unconditional.shape)
        parameter = next(self.unet.parameters())
        noise = torch.randn(
            shape + self.latent_shape, device=parameter.device, dtype=parameter.dtype
        ).reshape(-1, *self.latent_shape)
        if not shape.numel():
            return noise.new_empty(shape + self.event_shape)
        predict = guided_prediction(
            self.unet, states, self.unconditional[None], self.guidance_scale
        )
        latents = denoise(predict, self.scheduler, noise, self.num_steps)
        images = latents if self.decode is None else self.decode(latents)
        return images.reshape(shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Raise an error, since the density cannot be computed.

        :param Tensor value: images.
        :raises NotImplementedError: always; the message says what to do instead.
        """
        raise NotImplementedError(
            "images of a DiffusionSampler have no density that can be computed: use it where the "
            "model is run forward, as in pyro.infer.Predictive, and not as an observed site"
        )
