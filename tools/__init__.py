"""Makers of the files that ship with the package; run from the root of a checkout."""
