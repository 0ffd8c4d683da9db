"""Functions that raise and processes that die in the middle of a run."""

import functools
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Killed(Exception):
    """What no code catches, as if the process had ended."""


def stopping(
    function: Callable[..., Any], number: int, error: type[BaseException] = KeyboardInterrupt
) -> Callable[..., Any]:
    """The function, but for its call of that number from one, which raises."""
    calls = itertools.count(1)

    @functools.wraps(function)
    def stopped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise error
        return function(*args, **kwargs)

    return stopped


@contextmanager
def killed_after_draws(folder: Path, number: Callable[[], int]) -> Iterator[None]:
    """Kill the process of that number once draws are in the folder, which have to come."""

    def kill() -> None:
        while not list(folder.rglob("draws-*")):
            time.sleep(0.01)
        os.kill(number(), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    yield
    killer.join()


def first_process(executor: ProcessPoolExecutor) -> Callable[[], int]:
    """Number of the first process of a pool, which it has once it works."""
    return lambda: next(iter(executor._processes))
