"""Guides and networks that are trained once, for many data sets."""
