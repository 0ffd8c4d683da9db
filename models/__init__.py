"""The models of papers, one theme a folder and one paper a module."""

if __name__ == "models":
    raise ImportError(
        "'models' is a folder of the checkout, not a package: import pyro_ext.models instead"
    )
