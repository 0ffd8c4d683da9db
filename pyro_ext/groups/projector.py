"""Projections onto equivariant maps, and the blocks that weights fall into."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ext._checks import as_tensor, check_instance, check_optional, check_sequence
from pyro_ext.groups.matrix_groups import Group, check_dim
from pyro_ext.groups.representations import TensorRep

__all__ = [
    "EquivariantProjector",
    "at_blocks",
    "check_groups",
    "check_representations",
    "weight_blocks",
]

_LARGEST_BLOCK = 4096


class EquivariantProjector:
    r"""Orthogonal projection onto the linear maps that are equivariant under a group.

    A weight falls into blocks, one for each pair of an output and an input tensor, of ranks
    :math:`b` and :math:`a`. The equivariant blocks are the tensors of rank :math:`a + b` on which
    the group acts trivially, on the axes of the input by :math:`g^{-\top}`. Only their basis is
    stored, of :math:`d^{a + b}` rows, however large the weight is.

    :param TensorRep rep_in: what the map takes; ``None`` for vectors of ``rep_out`` themselves,
        such as biases.
    :param TensorRep rep_out: what it makes.
    :param Group group: the group.
    :raises ValueError: for a group on another dimension than those of the representations, or
        ranks whose blocks would have more than 4096 numbers.

    Example::

        >>> from pyro_ext.nn.equivariant import EquivariantProjector, O, TensorRep
        >>> projector = EquivariantProjector(TensorRep({1: 1}), TensorRep({1: 1}), O(3))
        >>> projector.project(torch.diag(torch.tensor([3.0, 0.0, 0.0]))).diagonal()
        tensor([1., 1., 1.])
        >>> projector.rank, projector.residual(torch.diag(torch.tensor([3.0, 0.0, 0.0])))
        (1, tensor(3.))
    """

    def __init__(self, rep_in: TensorRep | None, rep_out: TensorRep, group: Group) -> None:
        check_instance("group", group, Group, "a Group")
        self.event_shape = check_representations(rep_in, rep_out, [group], ["group"])
        self.group = group
        blocks = weight_blocks(rep_in, rep_out, group.dim, group.is_orthogonal)
        self._blocks = [(index, group.invariants(*ranks)) for ranks, index in blocks.items()]
        order = torch.cat([index.flatten() for index, _ in self._blocks])
        self._inverse = order.argsort()

    @property
    def rank(self) -> int:
        """Dimension of the equivariant maps."""
        return sum(len(index) * basis.shape[1] for index, basis in self._blocks)

    def project(self, weight: Tensor) -> Tensor:
        """The nearest equivariant map.

        :param Tensor weight: **Shape:** ``(*batch, num_outputs, num_inputs)``, or ``(*batch,
            num_outputs)`` without an input.
        :returns: **Shape:** as the weight.
        """
        flat = self._flat(weight)
        parts = [
            (at_blocks(flat, index) @ basis.to(flat) @ basis.mT.to(flat)).flatten(-2)
            for index, basis in self._blocks
        ]
        found = torch.cat(parts, -1).index_select(-1, self._inverse.to(flat.device))
        return found.unflatten(-1, self.event_shape)

    def residual(self, weight: Tensor) -> Tensor:
        r"""Half the squared distance from the equivariant maps, :math:`\|W - P W\|^2 / 2`.

        :param Tensor weight: as of :meth:`project`.
        :returns: **Shape:** ``(*batch)``. Its gradient is :math:`W - P W`.
        """
        flat = self._flat(weight)
        found = torch.zeros_like(flat[..., 0])
        for index, basis in self._blocks:
            block = at_blocks(flat, index)
            rest = block - block @ basis.to(flat) @ basis.mT.to(flat)
            found = found + 0.5 * rest.square().sum((-1, -2))
        return found

    def _flat(self, weight: Tensor) -> Tensor:
        """A weight whose shape fits, as a vector of numbers that have fractions."""
        sizes = ", ".join(map(str, self.event_shape))
        weight = as_tensor("weight", weight, f"(*batch, {sizes})", finite=True)
        weight = weight if weight.is_floating_point() else weight.to(torch.get_default_dtype())
        return weight.flatten(-len(self.event_shape))


# What projections and priors share ---------------------------------------------------------------


def check_representations(
    rep_in: TensorRep | None,
    rep_out: TensorRep,
    groups: Sequence[Group],
    names: Sequence[str],
) -> torch.Size:
    """Check that all groups act on two representations, and return the shape of the weights."""
    check_optional(check_instance, "rep_in", rep_in, TensorRep, "a TensorRep or None")
    check_instance("rep_out", rep_out, TensorRep, "a TensorRep")
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
    return torch.Size([rep.size(dim) for rep in reps.values()])


def check_groups(groups: Any) -> tuple[tuple[Group, ...], list[str]]:
    """Take groups, and what errors call them."""
    found = tuple(check_sequence("groups", groups, "a list of Group", 1, Group))
    names = [f"groups[{number}]" for number in range(len(found))]
    for name, group in zip(names, found, strict=True):
        check_dim(name, group, found[0].dim)
    return found, names


def weight_blocks(
    rep_in: TensorRep | None, rep_out: TensorRep, dim: int, orthogonal: bool
) -> dict[tuple[int, int], Tensor]:
    """Places of the blocks of a flat weight, by the ranks of output and input.

    Where groups are orthogonal only the total counts, and the rank of the input is given as zero.
    **Shape:** ``(num_blocks, dim ** (a + b))`` of each.
    """
    rep_in = TensorRep({0: 1}) if rep_in is None else rep_in
    num_inputs = rep_in.size(dim)
    columns = rep_in.split(torch.arange(num_inputs), dim)
    rows = rep_out.split(torch.arange(rep_out.size(dim)), dim)
    found: dict[tuple[int, int], list[Tensor]] = {}
    for b, row in rows.items():
        for a, column in columns.items():
            index = row[:, None, :, None] * num_inputs + column[:, None]
            key = (a + b, 0) if orthogonal else (b, a)
            found.setdefault(key, []).append(index.flatten(2).flatten(0, 1))
    return {key: torch.cat(parts) for key, parts in found.items()}


def at_blocks(flat: Tensor, index: Tensor) -> Tensor:
    """Blocks of flat weights. **Shape:** ``(*batch, num_blocks, size)``."""
    return flat.index_select(-1, index.flatten().to(flat.device)).unflatten(-1, index.shape)
