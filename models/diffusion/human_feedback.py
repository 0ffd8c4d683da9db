"""Erasure of what people object to, without a word for it, from a text-to-image model."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.distributions import Beta
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.diffusion import DiffusionSampler
from pyro_ext.models.diffusion.erasure import SafeSelfDistillation
from pyro_ext.models.diffusion.reward_models import RewardFit, RewardModel, is_ranking
from pyro_ext.models.diffusion.soft_tokens import (
    RewardWeightedInversion,
    SoftToken,
    reward_weights,
)
from pyro_ext.random import fresh_seed, seeded, spawn_seed

_MOST_AT_ONCE = 100  # images that are drawn or encoded as one batch


class ErasedByFeedback(NamedTuple):
    """Result of :meth:`HumanFeedbackInversion.run`.

    :param pipeline: the pipeline without the erased content. It knows the token.
    :param SoftToken token: the token that stands for the erased content.
    :param RewardModel reward: the reward learned from human feedback.
    """

    pipeline: Any
    token: SoftToken
    reward: RewardModel


class HumanFeedbackInversion:
    r"""Erases from a text-to-image model what people object to in its images [1].

    Words describe it too broadly or too narrowly. Therefore the model draws images of a concept,
    people judge them, and a reward is learned from their feedback. A new token is trained to stand
    for the images with the largest rewards, and this token is erased instead of the word:

    1. draw images for the prompt of the concept;
    2. ask for feedback, and fit a :class:`RewardModel`;
    3. train a :class:`SoftToken`, which starts as the concept, by :class:`RewardWeightedInversion`
       with :func:`reward_weights`;
    4. erase the token by :class:`SafeSelfDistillation`, at timesteps :math:`t / T \sim
       \text{Beta}(3, 3)`.

    The pipeline is not changed. Judge the result by something other than the reward, which the
    token was trained on. Content that people did not see in the images of the prompt may remain.

    :param pipeline: a ``StableDiffusionPipeline`` of diffusers, or a similar one.
    :param str concept: a prompt whose images show the objectionable content.
    :param Callable feedback: receives the images, with pixels from -1 to 1 and **shape**
        ``(num_images, channels, height, width)``. It returns a label for each image, one if it is
        objectionable and zero otherwise; or a dict of labels by index, if not all images were
        rated; or rankings, lists of indices of images from the worst to the best.
    :param RewardModel reward: the model that learns from feedback. The default uses pixels, which
        suffices only for small images.
    :param str token: name of the token.
    :param int num_images: number of images to ask about.
    :param int num_kept: number of images with the largest rewards that the token stands for.
    :param float guidance_scale: guidance scale of the images.
    :param int num_inference_steps: number of scheduler steps for the images.
    :param Mapping inversion: options of :class:`RewardWeightedInversion`.
    :param Mapping erasure: options of :class:`SafeSelfDistillation`.
    :param int seed: seed of all draws.
    :ivar images: the images shown for feedback, after :meth:`draw_images` or :meth:`run`.
    :ivar reward_fit: how well the reward predicts held-out feedback.
    :raises TypeError: for arguments of a wrong type.
    :raises ValueError: for numbers out of range, or prompts that the tokenizer does not know.

    To ask a person, use the page that ``pyro-ext rate FOLDER`` writes. What
    :func:`pyro_ext.ratings.read_ratings` then reads is the feedback; see
    :doc:`/how_to/rating_images`.

    [1] S. Kim, S. Jung, B. Kim, M. Choi, J. Shin, J. Lee (2024), Safeguard text-to-image diffusion
    models with human feedback inversion, arXiv 2407.21032.

    Example::

        >>> from pyro_ext.models.diffusion import RewardModel, digit_pipeline
        >>> pipeline = digit_pipeline(num_steps=0)
        >>> def feedback(images):  # stands for a person, who objects to bright ones
        ...     brightness = images.mean((1, 2, 3))
        ...     return brightness > brightness.median()
        >>> reward = RewardModel(lambda images: images.mean((1, 2, 3))[:, None])
        >>> inversion = HumanFeedbackInversion(
        ...     pipeline, "odd", feedback, num_images=20, num_kept=5, num_inference_steps=2, seed=0,
        ...     reward=reward, erasure={"num_inference_steps": 5})
        >>> erased, token, reward = inversion.run(2, 2, progress=False)
        >>> erased("odd", negative_prompt="<hfi>", num_inference_steps=2).images[0].size
        (8, 8)
    """

    def __init__(
        self,
        pipeline: Any,
        concept: str,
        feedback: Callable[[Tensor], Any],
        reward: RewardModel | None = None,
        *,
        token: str = "<hfi>",
        num_images: int = 400,
        num_kept: int = 40,
        guidance_scale: float = 7.5,
        num_inference_steps: int = 50,
        inversion: Mapping[str, Any] | None = None,
        erasure: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        checks.instance("concept", concept, str, "a prompt")
        checks.function("feedback", feedback, "a function of images")
        if reward is None:
            reward = RewardModel(_pixels)
        checks.instance("reward", reward, RewardModel, "a RewardModel or None")
        self.num_images = checks.integer("num_images", num_images, 4)
        if checks.integer("num_kept", num_kept, 1) > num_images:
            raise ValueError(f"num_kept must be at most num_images, {num_images}, got {num_kept}")
        self._options = {
            "inversion": {} if inversion is None else inversion,
            "erasure": {} if erasure is None else erasure,
        }
        for name, value in self._options.items():
            checks.mapping(name, value, "a dict of options")
        self.pipeline, self.concept = pipeline, concept
        self.feedback, self.reward = feedback, reward
        self.num_kept = num_kept
        self._sampler = DiffusionSampler.from_pipeline(
            pipeline,
            concept,
            guidance_scale=checks.number("guidance_scale", guidance_scale),
            num_steps=checks.integer("num_inference_steps", num_inference_steps, 1),
        )
        self.seed, self.token = fresh_seed(seed), token
        first = self._new_token()
        # Options that will not do are not to be found when a person has judged the images.
        self._inversion(first, torch.zeros(1, *self._sampler.latent_shape).to(first.vector))
        self._erasure(first.pipeline(pipeline))
        self.images: Tensor | None = None
        self.reward_fit: RewardFit | None = None

    def draw_images(self) -> Tensor:
        """Draw the images to ask about, or return them if they have been drawn.

        :returns: **Shape:** ``(num_images, channels, height, width)``, pixels from -1 to 1.
        """
        if self.images is None:
            parts = []
            with seeded(spawn_seed(self.seed, 0)):
                for start in range(0, self.num_images, _MOST_AT_ONCE):
                    number = min(_MOST_AT_ONCE, self.num_images - start)
                    parts.append(self._sampler.sample((number,)).clamp(-1.0, 1.0))
            self.images = torch.cat(parts)
        return self.images

    def run(
        self,
        num_inversion_steps: int = 1000,
        num_erasing_steps: int = 1500,
        *,
        progress: bool = True,
    ) -> ErasedByFeedback:
        """Draw images, ask for feedback, learn reward and token, and erase the token.

        Ctrl-C ends the current training, keeps its result, and continues with the next one.

        :param int num_inversion_steps: number of training steps of the token.
        :param int num_erasing_steps: number of training steps of the model.
        :param bool progress: whether to show progress bars.
        :returns: the pipeline without the concept, the token and the reward.
        :raises ValueError: for feedback from which nothing can be learned, such as labels of one
            class, before anything is trained.
        :raises TrainingDiverged: if something is not finite.
        """
        checks.integer("num_inversion_steps", num_inversion_steps, 0)
        checks.integer("num_erasing_steps", num_erasing_steps, 0)
        images = self.draw_images()
        feedback, rated = self.feedback(images), images
        if isinstance(feedback, Mapping):
            rated, feedback = images[_as_index(feedback, len(images))], list(feedback.values())
        learn = self.reward.fit_ranking if is_ranking(feedback) else self.reward.fit_binary
        seed = spawn_seed(self.seed, 1)
        self.reward_fit = learn(rated, feedback, seed=seed, progress=progress)
        index, weights = reward_weights(self.reward(images), self.num_kept)
        token, vae = self._new_token(), self.pipeline.vae
        with seeded(spawn_seed(self.seed, 2)), torch.no_grad():
            parts = images[index].split(_MOST_AT_ONCE)
            latents = torch.cat([vae.encode(part).latent_dist.sample() for part in parts])
        inversion = self._inversion(token, latents * vae.config.scaling_factor, weights)
        inversion.run(num_inversion_steps, progress=progress)
        extended = token.pipeline(self.pipeline)
        erasure = self._erasure(extended)
        erasure.run(num_erasing_steps, progress=progress)
        return ErasedByFeedback(erasure.erased_pipeline(extended), token, self.reward)

    def _new_token(self) -> SoftToken:
        parts = self.pipeline.tokenizer, self.pipeline.text_encoder
        return SoftToken(*parts, self.concept, self.token)

    def _inversion(
        self, token: SoftToken, latents: Tensor, weights: Tensor | None = None
    ) -> RewardWeightedInversion:
        options = {"seed": spawn_seed(self.seed, 3), **self._options["inversion"]}
        parts = self.pipeline.unet, self.pipeline.scheduler, token, latents, weights
        return RewardWeightedInversion(*parts, **options)

    def _erasure(self, pipeline: Any) -> SafeSelfDistillation:
        options = {"timesteps": Beta(3.0, 3.0), "seed": spawn_seed(self.seed, 4)}
        options |= self._options["erasure"]
        return SafeSelfDistillation.from_pipeline(pipeline, [self.token], **options)


def _as_index(feedback: Mapping[Any, Any], num_images: int) -> list[int]:
    """Indices of the images that have labels."""
    for index in feedback:
        if not isinstance(index, int) or not 0 <= index < num_images:
            raise ValueError(
                f"feedback must have labels by index from 0 to {num_images - 1}, got {index!r:.80}"
            )
    return list(feedback)


def _pixels(images: Tensor) -> Tensor:
    return images.flatten(1)
