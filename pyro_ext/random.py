"""Counter-based random numbers: pure functions of key and counter, inside graphs and outside.

Stateful generators cannot be captured in a graph, and their draws depend on how many numbers are
requested at once. A counter-based generator has neither problem: the normal numbers of a chain at a
step are a function of the seed, the chain and the step. So a chain draws the same numbers alone or
among others, in one process or in many, before and after a restart, and on any device.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from pyro_ext._lib import checks

__all__ = [
    "chain_keys",
    "fresh_seed",
    "normal",
    "philox",
    "seeded",
    "spawn_seed",
    "uniform",
    "uniform_each",
]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10
_UNIT = 2.0**-32
_WORTH_AN_IMPORT = 1 << 13  # blocks of random words; fewer do without Numba until it is there


def fresh_seed(seed: int | None) -> int:
    """Return the seed itself, or one from PyTorch's global generator if it is ``None``.

    :param int seed: a non-negative integer or ``None``.
    :returns: a non-negative integer.
    :raises ValueError: for anything else.

    Example::

        >>> fresh_seed(3)
        3
    """
    if seed is None:
        return int(torch.randint(2**31 - 1, ()))
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be a non-negative integer or None, got {seed!r}")
    return int(seed)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed PyTorch's generators and restore them afterward; do nothing without a seed.

    :param int seed: a non-negative integer or ``None``.
    :raises ValueError: for anything else.

    Example::

        >>> with seeded(0):
        ...     first = torch.rand(())
        >>> with seeded(0):
        ...     print(bool(torch.rand(()) == first))
        True
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(fresh_seed(seed))
        yield


def spawn_seed(seed: int, *key: int) -> int:
    """Derive a seed for one part of a computation, such as one of several draws.

    :param int seed: the seed of the whole computation.
    :param int key: one or more numbers that identify the part.

    Example::

        >>> spawn_seed(0, 1), spawn_seed(0, 2)
        (673228719, 3241444873)
    """
    return int(np.random.SeedSequence(fresh_seed(seed), spawn_key=key).generate_state(1)[0])


def chain_keys(seed: int, chains: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Return the key of each chain's random stream.

    The key depends only on the seed and the chain's own index, never on the number of chains.

    :param int seed: a non-negative integer.
    :param Sequence chains: indices of the chains.
    :param torch.device device: device of the keys.
    :returns: 32-bit words in an int64 tensor. **Shape:** ``(len(chains), 2)``.

    Example::

        >>> bool((chain_keys(7, range(4))[2] == chain_keys(7, range(2, 3))[0]).all())
        True
    """
    checks.integer("seed", seed, 0, most=math.inf)
    chains = checks.sequence("chains", chains, "a list of numbers of chains")
    words = [
        np.random.SeedSequence(seed, spawn_key=(chain,)).generate_state(2, np.uint32)
        for chain in chains
    ]
    return torch.from_numpy(np.stack(words).astype(np.int64)).to(device)


def philox(
    key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor, Tensor, Tensor]
) -> list[Tensor]:
    """Four random 32-bit words for each key and counter: the bijection Philox-4x32-10 of [1].

    :param tuple key: two int64 tensors of 32-bit words.
    :param tuple counter: four such tensors; all six broadcast against each other.
    :returns: four int64 tensors of 32-bit words.

    [1] J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw (2011),
    Parallel random numbers: as easy as 1, 2, 3.

    Example::

        >>> zero = torch.zeros((), dtype=torch.int64)
        >>> [hex(int(word)) for word in philox((zero, zero), (zero, zero, zero, zero))]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    key0, key1 = key
    word0, word1, word2, word3 = counter
    for round_ in range(_NUM_ROUNDS):
        high0, low0 = _product(word0, _MULTIPLIERS[0])
        high1, low1 = _product(word2, _MULTIPLIERS[1])
        word0 = high1 ^ word1 ^ ((key0 + round_ * _WEYL[0]) & _MASK)
        word2 = high0 ^ word3 ^ ((key1 + round_ * _WEYL[1]) & _MASK)
        word1, word3 = low1, low0
    return [word0, word1, word2, word3]


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """Upper and lower word of the product of two 32-bit words."""
    # A product that overflows an int64 is undefined in compiled C++, where it did give other words.
    # With the multiplier less 2**32 it does not, and what it lacks is a word further up. Nor do all
    # compilers shift the sign in, hence the mask.
    product = word * (multiplier - 2**32)
    return ((product >> 32) + word) & _MASK, product & _MASK


def normal(
    keys: Tensor,
    step: Tensor,
    num_elements: int,
    *,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers for each chain at each step.

    :param Tensor keys: keys from :func:`chain_keys`. **Shape:** ``(num_chains, 2)``.
    :param Tensor step: int64 step numbers below ``2**32``. **Shape:** ``(*steps)``.
    :param int num_elements: the number of numbers for each chain at each step.
    :param int stream: index of an independent stream of the same chain.
    :param torch.dtype dtype: floating-point type of the result. The underlying uniform numbers have
        32 bits in any type, so no number exceeds 6.77 in absolute value (probability 1.4e-11).
    :returns: **Shape:** ``(*steps, num_chains, num_elements)``.

    Example::

        >>> keys = chain_keys(0, range(2))
        >>> normal(keys, torch.arange(5), 3).shape
        torch.Size([5, 2, 3])
    """
    # Types of half precision hold no 32 bits, and round the smallest uniform to zero.
    inner = dtype if dtype == torch.float64 else torch.float32
    words = _words(keys, step, num_elements, stream)
    pairs = []
    for radial, angular in (words[:2], words[2:]):
        # Box-Muller; half a unit keeps the logarithm away from zero.
        radius = torch.sqrt(-2.0 * torch.log((radial.to(inner) + 0.5) * _UNIT))
        angle = angular.to(inner) * (2.0 * math.pi * _UNIT)
        pairs += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(pairs, -1).flatten(-2)[..., :num_elements].to(dtype)


def uniform(
    keys: Tensor,
    step: Tensor,
    num_elements: int,
    *,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Numbers uniform on the open unit interval for each chain at each step.

    The arguments are those of :func:`normal`, whose numbers in the same stream are functions of
    these.

    :param torch.dtype dtype: floating-point type of the result, with 32 or 64 bits. The numbers are
        multiples of ``2**-23`` in float32 and of ``2**-32`` in float64, shifted by half of that.
    :returns: **Shape:** ``(*steps, num_chains, num_elements)``.

    Example::

        >>> uniform(chain_keys(0, range(2)), torch.arange(5), 3).shape
        torch.Size([5, 2, 3])
    """
    words = torch.stack(_words(keys, step, num_elements, stream), -1).flatten(-2)
    return _as_uniform(words[..., :num_elements], dtype)


def uniform_each(
    keys: Tensor, steps: Tensor, *, stream: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Four uniform numbers for each chain, with chains at different steps.

    :param Tensor keys: keys from :func:`chain_keys`. **Shape:** ``(num_chains, 2)``.
    :param Tensor steps: int64 step numbers below ``2**32``. **Shape:** ``(num_chains,)``.
    :param int stream: see :func:`uniform`, whose numbers at a single step these are.
    :param torch.dtype dtype: see :func:`uniform`.
    :returns: **Shape:** ``(num_chains, 4)``.

    Example::

        >>> keys = chain_keys(0, range(2))
        >>> several = uniform_each(keys, torch.tensor([5, 7]))
        >>> bool((several[1] == uniform(keys, torch.tensor(7), 4)[1]).all())
        True
    """
    is_small = len(steps) < _WORTH_AN_IMPORT
    if _are_wanted_now(keys, steps) and not (is_small and "numba" not in sys.modules):
        from pyro_ext._lib.philox_loop import philox_each

        words = torch.from_numpy(philox_each(keys.numpy(), steps.numpy(), stream))
    else:
        zero = torch.zeros_like(steps)
        counter = (zero, steps, torch.full_like(steps, stream), zero)
        words = torch.stack(philox((keys[:, 0], keys[:, 1]), counter))
    return _as_uniform(words.mT, dtype)


def _as_uniform(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Random 32-bit words as numbers in the open unit interval."""
    # What a type can't tell from one is dropped, which would otherwise be rounded to one.
    dropped = 0 if dtype == torch.float64 else 9
    return ((words >> dropped).to(dtype) + 0.5) * 2.0 ** (dropped - 32)


def _words(keys: Tensor, step: Tensor, num_elements: int, stream: int) -> list[Tensor]:
    """Random words for numbers of each chain at each step, in blocks of four."""
    num_blocks = -(-num_elements // 4)
    is_small = step.numel() * len(keys) * num_blocks < _WORTH_AN_IMPORT
    if _are_wanted_now(keys, step) and not (is_small and "numba" not in sys.modules):
        # Imported here: Numba is slow to import. A hundred operations on tensors take ten times as
        # long as this loop, on few numbers a hundred times.
        from pyro_ext._lib.philox_loop import philox_blocks

        found = philox_blocks(keys.numpy(), step.reshape(-1).numpy(), num_blocks, stream)
        words = torch.from_numpy(found).reshape(4, *step.shape, len(keys), num_blocks)
        return list(words)
    step = step[..., None, None]
    # PyTorch's compiler takes 32 bits for products of an index, unless it stands in memory.
    block = torch.arange(num_blocks, device=keys.device) + (step - step)
    return philox(
        (keys[:, :1], keys[:, 1:]),
        (block, step, torch.full_like(block, stream), torch.zeros_like(block)),
    )


def _are_wanted_now(*tensors: Tensor) -> bool:
    """Tell whether tensors hold numbers on the CPU, and are not being recorded or vectorized."""
    if torch.compiler.is_compiling():  # first: what records for a compiler can't follow the rest
        return False
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return (
        all(type(tensor) is Tensor and tensor.device.type == "cpu" for tensor in tensors)
        and get_proxy_mode() is None
        and torch._C._functorch.maybe_current_level() is None
    )
