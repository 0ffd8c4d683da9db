"""RACE: symmetries, forces, covariances, periodic images, and what a network shares with others."""

import numpy as np
import pytest
import torch
from torch import nn

from pyro_ext.distributions import ForceNormal
from pyro_ext.models.molecules import (
    RACE,
    Neighbors,
    all_pairs,
    atomic_numbers,
    periodic_neighbors,
)
from pyro_ext.testing.nn import check_module

METHANOL = torch.tensor(
    [
        [-0.05, 0.66, 0.00],
        [-0.05, -0.76, 0.01],
        [-1.09, 0.97, -0.02],
        [0.88, -1.06, 0.03],
        [0.44, 1.07, 0.88],
        [0.43, 1.08, -0.91],
    ],
    dtype=torch.float64,
)
SPECIES = (6, 8, 1, 1, 1, 1)


def network(dtype=torch.float64, seed=0, **options):
    """One whose variances are not constant."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = RACE((1, 6, 8), channels=6, num_radial=6, radial_hidden=8, **options)
        for readout in made.readouts:
            nn.init.normal_(readout[1].weight, 0.0, 0.3)
    return made.to(dtype)


def turn(seed=0, reflect=False):
    generator = torch.Generator().manual_seed(seed)
    found, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    found = found * torch.linalg.det(found).sign()
    return -found if reflect else found


@pytest.mark.parametrize("covariance", ["invariant", "equivariant"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_symmetries(covariance, dtype, tolerance):
    """Of rotations, reflections, translations and permutations; relative to the largest number."""
    race = network(dtype, covariance=covariance)
    order = torch.tensor([0, 1, 4, 2, 5, 3])
    before = race(METHANOL, SPECIES)
    scale = before.forces.abs().max()
    for seed, reflect in ((0, False), (1, True)):
        rotation = turn(seed, reflect)
        moved = METHANOL[order] @ rotation.mT + torch.tensor([0.3, -0.2, 0.5])
        after = race(moved, [SPECIES[k] for k in order])
        assert (after.energy - before.energy).abs() < tolerance * max(1.0, scale)
        wanted = before.forces[order] @ rotation.mT.to(dtype)
        assert (after.forces - wanted).abs().max() < tolerance * scale
        assert (after.log_variance - before.log_variance).abs() < 10 * tolerance
        own = ForceNormal(before.forces, before.l6).covariance_matrix[order]
        turned = ForceNormal(after.forces, after.l6).covariance_matrix
        r = rotation.to(dtype)
        wanted = r @ own @ r.mT if covariance == "equivariant" else own
        assert (turned - wanted).abs().max() < 10 * tolerance * own.abs().max()
    if covariance == "equivariant":
        assert (own - own[:, :1, :1] * torch.eye(3).to(dtype)).abs().max() > 1e-3 * own.abs().max()


def test_forces_are_minus_the_slope_of_the_energy():
    race, step = network(), 1e-4
    forces = race(METHANOL, SPECIES).forces
    moves = step * torch.eye(18, dtype=torch.float64).reshape(18, 6, 3)
    higher = race(METHANOL + moves, SPECIES).energy
    lower = race(METHANOL - moves, SPECIES).energy
    slopes = (higher - lower).reshape(6, 3) / (2 * step)
    torch.testing.assert_close(forces, -slopes, rtol=1e-6, atol=1e-7)


def test_virial_is_the_slope_in_a_strain():
    race, step = network(), 1e-4
    found = race(METHANOL, SPECIES).virial
    for x, y in ((0, 0), (0, 1), (2, 1)):
        strain = torch.zeros(3, 3, dtype=torch.float64)
        strain[x, y] = step
        higher = race(METHANOL @ (torch.eye(3) + strain).mT, SPECIES).energy
        lower = race(METHANOL @ (torch.eye(3) - strain).mT, SPECIES).energy
        torch.testing.assert_close(found[x, y], (higher - lower) / (2 * step), rtol=1e-5, atol=1e-7)


def test_repeated_cell_is_the_larger_cell():
    """Two cells side by side are one cell of twice the length."""
    race = network(cutoff=4.0, num_neighbors=20.0)
    cell = torch.diag(torch.tensor([3.0, 3.2, 3.5], dtype=torch.float64))
    positions = torch.tensor([[0.1, 0.2, 0.3], [1.4, 1.5, 1.9]], dtype=torch.float64)
    one = race(positions, (6, 8), periodic_neighbors(positions, cell, 4.0))
    twice = torch.cat([positions, positions + cell[0]])
    longer = torch.diag(torch.tensor([6.0, 3.2, 3.5], dtype=torch.float64))
    two = race(twice, (6, 8, 6, 8), periodic_neighbors(twice, longer, 4.0))
    torch.testing.assert_close(two.energy, 2 * one.energy)
    torch.testing.assert_close(two.forces, one.forces.repeat(2, 1))
    torch.testing.assert_close(two.virial, 2 * one.virial)
    torch.testing.assert_close(two.log_variance, one.log_variance)
    moved = race(positions + cell[1], (6, 8), periodic_neighbors(positions, cell, 4.0))
    torch.testing.assert_close(moved.energy, one.energy)


def test_images_are_those_of_a_grid():
    cell = torch.tensor([[2.0, 0.1, 0.0], [0.0, 2.5, 0.2], [0.3, 0.0, 3.0]], dtype=torch.float64)
    positions = torch.tensor([[0.0, 0.0, 0.0], [0.9, 1.1, 0.7]], dtype=torch.float64)
    grid = torch.cartesian_prod(*[torch.arange(-3.0, 4.0, dtype=torch.float64)] * 3) @ cell
    found = periodic_neighbors(positions, cell, 3.3)
    vectors = positions[found.others] - positions[:, None] + found.shifts.double()
    for atom in range(2):
        every = (positions[:, None] + grid - positions[atom]).reshape(-1, 3).norm(dim=-1)
        every = every[(every > 1e-9) & (every < 3.3)].sort().values
        own = vectors[atom][found.mask[atom]].norm(dim=-1).sort().values
        torch.testing.assert_close(own, every, rtol=1e-6, atol=1e-6)


def test_padding_and_what_is_beyond_the_cutoff_are_not_felt():
    race = network(cutoff=2.5)
    alone = race(METHANOL, SPECIES)
    index, shifts, mask = all_pairs(6)
    padded = Neighbors(
        torch.cat([index, torch.zeros_like(index[:, :1])], 1),
        torch.cat([shifts, torch.full_like(shifts[:, :1], 7.0)], 1),
        torch.cat([mask, torch.zeros_like(mask[:, :1])], 1),
    )
    torch.testing.assert_close(race(METHANOL, SPECIES, padded), alone)
    near = (METHANOL[index] - METHANOL[:, None]).norm(dim=-1) < 2.5
    torch.testing.assert_close(race(METHANOL, SPECIES, Neighbors(index, shifts, near)), alone)


def test_energies_are_smooth_at_the_cutoff():
    """A pair that comes apart has neither energy nor forces there, as beyond."""
    race = network(cutoff=2.5)
    pairs = torch.zeros(3, 2, 3, dtype=torch.float64)
    pairs[:, 1, 0] = torch.tensor([2.0, 2.5 - 1e-4, 3.0])
    found = race(pairs, (6, 8))
    torch.testing.assert_close(found.energy[1], found.energy[2], atol=1e-6, rtol=0)
    assert found.forces[0].abs().max() > 100 * found.forces[1].abs().max() > 0


def test_two_molecules_far_apart():
    """Energies add; the mean of log variances does not, and the sum of variances does."""
    apart = torch.cat([METHANOL, METHANOL + 50.0])
    for extensive, factor in ((False, 1.0), (True, 2.0)):
        race = network(extensive=extensive)
        one, two = race(METHANOL, SPECIES), race(apart, SPECIES * 2)
        torch.testing.assert_close(two.energy, 2 * one.energy)
        torch.testing.assert_close(two.log_variance.exp(), factor * one.log_variance.exp())


def test_reference_and_scale():
    race = network()
    forces = torch.full((2, 6, 3), 0.5)
    before = race(METHANOL, SPECIES).energy
    race.center(SPECIES, torch.tensor([-224.0, -226.0]), forces)
    assert race.reference_energy(SPECIES) == pytest.approx(-225.0)
    torch.testing.assert_close(race(METHANOL, SPECIES).energy, 0.5 * before)
    relative = race.relative(SPECIES, torch.tensor([-224.0]))
    torch.testing.assert_close(relative, torch.ones(1, dtype=torch.float64))


class AllOutputs(nn.Module):
    """All that a network says of methanol, in one tensor."""

    def __init__(self, **options):
        super().__init__()
        self.race = network(torch.float32, int(torch.randint(99, ())), **options)

    def forward(self, positions):
        found = self.race(positions, SPECIES)
        return torch.cat([found.energy[:, None], found.forces.flatten(1), found.l6.flatten(1)], 1)


@pytest.mark.slow
@pytest.mark.parametrize("covariance", ["invariant", "equivariant"])
def test_module(covariance):
    noise = torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(0))
    positions = METHANOL.float() + 0.05 * noise
    check_module(lambda: AllOutputs(covariance=covariance), positions)


def test_wrong_structures_are_named():
    race = network()
    on_top = METHANOL.clone()
    on_top[3] = on_top[2] + 0.01
    with pytest.raises(
        ValueError, match=r"positions must have atoms .* apart, got atom 2 .*0\.017"
    ):
        race(torch.stack([METHANOL, on_top]), SPECIES)
    with pytest.raises(ValueError, match=r"species must be among .*\[1, 6, 8\].* got \[7\]"):
        race(METHANOL, (6, 7, 1, 1, 1, 1))
    pairs = all_pairs(6)
    with pytest.raises(ValueError, match=r"neighbors\.others must be .* 0 to 5, got 1 to 6"):
        race(METHANOL, SPECIES, pairs._replace(others=pairs.others + 1))


def test_symbols_of_numpy():
    assert atomic_numbers(np.array(["C", "O"])) == (6, 8)
