"""Covers of all of the data by subsamples: how a model that sees parts sees the whole."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from pyro_ext.potential._structure import Plate, Site

__all__ = ["Block", "assemble", "blocks"]


@dataclass(frozen=True)
class Block:
    """One subsample of each subsampled plate.

    :param Mapping indices: elements of each plate; the last block wraps around to keep its size.
    :param Mapping weights: one for an element seen for the first time, else zero.
    :param Mapping firsts: one where this is the plate's first block, else zero.
    """

    indices: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    firsts: Mapping[str, Tensor]

    def is_new(self, site: Site) -> bool:
        """Whether no block before this one held the elements of a site that this one holds."""
        own = {plate.name for plate in site.plates}
        return all(bool(first) for name, first in self.firsts.items() if name not in own)


def blocks(plates: Sequence[Plate], device: torch.device, dtype: torch.dtype) -> Iterator[Block]:
    """Subsamples that together hold every combination of elements once, in order.

    :param Sequence plates: the subsampled plates.
    :param torch.device device: where the tensors are put.
    :param torch.dtype dtype: type of the weights.
    :returns: the blocks; a single empty one without plates.
    """
    for starts in product(*(range(0, p.size, p.subsample_size) for p in plates)):
        indices, weights, firsts = {}, {}, {}
        for plate, start in zip(plates, starts, strict=True):
            position = torch.arange(start, start + plate.subsample_size, device=device)
            indices[plate.name] = position % plate.size
            weights[plate.name] = (position < plate.size).to(dtype)
            firsts[plate.name] = torch.tensor(float(start == 0), dtype=dtype, device=device)
        yield Block(indices, weights, firsts)


def assemble(
    whole: dict[str, Tensor],
    part: Mapping[str, Tensor],
    block: Block,
    sites: Mapping[str, Site],
    event_dims: Mapping[str, int],
) -> None:
    """Write what one block gave for some sites into tensors over all of the data.

    :param dict whole: tensors so far, by site name; extended in place.
    :param Mapping part: values from the block. **Shape:** ``(*leading, *batch, *event)``.
    :param Block block: the block.
    :param Mapping sites: the sites.
    :param Mapping event_dims: number of dimensions of each value right of its batch.
    """
    for name, value in part.items():
        plates = [plate for plate in sites[name].plates if plate.is_subsampled]
        if not plates:
            whole.setdefault(name, value)
            continue
        if name not in whole:
            shape = list(value.shape)
            for plate in plates:
                assert plate.dim is not None
                shape[plate.dim - event_dims[name]] = plate.size
            whole[name] = value.new_zeros(shape)
        targets = [
            (plate.dim - event_dims[name], block.indices[plate.name])
            for plate in plates
            if plate.dim is not None
        ]
        _write(whole[name], value, targets)


def _write(whole: Tensor, part: Tensor, targets: list[tuple[int, Tensor]]) -> Tensor:
    """Put a part where the indices of several dimensions meet, in place."""
    (dim, index), *rest = targets
    if rest:
        part = _write(whole.index_select(dim, index), part, rest)
    return whole.index_copy_(dim, index, part)
