"""Training and evaluation mode of modules, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def in_mode(training: bool, *modules: Any) -> Iterator[None]:
    """Put the modules among some functions in a mode, and each of their layers back after."""
    layers = [layer for one in modules if isinstance(one, nn.Module) for layer in one.modules()]
    modes = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.training = training
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.training = mode
