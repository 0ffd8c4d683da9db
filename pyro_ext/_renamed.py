"""Public names that have changed: the old ones go on for one minor release, with a warning."""

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

REMOVED_IN = "0.3"  # the first release without the old names

_Function = TypeVar("_Function", bound=Callable[..., Any])


def renamed(
    module: str, names: Mapping[str, str], otherwise: Callable[[str], Any] | None = None
) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a module some of whose names have changed."""

    def getattr_(name: str) -> Any:
        if name in names:
            home, _, new = names[name].rpartition(".")
            _warn(f"{module}.{name}", f"{home or module}.{new}", stacklevel=3)
            return getattr(importlib.import_module(home or module), new)
        if otherwise is not None:
            return otherwise(name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return getattr_


def renamed_arguments(**names: str) -> Callable[[_Function], _Function]:
    """Decorate a function or constructor some of whose keyword arguments have changed names."""

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for old in kwargs.keys() & names.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(f"{old} is the old name of {new}, got both")
                _warn(old, new, stacklevel=3)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate


def moved_arguments(home: str, *names: str) -> Callable[[_Function], _Function]:
    """Decorate a function or constructor some of whose arguments something else has now."""

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for name in kwargs.keys() & set(names):
                raise TypeError(f"{name} is an argument of {home} now, got {kwargs[name]!r}")
            return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate


def renamed_attribute(old: str, new: str) -> Any:
    """Make an attribute of a class, such as a method or property, under an old name."""

    def get(self: object) -> Any:
        _warn(old, new, stacklevel=2)
        return getattr(self, new)

    return property(get, doc=f"The old name of ``{new}``.")


class RenamedKeys(dict[str, Any]):
    """A dict some of whose keys have changed names."""

    def __init__(self, values: Mapping[str, Any], **names: str) -> None:
        super().__init__(values)
        self._names = names

    def __missing__(self, key: str) -> Any:
        if key not in self._names:
            raise KeyError(key)
        _warn(repr(key), repr(self._names[key]), stacklevel=2)
        return self[self._names[key]]


def _warn(old: str, new: str, stacklevel: int) -> None:
    """Say that a name has changed."""
    message = f"{old} is called {new} now; the old name goes with version {REMOVED_IN}"
    warnings.warn(message, FutureWarning, stacklevel=stacklevel + 1)
