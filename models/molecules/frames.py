"""Frames of moving molecules, with energies and forces from quantum chemistry as labels."""

from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext._lib.optional import optional_module
from pyro_ext.checkpoint.cached import cached_tensors

_SETTLING_STEPS = 500


class MoleculeFrames(NamedTuple):
    """Structures of a molecule, in float64.

    :param Tensor species: atomic numbers. **Shape:** ``(num_atoms,)``.
    :param Tensor positions: positions in Angstrom. **Shape:** ``(n, num_atoms, 3)``.
    :param Tensor energies: energies in eV. **Shape:** ``(n,)``.
    :param Tensor forces: forces in eV per Angstrom. **Shape:** ``(n, num_atoms, 3)``.
    """

    species: Tensor
    positions: Tensor
    energies: Tensor
    forces: Tensor


def molecule_frames(
    name: str = "CH3OH",
    num_frames: int = 250,
    temperature: float = 300.0,
    *,
    every: int = 10,
    time_step: float = 0.5,
    friction: float = 0.02,
    seed: int = 0,
) -> MoleculeFrames:
    """Simulate frames of a molecule by Langevin dynamics, with labels from GFN2-xTB [2].

    Frames are made once on each machine, in about 30 ms per frame of methanol, and then read from
    the cache. Set ``OMP_NUM_THREADS=1``; otherwise, the labels of small molecules take a hundred
    times as long.

    :param str name: name of a molecule that ``ase.build.molecule`` knows.
    :param int num_frames: number of frames, after 500 discarded steps.
    :param float temperature: temperature in Kelvin.
    :param int every: number of steps between frames.
    :param float time_step: time step in femtoseconds.
    :param float friction: friction in inverse femtoseconds.
    :param int seed: seed of the momenta and of the noise.
    :raises ValueError: for numbers out of range, or an unknown molecule.
    :raises ImportError: without ase or tblite.

    [2] C. Bannwarth, S. Ehlert, S. Grimme (2019), GFN2-xTB: an accurate and broadly parametrized
    self-consistent tight-binding quantum chemical method.

    Example::

        >>> from pyro_ext.models.molecules import molecule_frames
        >>> frames = molecule_frames("H2O", 3, every=1)
        >>> frames.species.tolist(), frames.forces.shape
        ([8, 1, 1], torch.Size([3, 3, 3]))
    """
    checks.instance("name", name, str, "the name of a molecule")
    checks.integer("num_frames", num_frames, 1)
    checks.number("temperature", temperature, above=0)
    checks.integer("every", every, 1)
    checks.number("time_step", time_step, above=0)
    checks.number("friction", friction, above=0)
    checks.integer("seed", seed, 0)
    build, langevin, units = (
        optional_module(module, "molecule_frames", "ase", "molecules")
        for module in ("ase.build", "ase.md.langevin", "ase.units")
    )
    tblite = optional_module("tblite.ase", "molecule_frames", "tblite", "molecules")
    try:
        atoms = build.molecule(name)
    except (KeyError, ValueError, NotImplementedError):
        raise ValueError(
            f"name must be a molecule that ase knows, got {checks.shown(name)}"
        ) from None

    def make() -> dict[str, Tensor]:
        random = np.random.RandomState(seed)
        atoms.calc = tblite.TBLite(method="GFN2-xTB", verbosity=0)
        spread = np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None]
        atoms.set_momenta(spread * random.standard_normal((len(atoms), 3)))
        dynamics: Any = langevin.Langevin(
            atoms,
            time_step * units.fs,
            temperature_K=temperature,
            friction=friction / units.fs,
            fixcm=False,
            rng=random,
        )
        dynamics.run(_SETTLING_STEPS)
        found: dict[str, list[Any]] = {"positions": [], "energies": [], "forces": []}
        for _ in range(num_frames):
            dynamics.run(every)
            found["positions"].append(atoms.get_positions() - atoms.get_center_of_mass())
            found["energies"].append(atoms.get_potential_energy())
            found["forces"].append(atoms.get_forces())
        return {key: torch.from_numpy(np.array(value)) for key, value in found.items()}

    settings = [name, num_frames, temperature, every, time_step, friction, seed, _SETTLING_STEPS]
    versions = [version("ase"), version("tblite")]
    tensors = cached_tensors("molecule_frames", map(repr, [*settings, *versions]), make)
    species = torch.from_numpy(atoms.numbers.astype(np.int64))
    return MoleculeFrames(species, tensors["positions"], tensors["energies"], tensors["forces"])
