"""The page on the Bayesian interatomic potential: its parts, and in full its claims."""

import pytest
import torch

from tests.pages import check_short_report

pytest.importorskip("ase")
pytest.importorskip("tblite")

PAGE = "bayesian-e3-potential"
pytestmark = pytest.mark.slow


def test_short_run_saves_a_report_and_figures(short_run):
    _, folder = short_run
    check_short_report(folder, PAGE, 12, {"losses", "trajectory", "uncertainty"})


def test_a_stack_is_its_networks(short_run):
    """Losses of all at once are those of each with its own frames."""
    names, _ = short_run
    frames = names["data"][0].train
    networks = [names["started"](frames, seed) for seed in range(2)]
    stack = names["Stack"](networks, [frames, frames], 0)
    batch = stack.batches.batch(0, 0)
    losses = stack.losses("joint", *batch)
    for number, network in enumerate(networks):
        x, energies, forces = (rows[:, number] for rows in batch)
        found = network(x, names["SPECIES"])
        alone = names["potential_loss"](
            found, energies, forces, force_weight=names["NUM_ATOMS"], densities=True
        )
        torch.testing.assert_close(losses[number], alone)
    assert torch.equal(stack.trained()[0].embedding, networks[0].embedding)


def test_area_under_the_curve(short_run):
    names, _ = short_run
    assert names["auroc"](torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0])) == 0.75


def test_errors_of_the_labels_themselves(short_run):
    names, _ = short_run
    frames, network = names["data"][0].train, names["by_loss"]["mse"][0]
    found = network(frames.positions, frames.species)
    exact = frames._replace(
        energies=found.energy.detach().double() + network.reference_energy(frames.species),
        forces=found.forces.detach().double(),
    )
    assert max(names["errors"]([network], exact)) < 0.1


def test_chosen_frames_are_of_the_pool(short_run):
    names, _ = short_run
    for chosen in names["choices"](0).values():
        assert len(set(chosen.tolist())) == names["NUM_CHOSEN"]


@pytest.mark.page
def test_full_run_meets_its_claims(full_run):
    failed = [claim.statement for claim in full_run.report.claims if not claim.holds]
    assert not failed
    assert full_run.returncode == 0
