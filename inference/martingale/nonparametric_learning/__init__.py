"""Losses fitted to randomly weighted data, alone and from a pretrained network."""
