"""Processes that die in the middle of a run."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path


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
