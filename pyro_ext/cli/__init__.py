"""The command ``pyro-ext``, the only code that may import from every floor of the package."""
