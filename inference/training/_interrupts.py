"""Ctrl-C between whole steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self


class Interrupts:
    """Holds Ctrl-C back until a step is done; the second one ends the step."""

    def __init__(self) -> None:
        self.are_pending = False
        self._is_held = False
        self._handler: Any = None

    def __enter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handler = signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(self, *error: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Let nothing end what is within."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.are_pending and not self._is_held:
            raise KeyboardInterrupt
        self.are_pending = True
