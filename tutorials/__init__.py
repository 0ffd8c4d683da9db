"""Runnable pages: one per workflow and one per paper, with checked claims, mostly on real data."""

if __name__ == "tutorials":
    raise ImportError(
        "'tutorials' is a folder of the checkout, not a package: import pyro_ext.tutorials instead"
    )
