"""Modules of packages that few functions need, and that an extra installs."""

import importlib
from types import ModuleType


class MissingModuleError(ImportError):
    """A module of an optional package is missing; the message says which extra installs it."""


def optional_module(module: str, user: str, package: str, extra: str) -> ModuleType:
    """Import a module of an optional package, or say which extra brings it."""
    try:
        importlib.import_module(module.partition(".")[0])  # a part may be there without the whole
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingModuleError(
            f"{user} needs {package}; install it with: pip install 'pyro-ext[{extra}]'"
        ) from error
