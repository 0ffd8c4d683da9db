"""Valid calls, for :mod:`walk` to spoil."""

from collections.abc import Callable

from tests.bad_input.walk import Call

TABLES: dict[str, Callable[[], dict[str, Call]]] = {}
