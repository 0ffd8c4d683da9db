"""Prior guesses at the law of the data, for nonparametric learning."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_ext._checks import as_tensor

__all__ = ["EmpiricalBase", "atoms_of_draws", "fitting_atoms"]


class EmpiricalBase:
    """A base measure with finitely many atoms, all of which every draw has.

    :param atoms: tensors with a row for each atom, in the order of the data that the posterior is
        run on. **Shape:** ``(m, *event)`` each.
    :raises ValueError: for tensors of different lengths, or none.

    Example::

        >>> base = EmpiricalBase(torch.zeros(4, 2), torch.ones(4))
        >>> len(base)
        4
    """

    def __init__(self, *atoms: Tensor) -> None:
        atoms = tuple(
            as_tensor(f"atoms[{i}]", part, "(n, ...)", finite=True) for i, part in enumerate(atoms)
        )
        lengths = {len(part) if part.dim() else 0 for part in atoms}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                "atoms must be tensors with as many rows each, at least one, got the shapes "
                f"{[tuple(part.shape) for part in atoms]}"
            )
        self.atoms = atoms

    def __len__(self) -> int:
        return len(self.atoms[0])


def atoms_of_draws(
    base_measure: Any,
    num_atoms: int,
    rows: tuple[Tensor, ...],
    draws: Sequence[int],
    seed: int,
) -> list[Tensor]:
    """Atoms of some draws, a function of the seed and the number of each.

    :param base_measure: a Pyro distribution, for data of one tensor; or a function of the number of
        atoms, which returns a tensor for each one of the data.
    :param int num_atoms: how many each draw has.
    :param tuple rows: the data. **Shape:** ``(n, *event)`` each.
    :param Sequence draws: numbers of the draws.
    :param int seed: of all.
    :returns: **Shape:** ``(len(draws), num_atoms, *event)`` each.
    :raises TypeError: for a base measure of another kind.
    :raises ValueError: for atoms that do not look like the data.
    """
    is_law = isinstance(base_measure, TorchDistributionMixin)
    if not is_law and not callable(base_measure):
        raise TypeError(
            "base_measure must be a Pyro distribution, an EmpiricalBase or a function of a number "
            f"of atoms, got {base_measure!r:.80}"
        )
    found = []
    with torch.random.fork_rng(), torch.no_grad():
        for number in draws:
            words = np.random.SeedSequence(seed, spawn_key=(number, 3)).generate_state(1)
            torch.manual_seed(int(words[0]))
            drawn = (
                base_measure.sample(torch.Size([num_atoms])) if is_law else base_measure(num_atoms)
            )
            found.append(fitting_atoms(drawn, num_atoms, rows))
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


def fitting_atoms(found: Any, num_atoms: int, rows: tuple[Tensor, ...]) -> list[Tensor]:
    """Atoms in the types of the data.

    :param found: a tensor, or several.
    :param int num_atoms: how many atoms there are.
    :param tuple rows: the data.
    :raises ValueError: for shapes that do not fit those of the data.
    """
    atoms = [found] if isinstance(found, Tensor) else list(found)
    wanted = [(num_atoms, *part.shape[1:]) for part in rows]
    shapes = [tuple(part.shape) for part in atoms]
    if shapes != wanted:
        raise ValueError(
            f"base_measure must give tensors of the shapes {wanted}, like the data, got {shapes}"
        )
    return [atom.to(part) for atom, part in zip(atoms, rows, strict=True)]
