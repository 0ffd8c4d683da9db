"""Diffusion models of images: what they are defended by, sped up by, and what they unlearn."""

from pyro_ext.models.diffusion.digits import WORDS, digit_images, digit_judge, digit_pipeline
from pyro_ext.models.diffusion.erasure import ESD, ConceptErasure, SafeSelfDistillation

__all__ = [
    "ESD",
    "WORDS",
    "ConceptErasure",
    "SafeSelfDistillation",
    "digit_images",
    "digit_judge",
    "digit_pipeline",
]
