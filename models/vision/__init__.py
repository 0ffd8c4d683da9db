"""Masked autoencoders of images."""

from pyro_ext.models.vision.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderTerms

__all__ = ["MaskedAutoencoder", "MaskedAutoencoderTerms"]
