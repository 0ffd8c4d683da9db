"""Neighbor lists for isolated molecules and for periodic cells."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext._lib.optional import optional_module

LAST_ELEMENT = 118
LEAST_DISTANCE = 0.1
"""Angstrom; atoms that are nearer are on top of each other."""


class Neighbors(NamedTuple):
    """The neighbors of each atom, padded to the same number.

    :param Tensor others: indices of the neighbors. **Shape:** ``(num_atoms, k)``.
    :param Tensor shifts: positions of their images relative to the atoms themselves, in Angstrom.
        **Shape:** ``(num_atoms, k, 3)``.
    :param Tensor mask: true for neighbors, false for padding. **Shape:** ``(num_atoms, k)``.
    """

    others: Tensor
    shifts: Tensor
    mask: Tensor


def atomic_numbers(species: Any) -> tuple[int, ...]:
    """Convert symbols or numbers to atomic numbers.

    :param species: atomic numbers, as a tensor, an array or a list, or symbols such as ``["C",
        "O"]``, which need the package ase. **Shape:** ``(num_atoms,)``.
    :raises ValueError: for unknown elements.

    Example::

        >>> atomic_numbers(torch.tensor([6, 8, 1]))
        (6, 8, 1)
    """
    if isinstance(species, np.ndarray) and species.dtype.kind == "U":
        species = species.tolist()
    if isinstance(species, tuple | list) and species and all(isinstance(s, str) for s in species):
        data = optional_module("ase.data", "atomic_numbers of symbols", "ase", "molecules")
        unknown = sorted({s for s in species if not data.atomic_numbers.get(s)})
        if unknown:
            raise ValueError(f"species must be symbols of elements, got {unknown}")
        return tuple(data.atomic_numbers[s] for s in species)
    if not (isinstance(species, tuple) and all(type(s) is int for s in species) and species):
        species = checks.as_tensor("species", species, "(num_atoms,)", kind="integers").tolist()
    if wrong := sorted({number for number in species if not 1 <= number <= LAST_ELEMENT}):
        raise ValueError(f"species must be atomic numbers from 1 to {LAST_ELEMENT}, got {wrong}")
    return tuple(species)


def all_pairs(num_atoms: int) -> Neighbors:
    """Make neighbors for an isolated molecule: each atom sees all others.

    The network ignores neighbors beyond its cutoff.

    :param int num_atoms: number of atoms.

    Example::

        >>> all_pairs(3).others
        tensor([[1, 2],
                [0, 2],
                [0, 1]])
    """
    count = checks.integer("num_atoms", num_atoms, 1)
    others = torch.arange(count - 1).expand(count, -1)
    index = others + (others >= torch.arange(count)[:, None]).long()
    shape = index.shape
    return Neighbors(index, torch.zeros(*shape, 3), torch.ones(shape, dtype=torch.bool))


def periodic_neighbors(positions: Any, cell: Any, cutoff: float, pbc: Any = True) -> Neighbors:
    """Find the neighbors within a cutoff, including images in repeated cells.

    The result holds for these positions only; recompute it when atoms move.

    :param positions: positions in Angstrom. **Shape:** ``(num_atoms, 3)``.
    :param cell: vectors of the cell in rows, in Angstrom; they may be zero in directions that do
        not repeat. **Shape:** ``(3, 3)``.
    :param float cutoff: cutoff in Angstrom.
    :param pbc: whether the cell repeats, in each direction or in all.
    :raises ValueError: for other shapes, or repeating vectors that are linearly dependent.
    :raises ImportError: without ase.

    Example::

        >>> cube = periodic_neighbors([[0.0, 0.0, 0.0]], 3.0 * torch.eye(3), cutoff=3.5)
        >>> cube.others.shape  # six images of the atom itself
        torch.Size([1, 6])
    """
    checks.number("cutoff", cutoff, above=0)
    found = checks.as_tensor(
        "positions", positions, "(num_atoms, 3)", finite=True, dtype=torch.float64
    ).detach()
    box = (
        checks.as_tensor("cell", cell, "(3, 3)", finite=True, dtype=torch.float64).detach().clone()
    )
    repeats = [pbc] * 3 if isinstance(pbc, bool) else checks.sequence("pbc", pbc, "three booleans")
    if len(repeats) != 3 or not all(isinstance(one, bool | np.bool_) for one in repeats):
        raise TypeError(f"pbc must be True, False or three of these, got {checks.shown(pbc)}")
    along = box[torch.tensor(repeats)]
    if len(along) and int(torch.linalg.matrix_rank(along)) < len(along):
        raise ValueError(
            f"cell must have independent vectors where it repeats, got {along.tolist()}"
        )
    # Other directions are at right angles to these, as long as the atoms reach.
    across = torch.linalg.svd(along)[2][len(along) :]
    places_across = found @ across.mT
    low, high = places_across.aminmax(dim=0)
    box[~torch.tensor(repeats)] = across * (high - low + float(cutoff))[:, None]
    found = found - low @ across
    lists = optional_module("ase.neighborlist", "periodic_neighbors", "ase", "molecules")
    first, second, images = lists.primitive_neighbor_list(
        "ijS", repeats, box.numpy(), found.numpy(), float(cutoff), self_interaction=False
    )
    count = len(found)
    degrees = np.bincount(first, minlength=count)
    most = int(degrees.max(initial=0))
    # Place of each pair among those of its first atom, whose pairs stand together.
    order = np.argsort(first, kind="stable")
    place = np.arange(len(first)) - np.repeat(np.cumsum(degrees) - degrees, degrees)
    rows, places = torch.from_numpy(first[order]), torch.from_numpy(place)
    index = torch.zeros(count, most, dtype=torch.long)
    shifts = torch.zeros(count, most, 3, dtype=torch.float64)
    mask = torch.zeros(count, most, dtype=torch.bool)
    index[rows, places] = torch.from_numpy(second[order]).long()
    shifts[rows, places] = torch.from_numpy(images[order]).double() @ box
    mask[rows, places] = True
    return Neighbors(index, shifts, mask)
