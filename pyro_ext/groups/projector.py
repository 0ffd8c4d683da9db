"""Projections onto equivariant maps, and the blocks of weights."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.groups.matrix_groups import Group, check_dim
from pyro_ext.groups.representations import TensorRep

_LARGEST_BLOCK = 1024


class EquivariantProjector:
    r"""Orthogonal projection onto the linear maps that are equivariant under a group.

    A weight consists of blocks, one for each pair of an output tensor of rank :math:`b` and an
    input tensor of rank :math:`a`. The equivariant blocks are the tensors of rank :math:`a + b` on
    which the group acts trivially, with :math:`g^{-\top}` on the axes of the input. Only a basis of
    these is stored, with :math:`d^{a + b}` rows, however large the weight is.

    :param TensorRep rep_in: the representation of the map's input; ``None`` for vectors of
        ``rep_out`` themselves, such as biases.
    :param TensorRep rep_out: the representation of the map's output.
    :param Group group: the group.
    :raises ValueError: if the group acts on another dimension than the representations, or blocks
        would have more than 1024 numbers.

    Example::

        >>> from pyro_ext.nn.equivariant import EquivariantProjector, O, TensorRep
        >>> projector = EquivariantProjector(TensorRep({1: 1}), TensorRep({1: 1}), O(3))
        >>> weight = torch.diag(torch.tensor([3.0, 0.0, 0.0]))
        >>> projector.project(weight).diagonal().round(decimals=3)
        tensor([1., 1., 1.])
        >>> projector.rank, projector.residual(weight)
        (1, tensor(3.))
    """

    def __init__(self, rep_in: TensorRep | None, rep_out: TensorRep, group: Group) -> None:
        checks.instance("group", group, Group, "a Group")
        self.group = group
        self._blocks = weight_blocks(rep_in, rep_out, (group,), ("group",))
        self.event_shape = self._blocks.event_shape

    @property
    def rank(self) -> int:
        """Dimension of the equivariant maps."""
        rank: int = self._blocks.ranks[0]
        return rank

    def project(self, weight: Tensor) -> Tensor:
        """Return the nearest equivariant map.

        :param Tensor weight: **Shape:** ``(*batch, num_outputs, num_inputs)``, or ``(*batch,
            num_outputs)`` without an input.
        :returns: **Shape:** that of the weight.
        """
        return self._blocks.project(self._blocks.check("weight", weight), 0)

    def residual(self, weight: Tensor) -> Tensor:
        r"""Half the squared distance from the equivariant maps, :math:`\|W - P W\|^2 / 2`.

        :param Tensor weight: as in :meth:`project`.
        :returns: residuals, whose gradient is :math:`W - P W`. **Shape:** ``(*batch)``.
        """
        return self._blocks.residuals(self._blocks.check("weight", weight))[..., 0]


class WeightBlocks:
    """Weights in blocks, one for each pair of tensors, and their non-equivariant parts.

    Everything is stored as arrays, so that it does not become part of a recorded graph.

    :ivar list ranks: dimension of the equivariant maps of each group.
    """

    def __init__(
        self, rep_in: TensorRep | None, rep_out: TensorRep, groups: Sequence[Group]
    ) -> None:
        reps = [rep_out] if rep_in is None else [rep_out, rep_in]
        self.event_shape = torch.Size([rep.size(groups[0].dim) for rep in reps])
        kinds, self._inverse = _block_indices(
            rep_in, rep_out, groups[0].dim, all(group.is_orthogonal for group in groups)
        )
        self._indices = list(kinds.values())
        bases = [[group.find_invariants(*ranks) for group in groups] for ranks in kinds]
        pairs = list(zip(self._indices, bases, strict=True))
        self.ranks = [
            sum(len(index) * own[number].shape[1] for index, own in pairs)
            for number in range(len(groups))
        ]
        self._complements = [
            np.stack([np.eye(len(basis)) - basis @ basis.T for basis in own]) for own in bases
        ]
        self._narrow = [complement.astype(np.float32) for complement in self._complements]

    def check(self, name: str, value: Any) -> Tensor:
        """A weight of the right shape."""
        sizes = ", ".join(map(str, self.event_shape))
        weight = checks.as_tensor(name, value, f"(*batch, {sizes})", finite=True)
        return weight if weight.is_floating_point() else weight.to(torch.get_default_dtype())

    def indices(self, like: Tensor) -> list[Tensor]:
        """Places in a flat weight of the blocks of each kind. **Shape:** ``(num_blocks, size)``."""
        return [torch.from_numpy(index).to(like.device) for index in self._indices]

    def complements(self, like: Tensor) -> list[Tensor]:
        """Projections of each kind of block onto its non-equivariant part.

        **Shape:** ``(num_groups, size, size)`` each.
        """
        known = self._narrow if like.dtype == torch.float32 else self._complements
        return [torch.from_numpy(complement).to(like) for complement in known]

    def gather(self, value: Tensor) -> list[Tensor]:
        """Blocks of weights. **Shape:** ``(*batch, num_blocks, size)`` of each kind."""
        flat = value.flatten(-len(self.event_shape))
        return [
            flat.index_select(-1, index.flatten()).unflatten(-1, index.shape)
            for index in self.indices(flat)
        ]

    def scatter(self, blocks: Sequence[Tensor]) -> Tensor:
        """Weights of their blocks."""
        flat = torch.cat([block.flatten(-2) for block in blocks], -1)
        order = torch.from_numpy(self._inverse).to(flat.device)
        found: Tensor = flat.index_select(-1, order).unflatten(-1, self.event_shape)
        return found

    def project(self, value: Tensor, number: int) -> Tensor:
        """The nearest weights that are equivariant under one of the groups."""
        pairs = zip(self.gather(value), self.complements(value), strict=True)
        return self.scatter([block - block @ complement[number] for block, complement in pairs])

    def residuals(self, value: Tensor) -> Tensor:
        """Half the squared distances from such weights. **Shape:** ``(*batch, num_groups)``."""
        found = []
        for block, complement in zip(self.gather(value), self.complements(value), strict=True):
            found.append(0.5 * (block.unsqueeze(-3) @ complement).square().sum((-1, -2)))
        return torch.stack(found).sum(0)

    def penalty(self, value: Tensor, strengths: Tensor) -> Tensor:
        """Their sum with strengths ``(*batch, num_groups)``. **Shape:** ``(*batch)``."""
        found = []
        for block, complement in zip(self.gather(value), self.complements(value), strict=True):
            weighted = torch.einsum("...g,gij->...ij", strengths.to(block), complement)
            found.append(0.5 * (block * (block @ weighted)).sum((-1, -2)))
        return torch.stack(found).sum(0)


def _check_representations(
    rep_in: TensorRep | None, rep_out: TensorRep, groups: Sequence[Group], names: Sequence[str]
) -> None:
    """Check that all groups act on two representations."""
    checks.optional(checks.instance, "rep_in", rep_in, TensorRep, "a TensorRep or None")
    checks.instance("rep_out", rep_out, TensorRep, "a TensorRep")
    reps = {"rep_out": rep_out} if rep_in is None else {"rep_out": rep_out, "rep_in": rep_in}
    dim = groups[0].dim
    for name, group in zip(names, groups, strict=True):
        check_dim(name, group, dim)
        for key, rep in reps.items():
            if rep.dim is not None and rep.dim != group.dim:
                raise ValueError(
                    f"{name} must act on the {rep.dim} dimensions of {key} = {rep}, got {group}, "
                    f"which acts on {group.dim}"
                )
    total = sum(max(rep.multiplicities) for rep in reps.values())
    if dim**total > _LARGEST_BLOCK:
        raise ValueError(
            f"{' and '.join(reps)} must have blocks of at most {_LARGEST_BLOCK} numbers, got "
            f"{' and '.join(map(str, reps.values()))} with {dim}^{total} of them"
        )


def check_groups(groups: Any) -> tuple[tuple[Group, ...], tuple[str, ...]]:
    """Take groups, and what errors call them."""
    found = tuple(checks.sequence("groups", groups, "a list of Group", 1, Group))
    names = tuple(f"groups[{number}]" for number in range(len(found)))
    for name, group in zip(names, found, strict=True):
        check_dim(name, group, found[0].dim)
    return found, names


def weight_blocks(
    rep_in: TensorRep | None, rep_out: TensorRep, groups: tuple[Group, ...], names: tuple[str, ...]
) -> WeightBlocks:
    """The same blocks for the same representations and groups."""
    _check_representations(rep_in, rep_out, groups, names)
    return _kept_blocks(rep_in, rep_out, groups)


@lru_cache(maxsize=256)
def _kept_blocks(
    rep_in: TensorRep | None, rep_out: TensorRep, groups: tuple[Group, ...]
) -> WeightBlocks:
    """Blocks that are kept."""
    return WeightBlocks(rep_in, rep_out, groups)


def _block_indices(
    rep_in: TensorRep | None, rep_out: TensorRep, dim: int, orthogonal: bool
) -> tuple[dict[tuple[int, int], Any], Any]:
    """Places of the blocks of a flat weight, by ranks of output and input, and their inverse.

    Where groups are orthogonal only the total counts, and the rank of the input is given as zero.
    """
    rep_in = TensorRep({0: 1}) if rep_in is None else rep_in
    num_inputs = rep_in.size(dim)
    found: dict[tuple[int, int], list[Any]] = {}
    for b, row in _places(rep_out, dim).items():
        for a, column in _places(rep_in, dim).items():
            index = row[:, None, :, None] * num_inputs + column[:, None]
            key = (a + b, 0) if orthogonal else (b, a)
            found.setdefault(key, []).append(index.reshape(len(row) * len(column), -1))
    kinds = {key: np.concatenate(parts) for key, parts in found.items()}
    return kinds, np.concatenate([index.ravel() for index in kinds.values()]).argsort()


def _places(rep: TensorRep, dim: int) -> dict[int, Any]:
    """Places of the tensors of each rank in a vector. **Shape:** ``(copies, dim ** rank)``."""
    found, first = {}, 0
    for rank, number in rep.multiplicities.items():
        size = number * dim**rank
        found[rank] = np.arange(first, first + size).reshape(number, -1)
        first += size
    return found
