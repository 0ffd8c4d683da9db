"""Direct sums of tensors."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from pyro_ext._lib import checks


class TensorRep:
    r"""A direct sum of tensors of several ranks, :math:`\bigoplus_k m_k T(k)`.

    A tensor of rank :math:`k` has :math:`d^k` numbers, and :math:`g` acts on each of its axes.
    Vectors of the sum contain the ranks in the given order, with all copies of a rank next to each
    other. The same sum is a representation of every group on :math:`d` dimensions.

    :param Mapping multiplicities: number of copies of each rank.
    :param int dim: :math:`d`. Pass it only to reject groups on other dimensions.
    :raises ValueError: for negative ranks or numbers, or an empty sum.

    Example::

        >>> rep = TensorRep({0: 5, 1: 5})
        >>> rep, rep.size(3)
        (5T(0) + 5T(1), 20)
    """

    def __init__(self, multiplicities: Mapping[int, int], dim: int | None = None) -> None:
        checks.mapping("multiplicities", multiplicities, "a dict of numbers of copies by rank")
        for rank, number in multiplicities.items():
            checks.integer("a rank of multiplicities", rank, 0)
            checks.integer(f"multiplicities[{rank}]", number, 0)
        self.multiplicities = {rank: number for rank, number in multiplicities.items() if number}
        if not self.multiplicities:
            raise ValueError(f"multiplicities must have at least one copy, got {multiplicities!r}")
        self.dim = checks.optional(checks.integer, "dim", dim, 1)

    @classmethod
    def uniform(cls, size: int, dim: int, max_rank: int = 2) -> Self:
        """Return a sum of a given size, divided among the ranks as evenly as possible.

        :param int size: size of the vectors.
        :param int dim: dimension of the space.
        :param int max_rank: the largest rank.
        :returns: the sum; the remainder becomes scalars.
        """
        checks.integer("size", size, 1)
        checks.integer("dim", dim, 1)
        checks.integer("max_rank", max_rank, 0)
        numbers = {k: size // (max_rank + 1) // dim**k for k in range(max_rank, 0, -1)}
        left = size - sum(number * dim**k for k, number in numbers.items())
        return cls({0: left, **dict(sorted(numbers.items()))}, dim)

    def __repr__(self) -> str:
        return " + ".join(f"{number}T({rank})" for rank, number in self.multiplicities.items())

    def __eq__(self, other: object) -> bool:
        """Tell whether another representation has the same ranks in the same order."""
        return isinstance(other, TensorRep) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Any, ...]:
        return self.dim, *self.multiplicities.items()

    def size(self, dim: int) -> int:
        """Return the size of a vector in the direct sum.

        :param int dim: dimension of the space.
        """
        checks.integer("dim", dim, 1)
        return sum(number * dim**rank for rank, number in self.multiplicities.items())

    def split(self, x: Tensor, dim: int) -> dict[int, Tensor]:
        """Split vectors by rank.

        :param Tensor x: **Shape:** ``(*batch, size)``.
        :param int dim: dimension of the space.
        :returns: parts by rank. **Shape:** ``(*batch, copies, dim ** rank)`` each.
        """
        x = checks.as_tensor("x", x, f"(*batch, {self.size(dim)})")
        parts = x.split([n * dim**rank for rank, n in self.multiplicities.items()], -1)
        items = zip(self.multiplicities.items(), parts, strict=True)
        return {rank: part.unflatten(-1, (number, dim**rank)) for (rank, number), part in items}

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        r"""Apply elements of a group, :math:`\rho(g) x`.

        :param Tensor g: **Shape:** ``(*batch, dim, dim)``.
        :param Tensor x: **Shape:** ``(*batch, size)``.
        :returns: vectors in the type of ``x``. **Shape:** ``(*batch, size)``, with both batches
            broadcast.

        Example::

            >>> TensorRep({0: 1, 1: 1}).act(2.0 * torch.eye(3), torch.ones(4))
            tensor([1., 2., 2., 2.])
        """
        g, x = (
            checks.as_tensor("g", g, "(*batch, dim, dim)"),
            checks.as_tensor("x", x, "(*batch, size)"),
        )
        g, x = (g.to(x), x) if x.is_floating_point() else (g, x.to(g))
        dim = g.shape[-1]
        if g.shape[-2] != dim:
            raise ValueError(f"g must be square matrices, got {checks.shown(g)}")
        batch = torch.broadcast_shapes(g.shape[:-2], x.shape[:-1])
        found = []
        for rank, part in self.split(x, dim).items():
            for axis in range(rank):
                after = dim ** (rank - axis - 1)
                axes = part.unflatten(-1, (dim**axis, dim, after))
                part = torch.einsum("...ij,...majb->...maib", g, axes).flatten(-3)
            found.append(part.flatten(-2).expand(*batch, -1))
        return torch.cat(found, -1)
