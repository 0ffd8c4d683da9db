"""Symmetries that are learned from data, and networks that hold as many as the data support."""

__all__: list[str] = []
