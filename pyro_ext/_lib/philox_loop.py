"""Compiled loop over the blocks of a random generator, apart since Numba is slow to import."""

import numpy as np
import numpy.typing as npt

from pyro_ext._lib.compiled import compiled

Integers = npt.NDArray[np.int64]

_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIER0, _MULTIPLIER1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL0, _WEYL1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_NUM_ROUNDS = 10


@compiled
def _block(
    key0: np.uint64, key1: np.uint64, block: np.uint64, step: np.uint64, stream: np.uint64
) -> tuple[np.int64, np.int64, np.int64, np.int64]:
    """Words of the counter (block, step, stream, 0)."""
    word0, word1, word2, word3 = block, step, stream, np.uint64(0)
    for _ in range(_NUM_ROUNDS):
        product0, product1 = word0 * _MULTIPLIER0, word2 * _MULTIPLIER1
        word0 = ((product1 >> _HALF) ^ word1 ^ key0) & _MASK
        word1 = product1 & _MASK
        word2 = ((product0 >> _HALF) ^ word3 ^ key1) & _MASK
        word3 = product0 & _MASK
        key0 = (key0 + _WEYL0) & _MASK
        key1 = (key1 + _WEYL1) & _MASK
    return np.int64(word0), np.int64(word1), np.int64(word2), np.int64(word3)


@compiled
def philox_blocks(keys: Integers, steps: Integers, num_blocks: int, stream: int) -> Integers:
    """Words of :func:`pyro_ext.random.philox` for the counters (block, step, stream, 0)."""
    words = np.empty((4, steps.size, keys.shape[0], num_blocks), np.int64)
    for number in range(steps.size):
        step = np.uint64(steps[number])
        for chain in range(keys.shape[0]):
            first, second = np.uint64(keys[chain, 0]), np.uint64(keys[chain, 1])
            for block in range(num_blocks):
                found = _block(first, second, np.uint64(block), step, np.uint64(stream))
                for word in range(4):
                    words[word, number, chain, block] = found[word]
    return words


@compiled
def philox_each(keys: Integers, steps: Integers, stream: int) -> Integers:
    """Words for the counters (0, step, stream, 0), where each chain has a step of its own.

    Shapes: keys (num_chains, 2); steps (num_chains,); returns (4, num_chains).
    """
    words = np.empty((4, steps.size), np.int64)
    zero, number = np.uint64(0), np.uint64(stream)
    for chain in range(steps.size):
        first, second = np.uint64(keys[chain, 0]), np.uint64(keys[chain, 1])
        found = _block(first, second, zero, np.uint64(steps[chain]), number)
        for word in range(4):
            words[word, chain] = found[word]
    return words
