"""Diffusion models of the diffusers library: guidance, sampling, losses, and a distribution.

Scores come from such a model, or from a network that learned to denoise.
"""

from pyro_ext.inference.diffusion.guidance import (
    SafeLatentGuidance,
    classifier_free_guidance,
    guided_prediction,
)
from pyro_ext.inference.diffusion.losses import noise_prediction_loss
from pyro_ext.inference.diffusion.sampler import DiffusionSampler
from pyro_ext.inference.diffusion.sampling import denoise
from pyro_ext.inference.diffusion.score_matching import DiffusersScore, NoiseConditionalScore
from pyro_ext.inference.diffusion.text import encode_prompts

__all__ = [
    "DiffusersScore",
    "DiffusionSampler",
    "NoiseConditionalScore",
    "SafeLatentGuidance",
    "classifier_free_guidance",
    "denoise",
    "encode_prompts",
    "guided_prediction",
    "noise_prediction_loss",
]
