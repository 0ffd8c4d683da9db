"""A trained potential as an ase calculator."""

from collections.abc import Sequence
from typing import Any

import torch
from ase.calculators.calculator import Calculator, all_changes
from torch import Tensor

from pyro_ext.models.molecules.likelihood import as_members, members_prediction
from pyro_ext.models.molecules.race import RACE
from pyro_ext.models.molecules.structures import all_pairs, periodic_neighbors
from pyro_ext.models.molecules.uncertainty import predictive_moments


class RACECalculator(Calculator):
    """A trained potential, or an ensemble of them, as an ase calculator.

    Energy, forces and, if the cell repeats in all directions, stress are means over the members, so
    that forces are still the negative gradient of the energy, and dynamics conserve it. ``results``
    also holds ``"energy_uncertainty"``, a standard deviation in eV, ``"force_covariance"``, of
    **Shape:** ``(num_atoms, 3, 3)``, ``"force_uncertainty"``, the roots of its diagonal, and
    ``"stress_uncertainty"``, the standard deviation over the members. Uncertainties of energy and
    forces are those of the mixture of the members: they include the uncertainty of each member and
    the disagreement between members. A calculator with fixed results, such as ase's
    ``SinglePointCalculator``, only takes the ``implemented_properties``.

    :param networks: one :class:`~pyro_ext.models.molecules.RACE`, or several of the same form.
    :raises TypeError: for arguments of a wrong type.
    :raises ValueError: for networks of different forms.

    Example::

        >>> from ase import Atoms
        >>> from pyro_ext.models.molecules import RACE, RACECalculator
        >>> atoms = Atoms("H2", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.74]])
        >>> atoms.calc = RACECalculator([RACE([1], channels=4).double() for _ in range(3)])
        >>> atoms.get_forces().shape, atoms.calc.results["force_uncertainty"].shape
        ((2, 3), (2, 3))
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012
    nolabel = True

    def __init__(self, networks: RACE | Sequence[RACE]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if isinstance(networks, RACE):
            networks = [networks]
        self.networks = as_members(networks)

    def calculate(
        self,
        atoms: Any = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill ``results``, as ase requires.

        :param Atoms atoms: the structure.
        :param properties: the requested properties; all are calculated.
        :param system_changes: what has changed since the last calculation.
        :raises ValueError: for elements that a network does not know, or coinciding atoms.
        """
        super().calculate(  # type: ignore[no-untyped-call]
            atoms, properties, system_changes
        )
        atoms = self.atoms
        if not len(atoms):
            raise ValueError("atoms must hold at least one atom, got none")
        species = tuple(atoms.numbers.tolist())
        first = self.networks[0]
        positions = torch.from_numpy(atoms.positions)
        if atoms.pbc.any() or len(species) > _MOST_PAIRED:
            cell = torch.from_numpy(atoms.cell.array)
            neighbors = periodic_neighbors(positions, cell, first.cutoff, atoms.pbc.tolist())
        else:
            neighbors = all_pairs(len(species))
        first.check_structures(positions, species, neighbors)
        found = members_prediction(self.networks, positions, species, neighbors)
        moments = predictive_moments(found)
        reference = sum(one.reference_energy(species) for one in self.networks)
        energy = float(moments.energy) + reference / len(self.networks)
        covariance = moments.force_covariance
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": _array(moments.forces),
            "energy_uncertainty": float(moments.energy_variance.sqrt()),
            "force_covariance": _array(covariance),
            "force_uncertainty": _array(covariance.diagonal(dim1=-2, dim2=-1).sqrt()),
        }
        if atoms.pbc.all():
            stresses = _array(found.virial.flatten(1)[:, _VOIGT]) / atoms.get_volume()
            self.results["stress"] = stresses.mean(0)
            self.results["stress_uncertainty"] = stresses.std(0)


def _array(tensor: Tensor) -> Any:
    """Numbers in double precision."""
    return tensor.cpu().double().numpy()


_VOIGT = [0, 4, 8, 5, 2, 1]
_MOST_PAIRED = 40
"""Atoms of a cluster up to which all pairs cost no more than a list of neighbors."""
