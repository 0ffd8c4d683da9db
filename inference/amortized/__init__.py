"""Guides and networks that are trained once and then used for many data sets."""
