"""Extrapolation of scaling curves, with networks that have learned a prior."""

__all__: list[str] = []
