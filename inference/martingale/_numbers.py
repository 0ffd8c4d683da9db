"""Random numbers of populations: functions of a draw's key and of a place in its population."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pyro_ext.random import normal, uniform

__all__ = ["normals", "seed_generator", "uniforms"]

_PER_BLOCK = 16


def uniforms(keys: Tensor, start: int, stop: int, *, stream: int = 0) -> Tensor:
    """Numbers uniform on the open unit interval at the places from ``start`` to before ``stop``.

    :param Tensor keys: of the draws' random streams. **Shape:** ``(num_draws, 2)``.
    :param int start: the first place.
    :param int stop: the place after the last.
    :param int stream: number of an independent stream of the same draws.
    :returns: in float64. **Shape:** ``(num_draws, stop - start)``.

    Example::

        >>> from pyro_ext.random import chain_keys
        >>> keys = chain_keys(0, range(2))
        >>> bool((uniforms(keys, 0, 90)[:, 37:] == uniforms(keys, 37, 90)).all())
        True
    """
    return _between(uniform, keys, start, stop, stream)


def normals(keys: Tensor, start: int, stop: int, *, stream: int = 0) -> Tensor:
    """Standard normal numbers at the places from ``start`` to before ``stop``.

    :param Tensor keys: of the draws' random streams. **Shape:** ``(num_draws, 2)``.
    :param int start: the first place.
    :param int stop: the place after the last.
    :param int stream: number of an independent stream of the same draws, shared with
        :func:`uniforms`.
    :returns: in float64. **Shape:** ``(num_draws, stop - start)``.
    """
    return _between(normal, keys, start, stop, stream)


def seed_generator(key: Tensor, *numbers: int) -> None:
    """Seed PyTorch's own generator.

    :param Tensor key: of one draw's random stream, on the device of what will be drawn.
        **Shape:** ``(2,)``.
    :param numbers: what tells the seeds of a draw apart.
    """
    words = np.random.SeedSequence([*key.tolist(), *numbers]).generate_state(1, np.uint64)
    seed = int(words[0] >> np.uint64(1))
    if key.device.type == "cpu":
        torch.default_generator.manual_seed(seed)  # many times faster than to seed all devices
    else:
        torch.manual_seed(seed)


def _between(
    draw: Callable[..., Tensor], keys: Tensor, start: int, stop: int, stream: int
) -> Tensor:
    first = start // _PER_BLOCK
    blocks = torch.arange(first, -(-stop // _PER_BLOCK), device=keys.device)
    numbers = draw(keys, blocks, _PER_BLOCK, stream=stream, dtype=torch.float64)
    rows = numbers.transpose(0, 1).flatten(1)
    offset = first * _PER_BLOCK
    return rows[:, start - offset : stop - offset]
