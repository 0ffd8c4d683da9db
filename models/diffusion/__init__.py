"""Diffusion models of images: what they are defended by, sped up by, and what they unlearn."""

from pyro_ext.models.diffusion.digits import WORDS, digit_images, digit_judge, digit_pipeline

__all__ = ["WORDS", "digit_images", "digit_judge", "digit_pipeline"]
