"""Inference algorithms."""

if __name__ == "inference":
    raise ImportError(
        "'inference' is a folder of the checkout, not a package: import pyro_ext.inference instead"
    )

import lazy_loader

# Names and their modules stand in __init__.pyi; a module is imported as one of its names is used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
