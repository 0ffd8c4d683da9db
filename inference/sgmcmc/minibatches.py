"""Minibatches as a function of seed, chain and step: of shuffled epochs, or independent."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext.potential import Plate

__all__ = ["IndependentMinibatches", "Minibatches"]

_MOST_EPOCHS = 16
_ELEMENTS_PER_BLOCK = 1 << 14
_MOST_STEPS = 64


class Minibatches:
    """Subsamples of plates for a group of chains, each chain with its own shuffles.

    An epoch is a permutation of the plate, cut into batches; what is left of it after the last
    whole batch is dropped, so that every batch is a uniform subset. The permutation of an epoch
    follows from the seed, the chain, the plate and the epoch: there is no state to save.

    :param Sequence plates: the plates that take a subsample.
    :param Sequence chains: numbers of the chains.
    :param int seed: a non-negative integer.
    """

    def __init__(self, plates: Sequence[Plate], chains: Sequence[int], seed: int) -> None:
        self.plates = tuple(plates)
        self.chains = chains
        self.seed = seed
        self._blocks: dict[tuple[int, int], tuple[int, npt.NDArray[np.int64]]] = {}

    def __call__(self, first_step: int, num_steps: int) -> list[Tensor]:
        """Indices of the given steps for each plate.

        :param int first_step: number of the first step.
        :param int num_steps: number of steps.
        :returns: int64 tensors. **Shape:** ``(num_steps, num_chains, subsample_size)`` each.
        """
        result = []
        for number, plate in enumerate(self.plates):
            size = plate.subsample_size
            num_batches = plate.size // size
            indices = np.empty((num_steps, len(self.chains), size), dtype=np.int64)
            row = 0
            while row < num_steps:
                epoch, batch = divmod(first_step + row, num_batches)
                rows = min(num_batches - batch, num_steps - row)
                for column, chain in enumerate(self.chains):
                    order = self._order(number, plate.size, chain, epoch)
                    taken = order[batch * size : (batch + rows) * size]
                    indices[row : row + rows, column] = taken.reshape(rows, size)
                row += rows
            result.append(torch.from_numpy(indices))
        return result

    def _order(self, number: int, size: int, chain: int, epoch: int) -> npt.NDArray[np.int64]:
        """Permutation of a plate in an epoch; the latest block of epochs is kept.

        To set up a generator costs more than to shuffle a small plate, so that one generator serves
        several epochs.
        """
        num_epochs = max(1, min(_MOST_EPOCHS, _ELEMENTS_PER_BLOCK // size))
        block, place = divmod(epoch, num_epochs)
        known = self._blocks.get((number, chain))
        if known is None or known[0] != block:
            key = np.random.SeedSequence(self.seed, spawn_key=(chain, 2, number, block))
            orders = np.tile(np.arange(size), (num_epochs, 1))
            known = (block, np.random.default_rng(key).permuted(orders, axis=1, out=orders))
            self._blocks[number, chain] = known
        order: npt.NDArray[np.int64] = known[1][place]
        return order


class IndependentMinibatches:
    """Subsamples of plates, each a uniform subset that does not depend on those of other steps.

    Gradients then have independent noise, as theory has it. That of shuffled epochs, whose
    minibatches make up for each other, widens the draws less.

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

    def __init__(self, plates: Sequence[Plate], chains: Sequence[int], seed: int) -> None:
        self.plates = tuple(plates)
        self.chains = chains
        self.seed = seed
        self._blocks: dict[tuple[int, int], tuple[int, npt.NDArray[np.int64]]] = {}

    def __call__(self, first_step: int, num_steps: int) -> list[Tensor]:
        """Indices of the given steps for each plate, as of :class:`Minibatches`."""
        result = []
        for number, plate in enumerate(self.plates):
            size = plate.subsample_size
            indices = np.empty((num_steps, len(self.chains), size), dtype=np.int64)
            row = 0
            while row < num_steps:
                block, place = divmod(first_step + row, _MOST_STEPS)
                rows = min(_MOST_STEPS - place, num_steps - row)
                for column, chain in enumerate(self.chains):
                    subsets = self._subsets(number, plate, chain, block)
                    indices[row : row + rows, column] = subsets[place : place + rows]
                row += rows
            result.append(torch.from_numpy(indices))
        return result

    def _subsets(self, number: int, plate: Plate, chain: int, block: int) -> npt.NDArray[np.int64]:
        """Subsets of a plate in a block of steps, the latest of which is kept."""
        known = self._blocks.get((number, chain))
        if known is None or known[0] != block:
            key = np.random.SeedSequence(self.seed, spawn_key=(chain, 3, number, block))
            generator = np.random.default_rng(key)
            size = plate.subsample_size
            subsets = [
                generator.choice(plate.size, size, replace=False, shuffle=False)
                for _ in range(_MOST_STEPS)
            ]
            known = (block, np.stack(subsets))
            self._blocks[number, chain] = known
        return known[1]
