"""Internal helpers for the whole package."""
