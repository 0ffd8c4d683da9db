"""Minibatches whose order is determined by a seed and the step number, without a state to save."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.random import spawn_seed


class ShuffledBatches:
    """Minibatches of rows: each epoch contains all rows once, in a new order.

    :param Tensor rows: tensors with the same number of rows. **Shape:** ``(num_rows, *event)``
        each.
    :param int batch_size: number of rows of a minibatch.
    :param bool drop_last: whether an epoch leaves out the rows that do not fill a minibatch;
        otherwise the last minibatch is smaller.
    :raises ValueError: for tensors with different numbers of rows, or a size out of range.

    Example::

        >>> batches = ShuffledBatches(torch.arange(10), batch_size=4)
        >>> len(batches), [len(batches.batch(step, seed=0)[0]) for step in range(4)]
        (3, [4, 4, 2, 4])
        >>> torch.cat([batches.batch(step, seed=0)[0] for step in range(3)]).sort().values
        tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """

    def __init__(self, *rows: Tensor, batch_size: int, drop_last: bool = False) -> None:
        for row in rows:
            checks.instance("rows", row, Tensor, "tensors")
        if len({len(row) if row.dim() else 0 for row in rows} | {0}) != 2:
            raise ValueError(
                "rows must be tensors with the same number of rows, got the shapes "
                f"{[tuple(row.shape) for row in rows]}"
            )
        checks.instance("drop_last", drop_last, bool, "True or False")
        self.rows = rows
        self.batch_size = checks.integer("batch_size", batch_size, 1)
        self.drop_last = drop_last
        if self.batch_size > len(rows[0]):
            raise ValueError(
                f"batch_size must be at most the {len(rows[0])} rows, got {batch_size}"
            )
        self._order: tuple[tuple[int, int], Tensor] | None = None

    def __len__(self) -> int:
        """Minibatches of an epoch."""
        num_rows = len(self.rows[0])
        return num_rows // self.batch_size if self.drop_last else -(-num_rows // self.batch_size)

    def batch(self, step: int, seed: int) -> tuple[Tensor, ...]:
        """Return the minibatch of a step.

        :param int step: the number of the step, from zero.
        :param int seed: seed of the orders.
        :returns: rows of each tensor.
        """
        epoch, number = divmod(checks.integer("step", step, 0), len(self))
        if self._order is None or self._order[0] != (seed, epoch):
            generator = torch.Generator().manual_seed(spawn_seed(seed, 2, epoch))
            order = torch.randperm(len(self.rows[0]), generator=generator, device="cpu")
            self._order = (seed, epoch), order
        index = self._order[1][number * self.batch_size : (number + 1) * self.batch_size]
        return tuple(row[index.to(row.device)] for row in self.rows)

    def identity(self) -> dict[str, Any]:
        """Describe the sizes and a digest of the rows, which a checkpoint compares."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(f"{row.dtype}{tuple(row.shape)}".encode())
            raw = row.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().tobytes())
        return {
            "num_rows": len(self.rows[0]),
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "digest": digest.hexdigest(),
        }
