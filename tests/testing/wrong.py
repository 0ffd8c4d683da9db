"""Objects that are right but for the results of some methods."""

from collections.abc import Callable
from typing import Any


def wrong_type(base: type, **changes: Callable[[Any], Any]) -> type:
    """A subclass in which what a method or a property gives is changed."""

    def changed(name: str, change: Callable[[Any], Any]) -> Any:
        inner: Any = getattr(base, name)
        if isinstance(inner, property):
            return property(lambda self: change(inner.__get__(self)))
        return lambda self, *args, **kwargs: change(inner(self, *args, **kwargs))

    return type("Wrong", (base,), {name: changed(name, one) for name, one in changes.items()})


def wrong(base: type, *args: Any, **changes: Callable[[Any], Any]) -> Any:
    """An instance of such a class."""
    return wrong_type(base, **changes)(*args)
