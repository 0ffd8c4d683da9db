"""Potentials as calculators of ase: forces, stress, energy along dynamics."""

import copy

import numpy as np
import pytest
import torch

from pyro_ext.models.molecules import RACE, molecule_frames

ase = pytest.importorskip("ase")

from ase import Atoms, units  # noqa: E402
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress  # noqa: E402
from ase.md.verlet import VelocityVerlet  # noqa: E402

from pyro_ext.models.molecules import RACECalculator  # noqa: E402


def networks(count=2, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [
            RACE([1, 8], channels=4, num_radial=6, radial_hidden=8, **options).double()
            for _ in range(count)
        ]


def water():
    return Atoms("OH2", [[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.1, -0.8, -0.5]])


def test_forces_and_uncertainty_of_a_molecule():
    atoms = water()
    atoms.calc = RACECalculator(networks())
    forces = atoms.get_forces()
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, 1e-4), atol=1e-6)
    results = atoms.calc.results
    covariance = results["force_covariance"]
    np.testing.assert_allclose(covariance, covariance.transpose(0, 2, 1))
    np.testing.assert_allclose(results["force_uncertainty"][1, 2] ** 2, covariance[1, 2, 2])
    assert "stress" not in results and results["energy_uncertainty"] > 0


def test_stress_of_a_crystal():
    atoms = Atoms("OH", [[0.0, 0.0, 0.0], [1.4, 1.5, 1.7]], cell=[3.0, 3.2, 3.4], pbc=True)
    atoms.calc = RACECalculator(networks(cutoff=4.0))
    stress = atoms.get_stress(voigt=False)
    np.testing.assert_allclose(
        stress, calculate_numerical_stress(atoms, 1e-5, voigt=False), atol=1e-6
    )
    np.testing.assert_allclose(
        atoms.get_forces(), calculate_numerical_forces(atoms, 1e-4), atol=1e-6
    )
    assert atoms.calc.results["stress_uncertainty"].shape == (6,)


def test_references_that_differ_are_uncertainty():
    one = networks(1)[0]
    other = copy.deepcopy(one)
    other.center([8, 1, 1], torch.full((2,), -7.0), torch.ones(2, 3, 3))
    atoms = water()
    x = torch.from_numpy(atoms.positions)
    atoms.calc = RACECalculator([one, other])
    totals = [n(x, [8, 1, 1]).energy.item() + n.reference_energy([8, 1, 1]) for n in (one, other)]
    own = [n(x, [8, 1, 1]).log_variance.exp().item() for n in (one, other)]
    assert atoms.get_potential_energy() == pytest.approx(np.mean(totals))
    whole = (np.mean(own) + np.var(totals)) ** 0.5
    assert atoms.calc.results["energy_uncertainty"] == pytest.approx(whole)


@pytest.mark.parametrize("count", [1, 2])
def test_atoms_without_neighbors(count):
    members = networks(count)
    alone = Atoms("H", calculator=RACECalculator(members))
    repeated = Atoms("H", cell=[20.0] * 3, pbc=True, calculator=RACECalculator(members))
    assert alone.get_potential_energy() == pytest.approx(repeated.get_potential_energy())
    assert not alone.get_forces().any() and not repeated.get_stress().any()
    apart = Atoms("H2", [[0.0, 0.0, 0.0], [0.0, 0.0, 30.0]], calculator=RACECalculator(members))
    assert apart.get_potential_energy() == pytest.approx(2 * alone.get_potential_energy())
    with pytest.raises(ValueError, match="atoms must hold at least one atom"):
        Atoms(calculator=RACECalculator(members)).get_potential_energy()
    with pytest.raises(ValueError, match="species must be among"):
        Atoms("N", calculator=RACECalculator(members)).get_potential_energy()
    with pytest.raises(ValueError, match="networks must all have the same form"):
        RACECalculator([*members, RACE([1, 8], channels=3)])


def test_large_clusters_have_a_list_of_neighbors(monkeypatch):
    """A cluster of a hundred atoms has the energy that all pairs give."""
    grid = np.stack(np.meshgrid(*[np.arange(5.0)] * 3), -1).reshape(-1, 3)[:100]
    atoms = Atoms("H100", 2.0 * grid)
    members = networks(1, cutoff=3.0)
    atoms.calc = RACECalculator(members)
    found = atoms.get_potential_energy()
    everyone = members[0](torch.from_numpy(atoms.positions), atoms.numbers)
    assert found == pytest.approx(everyone.energy.item())
    monkeypatch.setattr("pyro_ext.models.molecules.calculator.all_pairs", None)
    atoms.rattle(0.01)
    atoms.get_potential_energy()


def test_cells_with_vectors_of_zero():
    """A chain that repeats in one direction is one whose other vectors are long."""
    chain = Atoms("OH", [[0.0, 0.0, 0.0], [1.4, 0.5, 0.7]], cell=[0.0, 3.2, 0.0], pbc=[0, 1, 0])
    chain.calc = RACECalculator(networks(cutoff=4.0))
    wide = chain.copy()
    wide.set_cell([50.0, 3.2, 50.0])
    wide.pbc = True
    wide.calc = chain.calc
    assert chain.get_potential_energy() == pytest.approx(wide.get_potential_energy())
    np.testing.assert_allclose(
        chain.get_forces(), calculate_numerical_forces(chain, 1e-4), atol=1e-6
    )
    chain.pbc = True
    with pytest.raises(ValueError, match="cell must have independent vectors where it repeats"):
        chain.get_potential_energy()


@pytest.mark.slow
def test_energy_stays_along_dynamics():
    atoms = water()
    atoms.calc = RACECalculator(networks())
    momenta = np.random.default_rng(0).standard_normal((3, 3))
    atoms.set_momenta(momenta * np.sqrt(atoms.get_masses() * units.kB * 300)[:, None])
    energies = []
    verlet = VelocityVerlet(atoms, 0.2 * units.fs)
    verlet.attach(lambda: energies.append(atoms.get_total_energy()))
    verlet.run(200)
    kinetic = 1.5 * units.kB * 300 * 3
    assert np.ptp(energies) < 0.01 * kinetic


def test_frames_are_those_of_the_labels(tmp_path, monkeypatch):
    tblite = pytest.importorskip("tblite.ase")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    frames = molecule_frames("H2O", 2, every=2, seed=3)
    atoms = Atoms(numbers=frames.species.numpy(), positions=frames.positions[1].numpy())
    atoms.calc = tblite.TBLite(method="GFN2-xTB", verbosity=0)
    assert atoms.get_potential_energy() == pytest.approx(float(frames.energies[1]), abs=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), frames.forces[1].numpy(), atol=1e-3)
    again = molecule_frames("H2O", 2, every=2, seed=3)
    assert torch.equal(again.positions, frames.positions)
