r"""Guidance: combine predictions under several prompts into the one that a sampler follows.

A negative prompt takes the place of the empty one [1], and safe latent guidance turns away from a
concept [2]:

[1] J. Ho, T. Salimans (2021), Classifier-free diffusion guidance.

[2] P. Schramowski, M. Brack, B. Deiseroth, K. Kersting (2023), Safe latent diffusion: mitigating
inappropriate degeneration in diffusion models.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.diffusion.sampling import Prediction

# Warm-up steps, scale, threshold, scale and decay of the momentum.
_PRESETS = {
    "weak": (15, 200.0, 0.0, 0.0, 0.0),
    "medium": (10, 1000.0, 0.01, 0.3, 0.4),
    "strong": (7, 2000.0, 0.025, 0.5, 0.7),
    "max": (0, 5000.0, 1.0, 0.5, 0.7),
}


def classifier_free_guidance(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    r"""Prediction with guidance, :math:`\epsilon_0 + s (\epsilon_c - \epsilon_0)`.

    :param Tensor unconditional: :math:`\epsilon_0`, the prediction for the empty prompt or for a
        negative one.
    :param Tensor conditional: :math:`\epsilon_c`. **Shape:** as ``unconditional``.
    :param float scale: :math:`s`; zero and one give the two predictions.
    :returns: **Shape:** as ``unconditional``.

    [1] J. Ho, T. Salimans (2021), Classifier-free diffusion guidance, equation 6.

    Example::

        >>> classifier_free_guidance(torch.tensor([1.0]), torch.tensor([2.0]), 3.0)
        tensor([4.])
    """
    scale = checks.number("scale", scale)
    unconditional, conditional = _alike(unconditional=unconditional, conditional=conditional)
    return torch.lerp(unconditional, conditional, scale)


class SafeLatentGuidance:
    r"""Guidance away from a concept.

    .. math::
        \mu &= \min(1, s_S |\epsilon_c - \epsilon_S|) \; [\epsilon_c - \epsilon_S < \lambda_S] \\
        \gamma &= \mu (\epsilon_S - \epsilon_0) + s_m \nu, \qquad
        \nu \leftarrow \beta \nu + (1 - \beta) \gamma \\
        \epsilon &= \epsilon_0 + s (\epsilon_c - \epsilon_0 - \gamma)

    where :math:`\gamma` is left out of :math:`\epsilon` in the first steps. The object keeps the
    momentum :math:`\nu` of one trajectory; :func:`denoise` restarts the momentum of a
    :func:`guided_prediction`.

    :param str preset: ``"weak"``, ``"medium"``, ``"strong"`` or ``"max"`` of the paper; determines
        the number of first steps, :math:`s_S, \lambda_S, s_m` and :math:`\beta`.
    :param float scale: :math:`s`.

    [1] P. Schramowski, M. Brack, B. Deiseroth, K. Kersting (2023), Safe latent diffusion:
    mitigating inappropriate degeneration in diffusion models, equations 3 to 8.

    Example::

        >>> zero, prompt, concept = torch.zeros(1), torch.ones(1), torch.ones(1)
        >>> SafeLatentGuidance("max", 3.0)(zero, prompt, concept)  # equal predictions
        tensor([3.])
        >>> SafeLatentGuidance("max", 3.0)(zero, prompt, 2 * concept)
        tensor([-3.])
    """

    def __init__(self, preset: str = "medium", scale: float = 7.5) -> None:
        checks.choice("preset", preset, _PRESETS)
        self.preset = preset
        self.scale = checks.number("scale", scale)
        self.restart()

    def restart(self) -> None:
        """Forget the steps so far, for a new trajectory."""
        self._momentum: Tensor | float = 0.0
        self._num_steps = 0

    def __call__(self, unconditional: Tensor, conditional: Tensor, concept: Tensor) -> Tensor:
        r"""One step of the trajectory.

        :param Tensor unconditional: :math:`\epsilon_0`.
        :param Tensor conditional: :math:`\epsilon_c`. **Shape:** as ``unconditional``.
        :param Tensor concept: :math:`\epsilon_S`. **Shape:** as ``unconditional``.
        :returns: :math:`\epsilon`. **Shape:** as ``unconditional``.
        """
        unconditional, conditional, concept = _alike(
            unconditional=unconditional, conditional=conditional, concept=concept
        )
        warm_up, concept_scale, threshold, momentum_scale, decay = _PRESETS[self.preset]
        difference = conditional - concept
        strength = (concept_scale * difference.abs()).clamp(max=1.0) * (difference < threshold)
        away = strength * (concept - unconditional) + momentum_scale * self._momentum
        self._momentum = decay * self._momentum + (1.0 - decay) * away
        self._num_steps += 1
        guided = classifier_free_guidance(unconditional, conditional, self.scale)
        return guided if self._num_steps <= warm_up else guided - self.scale * away


def _alike(**predictions: Tensor) -> list[Tensor]:
    """Predictions as tensors, which have one shape."""
    first, *others = predictions.items()
    tensors = [checks.as_tensor(*first)]
    tensors += [checks.as_tensor(*other, like=tensors[0]) for other in others]
    if len({tensor.shape for tensor in tensors}) > 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(f"{', '.join(predictions)} must have one shape, got {shapes}")
    return tensors


def guided_prediction(
    unet: Any,
    conditional: Tensor,
    unconditional: Tensor,
    guidance: Any = 7.5,
    concept: Tensor | None = None,
) -> Prediction:
    """Build the prediction for :func:`denoise` from a Diffusers U-Net, prompts and guidance.

    The prompts of a call go through the network as one batch.

    :param unet: a network of diffusers that takes ``encoder_hidden_states``.
    :param Tensor conditional: conditioning of the prompts, as from :func:`encode_prompts`.
        **Shape:** ``(batch, length, width)``, or with a batch of one.
    :param Tensor unconditional: conditioning of the empty prompt or of a negative one. **Shape:**
        as ``conditional``.
    :param guidance: the scale of :func:`classifier_free_guidance`, or with a ``concept`` a
        :class:`SafeLatentGuidance`.
    :param Tensor concept: conditioning of the concept to avoid. **Shape:** as ``conditional``.
    :returns: a function of latents and a timestep.
    :raises TypeError: for arguments of a wrong type.
    :raises ValueError: for a number that is not finite, or for a :class:`SafeLatentGuidance`
        without a concept. The returned function raises it if latents and prompts do not fit.

    Example::

        >>> unet = lambda z, t, encoder_hidden_states: (z + encoder_hidden_states,)
        >>> predict = guided_prediction(unet, torch.ones(1, 1, 1), torch.zeros(1, 1, 1), 3.0)
        >>> predict(torch.zeros(2, 1, 1), torch.tensor(5)).flatten()
        tensor([3., 3.])
    """
    checks.function("unet", unet, "a network of diffusers", or_class=False)
    named = {"unconditional": unconditional, "conditional": conditional, "concept": concept}
    prompts = [
        checks.as_tensor(name, states, "(batch, length, width)", finite=True)
        for name, states in named.items()
        if name != "concept" or states is not None
    ]
    combine: Callable[..., Tensor]
    if concept is None:
        if isinstance(guidance, SafeLatentGuidance):
            raise ValueError("concept must be given with a SafeLatentGuidance, got None")
        combine = partial(classifier_free_guidance, scale=checks.number("guidance", guidance))
    else:
        checks.instance("guidance", guidance, SafeLatentGuidance, "a SafeLatentGuidance")
        combine = guidance

    return _GuidedPrediction(unet, prompts, combine)


class _GuidedPrediction:
    """Predictions for each prompt, in one batch, and what guidance makes of them."""

    def __init__(self, unet: Any, prompts: list[Tensor], combine: Callable[..., Tensor]) -> None:
        self.unet, self.prompts, self.combine = unet, prompts, combine

    def restart(self) -> None:
        if isinstance(self.combine, SafeLatentGuidance):
            self.combine.restart()

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        prompts = self.prompts
        if wrong := [len(prompt) for prompt in prompts if len(prompt) not in (1, len(z))]:
            raise ValueError(
                f"latents must be as many as the prompts, {wrong[0]}, or prompts one, got {len(z)}"
            )
        states = torch.cat([prompt.expand(len(z), *prompt.shape[1:]) for prompt in prompts])
        timesteps = t.expand(len(z)).repeat(len(prompts))
        inputs = z.repeat(len(prompts), *[1] * (z.dim() - 1))
        outputs = self.unet(inputs, timesteps, encoder_hidden_states=states)[0]
        return self.combine(*outputs.chunk(len(prompts)))
