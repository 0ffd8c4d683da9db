"""The page on SWAMP: its parts, a short run, and in full its claims."""

import pytest
import torch

from tests.pages import check_short_report

pytest.importorskip("sklearn")

PAGE = "swamp"
pytestmark = pytest.mark.slow
HOLD = (3, 5, 6, 7)  # of claims of a full run, counted from 0; why the others fail the page says


def test_short_run_saves_a_report_and_figures(short_run):
    _, folder = short_run
    check_short_report(folder, PAGE, 8, {"sparsity", "between-particles"})


def test_data_are_gray_levels_of_300_and_900_images(short_run):
    names, _ = short_run
    task = names["tasks"][0]
    images, labels = task.batches.rows
    assert images.shape == (300, 64) and task.images.shape == (900, 64) and len(labels) == 300
    levels = 16 * torch.cat([images, task.images])
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert float(levels.min().round()) == 0 and float(levels.max().round()) == 16


def test_sparsities(short_run):
    names, _ = short_run
    assert names["LEVELS"] == pytest.approx([1 - 0.6**c for c in range(3)], abs=1e-4)


def test_barriers(short_run):
    """Of a loss that is known, and none from a network to itself."""
    names, _ = short_run
    assert names["barrier"]([1.0, 4.0, 2.0]) == 2.5
    task, state = names["tasks"][0], names["runs"]["SWAMP"][0][0].state
    line = names["along"](task, state, state)
    assert len(line) == 11 and names["barrier"](line) == pytest.approx(0.0, abs=1e-6)
    assert line[0] == pytest.approx(names["score"](task, state)["nll"], rel=1e-5)


def test_scores_of_synflow_prune_to_the_density(short_run):
    names, _ = short_run
    pruner = names["synflow_pruner"](names["tasks"][0])
    assert 1 - pruner.sparsity() == pytest.approx(names["DENSITY"], abs=1e-3)


@pytest.mark.page
def test_full_run_meets_its_claims(full_run):
    claims = full_run.report.claims
    assert all(claims[number].holds for number in HOLD)
    assert all(claim.holds or claim.reason for claim in claims)
    assert full_run.report.settings["accuracy"]["SWAMP"][-1] > 0.9
