"""The page on the Bayesian interatomic potential: its parts, and in full its claims."""

from statistics import fmean

import pytest
import torch

from pyro_ext.models.molecules import molecule_frames, potential_loss

pytest.importorskip("ase")
pytest.importorskip("tblite")

from pyro_ext.tutorials.papers._potential_training import Stack, ivon_draws, started, swag_draws

PAGE = "bayesian-e3-potential"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def frames():
    return molecule_frames("H2O", 12, every=2)


def test_a_stack_is_its_networks(frames):
    """Losses of all at once are those of each with its own frames, in an order of its own."""
    networks = [started(frames, seed) for seed in range(2)]
    stack = Stack(networks, [frames, frames], 0)
    batch = stack.batches.batch(0, 0)
    losses = stack.losses("joint", *batch)
    for number, network in enumerate(networks):
        x, energies, forces = (rows[:, number] for rows in batch)
        alone = potential_loss(
            network(x, frames.species), energies, forces, force_weight=3, densities=True
        )
        torch.testing.assert_close(losses[number], alone)
    assert not torch.equal(batch[0][:, 0], batch[0][:, 1])
    assert torch.equal(stack.trained()[0].embedding, networks[0].embedding)


def test_gradients_are_clipped_network_by_network(frames):
    """As if each were trained alone, so that one with large gradients slows no other one."""
    networks = [started(frames, seed) for seed in range(2)]
    stack = Stack(networks, [frames, frames], 0)
    batch = stack.batches.batch(0, 0)
    value, found = stack.clipped("joint", *batch)
    losses = stack.losses("joint", *batch)
    torch.testing.assert_close(value, losses.sum())
    for number in range(2):
        raw = torch.autograd.grad(
            losses[number],
            list(stack.params.values()),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        own = torch.cat([g[number].flatten() for g in raw])
        clipped = torch.cat([g[number].flatten() for g in found])
        torch.testing.assert_close(clipped, own * min(1.0, 10.0 / float(own.norm())))


@pytest.mark.parametrize("draws", [swag_draws, ivon_draws])
def test_draws_go_on_from_a_network(frames, draws):
    networks = [started(frames, seed) for seed in range(2)]
    before = networks[0].embedding.detach().clone()
    found = draws(networks, [frames, frames], 12, 3)
    assert [len(one) for one in found] == [3, 3]
    assert torch.equal(networks[0].embedding, before)
    for network, own in zip(networks, found, strict=True):
        every = torch.stack([one.embedding.detach() for one in own])
        assert 0 < every.std(0).max() < 0.1
        assert (every.mean(0) - network.embedding).abs().max() < 0.3


def test_errors_of_the_labels_themselves(names):
    frames, network = names["train"][0], names["potentials"]["mse"][0][0]
    found = network(frames.positions, frames.species)
    exact = frames._replace(
        energies=found.energy.detach().double() + network.reference_energy(frames.species),
        forces=found.forces.detach().double(),
    )
    assert max(names["errors"]([network], exact)) < 0.1


def test_chosen_frames_are_of_the_pool_and_learned_from(names):
    own, pool = names["train"][0], names["pools"][0]
    for chosen in names["choices"](0).values():
        assert len(set(chosen.tolist())) == names["NUM_CHOSEN"]
        more = names["with_chosen"](0, chosen)
        assert torch.equal(more.energies[: len(own.energies)], own.energies)
        assert torch.equal(more.forces[len(own.energies) :], pool.forces[chosen])


@pytest.mark.page
def test_full_run_meets_its_claims_but_those_that_have_a_reason(full_run):
    """Some come so near to their bounds that rounding on other machines may pass them.

    Of these the mean of the seeds is asked, since one of three may go otherwise.
    """
    claims = full_run.report.claims
    forces, energies, of_squares, _, alone, *_, against_rivals = claims
    for claim in claims:
        assert claim.holds or claim.reason or claim is of_squares, claim

    def mean(claim):
        return fmean(claim.values.values())

    assert forces.holds and energies.holds and mean(of_squares) < 1.6
    assert mean(alone) > -0.05 and mean(against_rivals) < 1.15
    assert full_run.returncode == (0 if all(claim.holds for claim in claims) else 1)
