"""Minibatches as a function of seed, chain and step: from shuffled epochs, or independent."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext.potential import Plate

Indices = npt.NDArray[np.int64]

_MOST_EPOCHS = 16
_ELEMENTS_PER_BLOCK = 1 << 14
_MOST_STEPS = 64


class _Minibatches(ABC):
    """Minibatches in stretches of steps, of which those of a chain are made together."""

    def __init__(self, plates: Sequence[Plate], chains: Sequence[int], seed: int) -> None:
        self.plates = tuple(plates)
        self.chains = chains
        self.seed = seed
        self._blocks: dict[tuple[int, int], tuple[int, Indices]] = {}

    def __call__(self, first_step: int, num_steps: int) -> list[Tensor]:
        """Indices of the steps by plate, ``(num_steps, num_chains, subsample_size)`` each."""
        result = []
        for number, plate in enumerate(self.plates):
            length = self._length(plate)
            shape = (num_steps, len(self.chains), plate.subsample_size)
            indices = np.empty(shape, dtype=np.int64)
            row = 0
            while row < num_steps:
                stretch, first = divmod(first_step + row, length)
                rows = min(length - first, num_steps - row)
                for column, chain in enumerate(self.chains):
                    batches = self._batches(number, plate, chain, stretch)
                    indices[row : row + rows, column] = batches[first : first + rows]
                row += rows
            result.append(torch.from_numpy(indices))
        return result

    @abstractmethod
    def _length(self, plate: Plate) -> int:
        """Number of steps of a stretch."""

    @abstractmethod
    def _batches(self, number: int, plate: Plate, chain: int, stretch: int) -> Indices:
        """Minibatches of a stretch. **Shape:** ``(length, subsample_size)``."""

    def _block(
        self, key: tuple[int, int, int, int], make: Callable[[np.random.Generator], Indices]
    ) -> Indices:
        """Draw a block with its own generator, keeping the latest block of each chain and plate."""
        chain, _, number, block = key
        known = self._blocks.get((number, chain))
        if known is None or known[0] != block:
            sequence = np.random.SeedSequence(self.seed, spawn_key=key)
            known = (block, make(np.random.default_rng(sequence)))
            self._blocks[number, chain] = known
        return known[1]


class Minibatches(_Minibatches):
    """Subsamples of plates for a group of chains, each chain with its own shuffles.

    An epoch is a permutation of the plate, cut into batches. Data left over after the last whole
    batch are dropped, so that every batch is a uniform subset. The permutation of an epoch is
    determined by the seed, the chain, the plate and the epoch: there is no state to save.

    :param Sequence plates: the plates that take a subsample.
    :param Sequence chains: numbers of the chains.
    :param int seed: a non-negative integer.
    """

    def _length(self, plate: Plate) -> int:
        return plate.size // plate.subsample_size

    def _batches(self, number: int, plate: Plate, chain: int, stretch: int) -> Indices:
        # To set up a generator costs more than to shuffle a small plate, so that one generator
        # serves several epochs.
        size = plate.size
        num_epochs = max(1, min(_MOST_EPOCHS, _ELEMENTS_PER_BLOCK // size))
        block, epoch = divmod(stretch, num_epochs)

        def shuffled(generator: np.random.Generator) -> Indices:
            orders = np.tile(np.arange(size), (num_epochs, 1))
            return generator.permuted(orders, axis=1, out=orders)

        order = self._block((chain, 2, number, block), shuffled)[epoch]
        shape = (self._length(plate), plate.subsample_size)
        batches: Indices = order[: shape[0] * shape[1]].reshape(shape)
        return batches


class IndependentMinibatches(_Minibatches):
    """Subsamples of plates, each a uniform subset independent of those of other steps.

    Gradients then have independent noise, as theory assumes. With shuffled epochs, the noise of
    minibatches partly cancels, which widens the draws less.

    :param Sequence plates: the plates that take a subsample.
    :param Sequence chains: numbers of the chains.
    :param int seed: a non-negative integer.

    Example::

        >>> from pyro_ext.inference import SGLD
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x), subsample_size=20) as index:
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])
        >>> kernel = SGLD(model, step_size=1e-3, minibatches=IndependentMinibatches)
    """

    def _length(self, plate: Plate) -> int:
        return _MOST_STEPS

    def _batches(self, number: int, plate: Plate, chain: int, stretch: int) -> Indices:
        def subsets(generator: np.random.Generator) -> Indices:
            sizes = plate.size, plate.subsample_size
            chosen = [
                generator.choice(*sizes, replace=False, shuffle=False) for _ in range(_MOST_STEPS)
            ]
            return np.stack(chosen)

        return self._block((chain, 3, number, stretch), subsets)
