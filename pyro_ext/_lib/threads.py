"""Number of PyTorch threads for tensors that are too small to share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ELEMENTS_FOR_THREADS = 1 << 20


@contextmanager
def threads_for(num_elements: int) -> Iterator[None]:
    """Use one thread where tensors have few elements."""
    # Threads that wait for each other between short operations cost more than they give.
    before = torch.get_num_threads()
    if num_elements < _ELEMENTS_FOR_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
