"""Masked autoencoders of images."""

__all__: list[str] = []
